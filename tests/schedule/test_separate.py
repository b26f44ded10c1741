"""Scores as sums of what they have by pair, by key and by query."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import attncc
from attncc.driver import load
from attncc.expr.build import ivar, lift, op
from attncc.expr.evaluate import Value, evaluate
from attncc.expr.nodes import Atom, Expr, walk
from attncc.ir.nodes import Contract, Load
from attncc.reference import evaluate as evaluate_spec
from attncc.schedule.separate import LANE, Parts, i, in_steps, j, separate
from attncc.schedule.variant import Target, Variant
from attncc.tile.interpret import run_program
from attncc.tile.nodes import Dtype, Let, Map, Type
from attncc.tile.verify import verify
from attncc.tile.walks import every
from tests.schedule.test_stream import build, captured, check
from tests.support.specs import QK, SCALED

H, KEY = ivar("h"), ivar("j0")
SLOPE = Load("slope", (H,), "real")
BY_ROW, BY_KEY, BY_PAIR = (Load("bias", (H, *at), "real") for at in ((i,), (j,), (i, j)))
AWAY, BACK = op("real", op("sub", j, i)), op("real", op("sub", i, j))
POSITION = Load("position", (j,), "int")


def mul(*factors: Expr | float) -> Expr:
    e = lift(factors[0])
    for f in factors[1:]:
        e = op("mul", e, f)
    return e


ALIBI = op("add", SCALED, mul(SLOPE, AWAY))
SCORES = {
    "slope": ALIBI,
    "scaled": mul(1.5, op("add", QK, mul(SLOPE, AWAY, 0.25))),
    "back": op("sub", SCALED, mul(SLOPE, BACK)),
    "divided": op("div", op("sub", op("add", QK, BY_ROW), BY_KEY), op("sqrt", ivar("D"))),
    "twice": op("add", ALIBI, mul(op("square", SLOPE), op("real", op("sub", i, mul(2, j))))),
    "distance": op("sub", SCALED, mul(SLOPE, op("real", op("abs", op("sub", i, j))))),
    "pairs": op("add", op("add", SCALED, BY_PAIR), op("sub", BY_ROW, mul(SLOPE, AWAY))),
    "curved": mul(SLOPE, op("tanh", op("add", QK, mul(0.01, BACK)))),
    "head": op("add", QK, SLOPE),
    "positions": op("add", QK, mul(SLOPE, op("real", op("sub", POSITION, i)))),
}


def value(e: Expr, key: int, lane: int, query: int, first: int) -> float:
    env: dict[Expr, Value] = {j: key, i: query, KEY: first, LANE: lane, ivar("D"): 64, POSITION: key + 3}
    env |= dict[Expr, Value]({SLOPE: 0.37, BY_ROW: 0.5 * query, BY_KEY: 0.25 * key - 1, BY_PAIR: 0.125 * key * query})
    env[QK] = 0.75 + 0.5 * key - query
    return float(evaluate(e, env))


@pytest.mark.parametrize("lane", [None, LANE], ids=["positions", "lanes"])
@pytest.mark.parametrize("name", SCORES)
def test_parts_add_up_and_read_what_they_say(name: str, lane: Expr | None) -> None:
    e = SCORES[name]
    parts = separate(e, KEY, lane)
    for first, at, query in itertools.product((0, 96), (0, 5, 31), (0, 7, 120)):
        here = value(parts.whole(), first + at, at, query, first)
        assert here == pytest.approx(value(e, first + at, at, query, first), rel=1e-12)
    reads = {n: {x for x in walk(p) if x in (i, j) or isinstance(x, Contract)} for n, p in named(parts).items()}
    assert i not in reads.get("key", set()) and reads.get("query", set()) <= {i}
    if lane is not None:
        assert j not in reads.get("key", set()) or BY_KEY in walk(parts.key or e)


def named(parts: Parts) -> dict[str, Expr]:
    found = {"pair": parts.pair, "key": parts.key, "query": parts.query}
    return {n: p for n, p in found.items() if p is not None}


def test_a_slope_leaves_the_product_alone_with_the_pairs() -> None:
    parts = separate(op("add", QK, mul(SLOPE, AWAY)), KEY, LANE)
    assert parts == Parts(QK, mul(SLOPE, op("real", LANE)), mul(SLOPE, op("real", op("sub", KEY, i))))


def test_what_is_the_same_for_a_head_never_meets_the_pairs() -> None:
    assert separate(SCORES["head"], KEY) == Parts(QK, None, SLOPE)


@pytest.mark.parametrize("e", [op("mul", BY_ROW, BY_KEY), op("tanh", QK), SCORES["positions"].args[1]])  # type: ignore[attr-defined]
def test_what_does_not_split_belongs_to_the_pair(e: Expr) -> None:
    assert set(named(separate(e, KEY, LANE))) == {"pair"}


def test_distances_are_converted_by_key_and_by_query() -> None:
    pair = separate(SCORES["distance"], KEY, LANE).pair
    assert pair is not None
    converted = [x.args[0] for x in walk(pair) if getattr(x, "name", "") == "real"]  # type: ignore[attr-defined]
    assert converted and not any({i, LANE} <= set(walk(x)) for x in converted)


def test_reads_are_left_as_written() -> None:
    index = op("floor", op("log", op("real", op("sub", i, j))))
    read = Load("table", (index,), "real")
    parts = separate(op("add", QK, read), KEY, LANE)
    assert parts.pair is not None and {x for x in walk(parts.pair) if isinstance(x, Atom)} >= {QK, read}


@pytest.mark.parametrize("e", [mul(SLOPE, op("real", LANE)), op("neg", op("real", LANE)), mul(-2.0, op("real", LANE))])
def test_steps_add_up(e: Expr) -> None:
    near, far, zero = op("mod", LANE, 8), op("mul", op("floordiv", LANE, 8), 8), ivar("zero")
    steps = in_steps(e, op("add", near, zero), far, zero)
    for lane in range(20):
        env: dict[Expr, Value] = {LANE: lane, SLOPE: 0.37, zero: 0}
        assert float(evaluate(steps, env)) == pytest.approx(float(evaluate(e, env)))


TEXTS = {
    "slopes": """attention slopes(slope: real[h], other: real[h]):
    score = q @ k / sqrt(D) + slope[h] * (j - i) - other[h] * other[h] * (i - j) * 0.5
    mask  = j <= i
    out   = softmax(score) @ v
""",
    "distance": """attention distance(slope: real[h]):
    score = q @ k / sqrt(D) - slope[h] * abs(i - j)
    out   = softmax(score) @ v
""",
    "biases": """attention biases(row: real[h, m], key: real[h, n], pair: real[h, m, n], slope: real[h]):
    score = (q @ k + row[h, i] - key[h, j]) / sqrt(D) + pair[h, i, j] + slope[h] * (j - i)
    mask  = j <= i + 3
    out   = softmax(score) @ v
""",
    "rows": """attention rows(row: real[b, h, m], head: real[h]):
    score = q @ k / sqrt(D) + row[b, h, i] * head[h] + head[h]
    mask  = j <= i
    out   = softmax(score) @ v
""",
    "capped": """attention capped(slope: real[h], key: real[b, n]):
    score = 5 * tanh((q @ k + slope[h] * (j - i)) / 20) + key[b, j]
    mask  = i - j < 30 and j <= i
    out   = softmax(score) @ v
""",
}


@pytest.mark.parametrize(
    "shape", [(2, 4, 2, 37, 37, 16, 16), (1, 2, 1, 70, 33, 16, 24), (1, 2, 2, 20, 90, 24, 16)], ids=str
)
@pytest.mark.parametrize("target", ["triton", "torch"])
@pytest.mark.parametrize("name", TEXTS)
def test_programs_match_the_reference(name: str, target: Target, shape: tuple[int, ...]) -> None:
    check(load(TEXTS[name])[0], target, shape)


@pytest.mark.parametrize("name", TEXTS)
def test_the_torch_backend_matches_the_reference(name: str) -> None:
    sizes = {"b": 1, "h": 2, "m": 70, "n": 90}
    torch.manual_seed(0)
    given: dict[str, Any] = {
        n: torch.randn(1, 2, s, 16, dtype=torch.float64) for n, s in (("q", 70), ("k", 90), ("v", 90))
    }
    given |= captured(load(TEXTS[name])[0], sizes)
    for x in given.values():
        x.requires_grad_()
    results = []
    for attend in (attncc.compile(TEXTS[name], backend="torch"), attncc.reference(TEXTS[name])):
        out: torch.Tensor = attend(**given)
        results.append((out, *torch.autograd.grad(out.sin().sum(), list(given.values()))))
    for what, got, want in zip(("out", *given), *results, strict=True):
        torch.testing.assert_close(got, want, msg=what)


@pytest.mark.parametrize("channels", [64, 80])
@pytest.mark.parametrize("name", ["slopes", "distance"])
def test_partitions_match_the_reference(name: str, channels: int) -> None:
    """With what keys add kept from turn to turn, and computed in every turn."""
    spec = load(TEXTS[name])[0]
    torch.manual_seed(0)
    tensors = {n: torch.randn(1, 2, 50, channels).half().double() for n in "qkv"}
    tensors |= {p.name: torch.randn(2).half().double() * 0.2 for p in spec.params}
    want = evaluate_spec(spec, tensors, {}, return_lse=True)
    small = "partitioned.forward.rows=16 partitioned.forward.keys=16"
    kinds: tuple[tuple[str, Dtype], ...] = tuple((p.name, "f32") for p in spec.params)
    program = build(spec, Variant("gluon", channels, channels, "f16", kinds, tiles=small)).forward
    assert not program.note
    verify(program)
    got = run_program(program, {n: x.numpy() for n, x in tensors.items()}).outputs
    np.testing.assert_allclose(got["out"], want.out.numpy(), atol=4e-3)
    assert want.lse is not None
    np.testing.assert_allclose(got["lse"], want.lse.numpy(), rtol=1e-6, atol=2e-6)


def test_far_keys_cost_near_ones_no_precision() -> None:
    """At 3,000 keys a term by row is a thousand times a score; by key it stays as large as a tile makes it."""
    spec = load(TEXTS["slopes"])[0]
    torch.manual_seed(0)
    shapes = {"q": (1, 1, 4, 16), "k": (1, 1, 3000, 16), "v": (1, 1, 3000, 16)}
    tensors = {n: torch.randn(s, dtype=torch.float32).double() for n, s in shapes.items()}
    tensors |= {"slope": torch.tensor([0.5], dtype=torch.float64), "other": torch.tensor([0.5], dtype=torch.float64)}
    want = evaluate_spec(spec, tensors, {}, return_lse=True)
    program = build(spec, Variant("triton", 16, 16, "f32", (("slope", "f32"), ("other", "f32")))).forward
    got = run_program(program, {n: x.float().numpy() for n, x in tensors.items()}).outputs
    np.testing.assert_allclose(got["out"], want.out.numpy(), atol=2e-6)
    assert want.lse is not None
    np.testing.assert_allclose(got["lse"], want.lse.numpy(), atol=2e-6)


@pytest.mark.parametrize("target", ["triton", "torch"])
def test_infinite_biases_hide_keys(target: Target) -> None:
    spec = load(TEXTS["biases"])[0]
    sizes = {"row": (2, 40), "key": (2, 50), "pair": (2, 40, 50), "slope": (2,)}
    torch.manual_seed(0)
    tensors = {n: torch.randn(s, dtype=torch.float64) for n, s in sizes.items()}
    tensors |= {n: torch.randn(1, 2, s, 16, dtype=torch.float64) for n, s in (("q", 40), ("k", 50), ("v", 50))}
    tensors["key"][:, 3:20:2] = float("inf")  # taken off the score
    tensors["pair"][:, :, 7] = float("-inf")
    want = evaluate_spec(spec, tensors, {}, return_lse=True)
    program = build(spec, Variant(target, 16, 16, "f64", tuple((n, "f64") for n in sizes))).forward
    got = run_program(program, {n: x.numpy() for n, x in tensors.items()}).outputs
    np.testing.assert_allclose(got["out"], want.out.numpy(), atol=1e-12)


def test_no_conversion_is_left_for_pairs() -> None:
    spec = load(TEXTS["slopes"])[0]
    pair = build(
        spec, Variant("triton", 64, 64, "bf16", (("slope", "f32"), ("other", "f32")), gradients=("q", "k", "v"))
    )
    assert pair.backward is not None
    for program in (pair.forward, pair.backward):
        for kernel in program.kernels:
            for s in every(kernel.body):
                match s:
                    case Let(_, Type(axes, _), Map(body)) if {a.name for a in axes} >= {"i", "j"}:
                        assert not any(getattr(x, "name", "") == "real" for x in walk(body))
