"""Specs print and read back to equal Specs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from attncc.expr.build import ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.grammar import parse
from attncc.ir.nodes import Out, Reduce, Spec
from attncc.ir.text import BadText, read_spec, spell_spec
from attncc.ir.verify import verify
from tests.ir.strategies import specs
from tests.support.specs import KEYS, SPECS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.attn"))


@settings(max_examples=150, deadline=None)
@given(specs())
def test_round_trip_of_random_specs(spec: Spec) -> None:
    verify(spec)
    text = spell_spec(spec)
    assert read_spec(text) == spec
    assert spell_spec(read_spec(text)) == text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_round_trip_of_examples(path: Path) -> None:
    spec = parse(path.read_text(encoding="utf-8"), path.name)
    assert read_spec(spell_spec(spec)) == spec


def test_text_is_what_it_is() -> None:
    assert spell_spec(SPECS["gpt_oss"]).splitlines() == [
        "spec gpt_oss",
        "const window: int = 128",
        "param sink: real[h: H]",
        "%1 = contract(d < D, q[b, h, i, d], k[b, g, j, d])",
        "%2 = weights(ratio, j < N, score = %1 / sqrt(real(D)), mask = j <= i and i - j < window, "
        "phi = exp(%s), psi = exp(%s), z = exp(sink[h]))",
        "out = contract(j < N, %2, v[b, g, j, e])",
    ]


x, y = rvar("x"), rvar("y")


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (op("sub", x, op("sub", y, x)), "x@real - (y@real - x@real)"),
        (op("pow", Const(-2.0, "real"), x), "(-2.0) ** x@real"),
        (op("neg", op("pow", 2.0, x)), "-2.0 ** x@real"),
        (op("neg", Const(2.0, "real")), "neg(2.0)"),
        (op("pow", op("pow", x, y), -0.5), "(x@real ** y@real) ** (-0.5)"),
        (op("mul", op("neg", x), op("add", x, y)), "-x@real * (x@real + y@real)"),
        (op("sub", x, Const(-1.0, "real")), "x@real - -1.0"),
        (op("not", op("not", op("lt", x, y))), "not not x@real < y@real"),
        (op("and", op("or", Var("p", "bool"), op("not", Var("p", "bool"))), op("lt", x, y)), None),
        (op("where", op("lt", x, float("inf")), x, float("-inf")), "where(x@real < inf, x@real, -inf)"),
        (op("real", op("floordiv", ivar("i"), op("floordiv", 4, 2))), "real(i // (4 // 2))"),
        (Op("real", (Const(2, "int"),), "real"), "real(2)"),
        (Reduce("argmax", x, KEYS, op("lt", ivar("j"), 3), "int"), "reduce(argmax, j < N, x@real, where = j < 3)"),
        (Reduce("any", op("lt", x, y), KEYS, sort="bool"), "reduce(any, j < N, x@real < y@real)"),
        (Const(1e300, "real"), "1e+300"),
    ],
)
def test_expressions(e: Expr, text: str | None) -> None:
    spec = Spec("one", (), (), (), Out(e))
    printed = spell_spec(spec)
    assert read_spec(printed) == spec
    if text is not None:
        assert printed.splitlines()[-1] == f"out = {text}"


def test_shared_parts_are_printed_once() -> None:
    e: Expr = x
    for _ in range(60):
        e = op("mul", e, op("tanh", e))
    text = spell_spec(Spec("shared", (), (), (), Out(e)))
    assert len(text) < 5000 and read_spec(text).out.body is e


def test_deep_expressions_are_broken_into_lines() -> None:
    e: Expr = x
    for n in range(3000):
        e = op("add", op("mul", e, float(n)), 1.0)
    text = spell_spec(Spec("deep", (), (), (), Out(e)))
    assert read_spec(text).out.body is e


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec x", "no line for out"),
        ("spec x\nout = q[b, h", "line 2"),
        ("spec x\nout = %7", "line 2"),
        ("spec x\nout = 1.0 2.0", "line 2: something is left over at 2.0"),
        ("spec x\nout = 1.0 $", "line 2: can't read"),
        ("spec x\nout = tanh(1.0, 2.0)", "line 2: tanh takes 1"),
        ("spec x\nout = frobnicate(1.0)", "line 2"),
        ("spec x\nwhat", "line 2: a statement is wanted"),
        ("spec x\nconst c: text = 1", "line 2: one of int, real, bool"),
        ("spec x\nconst c: int = 1 + 1", "line 2: a literal"),
        ("spec x\nparam t real[h: H]", "line 2: `:` is wanted"),
        ("spec x\nout = weights(other, j < N)", "line 2: one of ratio"),
    ],
)
def test_bad_text_names_its_line(text: str, message: str) -> None:
    with pytest.raises(BadText, match=message):
        read_spec(text)
