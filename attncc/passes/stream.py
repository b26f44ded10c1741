"""stream: a normaliser in the form a running maximum allows, in base two.

rewrite: f(s), homogeneous in (exp(s), constants)  --> f * exp(-m) with x = s * log2(e):
         exp(s) --> exp2(x - m),   c --> c * exp2(-m)
A function that is not homogeneous has no shifted form and is refused.
"""

from __future__ import annotations

import math

from attncc.expr.build import op, rvar
from attncc.expr.nodes import Const, Expr, Op, free_vars, substitute
from attncc.ir.nodes import S
from attncc.passes.mistakes import NotCompiled

X = rvar("log2 score")
"""The score in base-two units, s * log2(e)."""
SHIFT = rvar("log2 shift")
"""What is subtracted from x: a running maximum, or the saved log2 of Z."""
LOG2E = math.log2(math.e)
LN2 = math.log(2.0)

_LINEAR = frozenset({"add", "sub", "neg", "min", "max", "abs", "relu"})


def streamed(e: Expr) -> Expr:
    """`e`, a function of s, times exp(-shift), in terms of x and shift. NotCompiled where it is not homogeneous."""
    match e:
        case Op("exp", (a,)) if a is S:
            return op("exp2", op("sub", X, SHIFT))
        case Op(name, args) if name in _LINEAR and "s" in free_vars(e):
            return op(name, *(streamed(a) for a in args))
        case Op("mul", (a, b)) if "s" not in free_vars(a):
            return op("mul", a, streamed(b))
        case Op("mul" | "div" as name, (a, b)) if "s" not in free_vars(b):
            return op(name, streamed(a), b)
        case Op("where", (c, a, b)):
            return op("where", unshifted(c), streamed(a), streamed(b))
        case Const(0.0, _):
            return e
        case _ if "s" not in free_vars(e):
            return _scaled_constant(e)
        case _:
            raise NotCompiled("a normaliser that is not homogeneous in exp(score) has no streaming form yet")


def unshifted(e: Expr) -> Expr:
    """`e`, a function of s, in terms of x."""
    return substitute(e, {S: op("mul", X, LN2)})


def _scaled_constant(e: Expr) -> Expr:
    """c * exp(-m); exp(u) keeps its exponent together, so that a large u does not overflow."""
    match e:
        case Op("exp", (u,)):
            return op("exp2", op("sub", op("mul", u, LOG2E), SHIFT))
        case _:
            return op("mul", e, op("exp2", op("neg", SHIFT)))


def is_exponential(e: Expr) -> bool:
    """Whether `e` is exp(s) itself."""
    match e:
        case Op("exp", (a,)):
            return a is S
        case _:
            return False
