"""The order in which a program of the backward takes its tiles of queries: those that need the mask come first."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.simplify import simplify
from attncc.schedule.builder import Builder
from attncc.schedule.ranges import Visits
from attncc.tile import nodes as t

NONE = Const(0, "int")


@dataclass(frozen=True, slots=True)
class Walk:
    """The visited tiles of one head: in rising order, partial pieces before the full one."""

    partial: tuple[t.Interval, ...]
    full: t.Interval | None
    ends: tuple[Expr, ...]
    """The turn after each partial piece."""
    total: Expr

    @property
    def masked(self) -> Expr:
        """Turns 0 .. masked-1 need the mask."""
        return self.ends[-1] if self.ends else NONE

    def loops(self, start: Expr) -> tuple[tuple[bool, t.Count], ...]:
        """(whether the mask is needed, turns) of each loop, for a head whose turns begin at `start`."""
        marks = [simplify(op("add", start, n)) for n in (NONE, self.masked, self.total)]
        found = [(True, t.Count(marks[0], marks[1]))] if self.partial else []
        if self.full is not None:
            found.append((False, t.Count(marks[1], marks[2])))
        return tuple(found)

    def tile(self, n: Expr, masked: bool) -> Expr:
        """The tile of turn `n` of a head."""
        if not masked:
            assert self.full is not None
            return _forth(self.full, n, self.masked)
        starts = (NONE, *self.ends[:-1])
        pieces = list(zip(self.partial, starts, self.ends, strict=True))
        last, start, _ = pieces.pop()
        e = _forth(last, n, start)
        for piece, start, end in reversed(pieces):
            e = op("where", op("lt", n, end), _forth(piece, n, start), e)
        return e


def walk_of(b: Builder, visits: Visits, ragged: Expr) -> Walk:
    """The walk over what is visited, in scalars of the code before the partitions.

    Where some keys of the program lie outside (`ragged`), every tile needs the mask: their weights would not be 0.
    """
    partial = [p for p in visits.partial.pieces if isinstance(p, t.Interval)]
    assert len(partial) == len(visits.partial.pieces)
    full: t.Interval | None = None
    if visits.full is not None and visits.full.pieces:
        (full,) = (x for x in visits.full.pieces if isinstance(x, t.Interval))
        assert partial[-1].lo is full.hi
        end = _scalar(b, op("where", ragged, full.lo, full.hi), "full_end")
        full, partial[-1] = t.Interval(full.lo, end), t.Interval(end, partial[-1].hi)
    ends: list[Expr] = []
    reached: Expr = NONE
    for piece in partial:
        reached = _scalar(b, simplify(op("add", reached, _length(piece))), "turns")
        ends.append(reached)
    total = reached if full is None else simplify(op("add", reached, _length(full)))
    return Walk(tuple(partial), full, tuple(ends), _scalar(b, total, "turns"))


def _forth(piece: t.Interval, n: Expr, start: Expr) -> Expr:
    return simplify(op("add", piece.lo, op("sub", n, start)))


def _length(piece: t.Interval) -> Expr:
    return op("max", op("sub", piece.hi, piece.lo), 0)


def _scalar(b: Builder, e: Expr, hint: str) -> Expr:
    return e if isinstance(e, Const | Var) else b.value(e, hint)
