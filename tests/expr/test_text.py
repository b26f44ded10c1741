"""The text form of expressions."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncc.expr.build import ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Sort, Var
from attncc.expr.text import ExprSyntaxError, Reader, parse_expr, show
from attncc.ir.nodes import Load
from tests.expr.strategies import BOOLS, INTS, REALS, expressions

SORTS: dict[str, Sort] = {v.name: v.sort for v in (*INTS, *REALS, *BOOLS)}
x, y = rvar("x"), rvar("y")
i, j, n = ivar("i"), ivar("j"), ivar("n")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["real", "int", "bool"]).flatmap(expressions))
def test_round_trip(e: Expr) -> None:
    assert parse_expr(show(e), SORTS) is e


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (op("sub", i, op("sub", j, n)), "i - (j - n)"),
        (op("sub", op("sub", i, j), n), "i - j - n"),
        (op("mul", op("add", x, y), 2.0), "(x + y) * 2.0"),
        (op("pow", op("neg", x), op("neg", y)), "(-x) ** -y"),
        (op("neg", op("pow", x, y)), "-x ** y"),
        (op("pow", x, op("pow", y, x)), "x ** y ** x"),
        (op("neg", Const(3, "int")), "-(3)"),
        (op("neg", op("neg", i)), "--i"),
        (op("sub", i, -3), "i - -3"),
        (Const(float("-inf"), "real"), "-inf"),
        (Const(1e-30, "real"), "1e-30"),
        (op("pow", -3.0, x), "(-3.0) ** x"),
        (op("neg", op("pow", 3.0, x)), "-3.0 ** x"),
        (op("not", op("and", op("lt", i, j), op("le", j, n))), "not (i < j and j <= n)"),
        (op("eq", op("lt", i, j), Var("p", "bool")), "(i < j) == p"),
        (op("or", Var("p", "bool"), op("not", op("eq", i, j))), "p or not i == j"),
        (op("where", op("lt", i, 0), 0.0, op("exp", x)), "where(i < 0, 0.0, exp(x))"),
        (op("mod", op("floordiv", i, 4), 3), "i // 4 % 3"),
        (op("floordiv", i, op("mod", j, 3)), "i // (j % 3)"),
    ],
)
def test_parentheses(e: Expr, text: str) -> None:
    assert show(e) == text
    assert parse_expr(text, SORTS) is e


def test_greater_is_read_as_less() -> None:
    assert parse_expr("i > j", SORTS) is op("lt", j, i)
    assert parse_expr("i + 1 >= j * 2", SORTS) is op("le", op("mul", j, 2), op("add", i, 1))


def test_atoms_have_a_hook() -> None:
    def read(r: Reader, name: str) -> Expr | None:
        if r.peek(1) != "[":
            return None
        r.take()
        index: list[Expr] = []
        while r.take() != "]":
            index.append(r.expr())
        return Load(name, tuple(index), "real")

    e = op("mul", op("exp", Load("k", (op("add", j, 1), i), "real")), x)
    text = show(e, lambda a: f"{a.tensor}[{', '.join(show(t) for t in a.index)}]" if isinstance(a, Load) else "?")
    assert text == "exp(k[j + 1, i]) * x"
    assert parse_expr(text, SORTS, read) is e
    with pytest.raises(TypeError, match="Load"):
        show(e)


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("", "expected an expression", 0),
        ("x +", "expected an expression", 3),
        ("(x", "expected '\\)'", 2),
        ("x)", "expected the end", 1),
        ("exp(x, y)", "takes 1 arguments, not 2", 0),
        ("x + max(x)", "takes 2 arguments, not 1", 4),
        ("zz + 1", "unknown name 'zz'", 0),
        ("i < j < n", "do not chain", 6),
        ("x // 2", "floordiv does not take", 2),
        ("x and p", "and does not take", 2),
        ("x ? y", "expected the end", 2),
        ("exp", "unknown name 'exp'", 0),
    ],
)
def test_mistakes_have_a_place(text: str, message: str, position: int) -> None:
    with pytest.raises(ExprSyntaxError, match=message) as caught:
        parse_expr(text, SORTS)
    assert caught.value.position == position


def test_nesting_is_not_bounded_by_the_stack() -> None:
    assert parse_expr("(" * 20_000 + "x" + ")" * 20_000, SORTS) is x
    e: Expr = x
    for _ in range(3000):
        e = op("exp", op("sub", y, e))
    assert parse_expr(show(e), SORTS) is e
