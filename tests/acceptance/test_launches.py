"""Launches on a GPU: graphs, streams, and what Python adds to a bare launch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attncc

pytestmark = pytest.mark.gpu
EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"
MOST_PYTHON = 25e-6
"""Seconds that a call may take beyond its bare launches."""


new_stream: Any = torch.cuda.Stream


def inputs(N: int = 128, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator("cuda").manual_seed(seed)
    q, k, v = (torch.randn(1, 8, N, 64, device="cuda", generator=gen).bfloat16() for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_a_captured_graph_computes_anew(backend: str) -> None:
    attn = attncc.compile(EXAMPLES / "causal.attn", backend=backend)
    held = inputs(500)
    for _ in range(2):
        attn(*held)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attn(*held)
    for seed in (1, 2):
        fresh = inputs(500, seed)
        for old, new in zip(held, fresh, strict=True):
            old.copy_(new)
        graph.replay()
        torch.testing.assert_close(out, attn(*fresh), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_streams_run_beside_each_other(backend: str) -> None:
    attn = attncc.compile(EXAMPLES / "causal.attn", backend=backend)
    cases = [inputs(1000, seed) for seed in range(8)]
    expected = [attn(*c) for c in cases]
    torch.cuda.synchronize()
    streams = [new_stream() for _ in range(4)]
    found = []
    for n, case in enumerate(cases):
        with torch.cuda.stream(streams[n % 4]):
            found.append(attn(*case))
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_python_adds_little_to_a_launch(backend: str) -> None:
    attn = attncc.compile(EXAMPLES / "causal.attn", backend=backend)
    tensors = inputs()
    with torch.no_grad():
        for _ in range(10):
            attn(*tensors)
        plan, ordered = attn.plan(*tensors, {})
        prepared = plan.prepared["forward"]
        assert prepared is not None
        outputs = plan.forward(ordered)
        addresses = [t.data_ptr() for t in (*ordered, *outputs)]
        _, stream, zeros = prepared.last
        addresses += zeros

        def bare() -> None:
            for launch in prepared.launches:
                launch(addresses, stream)

        added = best(lambda: attn(*tensors)) - best(bare)
    print(f"{backend}: {1e6 * added:.1f} us beyond {1e6 * best(bare):.1f} us")
    assert added <= MOST_PYTHON


def best(call: Callable[[], object], rounds: int = 7) -> float:
    """Seconds a call, of 1,000; the best round."""
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(1000):
            call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / 1000)
    return min(found)
