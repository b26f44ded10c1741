"""Exact evaluation of expressions in Python: ints without bound and with floor semantics, reals in double.

Real operations follow IEEE: an overflow is infinite, what is undefined is NaN. An integer that does not exist (x // 0,
the floor of an infinity) is UNDEFINED; it spreads like NaN, and `where`, `and` and `or` can discard it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.order import scalar_walk

Value = int | float | bool

UNDEFINED: Final[Any] = None
"""The value of an integer or a truth value that does not exist."""


def evaluate(e: Expr, env: Mapping[Expr, Value] | None = None) -> Value:
    """The value of `e`. `env` gives Vars, Atoms or whole sub-expressions; ArithmeticError where it is UNDEFINED."""
    value: Value | None = evaluate_all(e, env)[e]
    if value is None:
        raise ArithmeticError("an integer division by zero or the rounding of an infinite number")
    return value


def evaluate_all(e: Expr, env: Mapping[Expr, Value] | None = None) -> dict[Expr, Any]:
    """The values of all scalar nodes under `e`, `UNDEFINED` where there is none; KeyError names a leaf without one."""
    given = env or {}
    values: dict[Expr, Any] = {}
    for node in scalar_walk(e, given.keys()):
        if node in given:
            values[node] = given[node]
        elif isinstance(node, Const):
            values[node] = node.value
        elif isinstance(node, Op):
            values[node] = apply(node.name, tuple(values[a] for a in node.args), node.sort)
        else:
            raise KeyError(node)
    return values


def apply(name: str, args: tuple[Any, ...], sort: str) -> Any:
    """One row of the op table applied to values; `sort` is that of the result."""
    match name:
        case "where":
            return UNDEFINED if args[0] is UNDEFINED else args[1] if args[0] else args[2]
        case "and":
            return False if False in args else UNDEFINED if UNDEFINED in args else True
        case "or":
            return True if True in args else UNDEFINED if UNDEFINED in args else False
    if any(a is UNDEFINED for a in args):
        return math.nan if sort == "real" else UNDEFINED
    try:
        value = FUNCTIONS[name](*args)
        return float(value) if sort == "real" else value
    except OverflowError:
        return _overflow(name, args) if sort == "real" else UNDEFINED
    except (ValueError, ZeroDivisionError):
        return math.nan if sort == "real" else UNDEFINED


def _overflow(name: str, args: tuple[Any, ...]) -> float:
    if name == "pow" and args[0] < 0 and args[1] % 2 == 1:
        return -math.inf
    return -math.inf if name == "real" and args[0] < 0 else math.inf


def _div(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)
    return a / b


def _pow(a: float, b: float) -> float:
    if a == 0 and b < 0:
        return math.copysign(math.inf, a) if b % 2 == 1 else math.inf
    return math.pow(a, b)


def _log(x: float, log: Callable[[float], float]) -> float:
    return -math.inf if x == 0 else log(x)


def _sigmoid(x: float) -> float:
    e = math.exp(-abs(x))
    return 1 / (1 + e) if x >= 0 else e / (1 + e)


def _extreme(a: Any, b: Any, pick: Callable[[Any, Any], Any]) -> Any:
    return math.nan if a != a or b != b else pick(a, b)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "neg": lambda x: -x,
    "abs": abs,
    "min": lambda a, b: _extreme(a, b, min),
    "max": lambda a, b: _extreme(a, b, max),
    "pow": _pow,
    "square": lambda x: x * x,
    "recip": lambda x: _div(1.0, x),
    "exp": math.exp,
    "exp2": math.exp2,
    "expm1": math.expm1,
    "log": lambda x: _log(x, math.log),
    "log2": lambda x: _log(x, math.log2),
    "log1p": lambda x: -math.inf if x == -1 else math.log1p(x),
    "sqrt": math.sqrt,
    "rsqrt": lambda x: _div(1.0, abs(math.sqrt(x))),
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
    "erf": math.erf,
    "sigmoid": _sigmoid,
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "relu": lambda x: x if x != x else max(x, type(x)(0)),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "silu": lambda x: 0.0 if x == -math.inf else x * _sigmoid(x),
    "gelu": lambda x: 0.0 if x == -math.inf else 0.5 * x * math.erfc(-x * math.sqrt(0.5)),
    "floor": math.floor,
    "ceil": math.ceil,
    "real": float,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "not": lambda a: not a,
}
"""What each operation computes; `where`, `and` and `or` are in `apply`."""
