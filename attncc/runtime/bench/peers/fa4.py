"""FA4 (package flash-attn-4): bands of keys, plain and capped scores, a sink of each head."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attncc.expr.nodes import Op, Var
from attncc.ir.nodes import Load
from attncc.runtime.bench.case import Case
from attncc.runtime.bench.form import Form
from attncc.runtime.bench.peers import Ready

_MODULE = "flash_attn.cute"


@dataclass(frozen=True)
class _FA4:
    name: str = "fa4"
    package: str = "flash-attn-4"

    def available(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "runs on cuda only"
        try:
            found = importlib.util.find_spec(_MODULE)
        except ImportError:
            found = None
        if found is None:
            return "flash-attn-4 is not installed"
        return None if torch.cuda.get_device_capability(device)[0] >= 9 else "needs sm_90 or newer"

    def prepare(self, case: Case) -> Ready | str:
        form = case.form
        if isinstance(form, str):
            return form
        if not form.plain and form.cap is None:
            return "its score is more than a scaled product and a cap"
        if form.band is None:
            return "its mask is no band of keys"
        if case.tensors["q"].dtype not in (torch.float16, torch.bfloat16):
            return f"it does not compute in {case.tensors['q'].dtype}"
        options = _options(case, form)
        if isinstance(options, str):
            return options
        function: Any = importlib.import_module(f"{_MODULE}.interface").flash_attn_func
        q, k, v = (_turned(case.tensors[n].detach()) for n in "qkv")
        for x, n in zip((q, k, v), "qkv", strict=True):
            x.requires_grad_(case.tensors[n].requires_grad)

        def forward() -> Tensor:
            out = function(q, k, v, **options)
            found: Tensor = out[0] if isinstance(out, tuple) else out
            return found

        return Ready(forward, (q, k, v), _turned(case.d_out), lambda x: x.transpose(1, 2))


def _options(case: Case, form: Form) -> dict[str, Any] | str:
    assert form.band is not None
    left, right = form.band
    options: dict[str, Any] = {"softmax_scale": form.scale}
    if form.cap is not None:
        options |= {"softcap": form.cap, "softmax_scale": form.scale * form.cap}
    if right == 0:
        options["causal"] = True
    if left is not None or right not in (None, 0):
        options["window_size"] = (left, right)
    match form.sink:
        case None:
            pass
        case Op("exp", (Load(tensor, index, _),), _) if index == (Var("h", "int"),):
            options["learnable_sink"] = case.tensors[tensor].detach().to(torch.bfloat16)
        case _:
            return "its sink is not one number a head"
    return options


def _turned(x: Tensor) -> Tensor:
    """[B, H, N, D] as [B, N, H, D] and back, its own layout in memory."""
    return x.transpose(1, 2).contiguous()


PEERS = (_FA4(),)
