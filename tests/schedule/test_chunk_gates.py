"""Gradients of gates of tokens, summed over several chunks: what is computed where, and that they are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from attncc import driver
from attncc.grammar import parse
from attncc.schedule.chunk_gates import RUN
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.walks import every
from tests.support.interpreted import all_near, needs_triton

TWO = """attention two(a: real[b, h, n] in [-inf, 0], z: real[b, h, n] in [-inf, 0]):
    state S[d, e], R[d, e]
    S = exp(a[b, h, i]) * S + outer(k, v)
    R = exp(z[b, h, i]) * R + outer(k, v)
    out = q @ S + q @ R
"""
BEFORE = """attention before(a: real[b, h, n] in [-inf, 0]):
    state S[d, e]
    out = q @ S
    S = exp(a[b, h, i]) * S + outer(k, v)
"""
READ = """attention read(a: real[b, h, n] in [-inf, 0]):
    state S[d, e]
    S = exp(a[b, h, i]) * S + outer(k, v)
    out = (q @ S) * exp(a[b, h, i])
"""
TEXTS = {"two": TWO, "before": BEFORE, "read": READ}


def kernels(text: str, *gates: str) -> dict[str, t.Kernel]:
    captured: tuple[tuple[str, t.Dtype], ...] = tuple((n, "bf16") for n in gates)
    variant = Variant("triton", 64, 64, "bf16", captured, gradients=("q", "k", "v", *gates), capability=90)
    pair = driver.programs(parse(text), variant)
    assert pair.backward is not None
    return {k.name: k for k in pair.backward.kernels}


def loads(body: tuple[t.Stmt, ...]) -> set[str]:
    return {s.op.tensor for s in every(body) if isinstance(s, t.Let) and isinstance(s.op, t.Load)}


@pytest.mark.parametrize(("name", "gates"), [("two", ("a", "z")), ("before", ("a",))])
def test_a_run_of_chunks_needs_one_product_of_states(name: str, gates: tuple[str, ...]) -> None:
    """It stands in a branch, with what only it reads. Gates are read where their gradients are stored; reads before a
    change lack the row's own gate, which they take off."""
    found = kernels(TEXTS[name], *gates)
    body = found["gradients_kernel"].body
    branches = [s for s in body if isinstance(s, t.If)]
    assert len(branches) == len(gates)
    ends = [x.tensor for s in branches for x in s.then if isinstance(x, t.Store)]
    assert ends == [f"run_{n}_end" for n in range(len(gates))]
    assert all(any(isinstance(x, t.Let) and isinstance(x.op, t.Reduce) for x in s.then) for s in branches)
    assert loads(body) & set(gates) == ({"a"} if name == "before" else set())
    (grid,) = (g for g in found["gates_kernel"].grid if g.axis == "i")
    assert grid.tile == 64 * RUN
    assert set(gates) < loads(found["gates_kernel"].body)


def test_a_gate_that_is_read_besides_gets_its_gradient_at_once() -> None:
    found = kernels(READ, "a")
    assert "gates_kernel" not in found and "a" in loads(found["gradients_kernel"].body)


_INTERPRET = """
import torch
from pathlib import Path
from tests.schedule.test_chunk import tensors
from tests.schedule.test_chunk_gates import TEXTS
from tests.support.interpreted import errors
for name, text in TEXTS.items():
    file = Path(f"{name}.attn")
    file.write_text(text)
    for tokens in (63, 257, 400):
        _, given = tensors(file, torch.float16, B=1, H=2, G=1, M=tokens, N=tokens, D=16, E=16)
        for gate in given.keys() - {"q", "k", "v"}:
            given[gate][:, :, ::50] = -torch.inf
        for n, error in errors(file, given).items():
            assert error < 3e-3, (name, tokens, n, error)
print("all near")
"""


@needs_triton
def test_interpreted_triton(tmp_path: Path) -> None:
    all_near(_INTERPRET, tmp_path, ATTNCC_CACHE="off")
