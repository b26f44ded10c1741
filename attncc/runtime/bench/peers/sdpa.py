"""torch's scaled_dot_product_attention: full and causal, plain scores; each of its backends is a peer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attncc.runtime.bench.case import Case
from attncc.runtime.bench.peers import Ready


@dataclass(frozen=True)
class _Backend:
    name: str
    kind: str
    backend: SDPBackend | None
    package: str = "torch"

    def available(self, device: torch.device) -> str | None:
        return None if device.type == self.kind else f"runs on {self.kind} only"

    def prepare(self, case: Case) -> Ready | str:
        form, s = case.form, case.sizes
        if isinstance(form, str):
            return form
        if not form.plain or form.sink is not None:
            return "its score is more than a scaled product"
        if form.band not in ((None, None), (None, 0)):
            return "its mask is neither full nor causal"
        causal = form.band == (None, 0)
        if causal and s["M"] != s["N"]:
            return "its causal mask starts at the first key"
        q, k, v = (case.tensors[n] for n in "qkv")
        scale, grouped, backend = form.scale, s["H"] != s["G"], self.backend

        def plain() -> Tensor:
            return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)

        def chosen() -> Tensor:
            assert backend is not None
            with sdpa_kernel(backend):
                return plain()

        return Ready(plain if backend is None else chosen, (q, k, v), case.d_out)


PEERS = (
    _Backend("sdpa-cudnn", "cuda", SDPBackend.CUDNN_ATTENTION),
    _Backend("sdpa-fa2", "cuda", SDPBackend.FLASH_ATTENTION),
    _Backend("sdpa", "cpu", None),
)
