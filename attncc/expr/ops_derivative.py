"""The op table's column of derivatives, and that of domains.

A derivative row gives, per argument, a small function of the node and its arguments that builds the partial
derivative, or None where it is zero. At a kink: relu'(0) = abs'(0) = 0, and a tie of max or min gives one half to
each side, as torch.maximum does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from attncc.expr.build import TRUE, lift, op
from attncc.expr.nodes import Expr, Op

Partial = Callable[..., Expr]
"""(node, *args) -> the partial derivative."""

_PHI = 1 / math.sqrt(2 * math.pi)
_ROOT_HALF = math.sqrt(0.5)


def _pick(less: float, more: float) -> Partial:
    """`less` where the first argument is the smaller one, `more` where it is the larger, one half at a tie."""
    return lambda y, a, b: op("where", op("lt", a, b), less, op("where", op("lt", b, a), more, 0.5))


def _sign(y: Expr, x: Expr) -> Expr:
    return op("where", op("lt", 0.0, x), 1.0, op("where", op("lt", x, 0.0), -1.0, 0.0))


def _pow_base(y: Expr, a: Expr, b: Expr) -> Expr:
    return op("where", op("eq", b, 0.0), 0.0, op("mul", b, op("pow", a, op("sub", b, 1.0))))


def _pow_exponent(y: Expr, a: Expr, b: Expr) -> Expr:
    flat = op("and", op("eq", a, 0.0), op("le", 0.0, b))
    return op("where", flat, 0.0, op("mul", y, op("log", a)))


def _silu(y: Expr, x: Expr) -> Expr:
    s = op("sigmoid", x)
    return op("mul", s, op("add", 1.0, op("mul", x, op("sub", 1.0, s))))


def _gelu(y: Expr, x: Expr) -> Expr:
    cdf = op("mul", 0.5, op("add", 1.0, op("erf", op("mul", _ROOT_HALF, x))))
    return op("add", cdf, op("mul", x, op("mul", _PHI, op("exp", op("mul", -0.5, op("square", x))))))


def _one(y: Expr, *args: Expr) -> Expr:
    return lift(1.0)


def _minus_one(y: Expr, *args: Expr) -> Expr:
    return lift(-1.0)


DERIVATIVES: dict[str, tuple[Partial | None, ...]] = {
    "add": (_one, _one),
    "sub": (_one, _minus_one),
    "mul": (lambda y, a, b: b, lambda y, a, b: a),
    "div": (lambda y, a, b: op("recip", b), lambda y, a, b: op("neg", op("div", y, b))),
    "floordiv": (None, None),
    "mod": (None, None),
    "neg": (_minus_one,),
    "abs": (_sign,),
    "min": (_pick(1.0, 0.0), _pick(0.0, 1.0)),
    "max": (_pick(0.0, 1.0), _pick(1.0, 0.0)),
    "pow": (_pow_base, _pow_exponent),
    "square": (lambda y, x: op("mul", 2.0, x),),
    "recip": (lambda y, x: op("neg", op("square", y)),),
    "exp": (lambda y, x: y,),
    "exp2": (lambda y, x: op("mul", math.log(2), y),),
    "expm1": (lambda y, x: op("exp", x),),
    "log": (lambda y, x: op("recip", x),),
    "log2": (lambda y, x: op("mul", 1 / math.log(2), op("recip", x)),),
    "log1p": (lambda y, x: op("recip", op("add", 1.0, x)),),
    "sqrt": (lambda y, x: op("mul", 0.5, op("rsqrt", x)),),
    "rsqrt": (lambda y, x: op("mul", -0.5, op("mul", y, op("square", y))),),
    "sin": (lambda y, x: op("cos", x),),
    "cos": (lambda y, x: op("neg", op("sin", x)),),
    "tanh": (lambda y, x: op("sub", 1.0, op("square", y)),),
    "erf": (lambda y, x: op("mul", 2 / math.sqrt(math.pi), op("exp", op("neg", op("square", x)))),),
    "sigmoid": (lambda y, x: op("mul", y, op("sub", 1.0, y)),),
    "softplus": (lambda y, x: op("sigmoid", x),),
    "relu": (lambda y, x: op("where", op("lt", 0.0, x), 1.0, 0.0),),
    "elu": (lambda y, x: op("where", op("lt", 0.0, x), 1.0, op("exp", op("min", x, 0.0))),),
    "silu": (_silu,),
    "gelu": (_gelu,),
    "floor": (None,),
    "ceil": (None,),
    "real": (None,),
    "lt": (None, None),
    "le": (None, None),
    "eq": (None, None),
    "ne": (None, None),
    "and": (None, None),
    "or": (None, None),
    "not": (None,),
    "where": (None, lambda y, c, a, b: op("where", c, 1.0, 0.0), lambda y, c, a, b: op("where", c, 0.0, 1.0)),
}


def _nonzero_divisor(a: Expr, b: Expr) -> Expr:
    return op("ne", b, 0)


def _power_exists(a: Expr, b: Expr) -> Expr:
    """A positive base, or a whole exponent that is not negative over a base of zero."""
    whole = op("eq", op("real", op("floor", b)), b)
    return op("or", op("lt", 0.0, a), op("and", whole, op("or", op("le", 0.0, b), op("ne", a, 0.0))))


DOMAINS: dict[str, Callable[..., Expr]] = {
    "div": _nonzero_divisor,
    "floordiv": _nonzero_divisor,
    "mod": _nonzero_divisor,
    "recip": lambda x: op("ne", x, 0.0),
    "pow": _power_exists,
    "log": lambda x: op("lt", 0.0, x),
    "log2": lambda x: op("lt", 0.0, x),
    "log1p": lambda x: op("lt", -1.0, x),
    "sqrt": lambda x: op("le", 0.0, x),
    "rsqrt": lambda x: op("lt", 0.0, x),
}
"""Where an operation is defined, as a condition on its arguments; everywhere when it has no row."""


def domain(e: Expr) -> Expr:
    """The condition under which the node `e` itself is defined, its arguments being so; TRUE of leaves."""
    return DOMAINS[e.name](*e.args) if isinstance(e, Op) and e.name in DOMAINS else TRUE
