"""Random expressions, and values for their variables."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from attncc.expr.build import ivar, op, rvar
from attncc.expr.evaluate import Value, evaluate_all
from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.expr.ops import OPS

INTS = tuple(ivar(n) for n in "ijn")
REALS = tuple(rvar(n) for n in ("x", "y", "cap"))
BOOLS = (Var("p", "bool"), Var("u", "bool"))

INT_OPS = ("add", "sub", "mul", "floordiv", "mod", "neg", "abs", "min", "max", "square", "relu")
SMOOTH_OPS = (
    *("add", "sub", "mul", "div", "neg", "square", "recip", "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt"),
    *("rsqrt", "sin", "cos", "tanh", "erf", "sigmoid", "softplus", "elu", "silu", "gelu", "pow"),
)
KINKED_OPS = ("abs", "min", "max", "relu")
COMPARISONS = ("lt", "le", "eq", "ne")

small_ints = st.integers(-6, 6)
nice_reals = st.sampled_from([-3.0, -2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 50.0])


@st.composite
def expressions(draw: st.DrawFn, sort: str = "real", depth: int = 4) -> Expr:
    """An expression of a sort over the variables above."""
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return draw(leaves(sort))
    match sort:
        case "int":
            return draw(_of_int(depth))
        case "bool":
            return draw(_of_bool(depth))
        case _:
            return draw(_of_real(depth))


def leaves(sort: str) -> st.SearchStrategy[Expr]:
    """Variables and constants."""
    match sort:
        case "int":
            return st.sampled_from(INTS) | small_ints.map(lambda v: Const(v, "int"))
        case "bool":
            return st.sampled_from(BOOLS) | st.booleans().map(lambda v: Const(v, "bool"))
        case _:
            return st.sampled_from(REALS) | nice_reals.map(lambda v: Const(v, "real"))


@st.composite
def _of_int(draw: st.DrawFn, depth: int) -> Expr:
    if draw(st.integers(0, 7)) == 0:
        return op("where", *_choice(draw, "int", depth))
    name = draw(st.sampled_from((*INT_OPS, "floor", "ceil")))
    inner = "real" if name in ("floor", "ceil") else "int"
    return op(name, *(draw(expressions(inner, depth - 1)) for _ in range(_arity(name))))


@st.composite
def _of_bool(draw: st.DrawFn, depth: int) -> Expr:
    name = draw(st.sampled_from((*COMPARISONS, *COMPARISONS, "and", "or", "not", "where")))
    if name == "where":
        return op("where", *_choice(draw, "bool", depth))
    inner = draw(st.sampled_from(("int", "int", "real", "bool"))) if name in COMPARISONS else "bool"
    if name in ("lt", "le") and inner == "bool":
        inner = "int"
    return op(name, *(draw(expressions(inner, depth - 1)) for _ in range(_arity(name))))


@st.composite
def _of_real(draw: st.DrawFn, depth: int) -> Expr:
    name = draw(st.sampled_from((*SMOOTH_OPS, *SMOOTH_OPS[:7], *KINKED_OPS, "where", "real")))
    if name == "where":
        return op("where", *_choice(draw, "real", depth))
    if name == "real":
        return op("real", draw(expressions("int", depth - 1)))
    return op(name, *(draw(expressions("real", depth - 1)) for _ in range(_arity(name))))


def _choice(draw: st.DrawFn, sort: str, depth: int) -> tuple[Expr, Expr, Expr]:
    condition = draw(expressions("bool", depth - 1))
    return condition, draw(expressions(sort, depth - 1)), draw(expressions(sort, depth - 1))


def _arity(name: str) -> int:
    return OPS[name].arity


@st.composite
def environments(draw: st.DrawFn) -> dict[Expr, Value]:
    """A value for every variable above."""
    env: dict[Expr, Value] = {v: draw(st.integers(-40, 40)) for v in INTS}
    env |= {v: draw(st.floats(-4, 4).map(lambda t: round(t, 6) + 1e-7)) for v in REALS}
    return env | {v: draw(st.booleans()) for v in BOOLS}


def well_defined(e: Expr, env: dict[Expr, Value]) -> dict[Expr, Value] | None:
    """The values of all nodes under `e`; None unless all exist, are finite and of moderate size, and no comparison,
    floor or extreme of reals is so close to its threshold that rounding could decide it."""
    values = evaluate_all(e, env)
    for node, value in values.items():
        if value is None or (isinstance(value, float) and not (math.isfinite(value) and _moderate(value))):
            return None
        if isinstance(node, Op) and not _clear(node, values):
            return None
    return values


def _moderate(value: float) -> bool:
    return value == 0 or 1e-60 < abs(value) < 1e60


def _clear(node: Op, values: dict[Expr, Value]) -> bool:
    args = [values[a] for a in node.args]
    if node.name in ("floor", "ceil"):
        return abs(args[0] - round(args[0])) > 1e-6 * max(1.0, abs(args[0]))
    if node.name in (*COMPARISONS, "min", "max") and node.args[0].sort == "real":
        return abs(args[0] - args[1]) > 1e-6 * max(1.0, abs(args[0]), abs(args[1]))
    if node.name == "pow" and args[0] < 0 and not isinstance(node.args[1], Const):
        return False
    if node.sort == "real" and node.name in ("abs", "relu", "elu", "sqrt", "recip", "rsqrt", "log", "log2", "pow"):
        return abs(args[0]) > 1e-6
    return node.name != "div" or abs(args[1]) > 1e-6
