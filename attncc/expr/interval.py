"""Intervals of expressions: exact for ints, safely rounded for reals, three-valued for truth values.

`bounds(e, env)` encloses every value that `e` takes where each of its sub-expressions is defined (no division by
zero, no log of a negative number) and is not NaN. It knows nothing of correlation: i - i has the width of i twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attncc.expr.nodes import Const, Expr, Op, Sort
from attncc.expr.ops_interval import INTERVALS, Bound, hull, is_infinite
from attncc.expr.order import scalar_walk


@dataclass(frozen=True, slots=True)
class Interval:
    """The closed interval lo .. hi; an end that is not known is infinite. Truth values are 0 .. 1."""

    lo: Bound = -math.inf
    hi: Bound = math.inf

    def __post_init__(self) -> None:
        if not self.lo <= self.hi:
            raise ValueError(f"no number lies in [{self.lo}, {self.hi}]")

    def __contains__(self, x: Bound) -> bool:
        return self.lo <= x <= self.hi

    @property
    def finite(self) -> bool:
        """Whether both ends are known."""
        return not (is_infinite(self.lo) or is_infinite(self.hi))

    def join(self, other: Interval) -> Interval:
        """The smallest interval around both."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def meet(self, other: Interval) -> Interval | None:
        """What both have in common, or None."""
        lo, hi = max(self.lo, other.lo), min(self.hi, other.hi)
        return Interval(lo, hi) if lo <= hi else None


ALL = Interval()
UNKNOWN = Interval(0, 1)
"""A truth value that may be either."""


def bounds(e: Expr, env: Mapping[Expr, Interval] | None = None) -> Interval:
    """The interval of `e`, given those of Vars, Atoms or whole sub-expressions; a leaf without one may be anything."""
    known = dict(env or {})
    for node in scalar_walk(e, known.keys()):
        if node not in known:
            known[node] = step(node, known)
    return known[e]


def decide(e: Expr, env: Mapping[Expr, Interval] | None = None) -> bool | None:
    """Whether the truth value `e` is always True, always False, or not known to be either (None)."""
    if e.sort != "bool":
        raise TypeError(f"a {e.sort} is no truth value")
    return verdict(bounds(e, env))


def verdict(x: Interval) -> bool | None:
    """The interval of a truth value as True, False or None."""
    return True if x.lo == 1 else False if x.hi == 0 else None


def step(node: Expr, known: Mapping[Expr, Interval]) -> Interval:
    """The interval of one node from those of its arguments."""
    match node:
        case Const(value, _):
            return Interval(value, value)
        case Op("where", (Op("lt", (p, q), _), a, b), _) if (a, b) in ((p, q), (q, p)):  # min(p, q), or max(p, q)
            pick = min if a is p else max
            return Interval(pick(known[p].lo, known[q].lo), pick(known[p].hi, known[q].hi))
        case Op("where", (c, a, b), _):
            truth = verdict(known[c])
            return known[a] if truth is True else known[b] if truth is False else known[a].join(known[b])
        case Op(name, args, sort):
            ends = tuple((known[a].lo, known[a].hi) for a in args)
            return Interval(*hull(INTERVALS[name](*ends), _limits(sort)))
    return Interval(*_limits(node.sort))


def _limits(sort: Sort) -> tuple[Bound, Bound]:
    return (0, 1) if sort == "bool" else (-math.inf, math.inf)
