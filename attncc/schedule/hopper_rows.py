"""What partitioned kernels share whose programs own rows: the place in the grid, the copies, the walk over keys.

Masked tiles take the first turns, in a loop of their own; tiles where tables have one value, the last. The producer
walks the same turns and knows nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.beyond import FIRST_KEY, FIRST_ROW, beyond, near_of
from attncc.schedule.config import Tiles
from attncc.schedule.hopper_config import RowPlan
from attncc.schedule.masks import ends_inside
from attncc.schedule.partitions import ALL, NONE, Buffers, Kind, Own, Resident, Ring, Turns, counter, turns
from attncc.schedule.ranges import Cut, Rows, Visits, uneven, visits
from attncc.schedule.steps import reads_at_keys
from attncc.schedule.stream import Guards, M, N, Problem, Stream, b, h
from attncc.schedule.stream_forward import row_grid
from attncc.tile import nodes as t
from attncc.tile.nodes import Config

NOTES: Mapping[Kind, str] = {
    "masked": "keys: tiles that need the mask",
    "full": "keys: tiles inside the mask",
    "far": "keys: tiles where tables have one value",
}
State = tuple[Var, ...]


class RowPlaces(Resident):
    """A kernel under construction, but for its buffers and for what its partitions do with them."""

    plan: RowPlan

    def __init__(self, p: Problem, plan: RowPlan) -> None:
        self.p, self.plan = p, plan
        self.k = Stream(p, ("i", "j"))
        self.tile = plan.rows * plan.consumers
        self.ahead = plan.ahead if uneven(p.by_row, "i") else 0
        self.beyond = beyond(p)

    @abstractmethod
    def memory(self) -> None:
        """Allocates buffers and barriers."""

    @abstractmethod
    def turn(self, n: Expr, kind: Kind, state: State, first: bool = False) -> State:
        """One turn of a consumer."""

    def kernel_of(self, name: str, tensors: tuple[str, ...]) -> t.Kernel:
        """The whole kernel; `tensors` are those of bulk copies."""
        plan, k = self.plan, self.k
        self.r0 = Var(self.p.own("i0"), "int")
        k.start()
        if not self.resident:
            self.place()
        self.memory()
        k.b.add(self.parts(plan.consumers, plan.registers, plan.spare))
        for tensor in (*tensors, *((counter(self.p).name,) if self.resident else ())):
            k.tensors[tensor] = None
        grid = row_grid(self.p, Tiles(self.tile, plan.keys, Config()))
        return t.Kernel(name, grid, tuple(k.tensors), k.scalars(), k.body(), Config(4, 1, plan.entry))

    def place(self) -> None:
        """The program's place in the grid, and the turns it takes there."""
        k = self.k
        k.place(self.r0.name, "h", "b")
        self.turns: Turns = turns(k.b, self._visits(self.r0, self.tile))

    def own_turns(self, c: int) -> Own:
        """The turns of a consumer, where the place's tiles are some that need the mask and then some that don't.

        All of them where a place is no higher than a tile is wide: its rows' walks differ by one tile at most.
        """
        k, plan, place = self.k, self.plan, self.turns
        if self.tile <= plan.keys or [x.kind for x in place.pieces] != ["masked", "full"]:
            return ALL
        (own,) = self._visits(self._first_row(c), plan.rows).partial.pieces
        assert isinstance(own, t.Interval)
        end = place.pieces[0].tiles.hi
        first = op("max", op("min", op("sub", end, own.hi), op("sub", place.masked, 1)), 0)
        first = k.b.value(first, "passed", "turns before this consumer's first")
        since = op("max", op("min", op("sub", end, own.lo), place.masked), op("add", first, 1))
        return Own(first, k.b.value(since, "masked"))

    def _first_row(self, c: int) -> Var:
        """The first row of a consumer."""
        return self.k.b.value(op("add", self.r0, c * self.plan.rows), "r0") if c else self.r0

    def _visits(self, base: Var, count: int) -> Visits:
        """What `count` rows from `base` see."""
        return visits(
            self.k.b, self.p.by_row, self._rows(base, count), Cut(self.plan.keys, N, NONE), near_of(self.beyond)
        )

    def _rows(self, base: Var, count: int) -> Rows:
        """Rows as the bounds see them: in a vector, where they must, of a power of two."""
        k = self.k
        k.rows(base, 1 << (count - 1).bit_length())
        end = op("min", op("add", base, count), M)
        k.guards = Guards(row=op("lt", k.row, end))
        k.b.axis("j", self.plan.keys)
        first, last = op("add", base, k.shift), op("add", op("sub", end, 1), k.shift)
        return Rows("i", first, last, k.guards.row, "i", self.p.rising)

    # --- the producer

    def every_turn(self, fill: Callable[[Expr, Expr], None]) -> Expr:
        """`fill(turn, its first key)` for every turn of a place; how many there are."""
        k = self.k

        def turn(n: Var, _: State) -> State:
            fill(n, k.b.value(op("mul", self.turns.tile(n), self.plan.keys), "j0"))
            return ()

        k.loop(t.Count(NONE, self.turns.total), "n", "", (), turn, "tiles, in turn", 1, "asc")
        return self.turns.total

    def begin(self, ring: Ring, n: Expr, size: int, later: int = 0) -> tuple[Expr, t.Bar]:
        """The slot of turn `n` once the turn `later` than its last use has ended; its barrier, told of `size` bytes."""
        k = self.k
        slot, phase = ring.at(k.b, n)
        full = t.Bar(ring.full, slot)
        freed, since = ring.at(k.b, op("add", n, later)) if later else (slot, phase)
        k.b.add(t.BarWait(t.Bar(ring.empty, freed), op("sub", 1, since)))
        k.b.add(t.BarExpect(full, size))
        return slot, full

    def copy(self, into: Buffers, tensor: str, prefix: str, at: tuple[Expr, ...], slot: Expr, bar: t.Bar) -> None:
        """Begins to fill a slot with rows of a tensor."""
        for to, (offset, _, _) in zip(into.slots(slot), self.k.split[prefix].pieces, strict=True):
            self.k.b.add(t.CopyIn(to, tensor, (*at, Const(offset, "int")), bar))

    def bytes(self, prefix: str, rows: int) -> int:
        """Of `rows` rows, all channel pieces."""
        return 2 * rows * sum(extent for _, extent, _ in self.k.split[prefix].pieces)

    # --- a consumer

    def own_rows(self, c: int) -> None:
        """The rows of a consumer."""
        k = self.k
        k.rows(self._first_row(c), self.plan.rows)
        k.guards = Guards(row=op("lt", k.row, M))

    def walk(self, state: State, own: Own = ALL) -> State:
        """All of a consumer's turns, but for the last product: masked ones first."""
        state = self.turn(own.first, "masked", state, first=True)
        for kind, start, end in self.turns.loops(own):
            state = self._loop(start, end, kind, state)
        return state

    def _loop(self, lo: Expr, hi: Expr, kind: Kind, state: State) -> State:
        k, p = self.k, self.p
        if kind == "far" and self.beyond is not None:
            self.p = k.p = self.beyond.problem
            k.b.bindings[FIRST_ROW] = k.b.value(op("add", self.r0, k.shift), "first")

        def turn(n: Var, state: State) -> State:
            return self.turn(n, kind, state)

        state = k.loop(t.Count(lo, hi), "n", "", state, turn, NOTES[kind], 1, "asc")
        self.p = k.p = p
        return state

    def keys_of(self, n: Expr, kind: Kind, first: bool = False) -> None:
        """The keys of turn `n`."""
        k = self.k
        tile = op("max", self.turns.tile(n), 0) if first else self.turns.tile(n, kind)
        k.keys(k.b.value(op("mul", tile, self.plan.keys), "j0"), self.plan.keys)
        k.b.bindings[FIRST_KEY] = k.first
        guarded = kind == "masked" or reads_at_keys(self.p)
        k.guards = Guards(k.guards.row, op("lt", k.key, N) if guarded else Guards().key)

    def allowed(self, kind: Kind) -> Expr | None:
        """The predicate of a partial tile: the mask, and the last key where no bound keeps to it."""
        if kind != "masked":
            return None
        ends = () if ends_inside(self.p.by_row.alternatives) else (self.k.guards.key,)
        return self.k.allowed(self.p.by_row.mask, *ends)

    def awaited(self, values: State, hint: str, *before: Var) -> State:
        """Products begun, awaited behind the values `before`."""
        k, names = self.k, tuple(v.name for v in before)
        return tuple(k.b.let(hint, k.b.type_of(v.name), t.DotWait(v.name, 0, names)) for v in values)

    def products(self, left: tuple[str | t.Slot, ...], right: Buffers, slot: Expr, hint: str, prefix: str) -> Var:
        """Rows of a consumer by keys of a slot, begun and not awaited."""
        k, s = self.k, ""
        for n, (x, y) in enumerate(zip(left, right.slots(slot), strict=True)):
            dot = t.Dot(x, y, f"{prefix}{n}", s or None, asynchronous=True)
            s = k.b.let(hint, k.b.over("i", "j"), dot).name
        return Var(s, "real")

    def added(self, acc: State, left: Var, right: Buffers, slot: Expr, hint: str) -> State:
        """acc + left @ keys of a slot, begun and not awaited."""
        k, out = self.k, []
        for a, y in zip(acc, right.slots(slot), strict=True):
            out.append(k.b.let(hint, k.b.type_of(a.name), t.Dot(left.name, y, "j", a.name, asynchronous=True)))
        return tuple(out)

    def leave(self, tensor: str, prefix: str, results: State, out: Buffers, c: int, lent: str = "") -> None:
        """A consumer's results, a value for each piece of the channels, to its rows of a tensor.

        `lent` is the channel axis of the tile whose buffers `out` are, where that is another.
        """
        k, slots = self.k, out.slots(Const(c, "int"))
        if self.resident:
            k.b.add(t.CopyWait(0))
        for value, slot, (*_, axis) in zip(results, slots, k.pieces(lent or prefix), strict=True):
            narrow = k.cast(value, self.p.variant.dtype)
            if lent:
                type = t.Type((t.Axis("i", self.plan.rows), axis), self.p.variant.dtype)
                narrow = k.b.let("o", type, t.Rename(narrow.name), "in the place of q")
            k.b.add(t.SharedStore(slot, narrow.name))
        k.b.add(t.Fence())
        row = op("add", self.r0, c * self.plan.rows)
        for slot, (offset, _, _) in zip(slots, k.split[prefix].pieces, strict=True):
            k.b.add(t.CopyOut(slot, tensor, (b, h, row, Const(offset, "int"))))
        if lent or not self.resident:
            k.b.add(t.CopyWait(0))
