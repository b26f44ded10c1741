"""How bounds move with a row: every direction that is claimed holds for all values."""

from __future__ import annotations

import itertools

import pytest

from attncc.expr.build import ivar, op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Expr
from attncc.ir.nodes import Load
from attncc.schedule.monotone import direction

i, w, flag = ivar("i"), ivar("w"), ivar("flag")
FIRST = Load("first", (ivar("b"), i), "int")

CLAIMS: list[tuple[Expr, int]] = [
    (op("add", i, 3), 1),
    (op("sub", w, i), -1),
    (op("floordiv", op("sub", i, w), 8), 1),
    (op("mul", -2, i), -1),
    (op("max", op("min", i, w), 5), 1),
    (op("where", op("lt", 0, flag), i, 7), 1),
    (op("sub", 4, op("neg", i)), 1),
    (op("add", w, 1), 0),
]


@pytest.mark.parametrize(("e", "way"), CLAIMS, ids=str)
def test_claims_hold(e: Expr, way: int) -> None:
    assert direction(e, "i") == way
    for width, f in itertools.product((-3, 0, 9), (-1, 1)):
        values = [evaluate(e, {i: n, w: width, flag: f}) for n in range(-20, 21)]
        steps = [b - a for a, b in itertools.pairwise(values)]
        assert all(s * way >= 0 for s in steps) and (way or not any(steps))


@pytest.mark.parametrize(
    "e",
    [op("sub", i, op("floordiv", i, 2)), op("abs", i), op("mod", i, 4), op("where", op("lt", i, 3), i, 7), FIRST],
    ids=str,
)
def test_what_is_not_known_is_not_claimed(e: Expr) -> None:
    assert direction(e, "i") is None


def test_a_read_rises_where_its_tensor_does() -> None:
    assert direction(op("add", FIRST, 1), "i", frozenset({"first"})) == 1
    assert direction(Load("first", (i, i), "int"), "i", frozenset({"first"})) is None
