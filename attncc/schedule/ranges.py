"""Mask bounds as loop ranges: which tiles of the loop's axis a program visits, and which of them need no predicate.

For the rows of a program's tile (either axis may play the row) the bounds' lower and upper expressions are reduced:
visited = [min lower, max upper), full = [max full_lower, min full_upper), in tiles. Where an expression is monotone
in the row its extremes are its values at the tile's ends; else it is evaluated for every row and reduced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.nodes import Const, Expr, substitute, walk
from attncc.ir.nodes import Load
from attncc.passes.bounds import Alternative, Bounds
from attncc.passes.simplify import simplify
from attncc.schedule.builder import Builder
from attncc.schedule.monotone import direction
from attncc.tile import nodes as t

FAR = 1 << 30
Which = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class Rows:
    """The program's own axis: the index it is written with, its first and last valid position, and which are valid."""

    index: str
    first: Expr
    last: Expr
    valid: Expr
    axis: str
    rising: frozenset[str] = frozenset()
    """Tensors whose values never fall along it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The loop's axis: tile size, extent, and what is subtracted from a bound to give a position along it."""

    tile: int
    extent: Expr
    offset: Expr


@dataclass(frozen=True, slots=True)
class Visits:
    """The tiles that need the predicate, and those that don't (None: there are none)."""

    partial: t.Ranges
    full: t.Ranges | None
    far: tuple[t.Interval, ...] = ()
    """Full ones beyond the offsets that tables tell apart; `full` are the others then."""


def uneven(bounds: Bounds, index: str) -> bool:
    """Whether walks are longer at one end of the grid: one end of what is visited moves alone."""
    return any((direction(a.lower, index) == 0) != (direction(a.upper, index) == 0) for a in bounds.alternatives)


def short(bounds: Bounds, index: str) -> bool:
    """Whether both ends of what is visited move, so that walks don't grow with the lengths."""
    return any(direction(a.lower, index) != 0 and direction(a.upper, index) != 0 for a in bounds.alternatives)


def visits(b: Builder, bounds: Bounds, rows: Rows, cut: Cut, near: tuple[int, int] | None = None) -> Visits:
    """The ranges of a loop over `bounds.index` in a program that owns a tile of the other index.

    `near` are the first and last offset j - i that tables tell apart, where tiles beyond them are to have loops of
    their own.
    """
    if not bounds.alternatives:
        return Visits(t.Ranges(cut.tile, cut.extent, ()), None)
    if len(bounds.alternatives) == 1:
        found = _one(b, bounds.alternatives[0], rows, cut)
        return found if near is None or found.full is None else _beyond(b, found, found.full, rows, cut, near)
    return Visits(t.Ranges(cut.tile, cut.extent, _union(b, bounds.alternatives, rows, cut)), None)


def _one(b: Builder, a: Alternative, rows: Rows, cut: Cut) -> Visits:
    lo, hi = _visited(b, a, rows, cut)
    if a.full_lower is a.full_upper:
        return Visits(t.Ranges(cut.tile, cut.extent, (t.Interval(lo, hi),)), None)
    first = _extreme(b, a.full_lower, rows, "max", a.rows, sure=True)
    last = _extreme(b, a.full_upper, rows, "min", a.rows, sure=True)
    begin = simplify(_ceil(first, cut))
    if begin is not lo:  # both are 0 where the mask has no lower end
        begin = b.value(simplify(_within(begin, lo, hi)), "full_begin")
    end = b.value(simplify(_within(_floor(last, cut), begin, hi)), "full_end")
    left = () if lo is begin else (t.Interval(lo, begin),)
    partial = (*left, t.Interval(end, hi))
    return Visits(
        t.Ranges(cut.tile, cut.extent, partial),
        t.Ranges(cut.tile, cut.extent, (t.Interval(begin, end),), full=True),
    )


def _beyond(b: Builder, found: Visits, full: t.Ranges, rows: Rows, cut: Cut, near: tuple[int, int]) -> Visits:
    """The full tiles in three pieces: those with a pair at an offset near .. and what lies before and behind them."""
    (piece,) = full.pieces
    assert isinstance(piece, t.Interval)
    ends = near if rows.index == "i" else (-near[1], -near[0])
    first = simplify(_floor(op("add", rows.first, ends[0]), cut))
    last = simplify(op("add", _floor(op("add", rows.last, ends[1]), cut), 1))
    begin = b.value(op("max", op("min", first, piece.hi), piece.lo), "near_begin")
    end = b.value(op("max", op("min", last, piece.hi), begin), "near_end")
    far = (t.Interval(piece.lo, begin), t.Interval(end, piece.hi))
    return replace(found, full=replace(full, pieces=(t.Interval(begin, end),)), far=far)


def _visited(b: Builder, a: Alternative, rows: Rows, cut: Cut) -> tuple[Expr, Expr]:
    lo = simplify(_floor(_extreme(b, a.lower, rows, "min", _some(a, rows)), cut))
    hi = simplify(_ceil(_extreme(b, a.upper, rows, "max", _some(a, rows)), cut))
    return b.value(lo, "begin") if not isinstance(lo, Const) else lo, b.value(hi, "end")


def _some(a: Alternative, rows: Rows) -> Expr:
    """Where a row has keys, as far as a vector of rows is looked at for it."""
    if a.rows in (TRUE, op("le", 0, ivar(rows.index))):
        return a.rows
    return conj(a.rows, op("lt", a.lower, a.upper))


def _union(b: Builder, alternatives: tuple[Alternative, ...], rows: Rows, cut: Cut) -> tuple[t.Interval, ...]:
    """Sorted by their beginning and cut against those before: disjoint whatever the overlaps."""
    spans = [_visited(b, a, rows, cut) for a in alternatives]
    for done in range(len(spans) - 1, 0, -1):
        for k in range(done):
            (l0, h0), (l1, h1) = spans[k], spans[k + 1]
            swap = op("lt", l1, l0)
            for n, (x, y) in ((k, ((l1, h1), (l0, h0))), (k + 1, ((l0, h0), (l1, h1)))):
                spans[n] = (
                    b.value(op("where", swap, x[0], y[0]), "begin"),
                    b.value(op("where", swap, x[1], y[1]), "end"),
                )
    pieces: list[t.Interval] = []
    reached: Expr | None = None
    for lo, hi in spans:
        begin = lo if reached is None else b.value(op("max", lo, reached), "begin")
        pieces.append(t.Interval(begin, hi))
        reached = hi if reached is None else b.value(op("max", reached, hi), "reached")
    return tuple(pieces)


def _floor(position: Expr, cut: Cut) -> Expr:
    return op("floordiv", op("max", op("sub", position, cut.offset), 0), cut.tile)


def _ceil(position: Expr, cut: Cut) -> Expr:
    at = op("max", op("sub", position, cut.offset), 0)
    return op("floordiv", op("add", at, cut.tile - 1), cut.tile)


def _within(e: Expr, lo: Expr, hi: Expr) -> Expr:
    return op("max", op("min", e, hi), lo) if lo is not Const(0, "int") else op("min", e, hi)


def _extreme(b: Builder, e: Expr, rows: Rows, which: Which, condition: Expr, sure: bool = False) -> Expr:
    """The least or greatest `e` over the tile's valid rows at which `condition` holds.

    With `sure`, a valid row at which it fails gives the value that empties the full interval instead.
    """
    way = direction(e, rows.index, rows.rising)
    after_start = op("le", 0, ivar(rows.index))
    if way is not None and condition in (TRUE, after_start):
        position = rows.first if (which == "min") == (way == 1) else rows.last
        if condition is after_start:
            position = op("max", position, 0)
        value = substitute(e, {ivar(rows.index): position})
        if sure and condition is after_start:
            value = op("where", op("le", 0, rows.first), value, FAR if which == "max" else -FAR)
        return b.value(value, "bound") if any(isinstance(n, Load) for n in walk(value)) else value
    neutral = FAR if which == "min" else -FAR
    if sure:
        e = op("where", condition, e, -neutral)
    kept = op("where", rows.valid if sure else conj(rows.valid, condition), e, neutral)
    value = b.value(kept, "bound")
    if not b.type_of(value.name).axes:
        return value
    return b.let("bound", t.Type((), "i32"), t.Reduce(which, value.name, rows.axis), depth=b.depth(value))
