"""How an integer expression moves with one index, so that its extremes over a tile are its values at the ends."""

from __future__ import annotations

from typing import Literal

from attncc.expr.nodes import Const, Expr, Op, Var, free_vars
from attncc.ir.nodes import Load

Direction = Literal[-1, 0, 1]


def direction(e: Expr, index: str, rising: frozenset[str] = frozenset()) -> Direction | None:
    """1 if `e` never falls as `index` grows, -1 if it never rises, 0 if it ignores it, None if unknown.

    `rising` names the tensors whose values never fall along their last axis.
    """

    def way(x: Expr) -> Direction | None:
        return direction(x, index, rising)

    if index not in free_vars(e):
        return 0
    match e:
        case Var():
            return 1
        case Op("add" | "min" | "max", (a, b)):
            return _both(way(a), way(b))
        case Op("sub", (a, b)):
            return _both(way(a), _flipped(way(b)))
        case Op("neg", (a,)):
            return _flipped(way(a))
        case Op("mul", (Const(int(c)), a)) | Op("mul", (a, Const(int(c)))):
            return way(a) if c >= 0 else _flipped(way(a))
        case Op("floordiv", (a, Const(int(c)))) if c > 0:
            return way(a)
        case Op("where", (condition, a, b)) if index not in free_vars(condition):
            return _both(way(a), way(b))
        case Load(tensor, (*lead, last)) if tensor in rising and all(index not in free_vars(x) for x in lead):
            return way(last)
        case _:
            return None


def _flipped(d: Direction | None) -> Direction | None:
    return None if d is None else (0, -1, 1)[d]


def _both(a: Direction | None, b: Direction | None) -> Direction | None:
    if a is None or b is None or a * b < 0:
        return None
    return a or b
