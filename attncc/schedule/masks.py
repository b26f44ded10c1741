"""Masks of partial tiles in the form that costs least a pair.

rewrite: x - y < c --> x - c < y, where x and y lie along different axes: each side is then one value a row or a key
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Expr, Op, free_vars, rewrite
from attncc.passes.bounds.build import Alternative

PAIR = frozenset({"i", "j"})


def apart(mask: Expr) -> Expr:
    """`mask` with comparisons of a difference of i and j as comparisons of the two; exact, while |x| + |c| < 2**31."""

    def rule(node: Expr) -> Expr | None:
        match node:
            case Op("lt" | "le" as name, (Op("sub", (x, y)), c)) if _crossing(x, y, c):
                return op(name, op("sub", x, c), y)
            case Op("lt" | "le" as name, (c, Op("sub", (x, y)))) if _crossing(x, y, c):
                return op(name, op("add", c, y), x)
            case _:
                return None

    return rewrite(mask, rule)


def _crossing(x: Expr, y: Expr, c: Expr) -> bool:
    """Whether integers x and y lie along one axis each, not the same, and c along none."""
    one, other = (free_vars(e) & PAIR for e in (x, y))
    return c.sort == "int" and len(one) == len(other) == 1 and one != other and not free_vars(c) & PAIR


def ends_inside(alternatives: tuple[Alternative, ...]) -> bool:
    """Whether no mask reaches behind the last key, so that bounds needed no clamp there."""
    return bool(alternatives) and not any("N" in free_vars(a.upper) for a in alternatives)
