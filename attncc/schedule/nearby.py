"""Which offsets j - i a table tells apart: beyond them its index stays the same, however far a key is.

fact: i >= j + 113  -->  min(31, 16 + floor(log((i - j) / 16) * c)) = 31

found by intervals of the index's expression over all offsets beyond a candidate, never by trying them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attncc.expr.build import ivar, op
from attncc.expr.interval import Interval, bounds
from attncc.expr.nodes import Const, Expr, Op, free_vars, substitute
from attncc.passes.attend import OFFSET, Table
from attncc.passes.bounds import Bounds
from attncc.passes.simplify import simplify

I, N = (ivar(x) for x in "iN")
OFFSET_OF = op("sub", OFFSET, op("sub", N, 1))
"""j - i, as indices of tables have it."""
WIDEST = 512
"""Offsets that are worth a pass of their own."""
CLOSE = 64
"""So many more offsets cost that pass less than a sum over all pairs."""


@dataclass(frozen=True, slots=True)
class Nearby:
    """Offsets first .. last are told apart; on each side beyond them the index is one."""

    first: int
    last: int
    beyond: tuple[tuple[Expr, ...], ...]
    """The indices of pairs beyond, where the mask has any: one for both sides where it is the same."""
    sides: tuple[bool, bool]
    """Whether the mask has pairs before the first of them, behind the last."""
    rest: int | None = None
    """An offset beyond, where all pairs beyond have one index and get minus what those between get."""


def nearby(table: Table, seen: Bounds, balanced: bool) -> Nearby | None:
    """The offsets that `table` tells apart, if all others are proven alike and these are few.

    `balanced` says that what the pairs of a row get adds up to 0.
    """
    moving = tuple(e for e in table.index if "o" in free_vars(e))
    before, behind = _beyond(moving, -1), _beyond(moving, 1)
    if before is None or behind is None:
        return None
    first, last = 1 - before, max(behind - 1, 1 - before)
    low, high = _limits(seen)
    sides = low is None or low < first - CLOSE, high is None or high > last + CLOSE
    first = first if low is None or sides[0] else min(low, last)
    last = last if high is None or sides[1] else max(high, first)
    if last - first >= WIDEST:
        return None
    outside = [offset for offset, there in zip((first - 1, last + 1), sides, strict=True) if there]
    beyond = tuple(dict.fromkeys(index_at(table, offset) for offset in outside))
    if balanced and len(beyond) == 1:
        return Nearby(first, last, (), sides, outside[0])
    return Nearby(first, last, beyond, sides)


def _beyond(moving: tuple[Expr, ...], sign: int) -> int | None:
    """The least number such that no index moves where sign * (j - i) is at least that; None if there is none."""

    def still(distance: int) -> bool:
        ends = (distance, math.inf) if sign > 0 else (-math.inf, -distance)
        found = (bounds(e, {OFFSET_OF: Interval(*ends)}) for e in moving)
        return all(x.lo == x.hi for x in found)

    if not still(WIDEST):
        return None
    lo, hi = -WIDEST, WIDEST
    while lo < hi:
        middle = (lo + hi) // 2
        lo, hi = (lo, middle) if still(middle) else (middle + 1, hi)
    return hi


def index_at(table: Table, offset: int) -> tuple[Expr, ...]:
    """The index at an offset beyond which it stays."""
    at = {OFFSET_OF: Interval(offset, offset)}
    found = []
    for e in table.index:
        found.append(Const(int(bounds(e, at).lo), "int") if "o" in free_vars(e) else e)
    return tuple(found)


def index_of(table: Table, offset: Expr) -> tuple[Expr, ...]:
    """The table's index at an offset j - i."""
    return tuple(substitute(e, {OFFSET_OF: offset}) for e in table.index)


def _limits(seen: Bounds) -> tuple[int | None, int | None]:
    """The least and greatest offset of pairs that a mask allows, where its bounds move with the row alone."""
    lows = [_from_row(a.lower, "max") for a in seen.alternatives]
    ends = [_from_row(a.upper, "min") for a in seen.alternatives]
    low, end = ([x for x in found if x is not None] for found in (lows, ends))
    return (
        min(low) if low and len(low) == len(lows) else None,
        max(end) - 1 if end and len(end) == len(ends) else None,
    )


def _from_row(bound: Expr, strictest: str) -> int | None:
    """A bound less the row's place; of the strictest of two, either is one."""
    match bound:
        case Op(name, (a, b)) if name == strictest:
            found = [x for x in (_from_row(a, strictest), _from_row(b, strictest)) if x is not None]
            return None if not found else max(found) if strictest == "max" else min(found)
    match simplify(op("sub", bound, I)):
        case Const(value):
            return int(value)
        case _:
            return None
