"""Contracting pointwise arrays: what disappears, what stays, and that nothing changes."""

from __future__ import annotations

from typing import Any

import torch

import attncc
from attncc.grammar import parse
from attncc.ir.nodes import Let
from attncc.ir.verify import verify
from attncc.passes.fuse import fuse

CHAIN = """
attention chain(a: real[b, h, n], w: real[h]):
    let x[b, h, n] = a * w[h]
    let y[b, h, n] = x + 1
    score = q @ k / sqrt(D) + y[b, h, j] * x[b, h, i]
    mask  = j <= i
    out   = softmax(score) @ v
"""

RUNNING = """
attention running(f: real[b, h, n]):
    let x[b, h, n] = f * 2
    let c[b, h, n] = cumsum(x over n)
    score = q @ k / sqrt(D) + c[b, h, i] - c[b, h, j]
    mask  = j <= i
    out   = softmax(score) @ v
"""


def test_a_chain_of_pointwise_arrays_disappears() -> None:
    fused = fuse(parse(CHAIN))
    verify(fused)
    assert fused.statements == ()


def test_a_running_sum_stays_and_takes_in_what_it_reads() -> None:
    fused = fuse(parse(RUNNING))
    verify(fused)
    assert [s.name for s in fused.statements if isinstance(s, Let)] == ["c"]


def test_a_spec_without_arrays_is_left_alone() -> None:
    spec = parse("attention plain:\n    out = softmax(q @ k) @ v\n")
    assert fuse(spec) is spec


def test_fused_arrays_get_their_gradients() -> None:
    torch.manual_seed(0)
    shape = (1, 2, 40, 8)
    inputs: dict[str, Any] = {n: torch.randn(shape, dtype=torch.float64, requires_grad=True) for n in ("q", "k", "v")}
    inputs["a"] = torch.randn(1, 2, 40, dtype=torch.float64, requires_grad=True)
    inputs["w"] = torch.randn(2, dtype=torch.float64, requires_grad=True)
    results = []
    for attn in (attncc.compile(CHAIN, backend="torch"), attncc.reference(CHAIN)):
        out = attn(**inputs)
        results.append((out, *torch.autograd.grad(out.sin().sum(), list(inputs.values()))))
    for name, got, want in zip(("out", *inputs), *results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=name)
