"""Random state programs in chunks: out and every gradient equal the token loop in float64."""

from __future__ import annotations

import pytest
import torch

import attncc
from attncc.grammar import parse
from attncc.passes.classify import classify
from tests.support.random_states import far, program

BLOCK = 10


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", "off")


def worst(seed: int, backend: str, dtype: torch.dtype, device: str = "cpu", *, gradients: bool = True) -> str:
    """The results above the bar, in words; "" where there are none."""
    bar = {torch.float64: 1e-11, torch.float32: 2e-4}[dtype]
    attention = attncc.compile(program(seed), backend=backend, form="chunk")
    found = far(attention, seed, dtype, device, gradients=gradients)
    bad = {n: f"{e:.1e}" for n, e in found.items() if not e <= bar}
    return f"{seed}: {bad}\n{program(seed)}" if bad else ""


@pytest.mark.parametrize("first", range(0, 300, BLOCK))
def test_random_programs(first: int) -> None:
    """In float64; every fourth with its gradients."""
    seeds = range(first, first + BLOCK)
    wrong = [w for s in seeds if (w := worst(s, "torch", torch.float64, gradients=s % 4 == 0))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("seed", range(60))
def test_random_programs_on_a_gpu(seed: int) -> None:
    torch.set_float32_matmul_precision("highest")
    assert not worst(seed, "triton", torch.float32, "cuda")


def test_what_is_drawn() -> None:
    """Every class, every number of axes, chains and normalisers are among the programs."""
    texts = [program(s) for s in range(300)]
    assert len(set(texts)) > 280
    classes = {kind for t in texts[:60] for c in classify(parse(t)) for kind, _ in c.kinds}
    assert {"identity", "constant", "scalar", "key", "value", "separable"} <= classes
    for part in ("f: D", "tanh(q @", "/ max(", "exp(grow", "softmax(", "let old"):
        assert sum(part in t for t in texts) >= 10, part
