"""torch's FlexAttention: any score and mask of one pair, as Python functions made from the spec's expressions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attncc.expr.build import TRUE
from attncc.runtime.bench.case import Case
from attncc.runtime.bench.form import Form
from attncc.runtime.bench.peers import Ready
from attncc.runtime.bench.rows import Kind
from attncc.runtime.bench.suite import Row
from attncc.runtime.bench.translate import Unsayable, depends_on, pair_function
from attncc.runtime.bench.warming import first_calls


@dataclass(frozen=True)
class _Flex:
    name: str = "flex"
    package: str = "torch"

    def available(self, device: torch.device) -> str | None:
        try:
            import torch.nn.attention.flex_attention  # noqa: F401
        except ImportError:
            return "this torch has no flex_attention"
        return None

    def prepare(self, case: Case) -> Ready | str:
        form = case.form
        if isinstance(form, str):
            return form
        if case.sizes["M"] > case.sizes["N"]:
            return "there are more queries than keys"
        try:
            return _ready(case, form)
        except Unsayable as e:
            return str(e)

    def warm(self, rows: Sequence[Row], kind: Kind) -> list[Future[None]]:
        """Kernels of all rows, compiled in processes; nothing where there is but one row, or no GPU."""
        wanted = [r for r in rows if self.name not in r.without]
        if kind.device.type != "cuda" or len(wanted) < 2 or self.available(kind.device):
            return []
        return first_calls("flex", self.name, wanted, kind, _one_thread_each)


def _one_thread_each() -> None:
    """Inductor would start a process for each core, in every process."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def _ready(case: Case, form: Form) -> Ready:
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    s, setting, device = case.sizes, case.setting, case.device
    score = None if form.plain else pair_function(form.score, setting, scored=True)
    blocks = None
    if form.mask is not TRUE:
        holds = pair_function(form.mask, setting)
        batches, heads = (s[n] if depends_on(form.mask, n.lower()) else None for n in "BH")
        blocks = create_block_mask(holds, batches, heads, s["M"], s["N"], device=device)
    on_gpu = device.type == "cuda"
    function: Callable[..., Any] = flex_attention
    if on_gpu:
        torch._dynamo.reset()
        function = torch.compile(flex_attention, dynamic=False)
    q, k, v = (case.tensors[n] if on_gpu else case.tensors[n].detach() for n in "qkv")
    options = {"score_mod": score, "block_mask": blocks, "scale": form.scale, "enable_gqa": s["H"] != s["G"]}
    leaves = (q, k, v) if on_gpu else ()
    note = "" if on_gpu else "eager; no backward on a CPU"
    if form.sink is None:
        return Ready(lambda: function(q, k, v, **options), leaves, case.d_out, note=note)
    b = torch.arange(s["B"], device=device).view(-1, 1, 1)
    h = torch.arange(s["H"], device=device).view(-1, 1)
    i = torch.arange(s["M"], device=device)
    sink = torch.as_tensor(pair_function(form.sink, setting)(b, h, i, 0), device=device).log()

    def with_sink() -> Tensor:
        out, aux = function(q, k, v, return_aux=AuxRequest(lse=True), **options)
        kept: Tensor = out * torch.sigmoid(aux.lse - sink).unsqueeze(-1).to(out.dtype)
        return kept

    return Ready(with_sink, leaves, case.d_out, note=note)


PEERS = (_Flex(),)
