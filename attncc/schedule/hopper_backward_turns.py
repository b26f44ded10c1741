"""The order of a program's tiles of queries in the backward: those that need the mask first, those far away last."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.build import op
from attncc.expr.nodes import Expr
from attncc.passes.simplify import simplify
from attncc.schedule.builder import Builder
from attncc.schedule.partitions import NONE, Kind, Piece, numbered, scalar
from attncc.schedule.ranges import Visits
from attncc.tile import nodes as t


@dataclass(frozen=True, slots=True)
class Walk:
    """The visited tiles of one head: in rising order, pieces that need the mask first and those far away last."""

    pieces: tuple[Piece, ...]
    total: Expr

    def loops(self, start: Expr) -> tuple[tuple[Kind, t.Count], ...]:
        """(kind, turns) of each loop, for a head whose turns begin at `start`."""
        found = []
        for kind in dict.fromkeys(x.kind for x in self.pieces):
            own = [x for x in self.pieces if x.kind == kind]
            end = self.total if own[-1] is self.pieces[-1] else own[-1].end
            lo, hi = (simplify(op("add", start, n)) for n in (own[0].start, end))
            found.append((kind, t.Count(lo, hi)))
        return tuple(found)

    def tile(self, n: Expr, kind: Kind) -> Expr:
        """The tile of turn `n` of a head, which is of this kind."""
        *pieces, last = [x for x in self.pieces if x.kind == kind]
        e = _forth(last, n)
        for x in reversed(pieces):
            e = op("where", op("lt", n, x.end), _forth(x, n), e)
        return e


def walk_of(b: Builder, visits: Visits, ragged: Expr) -> Walk:
    """The walk over what is visited, in scalars of the code before the partitions.

    Where some keys of the program lie outside (`ragged`), every tile needs the mask: their weights would not be 0.
    """
    partial = [p for p in visits.partial.pieces if isinstance(p, t.Interval)]
    assert len(partial) == len(visits.partial.pieces)
    rest: list[tuple[Kind, t.Interval]] = []
    if visits.full is not None and visits.full.pieces:
        (full,) = (x for x in visits.full.pieces if isinstance(x, t.Interval))
        first, last = (visits.far[0].lo, visits.far[-1].hi) if visits.far else (full.lo, full.hi)
        assert partial[-1].lo is last
        end = scalar(b, op("where", ragged, first, last), "full_end")
        partial[-1] = t.Interval(end, partial[-1].hi)
        rest = [("full", t.Interval(full.lo, _until(b, full, ragged) if visits.far else end))]
        rest += [("far", t.Interval(x.lo, _until(b, x, ragged))) for x in visits.far]
    found = numbered(b, [*(("masked", x) for x in partial), *rest])
    return Walk(found, scalar(b, found[-1].end if found else NONE, "turns"))


def _until(b: Builder, piece: t.Interval, ragged: Expr) -> Expr:
    """Where a piece ends: at once, where every tile needs the mask."""
    return scalar(b, op("where", ragged, piece.lo, piece.hi), "end")


def _forth(piece: Piece, n: Expr) -> Expr:
    return simplify(op("add", piece.tiles.lo, op("sub", n, piece.start)))
