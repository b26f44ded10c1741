"""What partitioned schedules share: rings of shared buffers, and the order in which tiles take their turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.simplify import simplify
from attncc.schedule.builder import Builder
from attncc.schedule.ranges import Visits
from attncc.schedule.stream import Problem, Stream
from attncc.tile import nodes as t

ZERO = Const(0, "int")
WARPS = 4
"""Of a warpgroup: each gives a slot back by itself, so that none waits for the others."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """A shared allocation per channel piece, filled and read together."""

    names: tuple[str, ...]

    def slots(self, index: Expr) -> tuple[t.Slot, ...]:
        return tuple(t.Slot(name, index) for name in self.names)


def buffers(k: Stream, hint: str, axis: t.Axis, prefix: str, depth: int) -> Buffers:
    """`depth` buffers of rows along `axis` for each channel piece of `prefix`."""
    names = []
    for _, _, piece in k.pieces(prefix):
        name = k.b.fresh(hint)
        k.b.add(t.AllocShared(name, t.Type((axis, piece), k.p.variant.dtype), depth))
        names.append(name)
    return Buffers(tuple(names))


@dataclass(frozen=True, slots=True)
class Ring:
    """Barriers of buffers that one partition fills and others empty, turn after turn."""

    full: str
    empty: str
    depth: int

    def release(self, slot: Expr) -> t.BarArrive:
        """A warpgroup's arrival, warp by warp, at the end of its turn with a slot."""
        return t.BarArrive(t.Bar(self.empty, slot), WARPS)

    def at(self, b: Builder, n: Expr) -> tuple[Expr, Expr]:
        """(slot, parity of its phase) at turn `n`."""
        return _scalar(b, simplify(op("mod", n, self.depth)), "slot"), parity(b, n, self.depth)


def parity(b: Builder, n: Expr, depth: int) -> Expr:
    """The parity of the phase at turn `n` of a barrier that is used every `depth` turns."""
    return _scalar(b, simplify(op("mod", op("floordiv", n, depth), 2)), "phase")


def ring(b: Builder, hint: str, depth: int, readers: int) -> Ring:
    """Allocates the barriers; `readers` are warpgroups."""
    full, empty = b.fresh(f"{hint}_full"), b.fresh(f"{hint}_empty")
    b.add(t.AllocBar(full, depth))
    b.add(t.AllocBar(empty, depth, WARPS * readers))
    return Ring(full, empty, depth)


def counter(p: Problem) -> t.Tensor:
    """Counts the places that programs took."""
    return t.Tensor(p.own("places_taken"), ("one",), (Const(1, "int"),), "i32")


def claims(b: Builder, p: Problem, readers: int) -> t.Claims:
    """Allocates what passes a place from the producer to the consumers; `readers` are warpgroups."""
    places = ring(b, "places", 2, readers)
    slots = b.fresh("places")
    b.add(t.AllocShared(slots, t.Type((t.Axis("one", 1),), "i32"), 2))
    return t.Claims(counter(p).name, slots, places.full, places.empty)


class Resident(ABC):
    """A kernel whose programs work at one place of the grid, or where they are `resident` at one after another."""

    k: Stream
    resident: bool
    claims: t.Claims
    ahead: int
    """See attncc.tile.nodes.Work."""
    item: Expr
    """How many places were before."""
    before: Expr
    """The turns that they took."""

    @abstractmethod
    def place(self) -> None:
        """Declares the program's place in the grid, and what it walks there."""

    def partition(self, name: str, warps: int, registers: int, body: Callable[[], Expr]) -> t.Partition:
        """The code of some warps at every place; `body` ends at a turn. One warp takes places for the others."""
        k = self.k
        self.item = self.before = ZERO
        with k.b.partition() as scope:
            if self.resident:
                taken = k.b.let("taken", t.Type((), "i32"), t.Full(ZERO), "turns at the places before")

                def here(item: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
                    self.item, self.before = item, state[0]
                    self.place()
                    return (k.b.value(op("add", self.before, body()), "taken"),)

                work = t.Work(self.claims, warps == 1, self.ahead)
                k.loop(work, "item", "", (taken,), here, "the places of this program", 1, "asc")
                if warps > 1:
                    k.b.add(t.CopyWait(0))
            else:
                body()
        return t.Partition(name, warps, registers, tuple(scope.statements))

    def at(self, n: Expr) -> Expr:
        """Turn `n` of this place, counted from the program's first."""
        return op("add", self.before, n)


def _scalar(b: Builder, e: Expr, hint: str) -> Expr:
    return e if isinstance(e, Const | Var) else b.value(e, hint)


@dataclass(frozen=True, slots=True)
class Turns:
    """The visited tiles in the order of their turns: those that need the mask, then those that don't.

    There is always a first turn, and it is masked: a program without tiles masks all of tile 0.
    """

    partial: tuple[t.Interval, ...]
    full: t.Interval | None
    ends: tuple[Expr, ...]
    """The turn after each partial piece."""
    masked: Expr
    """Turns 0 .. masked-1 need the mask."""
    total: Expr

    def tile(self, n: Expr, masked: bool = False) -> Expr:
        """The tile of turn `n`: each piece from its far end back. `masked` turns lie in partial pieces."""
        starts = (ZERO, *self.ends[:-1])
        pieces = list(zip(self.partial, starts, self.ends, strict=True))
        if self.full is not None and not (masked and pieces):
            e = _back(self.full, n, self.ends[-1] if self.ends else ZERO)
        elif pieces:
            piece, start, _ = pieces.pop()
            e = _back(piece, n, start)
        else:
            return ZERO
        for piece, start, end in reversed(pieces):
            e = op("where", op("lt", n, end), _back(piece, n, start), e)
        return op("max", e, 0) if isinstance(n, Const) else e


def _back(piece: t.Interval, n: Expr, start: Expr) -> Expr:
    """The tile of turn `n` in a piece whose turns begin at `start`."""
    return simplify(op("sub", op("sub", piece.hi, 1), op("sub", n, start)))


def turns(b: Builder, visits: Visits) -> Turns:
    """The turns of a program, in scalars of the code before the partitions. The last piece comes first."""
    partial = tuple(p for p in reversed(visits.partial.pieces) if isinstance(p, t.Interval))
    assert len(partial) == len(visits.partial.pieces)
    full = None
    if visits.full is not None and visits.full.pieces:
        (only,) = visits.full.pieces
        assert isinstance(only, t.Interval)
        full = only
    ends: list[Expr] = []
    reached: Expr = ZERO
    for piece in partial:
        reached = b.value(simplify(op("add", reached, _length(piece))), "turns")
        ends.append(reached)
    masked = _scalar(b, simplify(op("max", reached, 1)), "masked")
    total = reached if full is None else op("add", reached, _length(full))
    return Turns(partial, full, tuple(ends), masked, _scalar(b, simplify(op("max", total, 1)), "total"))


def _length(piece: t.Interval) -> Expr:
    return op("max", op("sub", piece.hi, piece.lo), 0)
