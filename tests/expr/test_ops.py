"""The op table's plain columns, and the spellings."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from attncc.expr.build import ivar, op, rvar
from attncc.expr.evaluate import Value, apply, evaluate
from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.expr.ops import OPS
from attncc.expr.ops_spelling import EXPANSIONS, SPELLINGS
from attncc.expr.spell import expand, spell
from tests.expr.strategies import environments, expressions, well_defined

x, y = rvar("x"), rvar("y")
i, j = ivar("i"), ivar("j")
GRID = [-3.5, -2.0, -1.0, -0.3, 0.0, 0.2, 0.5, 1.0, 1.5, 4.0]
UNARY = [n for n, row in OPS.items() if row.arity == 1 and row.rule in ("join", "real", "to_int")]
BINARY = [n for n, row in OPS.items() if row.arity == 2 and row.rule in ("join", "real", "compare")]


def name_of(e: Expr) -> str | None:
    return e.name if isinstance(e, Var) else None


def value_of(name: str, *args: float) -> float:
    sort = op(name, *args).sort
    return float(apply(name, args, sort))


@pytest.mark.parametrize("name", UNARY)
def test_monotone_rows_of_one_argument(name: str) -> None:
    values = [v for v in (value_of(name, a) for a in GRID) if math.isfinite(v)]
    steps = [b - a for a, b in pairwise(values)]
    direction = OPS[name].direction(0)
    assert (all(s >= 0 for s in steps)) == (direction == 1)
    assert (all(s <= 0 for s in steps) or name == "recip") == (direction == -1 or name == "recip")


@pytest.mark.parametrize("name", BINARY)
def test_monotone_rows_of_two_arguments(name: str) -> None:
    for k, direction in enumerate(OPS[name].monotone):
        for fixed in GRID:
            args = [(a, fixed) if k == 0 else (fixed, a) for a in GRID]
            values = [value_of(name, *a) for a in args]
            assert all((b - a) * direction >= 0 for a, b in pairwise(values))


@pytest.mark.parametrize("name", [n for n, row in OPS.items() if row.degree is not None and n not in ("real", "where")])
def test_degrees(name: str) -> None:
    degree = OPS[name].degree
    assert degree is not None
    for a in GRID:
        for b in GRID if OPS[name].arity == 2 else [1.0]:
            args = (a, b)[: OPS[name].arity]
            value = value_of(name, *args)
            if math.isfinite(value):
                assert value_of(name, *(4.0 * t for t in args)) == pytest.approx(4.0**degree * value)


@pytest.mark.parametrize("name", UNARY)
def test_odd_functions(name: str) -> None:
    values = [(value_of(name, -a), -value_of(name, a)) for a in GRID if a > 0]
    assert OPS[name].odd == all(a == pytest.approx(b) for a, b in values)


def test_every_printer_writes_every_operation() -> None:
    for printer in ("triton", "torch", "python"):
        for name, row in OPS.items():
            assert name in SPELLINGS[printer] or name in EXPANSIONS, (printer, name)
            if name in SPELLINGS[printer]:
                assert all(f"{{{k}}}" in SPELLINGS[printer][name].template for k in range(row.arity))


@pytest.mark.parametrize("sort", ["real", "int", "bool"])
def test_python_spelling_evaluates(sort: str) -> None:
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(expressions(sort), environments())
    def run(e: Expr, env: dict[Expr, Value]) -> None:
        values = well_defined(e, env)
        if values is None:
            return
        text = spell(expand(e, "python"), "python", name_of)
        scope = {v.name: value for v, value in env.items() if isinstance(v, Var)} | {"math": math}
        try:
            found = eval(text, scope)
        except (ArithmeticError, ValueError):  # Python stops where IEEE goes on
            return
        assert found == pytest.approx(values[e], rel=1e-6, abs=1e-9)

    run()


@pytest.mark.parametrize("name", [n for n in SPELLINGS["torch"] if n != "where"] + list(EXPANSIONS))
def test_torch_spelling_evaluates(name: str) -> None:
    row = OPS[name]
    sort = {"int": "int", "to_real": "int", "bool": "bool"}.get(row.rule, "real")
    args = tuple(Var(n, sort) for n in ("a", "b")[: row.arity])  # type: ignore[arg-type]
    e = op(name, *args)
    text = spell(expand(e, "torch"), "torch", name_of, {"int": "torch.int64", "real": "torch.float64"})
    convert: Callable[[float], Value] = {"int": lambda t: int(t) + 1, "bool": lambda t: t > 1, "real": float}[sort]
    for a in (0.5, 2.0, 3.0):
        for b in (0.5, 2.0):
            values: dict[Expr, Value] = {v: convert(t) for v, t in zip(args, (a, b), strict=False)}
            scope = {v.name: torch.tensor(values[v], dtype=torch.float64 if sort == "real" else None) for v in args}
            assert _run(text, scope).item() == pytest.approx(evaluate(e, values), rel=1e-12)


def _run(text: str, scope: dict[str, torch.Tensor]) -> torch.Tensor:
    result = eval(text.replace(", 0.0)", ", torch.tensor(0.0).double())"), {"torch": torch, **scope})
    assert isinstance(result, torch.Tensor)
    return result


def test_parentheses_follow_precedence() -> None:
    def s(e: Expr, printer: str) -> str:
        return spell(e, printer, name_of, {"real": "tl.float32", "int": "tl.int32"})

    both = op("and", op("lt", i, j), op("not", op("eq", i, 0)))
    assert s(both, "triton") == "(i < j) & ~(i == 0)"
    assert s(both, "python") == "i < j and not i == 0"
    assert s(op("sub", x, op("sub", y, x)), "triton") == "x - (y - x)"
    assert s(op("real", op("sub", j, i)), "triton") == "(j - i).to(tl.float32)"
    assert s(op("recip", op("mul", x, y)), "triton") == "1.0 / (x * y)"
    assert s(op("neg", op("neg", x)), "triton") == "--x"
    assert s(op("mul", x, -2.0), "triton") == "x * -2.0"
    assert (
        s(op("where", Var("p", "bool"), op("where", Var("u", "bool"), x, y), y), "python")
        == "(x if u else y) if p else y"
    )
    assert s(Const(-math.inf, "real"), "triton") == 'float("-inf")'


def test_floors_take_the_machine_form_only_if_proved() -> None:
    e = op("floordiv", op("sub", i, j), 4)
    assert spell(e, "triton", name_of) == "_floordiv(i - j, 4)"
    assert spell(e, "triton", name_of, known=lambda a: isinstance(a, Const)) == "_floordiv(i - j, 4)"
    assert spell(e, "triton", name_of, known=lambda a: True) == "(i - j) // 4"


def test_named_nodes_are_not_opened() -> None:
    e = op("mul", op("exp", x), op("exp", x))
    assert isinstance(e, Op)
    assert spell(e, "triton", lambda n: "t" if n is e.args[0] else name_of(n)) == "t * t"


def test_triton_names_exist() -> None:
    language = pytest.importorskip("triton.language", reason="Triton is a dependency on Linux only")
    for spelling in SPELLINGS["triton"].values():
        name = spelling.template.split("(")[0]
        if name.startswith("tl."):
            assert hasattr(language, name.removeprefix("tl.")), name
