"""Positive factors of scores, and capped scores of either sign against the reference."""

from __future__ import annotations

import math

import pytest

from attncc.expr.build import ivar, op, rvar
from attncc.expr.evaluate import Value, evaluate
from attncc.expr.interval import bounds
from attncc.expr.nodes import Const, Expr
from attncc.grammar import parse
from attncc.ir.nodes import Load
from attncc.schedule.positive import LEAST, positive_factor
from attncc.schedule.variant import Target
from tests.schedule.test_stream import SHAPES, check
from tests.support.specs import QK

CAP, TEMPERATURE = rvar("cap"), Load("temp", (ivar("h"),), "real")
INNER = op("div", 0.125, CAP)
CAPPED = op("mul", CAP, op("tanh", op("mul", INNER, QK)))


def number(e: Expr, cap: float, qk: float) -> float:
    env: dict[Expr, Value] = {CAP: cap, QK: qk, TEMPERATURE: 0.5}
    return float(evaluate(e, env))


def test_a_product_by_a_positive_constant_is_taken_apart() -> None:
    assert positive_factor(op("mul", 0.5, QK)) == (Const(0.5, "real"), QK)
    factor = op("exp", TEMPERATURE)
    assert positive_factor(op("mul", op("max", factor, 0.5), QK)) == (op("max", factor, 0.5), QK)


@pytest.mark.parametrize(
    "e",
    [
        QK,
        op("mul", -0.5, QK),
        op("mul", TEMPERATURE, QK),
        op("mul", Load("heat", (ivar("i"),), "real"), op("tanh", op("mul", 2.0, QK))),
        op("mul", CAP, op("exp", op("mul", 2.0, QK))),
        op("mul", CAP, op("tanh", QK)),
    ],
    ids=["no product", "negative", "of unknown sign", "by row", "no odd function", "nothing takes the sign"],
)
def test_what_stays_whole(e: Expr) -> None:
    assert positive_factor(e) is None


@pytest.mark.parametrize("cap", [50.0, 0.25, -3.0, -1e4])
@pytest.mark.parametrize("f", ["tanh", "erf", "sin"])
def test_odd_functions_take_up_the_sign(f: str, cap: float) -> None:
    whole = op("mul", CAP, op(f, op("mul", INNER, QK)))
    found = positive_factor(whole)
    assert found is not None
    factor, rest = found
    assert bounds(factor).lo > 0
    for qk in (-7.5, 0.0, 1.25, 300.0):
        assert number(factor, cap, qk) == abs(cap)
        assert number(op("mul", factor, rest), cap, qk) == pytest.approx(number(whole, cap, qk))


def test_a_factor_of_zero_can_be_multiplied_by_infinity() -> None:
    found = positive_factor(CAPPED)
    assert found is not None
    assert number(found[0], 0.0, 1.0) == LEAST
    assert LEAST * -math.inf == -math.inf


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("target", ["triton", "torch"])
@pytest.mark.parametrize("cap", [3.0, -3.0])
def test_capped_scores_match_the_reference(cap: float, target: Target, shape: tuple[int, ...]) -> None:
    text = "score = cap * tanh(q @ k / (sqrt(D) * cap))\n    mask = j <= i\n    out = softmax(score) @ v"
    check(parse(f"attention capped(cap = {cap}):\n    {text}\n"), target, shape)
