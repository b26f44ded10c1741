"""Takes a positive factor out of scores, so that their maximum is the factor times the maximum of the rest.

rewrite: c * x         --> (c, x) for c > 0
rewrite: c * f(a * x)  --> (max(|c|, 2**-100), f(sign(c) a * x)) for odd f, where neither c nor a reads an index
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.interval import bounds
from attncc.expr.nodes import Expr, Op
from attncc.expr.ops import OPS
from attncc.passes.simplify import simplify
from attncc.schedule.separate import reads

LEAST = 2.0**-100
"""What a factor that may be 0 counts as, so that it can be multiplied by -inf."""


def positive_factor(e: Expr) -> tuple[Expr, Expr] | None:
    """(a factor that is the same for all pairs and greater than 0, the rest), if `e` is their product."""
    match e:
        case Op("mul", (c, x)) if not any(reads(c)):
            return (c, x) if bounds(c).lo > 0 else _unsigned(c, x)
        case _:
            return None


def _unsigned(c: Expr, x: Expr) -> tuple[Expr, Expr] | None:
    """`c * x` with a positive factor, if x is an odd function whose argument takes up the sign at no cost."""
    match x:
        case Op(f, (Op("mul", (a, y)),)) if OPS[f].odd and not any(reads(a)):
            signed = op("where", op("lt", c, 0.0), op("neg", a), a)
            return simplify(op("max", op("abs", c), LEAST)), op(f, op("mul", simplify(signed), y))
        case _:
            return None
