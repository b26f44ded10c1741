"""Simplification: values are kept, normal forms are normal, deep expressions are quick."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from attncc.expr.build import ivar, rvar
from attncc.expr.evaluate import Value, evaluate
from attncc.expr.nodes import Expr, Op, Var
from attncc.expr.ops_derivative import DERIVATIVES
from attncc.expr.order import scalar_walk
from attncc.ir.nodes import Contract, Load
from attncc.passes.simplify import simplify
from tests.expr.strategies import environments, expressions, well_defined

EPS = 2.0**-52
QUIET = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))

x, y, z, cap = (rvar(n) for n in ("x", "y", "z", "cap"))
i, j, D = ivar("i"), ivar("j"), ivar("D")
p = Var("p", "bool")
b, h, g, d = (ivar(n) for n in "bhgd")
QK = Contract(Load("q", (b, h, i, d), "real"), Load("k", (b, g, j, d), "real"), d, D)


def rounding(e: Expr, env: dict[Expr, Value], values: dict[Expr, Value]) -> float:
    """By how much the value of `e` moves when every node is off by one rounding: a first-order bound."""
    size: dict[Expr, float] = {e: 1.0}
    total = 0.0
    for node in reversed(list(scalar_walk(e))):
        if node.sort != "real" or node not in size:
            continue
        total += size[node] * abs(values[node]) * EPS
        if isinstance(node, Op):
            for a, partial in zip(node.args, DERIVATIVES[node.name], strict=True):
                if partial is not None and a.sort == "real" and not isinstance(a, Const):
                    slope = evaluate(partial(node, *node.args), {**env, **values})
                    size[a] = size.get(a, 0.0) + size[node] * abs(slope)
    return total


def check_same(e: Expr, s: Expr, env: dict[Expr, Value]) -> None:
    values = well_defined(e, env)
    if values is None:
        return
    old, new = values[e], evaluate(s, env)
    assert s.sort == e.sort
    if e.sort == "real":
        assert abs(new - old) <= 1e-13 * abs(old) + 64 * rounding(e, env, values), (old, new)
    else:
        assert new == old


@pytest.mark.parametrize("sort", ["real", "int", "bool"])
def test_values_are_kept(sort: str) -> None:
    @QUIET
    @given(expressions(sort), environments())
    def run(e: Expr, env: dict[Expr, Value]) -> None:
        check_same(e, simplify(e), env)

    run()


@pytest.mark.parametrize("sort", ["real", "int", "bool"])
def test_normal_forms_are_fixed_points(sort: str) -> None:
    @QUIET
    @given(expressions(sort, 5))
    def run(e: Expr) -> None:
        s = simplify(e)
        assert simplify(s) is s

    run()
