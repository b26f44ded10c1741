"""Calls that must not compile anything new, and calls that must: counted on a backend."""

from __future__ import annotations

import torch
from torch import Tensor

import attncc
from attncc.runtime.attention import Attention
from attncc.schedule.variant import Layout
from tests.acceptance.holds import EXAMPLES


def _call(
    attn: Attention, device: str, B: int = 1, H: int = 4, G: int = 2, M: int = 33, N: int = 33, pad: int = 0
) -> Tensor:
    made = [torch.randn(B, heads, rows, 16 + pad, device=device) for heads, rows in ((H, M), (G, N), (G, N))]
    q, k, v = (x[..., pad:].requires_grad_() for x in made)
    out: Tensor = attn(q, k, v)
    torch.autograd.backward(out.sum())
    return out


SIZES = ({"B": 3}, {"H": 8}, {"G": 1}, {"M": 5}, {"N": 70}, {"M": 1, "N": 64}, {"M": 40, "N": 7}, {"M": 0}, {"N": 0})


def sizes_and_constants(backend: str, device: str = "cpu") -> None:
    """Asserts that B, H, G, M, N, the window and the cap compile nothing new."""
    attn = attncc.compile(EXAMPLES / "gemma2.attn", backend=backend, window=20)
    others = len(attn.variants)  # of other tests: one text is one family
    _call(attn, device)
    built, known = attn.builds, attn.variants
    assert len(known) == others + 2
    for sizes in SIZES:
        _call(attn, device, **sizes)
    for constants in ({"window": 3}, {"window": 1000}, {"cap": 30.0}, {"window": 7, "cap": 2.5}):
        other = attncc.compile(EXAMPLES / "gemma2.attn", backend=backend, **constants)
        out = _call(other, device)
        assert not torch.equal(out, _call(attn, device))
    assert (attn.builds, attn.variants) == (built, known)


def unaligned_rows(backend: str, device: str = "cpu") -> None:
    """Asserts that unaligned rows get variants of their own, once, which promise nothing."""
    attn = attncc.compile(EXAMPLES / "causal.attn", backend=backend)
    others = attn.variants
    _call(attn, device)
    known = attn.variants[len(others) :]
    _call(attn, device, pad=1)
    new = attn.variants[len(others) + len(known) :]
    assert len(known) == 2 and len(new) == 2
    for name in ("q", "k", "v"):
        assert [v.layout(name) for v in (*known, *new)] == [Layout()] * 2 + [Layout(aligned=False)] * 2
        assert [v.layout(f"d_{name}") for v in (*known, *new)] == [Layout()] * 4
    for sizes in SIZES:
        _call(attn, device, pad=1, **sizes)
    assert attn.variants == (*others, *known, *new)
