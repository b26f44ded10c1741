"""Intervals enclose what is evaluated."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncc.expr.build import ivar, op, rvar
from attncc.expr.evaluate import Value, evaluate, evaluate_all
from attncc.expr.interval import ALL, UNKNOWN, Interval, bounds, decide
from attncc.expr.nodes import Expr, Op
from attncc.expr.ops import OPS
from attncc.expr.ops_derivative import domain
from attncc.expr.ops_interval import INTERVALS
from tests.expr.strategies import BOOLS, INTS, REALS, environments, expressions

i, j, n = INTS
x, y, cap = REALS
p = BOOLS[0]
INF = math.inf


def defined(e: Expr, env: dict[Expr, Value]) -> dict[Expr, Value] | None:
    """The values of all nodes, None where one doesn't exist."""
    values = evaluate_all(e, env)
    for node, value in values.items():
        if value is None or value != value:
            return None
        if isinstance(node, Op) and not evaluate(domain(node), {**env, **values}):
            return None
    return values


def test_every_operation_has_a_row() -> None:
    assert INTERVALS.keys() | {"where"} == OPS.keys()


@pytest.mark.parametrize("sort", ["real", "int", "bool"])
def test_soundness(sort: str) -> None:
    width = st.sampled_from([0, 0, 1, 5, 100, INF])

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(expressions(sort), environments(), st.data())
    def run(e: Expr, env: dict[Expr, Value], data: st.DataObject) -> None:
        values = defined(e, env)
        if values is None:
            return
        known: dict[Expr, Interval] = {}
        for v, value in env.items():
            if v.sort == "bool":
                known[v] = data.draw(st.sampled_from([UNKNOWN, Interval(value, value)]))
            else:
                known[v] = Interval(value - data.draw(width), value + data.draw(width))
        for node, value in values.items():
            assert value in bounds(node, known), (node, value, bounds(node, known))
        if sort == "bool":
            assert decide(e, known) in (None, values[e])

    run()


@pytest.mark.parametrize(
    ("e", "interval"),
    [
        (op("floordiv", i, 4), Interval(-2, 2)),
        (op("floordiv", i, -4), Interval(-3, 1)),
        (op("mod", i, 4), Interval(0, 3)),
        (op("mod", i, -4), Interval(-3, 0)),
        (op("mod", j, 100), Interval(3, 8)),
        (op("mod", op("add", j, 10), 10), Interval(3, 8)),
        (op("floordiv", 100, j), Interval(12, 33)),
        (op("floordiv", n, 4), Interval(0, INF)),
        (op("mod", i, n), Interval(0, INF)),
        (op("abs", i), Interval(0, 9)),
        (op("square", i), Interval(0, 81)),
        (op("mul", i, j), Interval(-56, 72)),
        (op("sub", i, n), Interval(-INF, 9)),
        (op("min", n, j), Interval(0, 8)),
        (op("where", op("lt", j, 9), i, n), Interval(-7, 9)),
        (op("floor", op("real", j)), Interval(3, 8)),
        (op("mul", 0, n), Interval(0, 0)),
        (op("mul", 10**400, n), Interval(0, INF)),
    ],
)
def test_integers_are_exact(e: Expr, interval: Interval) -> None:
    assert bounds(e, {i: Interval(-7, 9), j: Interval(3, 8), n: Interval(0, INF)}) == interval


def test_reals_stay_in_their_range() -> None:
    assert bounds(op("tanh", x)) == Interval(-1, 1)
    assert bounds(op("exp", x), {x: Interval(-INF, 0)}) == Interval(0, 1)
    assert bounds(op("recip", op("add", 1.0, op("exp", x)))) == Interval(0, 1)
    assert bounds(op("div", x, y)) == ALL
    tight = bounds(op("exp", x), {x: Interval(1.0, 1.0)})
    assert math.e in tight
    assert tight.hi - tight.lo < 1e-14
    assert bounds(op("silu", x)).lo == pytest.approx(-0.27846454276)
    assert bounds(op("pow", x, -2.0), {x: Interval(-1, 1)}) == Interval(0, INF)


def test_verdicts() -> None:
    env: dict[Expr, Interval] = {i: Interval(0, 63), j: Interval(64, 127)}
    assert decide(op("lt", i, j), env) is True
    assert decide(op("le", j, i), env) is False
    assert decide(op("lt", op("sub", j, i), 64), env) is None
    assert decide(op("and", op("lt", i, j), p), env) is None
    assert decide(op("or", op("lt", i, j), p), env) is True
    assert decide(op("eq", i, 64), env) is False
    assert decide(op("lt", i, 5), {op("lt", i, 5): Interval(1, 1)}) is True
    with pytest.raises(TypeError):
        decide(i)


def test_intervals_meet_and_join() -> None:
    a, b = Interval(0, 4), Interval(3, INF)
    assert a.meet(b) == Interval(3, 4)
    assert a.join(b) == Interval(0, INF)
    assert a.meet(Interval(5, 6)) is None
    assert a.finite and not b.finite
    with pytest.raises(ValueError, match="no number"):
        Interval(1, 0)


def test_depth_is_free() -> None:
    e: Expr = ivar("i")
    for _ in range(5000):
        e = op("add", e, 1)
    assert bounds(e, {i: Interval(0, 1)}) == Interval(5000, 5001)
    assert bounds(rvar("q")) == ALL
