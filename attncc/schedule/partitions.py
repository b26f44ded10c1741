"""What partitioned schedules share: rings of shared buffers, and the order in which tiles take their turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.simplify import simplify
from attncc.schedule.builder import Builder
from attncc.schedule.ranges import Visits
from attncc.schedule.stream import Problem, Stream
from attncc.tile import nodes as t

NONE = Const(0, "int")
"""The first slot, turn or place; 0 of what is counted."""
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
        return scalar(b, simplify(op("mod", n, self.depth)), "slot"), parity(b, n, self.depth)


def parity(b: Builder, n: Expr, depth: int) -> Expr:
    """The parity of the phase at turn `n` of a barrier that is used every `depth` turns."""
    return scalar(b, simplify(op("mod", op("floordiv", n, depth), 2)), "phase")


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

    @abstractmethod
    def consume(self, c: int) -> Expr:
        """What a consumer does at a place; the turn it ends at."""

    @abstractmethod
    def feed(self) -> Expr:
        """What the producer does at a place; the turn it ends at."""

    def parts(self, consumers: int, registers: int, spare: int) -> t.Partitions:
        """Consumers of four warps each, and a producer's warp."""
        bodies = [partial(self.consume, c) for c in range(consumers)]
        found = [self.partition(f"consumer{c}", 4, registers, body) for c, body in enumerate(bodies)]
        return t.Partitions((*found, self.partition("producer", 1, spare, self.feed)))

    def partition(self, name: str, warps: int, registers: int, body: Callable[[], Expr]) -> t.Partition:
        """The code of some warps at every place; `body` ends at a turn. One warp takes places for the others."""
        k = self.k
        self.item = self.before = NONE
        with k.b.partition() as scope:
            if self.resident:
                taken = k.b.let("taken", t.Type((), "i32"), t.Full(NONE), "turns at the places before")

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

    def operand(self, value: Var, hint: str) -> Var:
        """A score-shaped value as the first operand of a product: in the inputs' dtype, laid out as it reads them."""
        narrow = self.k.cast(value, self.k.p.variant.dtype)
        return self.k.b.let(hint, self.k.b.type_of(narrow.name), t.Convert(narrow.name, "operand"))


def scalar(b: Builder, e: Expr, hint: str) -> Expr:
    """`e` as a number or a name."""
    return e if isinstance(e, Const | Var) else b.value(e, hint)


Kind = Literal["masked", "full", "far"]
"""Of a turn's tile: it needs the mask; it doesn't; tables have one value there."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tiles of a kind, with the turns they have."""

    kind: Kind
    tiles: t.Interval
    start: Expr
    end: Expr
    """The turn after the last."""


def numbered(b: Builder, pieces: Sequence[tuple[Kind, t.Interval]]) -> tuple[Piece, ...]:
    """Pieces with their turns, one after another."""
    found: list[Piece] = []
    reached: Expr = NONE
    for n, (kind, tiles) in enumerate(pieces):
        start, reached = reached, simplify(op("add", reached, op("max", op("sub", tiles.hi, tiles.lo), 0)))
        if kind == "masked" or n < len(pieces) - 1:
            reached = scalar(b, reached, "turns")
        found.append(Piece(kind, tiles, start, reached))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Own:
    """What a consumer takes of a place's turns."""

    first: Expr = NONE
    """Those before it have none of its pairs."""
    masked: Expr | None = None
    """From this turn on its pairs need no mask, where that is earlier than for the place."""


ALL = Own()


@dataclass(frozen=True, slots=True)
class Turns:
    """The visited tiles in the order of their turns: those that need the mask, those that don't, those far away.

    There is always a first turn, and it is masked: a program without tiles masks all of tile 0.
    """

    pieces: tuple[Piece, ...]
    masked: Expr
    """Turns 0 .. masked-1 need the mask."""
    total: Expr

    def loops(self, own: Own) -> tuple[tuple[Kind, Expr, Expr], ...]:
        """(kind, first turn, the turn after the last) of each kind, but for the very first turn."""
        found: list[tuple[Kind, Expr, Expr]] = []
        start = simplify(op("add", own.first, 1))
        for kind in dict.fromkeys(x.kind for x in self.pieces):
            last = [x for x in self.pieces if x.kind == kind][-1]
            if kind == "masked":
                end = self.masked if own.masked is None else own.masked
            else:
                end = self.total if last is self.pieces[-1] else op("max", last.end, self.masked)
            found.append((kind, start, end))
            start = end
        return tuple(found)

    def tile(self, n: Expr, kind: Kind | None = None) -> Expr:
        """The tile of turn `n`, which is of a kind where that is known: each piece from its far end back."""
        pieces = [x for x in self.pieces if kind is None or x.kind == kind]
        if not pieces:
            return NONE
        e = _back(pieces.pop(), n)
        for x in reversed(pieces):
            e = op("where", op("lt", n, x.end), _back(x, n), e)
        return e


def _back(piece: Piece, n: Expr) -> Expr:
    """The tile of a piece's turn `n`."""
    return simplify(op("sub", op("sub", piece.tiles.hi, 1), op("sub", n, piece.start)))


def turns(b: Builder, visits: Visits) -> Turns:
    """The turns of a program, in scalars of the code before the partitions. The last piece comes first."""
    kinds: tuple[tuple[Kind, Sequence[object]], ...] = (
        ("masked", visits.partial.pieces[::-1]),
        ("full", visits.full.pieces if visits.full is not None else ()),
        ("far", visits.far[::-1]),
    )
    found = numbered(b, [(kind, x) for kind, pieces in kinds for x in pieces if isinstance(x, t.Interval)])
    assert len(found) == sum(len(pieces) for _, pieces in kinds)
    masked = next((x.end for x in reversed(found) if x.kind == "masked"), NONE)
    atleast = scalar(b, simplify(op("max", masked, 1)), "masked")
    total = found[-1].end if found else NONE
    return Turns(found, atleast, scalar(b, simplify(op("max", total, 1)), "total"))
