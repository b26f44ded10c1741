"""The warp-specialised forward, interpreted under random interleavings of its partitions, against numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.tile.interpret import run_program
from attncc.tile.interpret_faults import DeadlockFault, InterpretError, RaceFault
from attncc.tile.nodes import BarArrive, BarWait, Fence, For, Partitions, Program, Stmt
from attncc.tile.text import dump
from attncc.tile.text_parse import parse
from attncc.tile.verify import verify
from tests.tile.programs.hopper_forward import PLANS, Plan, Score, biased, capped, program, scaled

Array = np.ndarray[Any, np.dtype[Any]]
SMALL = Plan(D=16, dtype="f32", consumers=2, keys=8, depth=2, rows=8)
SCALE, CAP = 0.25, 2.0


def inputs(h: int, g: int, m: int, n: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"q": (1, h, m, 16), "k": (1, g, n, 16), "v": (1, g, n, 16)}
    made = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    return {**made, "slopes": np.linspace(0.1, 0.5, h).astype(np.float32)}


def expected(x: dict[str, Array], causal: bool, score: Score) -> tuple[Array, Array]:
    """Dense, in float64; a row without keys gives 0 and -inf."""
    q, k, v = (x[n].astype(np.float64) for n in ("q", "k", "v"))
    h, m, n = q.shape[1], q.shape[2], k.shape[2]
    k, v = (np.repeat(t, h // t.shape[1], 1) for t in (k, v))
    i, j = np.arange(m)[:, None] + n - m, np.arange(n)[None]
    s = q @ k.swapaxes(-1, -2) * SCALE
    if score is capped:
        s = CAP * np.tanh(s / CAP)
    if score is biased:
        s = s + x["slopes"].astype(np.float64)[:, None, None] * (j - i)
    s = np.where(j <= i, s, -np.inf) if causal else s
    top = np.maximum(s.max(-1, keepdims=True), -1e300)
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total > 0, top + np.log(total), -np.inf)[..., 0]
    return p / np.where(total > 0, total, 1) @ v, lse


def check(plan: Plan, score: Score, x: dict[str, Array], seed: int) -> None:
    p = program(plan, score)
    constants = {"scale": SCALE, "cap": CAP} if score is capped else {"scale": SCALE}
    report = run_program(p, {t.name: x[t.name] for t in p.inputs}, constants, seed=seed)
    out, lse = expected(x, plan.causal, score)
    np.testing.assert_allclose(report.outputs["out"], out, rtol=0, atol=2e-6)
    np.testing.assert_allclose(report.outputs["lse"], lse, rtol=0, atol=2e-6)


@pytest.mark.parametrize("score", [scaled, capped, biased])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("peeled", [True, False])
def test_forward(score: Score, causal: bool, turns: bool, peeled: bool) -> None:
    check(replace(SMALL, causal=causal, turns=turns, peeled=peeled), score, inputs(4, 2, 40, 40), seed=1)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(2, 3),
    st.integers(1, 4),
    st.sampled_from([4, 8, 32]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_lengths_and_any_interleaving(
    m: int, n: int, consumers: int, depth: int, keys: int, causal: bool, turns: bool, seed: int
) -> None:
    plan = replace(SMALL, consumers=consumers, depth=depth, keys=keys, causal=causal, turns=turns)
    check(plan, scaled, inputs(1, 1, m, n, seed % 7), seed)


def test_rows_without_keys() -> None:
    x = inputs(1, 1, 33, 17)
    check(SMALL, scaled, x, seed=3)
    assert np.isneginf(expected(x, True, scaled)[1][0, 0, :16]).all()


@pytest.mark.parametrize("name", PLANS)
def test_verified(name: str) -> None:
    verify(program(*PLANS[name]))


def test_text_round_trip() -> None:
    p = program(replace(SMALL, turns=True), biased)
    assert parse(dump(p)) == p


def without(body: tuple[Stmt, ...], gone: type[Stmt], name: str) -> tuple[Stmt, ...]:
    """`body` less every statement of class `gone` on barrier `name` (any, where it has none)."""
    kept: list[Stmt] = []
    for s in body:
        if isinstance(s, gone) and getattr(getattr(s, "bar", None), "name", name) == name:
            continue
        if isinstance(s, For):
            s = replace(s, body=without(s.body, gone, name))
        elif isinstance(s, Partitions):
            s = replace(s, parts=tuple(replace(p, body=without(p.body, gone, name)) for p in s.parts))
        kept.append(s)
    return tuple(kept)


def broken(gone: type[Stmt], name: str) -> Program:
    p = program(SMALL)
    return replace(p, kernels=(replace(p.kernels[0], body=without(p.kernels[0].body, gone, name)),))


@pytest.mark.parametrize(
    ("gone", "name", "fault"),
    [
        (BarWait, "k_full", InterpretError),
        (BarWait, "v_empty", RaceFault),
        (BarArrive, "k_empty", DeadlockFault),
        (Fence, "", RaceFault),
    ],
)
def test_a_missing_barrier_is_found(gone: type[Stmt], name: str, fault: type[InterpretError]) -> None:
    p, x = broken(gone, name), inputs(1, 1, 40, 40)
    with pytest.raises(fault):
        for seed in range(20):
            run_program(p, {t.name: x[t.name] for t in p.inputs}, {"scale": SCALE}, seed=seed)
