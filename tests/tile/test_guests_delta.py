"""The chunkwise gated delta rule, interpreted, against its token recurrence; and the expansion of TriInverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attncc.expr.build import ivar
from attncc.expr.nodes import Const
from attncc.schedule.expand import expand
from attncc.tile.interpret import run_program
from attncc.tile.nodes import (
    Alloc,
    Axis,
    Dtype,
    For,
    Iota,
    Kernel,
    Launch,
    Let,
    Load,
    Program,
    Stmt,
    Store,
    Tensor,
    TriInverse,
    Type,
)
from attncc.tile.text import dump
from attncc.tile.text_parse import parse
from attncc.tile.verify import verify
from tests.tile.delta_cases import inputs, recurrence
from tests.tile.programs.gated_delta import Plan, program

SMALL = Plan(D=16, E=24, chunk=16, columns=16)
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.mark.parametrize("n", [0, 1, 16, 37, 64])
@pytest.mark.parametrize("expanded", [False, True])
def test_chunks_agree_with_the_recurrence(n: int, expanded: bool) -> None:
    p, x = program(SMALL), inputs(1, 2, n, 16, 24)
    report = run_program(expand(p) if expanded else p, x, {"scale": 0.25})
    out, state = recurrence(x, 0.25)
    np.testing.assert_allclose(report.outputs["out"], out, rtol=0, atol=3e-5)
    np.testing.assert_allclose(report.outputs["state"], state, rtol=0, atol=3e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.sampled_from([2, 4, 8, 32]), st.integers(0, 1000))
@example(41, 32, 805)
@example(62, 32, 0)
def test_any_length_and_chunk(n: int, chunk: int, seed: int) -> None:
    """Gates enter as differences of a chunk's running sums, which float32 rounds by 2^-24 of what they have reached."""
    p, x = expand(program(Plan(D=8, E=8, chunk=chunk, columns=8))), inputs(1, 1, n, 8, 8, seed)
    report = run_program(p, x, {"scale": 1.0}, seed=seed)
    out, state = recurrence(x, 1.0)
    starts = range(0, n, chunk)
    reached = max(float(np.abs(x["gate"][..., at : at + chunk]).sum(-1).max()) for at in starts)
    for name, wanted in (("out", out), ("state", state)):
        largest = max(1.0, float(np.abs(wanted).max(initial=0.0)))
        np.testing.assert_allclose(report.outputs[name], wanted, rtol=0, atol=(2e-5 + 2**-23 * reached) * largest)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_verified(dtype: Dtype) -> None:
    p = program(Plan(dtype=dtype))
    verify(p)
    verify(expand(p))


def test_text_round_trip() -> None:
    p = expand(program(SMALL))
    assert parse(dump(p)) == p


def inverse_program(size: int) -> Program:
    """out = TriInverse(x)."""
    r, c = Axis("r", size), Axis("c", size)
    own = Type((r, c), "f32")
    n = Const(size, "int")
    at = (ivar("row"), ivar("col"))
    body: tuple[Stmt, ...] = (
        Let("row", Type((r,), "i32"), Iota(Const(0, "int"))),
        Let("col", Type((c,), "i32"), Iota(Const(0, "int"))),
        Let("lower", own, Load("x", at)),
        Let("inv", own, TriInverse("lower", "r", "c")),
        Store("out", at, "inv"),
    )
    kernel = Kernel("invert", (), ("x", "out"), (), body)
    out = Tensor("out", ("r", "c"), (n, n), "f32")
    return Program(
        "invert", (Tensor("x", ("r", "c"), (n, n), "f32"),), (), (kernel,), (Alloc(out), Launch("invert")), ("out",)
    )


def lowers(body: tuple[Stmt, ...]) -> bool:
    """Whether no TriInverse is left."""
    return all(
        not (isinstance(s, Let) and isinstance(s.op, TriInverse)) and (not isinstance(s, For) or lowers(s.body))
        for s in body
    )


@pytest.mark.parametrize("size", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("kind", ["random", "ones"])
def test_tri_inverse_by_dots(size: int, kind: str) -> None:
    """All ones is where a product of powers loses every digit: its powers reach 1e18, its inverse 1."""
    rng = np.random.default_rng(0)
    full: Array = np.ones((size, size)) if kind == "ones" else rng.uniform(-0.3, 0.3, (size, size))
    lower = np.tril(full, -1).astype(np.float32)
    p = expand(inverse_program(size))
    assert lowers(p.kernels[0].body)
    got = run_program(p, {"x": lower}).outputs["out"]
    want = np.linalg.inv(np.eye(size) + lower.astype(np.float64))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(1.0, float(np.abs(want).max())))
