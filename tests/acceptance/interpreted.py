"""Tests that need Triton's interpreter, which is chosen when Triton is imported: test_interpreted.py runs this file
in processes of their own."""

from __future__ import annotations

import pytest
import torch

import attncc
from attncc.schedule.variant import Layout
from tests.acceptance import holds, recompiling, strided
from tests.acceptance.strided import CASES, Case
from tests.support.cells import Cell
from tests.support.inputs import truth

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.cells("interpreted")
def test_results_and_gradients(name: str, cell: Cell, seed: int) -> None:
    holds.hold(name, cell, backend="interpret", seed=seed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_views(case: Case, seed: int) -> None:
    attn = strided.hold(case, backend="interpret", seed=seed)
    assert len(attn.variants) >= 2


def test_sizes_and_constants_compile_nothing() -> None:
    recompiling.sizes_and_constants("interpret")


def test_unaligned_rows_are_a_variant() -> None:
    recompiling.unaligned_rows("interpret")


@pytest.mark.unpoisoned
def test_offsets_beyond_32_bits() -> None:
    """Rows, batches and channels that are 2**31 elements and more apart; the memory between is never touched."""
    far = 2**31 + 8
    buffer = torch.empty(2 * far + 64, dtype=torch.float16)
    base = torch.randn(4 * 16).half()
    q = torch.randn(1, 1, 2, 16).half()
    for strides in ((0, 0, far, 1), (0, 0, 16, far)):
        shape = (1, 1, 2, 16) if strides[3] == 1 else (1, 1, 2, 2)
        k = buffer.as_strided(shape, strides)
        k.copy_(base[: k.numel()].view(shape))
        _check(q[..., : shape[3]].contiguous(), k, torch.randn(1, 1, 2, 16).half())
    k = buffer.as_strided((2, 1, 2, 16), (far, 0, 16, 1))
    k.copy_(base.view(2, 1, 2, 16))
    _check(q.expand(2, 1, 2, 16), k, torch.randn(2, 1, 2, 16).half())


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    attn = attncc.compile(holds.EXAMPLES / "causal.attn", backend="interpret")
    want = truth("causal")(q=q, k=k.contiguous(), v=v, return_lse=False)
    q = q.contiguous().requires_grad_()
    out = attn(q, k, v)
    assert (out.double() - want).norm() <= 2e-3 * want.norm()
    (d_q,) = torch.autograd.grad(out, q, torch.ones_like(out))
    assert bool(d_q.isfinite().all())
    is_far = max(k.stride()[2:]) > 2**22
    assert attn.variants[-1].layout("k") == Layout(unit=k.stride(3) == 1, near=not is_far)
