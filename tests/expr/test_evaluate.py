"""Evaluation: floors, IEEE reals, what does not exist."""

from __future__ import annotations

import math

import pytest

from attncc.expr.build import TRUE, ivar, op, rvar
from attncc.expr.evaluate import FUNCTIONS, evaluate
from attncc.expr.nodes import Expr
from attncc.expr.ops import OPS

i, x = ivar("i"), rvar("x")


def test_every_operation_has_a_function() -> None:
    assert FUNCTIONS.keys() | {"where", "and", "or"} == OPS.keys()


@pytest.mark.parametrize(
    ("e", "value"),
    [
        (op("floordiv", -7, 4), -2),
        (op("mod", -7, 4), 1),
        (op("mod", 7, -4), -1),
        (op("mul", 10**30, 10**30), 10**60),
        (op("exp", 1000.0), math.inf),
        (op("div", -1.0, 0.0), -math.inf),
        (op("log", 0.0), -math.inf),
        (op("pow", -2.0, 3.0), -8.0),
        (op("pow", 0.0, -2.0), math.inf),
        (op("pow", -1e200, 3.0), -math.inf),
        (op("rsqrt", 0.0), math.inf),
        (op("sigmoid", -1000.0), 0.0),
        (op("softplus", 1000.0), 1000.0),
        (op("silu", float("-inf")), 0.0),
        (op("gelu", float("-inf")), 0.0),
        (op("relu", -3), 0),
        (op("real", TRUE), 1.0),
        (op("real", 10**400), math.inf),
        (op("where", op("eq", i, 0), 5, op("floordiv", 1, i)), 5),
        (op("and", op("ne", i, 0), op("lt", op("floordiv", 1, i), 3)), False),
        (op("where", op("lt", x, 0.0), 0.0, op("log", x)), 0.0),
    ],
)
def test_values(e: Expr, value: float) -> None:
    found = evaluate(e, {i: 0, x: -1.0})
    assert found == value
    assert type(found) is type(value)


def test_what_does_not_exist() -> None:
    assert math.isnan(evaluate(op("sqrt", x), {x: -1.0}))
    assert math.isnan(evaluate(op("log", x), {x: -1.0}))
    assert math.isnan(evaluate(op("sin", x), {x: math.inf}))
    for e in (op("floordiv", 1, i), op("mod", 1, i), op("floor", op("log", op("real", i)))):
        with pytest.raises(ArithmeticError):
            evaluate(e, {i: 0})
    with pytest.raises(KeyError):
        evaluate(op("add", i, 1))


def test_environments_give_whole_nodes() -> None:
    e = op("mul", op("exp", x), op("exp", x))
    assert evaluate(e, {op("exp", x): 3.0}) == 9.0
