"""Derivatives: each row against sympy and torch, whole expressions against torch's autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncc.expr.build import ivar, lift, op, rvar
from attncc.expr.evaluate import Value, evaluate
from attncc.expr.nodes import Const, Expr, Op, Var, walk
from attncc.expr.ops import OPS
from attncc.expr.ops_derivative import DERIVATIVES
from attncc.expr.order import scalar_walk
from attncc.ir.nodes import Contract, Load
from attncc.passes.differentiate import derivative, gradients
from attncc.passes.simplify import simplify
from tests.expr.strategies import REALS, environments, expressions, well_defined

x, y, cap = REALS
i = ivar("i")
GRID = (-3.7, -2.0, -1.0, -0.6, -0.25, 0.0, 0.25, 0.6, 1.0, 2.0, 3.7)
ROOT_2 = math.sqrt(2)

TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
    "pow": torch.pow,
    "square": torch.square,
    "recip": torch.reciprocal,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "softplus": lambda t: torch.nn.functional.softplus(t, threshold=100),
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}
SYMPY: dict[str, Callable[..., Any]] = {
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "square": lambda a: a**2,
    "recip": lambda a: 1 / a,
    "exp2": lambda a: 2**a,
    "expm1": lambda a: sympy.exp(a) - 1,
    "log2": lambda a: sympy.log(a) / sympy.log(2),
    "log1p": lambda a: sympy.log(1 + a),
    "rsqrt": lambda a: 1 / sympy.sqrt(a),
    "sigmoid": lambda a: 1 / (1 + sympy.exp(-a)),
    "softplus": lambda a: sympy.log(1 + sympy.exp(a)),
    "relu": lambda a: sympy.Piecewise((a, a > 0), (0, True)),
    "elu": lambda a: sympy.Piecewise((a, a > 0), (sympy.exp(a) - 1, True)),
    "silu": lambda a: a / (1 + sympy.exp(-a)),
    "gelu": lambda a: a * (1 + sympy.erf(a / sympy.sqrt(2))) / 2,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "abs": lambda a: sympy.Piecewise((a, a > 0), (-a, True)),
    "min": lambda a, b: sympy.Piecewise((a, a < b), (b, True)),
    "max": lambda a, b: sympy.Piecewise((b, a < b), (a, True)),
}
ROWS = [(name, k) for name in TORCH for k in range(OPS[name].arity)]


def points(name: str) -> list[tuple[float, ...]]:
    grid = [(a,) for a in GRID] if OPS[name].arity == 1 else [(a, b) for a in GRID for b in GRID]
    return [p for p in grid if _defined(name, p)]


def _defined(name: str, p: tuple[float, ...]) -> bool:
    match name:
        case "log" | "log2" | "sqrt" | "rsqrt":
            return p[0] > 0
        case "log1p":
            return p[0] > -1
        case "recip":
            return p[0] != 0
        case "div":
            return p[1] != 0
        case "pow":
            return p[0] > 0 or (p[0] == 0 and p[1] >= 1)
    return True


def test_every_operation_has_a_row() -> None:
    assert DERIVATIVES.keys() == OPS.keys()
    assert all(len(row) == OPS[name].arity for name, row in DERIVATIVES.items())
    real = {n for n, row in OPS.items() if row.rule in ("join", "real")}
    assert real == TORCH.keys()


@pytest.mark.parametrize(("name", "k"), ROWS)
def test_rows_are_torchs(name: str, k: int) -> None:
    args = (x, y)[: OPS[name].arity]
    slope = derivative(op(name, *args), args[k])
    for p in points(name):
        leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in p]
        (true,) = torch.autograd.grad(TORCH[name](*leaves), leaves[k])
        assert evaluate(slope, dict(zip(args, p, strict=True))) == pytest.approx(true.item(), rel=1e-12, abs=1e-15), p


@pytest.mark.parametrize(("name", "k"), ROWS)
def test_rows_are_sympys(name: str, k: int) -> None:
    """Away from kinks, where sympy takes one side."""
    symbols = sympy.symbols("x y", real=True)[: OPS[name].arity]
    function = SYMPY.get(name) or getattr(sympy, name)
    true = sympy.lambdify(symbols, sympy.diff(function(*symbols), symbols[k]), "mpmath")
    args = (x, y)[: OPS[name].arity]
    slope = derivative(op(name, *args), args[k])
    for p in points(name):
        if 0.0 in p or (p[0] == p[-1] and len(p) == 2):
            continue
        assert evaluate(slope, dict(zip(args, p, strict=True))) == pytest.approx(float(true(*p)), rel=1e-12, abs=1e-15)


def to_torch(e: Expr, env: dict[Expr, torch.Tensor]) -> torch.Tensor:
    values: dict[Expr, torch.Tensor] = dict(env)
    for node in scalar_walk(e):
        if node in values:
            continue
        if isinstance(node, Const):
            dtype = {"real": torch.float64, "int": torch.int64, "bool": torch.bool}[node.sort]
            values[node] = torch.tensor(node.value, dtype=dtype)
            continue
        assert isinstance(node, Op)
        values[node] = _apply(node.name, [values[a] for a in node.args])
    return values[e]


def _apply(name: str, args: list[torch.Tensor]) -> torch.Tensor:
    other: dict[str, Callable[..., torch.Tensor]] = {
        "where": torch.where,
        "lt": torch.lt,
        "le": torch.le,
        "eq": torch.eq,
        "ne": torch.ne,
        "and": torch.logical_and,
        "or": torch.logical_or,
        "not": torch.logical_not,
        "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
        "mod": torch.remainder,
        "floor": lambda a: torch.floor(a).long(),
        "ceil": lambda a: torch.ceil(a).long(),
        "real": lambda a: a.double(),
    }
    return (TORCH | other)[name](*args)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(expressions("real", 4), environments())
def test_gradients_are_autograds(e: Expr, env: dict[Expr, Value]) -> None:
    values = well_defined(e, env)
    if values is None or any(isinstance(n, Op) and n.name in ("floordiv", "mod") for n in walk(e)):
        return
    kinds = {"real": torch.float64, "int": torch.int64, "bool": torch.bool}
    leaves = {v: torch.tensor(value, dtype=kinds[v.sort], requires_grad=v.sort == "real") for v, value in env.items()}
    result = to_torch(e, leaves)
    if not result.requires_grad:
        assert gradients(e, REALS) == (lift(0.0),) * 3
        return
    true = torch.autograd.grad(result, [leaves[r] for r in REALS], allow_unused=True)
    for g, t in zip(gradients(e, REALS), true, strict=True):
        want = 0.0 if t is None else t.item()
        if math.isfinite(want) and abs(want) < 1e12:
            size = sum(abs(v) for n, v in values.items() if n.sort == "real")
            assert evaluate(g, env) == pytest.approx(want, rel=1e-7, abs=1e-9 * (1 + min(size, 1e3)))


def test_softcap_shares_the_forwards_tanh() -> None:
    D, d, b, h, g, j = (ivar(n) for n in "DdbhgJ")
    qk = Contract(Load("q", (b, h, i, d), "real"), Load("k", (b, g, j, d), "real"), d, D)
    score = op("mul", cap, op("tanh", op("div", qk, op("mul", op("sqrt", op("real", D)), cap))))
    tanh = next(n for n in walk(simplify(score)) if isinstance(n, Op) and n.name == "tanh")
    scale = op("rsqrt", op("real", D))
    assert derivative(score, qk) is op("mul", scale, op("sub", 1.0, op("square", tanh)))


def test_atoms_are_matched_by_identity() -> None:
    load = Load("bias", (i,), "real")
    other = Load("bias", (ivar("j"),), "real")
    e = op("add", op("square", load), op("mul", other, load))
    assert derivative(e, load) is simplify(op("add", op("mul", 2.0, load), other))
    assert derivative(e, other) is load
    assert derivative(e, i) is lift(0.0)
    assert derivative(op("exp", e), op("square", load)) is not lift(0.0)


def test_choices_keep_the_other_side_out() -> None:
    e = op("where", op("lt", 0.0, x), op("log", x), op("square", x))
    assert evaluate(derivative(e, x), {x: 0.0}) == 0.0
    assert evaluate(derivative(e, x), {x: -2.0}) == -4.0
    assert evaluate(derivative(e, x), {x: 2.0}) == 0.5
    half = op("where", Var("p", "bool"), x, op("neg", x))
    assert evaluate(derivative(half, x), {Var("p", "bool"): False}) == -1.0


def test_integers_have_no_derivative() -> None:
    assert derivative(op("real", op("floor", x)), x) is lift(0.0)
    assert derivative(op("mul", op("real", i), x), x) is op("real", i)
    assert derivative(i, i) is lift(0.0)
    assert derivative(op("lt", x, y), x) is lift(0.0)
    assert derivative(x, x) is lift(1.0)
    assert gradients(op("mul", x, y), (x, y, cap)) == (y, x, lift(0.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60))
def test_shared_nodes_are_visited_once(n: int) -> None:
    """Nested squares of sums double the terms of a tree each time."""
    e: Expr = x
    for _ in range(n):
        e = op("tanh", op("add", e, op("mul", 0.5, e)))
    assert sum(1 for _ in walk(derivative(e, x))) < 20 * n + 20


def test_seed_multiplies() -> None:
    (g,) = gradients(op("exp", x), (x,), rvar("dP"))
    assert g is simplify(op("mul", rvar("dP"), op("exp", x)))
