"""The forward kernel in partitions: a producer's warp copies tiles, two or three warpgroups compute.

Turn n of a consumer, software-pipelined by one product:

    S(n) = Q K(n)^T begins;  under it O is rescaled and the weights of turn n-1 are rounded, if they are not yet
    O += P(n-1) V(n-1) begins;  under it, once S(n) is there, P(n) = weights of S(n);  O is awaited

so that between S(n) and S(n + 1) stand a maximum and the exponentials alone. An `early` O is awaited before the
exponentials: P(n - 1) then makes room for P(n), and a third consumer fits.

A program stays on its multiprocessor: the producer takes one place of the grid after another and fetches the next
place's tiles while consumers end with theirs; its queries, too, where there is room for those of two places.

Masked tiles take the first turns, in a loop of their own; tiles where tables have one value, the last. The producer
walks the same turns and knows nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var, free_vars, walk
from attncc.ir.nodes import Load
from attncc.schedule.beyond import FIRST_KEY, FIRST_ROW, beyond, near_of
from attncc.schedule.config import Tiles
from attncc.schedule.hopper_config import ROOM, HopperForward
from attncc.schedule.lanes import Sums
from attncc.schedule.masks import ends_inside
from attncc.schedule.partitions import (
    NONE,
    WARPS,
    Buffers,
    Kind,
    Resident,
    Ring,
    Turns,
    buffers,
    claims,
    counter,
    parity,
    ring,
    turns,
)
from attncc.schedule.ranges import Cut, Rows, uneven, visits
from attncc.schedule.stream import Guards, M, N, Problem, Stream, b, h
from attncc.schedule.stream_forward import finish, initial_statistics, online, row_grid
from attncc.tile import nodes as t
from attncc.tile.nodes import Config

NOTES: Mapping[Kind, str] = {
    "masked": "keys: tiles that need the mask",
    "full": "keys: tiles inside the mask",
    "far": "keys: tiles where tables have one value",
}
State = tuple[Var, ...]
"""Statistics, accumulators, and last the weights that are not multiplied yet."""


def partitioned_forward(p: Problem, plan: HopperForward) -> t.Kernel:
    """out and, for normalised weights, lse."""
    return _Forward(p, plan).kernel()


class _Forward(Resident):
    """The kernel under construction."""

    def __init__(self, p: Problem, plan: HopperForward) -> None:
        self.p, self.plan = p, plan
        self.k = Stream(p, ("i", "j"))
        self.sums = Sums(self.k, "i", plan.lanes)
        self.tile = plan.rows * plan.consumers
        self.resident = plan.resident and self._room()
        self.queries = 2 if self.resident and plan.fetched and self._room(2) else 1
        """Places whose queries are there."""
        self.ahead = plan.ahead if uneven(p.by_row, "i") else 0
        self.beyond = beyond(p)
        self.stats = 0 if not p.normalised else 2 if plan.early else 3
        """m, l and, where O is rescaled a turn later, what sums of earlier turns are worth."""

    def kernel(self) -> t.Kernel:
        plan, k = self.plan, self.k
        self.r0 = Var(self.p.own("i0"), "int")
        k.start()
        if not self.resident:
            self.place()
        self._memory()
        consumers = [partial(self._consumer, c) for c in range(plan.consumers)]
        parts = [self.partition(f"consumer{n}", 4, plan.registers, body) for n, body in enumerate(consumers)]
        parts.append(self.partition("producer", 1, plan.spare, self._producer))
        k.b.add(t.Partitions(tuple(parts)))
        for name in ("q", "k", "v", "out", *((counter(self.p).name,) if self.resident else ())):
            k.tensors[name] = None
        grid = row_grid(self.p, Tiles(self.tile, plan.keys, Config()))
        config = Config(4, 1, plan.entry)
        return t.Kernel("forward_kernel", grid, tuple(k.tensors), k.scalars(), k.body(), config)

    def place(self) -> None:
        """The program's place in the grid, and the turns it takes there."""
        k = self.k
        k.place(self.r0.name, "h", "b")
        seen = visits(k.b, self.p.by_row, self._rows(), Cut(self.plan.keys, N, NONE), near_of(self.beyond))
        self.turns: Turns = turns(k.b, seen)

    def _rows(self) -> Rows:
        """The program's rows, as the bounds see them: in a vector, where they must, of a power of two."""
        k = self.k
        k.rows(self.r0, 1 << (self.tile - 1).bit_length())
        end = op("min", op("add", self.r0, self.tile), M)
        k.guards = Guards(row=op("lt", k.row, end))
        k.b.axis("j", self.plan.keys)
        first, last = op("add", self.r0, k.shift), op("add", op("sub", end, 1), k.shift)
        return Rows("i", first, last, k.guards.row, "i", self.p.rising)

    def _memory(self) -> None:
        k, plan, c = self.k, self.plan, self.plan.consumers
        i, j = k.b.axis("i", plan.rows), t.Axis("j", plan.keys)
        self.q = buffers(k, "q_tile", i, "d", c * self.queries)
        self.keys = buffers(k, "k_tile", j, "d", plan.depth)
        self.values = buffers(k, "v_tile", j, "e", plan.depth)
        alike = [x.extent for _, _, x in k.pieces("d")] == [x.extent for _, _, x in k.pieces("e")]
        self.out = buffers(k, "out_tile", i, "e", c) if self._room() else self.q if alike else None
        self.q_ring = ring(k.b, "q", self.queries, c)
        self.k_ring = ring(k.b, "k", plan.depth, c)
        self.v_ring = replace(self.k_ring, full=k.b.fresh("v_full"))
        k.b.add(t.AllocBar(self.v_ring.full, plan.depth))
        if plan.turns:
            self.turn = k.b.fresh("turn")
            k.b.add(t.AllocBar(self.turn, c, WARPS))
            k.b.add(t.BarArrive(t.Bar(self.turn, NONE), WARPS))
        if self.resident:
            self.claims = claims(k.b, self.p, c)

    # --- the producer

    def _producer(self) -> Expr:
        k, plan = self.k, self.plan
        slot, phase = self.q_ring.at(k.b, self.item)
        first = t.Bar(self.q_ring.full, slot)
        k.b.add(t.BarWait(t.Bar(self.q_ring.empty, slot), op("sub", 1, phase)))
        k.b.add(t.BarExpect(first, plan.consumers * self._bytes("d", plan.rows)))
        for c in range(plan.consumers):
            self._copy(self.q, "q", "d", (b, h, op("add", self.r0, c * plan.rows)), self._queries_of(c), first)
        with k.b.inner() as loop:
            n = k.b.loop_index("n")
            row = k.b.value(op("mul", self.turns.tile(n), plan.keys), "j0")
            self._fill(self.k_ring, self.keys, "k", "d", n, row)
            self._fill(self.v_ring, self.values, "v", "e", n, row, later=1)
            k.b.add(t.Yield(()))
        count = t.Count(NONE, self.turns.total)
        k.b.add(t.For(n.name, count, (), tuple(loop.statements), order="asc", note="tiles, in turn"))
        return self.turns.total

    def _fill(self, ring: Ring, into: Buffers, tensor: str, prefix: str, n: Expr, row: Expr, later: int = 0) -> None:
        """Begins to fill the slot of turn `n`, once the turn `later` than its last use has ended."""
        k = self.k
        slot, phase = ring.at(k.b, self.at(n))
        full = t.Bar(ring.full, slot)
        freed, since = ring.at(k.b, self.at(op("add", n, later))) if later else (slot, phase)
        k.b.add(t.BarWait(t.Bar(ring.empty, freed), op("sub", 1, since)))
        k.b.add(t.BarExpect(full, self._bytes(prefix, self.plan.keys)))
        self._copy(into, tensor, prefix, (b, k.kv_head(), row), slot, full)

    def _copy(self, into: Buffers, tensor: str, prefix: str, at: tuple[Expr, ...], slot: Expr, bar: t.Bar) -> None:
        for to, (offset, _, _) in zip(into.slots(slot), self.k.split[prefix].pieces, strict=True):
            self.k.b.add(t.CopyIn(to, tensor, (*at, Const(offset, "int")), bar))

    def _bytes(self, prefix: str, rows: int) -> int:
        """Of `rows` rows, all channel pieces."""
        return 2 * rows * sum(extent for _, extent, _ in self.k.split[prefix].pieces)

    # --- a consumer

    def _consumer(self, c: int) -> Expr:
        k, plan = self.k, self.plan
        self.c = c
        k.rows(k.b.value(op("add", self.r0, c * plan.rows), "r0") if c else self.r0, plan.rows)
        k.guards = Guards(row=op("lt", k.row, M))
        acc = k.zeros("acc", "i", "e")
        state = acc
        if self.p.normalised:
            m, l = initial_statistics(k, self.sums.type())
            state = (*(m, l, l)[: self.stats], *acc)
        slot, phase = self.q_ring.at(k.b, self.item)
        k.b.add(t.BarWait(t.Bar(self.q_ring.full, slot), phase))
        self._walk(state)
        return self.turns.total

    def _walk(self, state: State) -> None:
        """All turns, masked ones first, and the end."""
        state = self._turn(NONE, "masked", state)
        for kind, start, end in self.turns.loops():
            state = self._loop(start, end, kind, state)
        if self.out is not self.q:
            self._release_queries()
        self._close(self._product(op("sub", self.turns.total, 1), state))

    def _loop(self, lo: Expr, hi: Expr, kind: Kind, state: State) -> State:
        k, p = self.k, self.p
        if kind == "far" and self.beyond is not None:
            self.p = k.p = self.beyond.problem
            k.b.bindings[FIRST_ROW] = k.b.value(op("add", self.r0, k.shift), "first")

        def turn(n: Var, state: State) -> State:
            return self._turn(n, kind, state)

        state = k.loop(t.Count(lo, hi), "n", "", state, turn, NOTES[kind], 1, "asc")
        self.p = k.p = p
        return state

    def _turn(self, n: Expr, kind: Kind, state: State) -> State:
        k, first = self.k, isinstance(n, Const)
        slot, phase = self.k_ring.at(k.b, self.at(n))
        k.b.add(t.BarWait(t.Bar(self.k_ring.full, slot), phase))
        if self.plan.turns:
            k.b.add(t.BarWait(self._turn_of(self.c), parity(k.b, self.at(n), 1)))
        s = self._scores(slot)
        if not first:
            state = self._product(op("sub", n, 1), state)
        stats, acc = state[: self.stats], state[self.stats : self.stats + len(self.values.names)]
        if self.plan.turns:
            k.b.add(t.BarArrive(self._turn_of(self.c + 1), WARPS))
        s = k.b.let("s", k.b.type_of(s.name), t.DotWait(s.name, 0 if first else len(acc)))
        ended: list[Var] = []

        def end(*before: Var) -> None:
            """The product of the turn before is awaited, behind `before`; with it both tiles of that turn are free."""
            ended.extend(acc if first else self._awaited(acc, before))
            k.b.add(self.k_ring.release(slot))

        early = (lambda m: end(s, m)) if self.plan.early else (lambda m: None)
        new, w = self._weights(s, n, kind, stats, early)
        if self.plan.settled:
            self._values_of(n)
        if not self.plan.early:
            end(w)
        elif self.p.normalised:
            ended = [k.b.value(op("mul", a, new[2]), "acc") for a in ended]
        return (*new[: self.stats], *ended, self._rounded(w) if self.plan.rounded else w)

    def _awaited(self, acc: State, before: State) -> State:
        """Products begun, awaited behind the values `before`."""
        k, names = self.k, tuple(v.name for v in before)
        return tuple(k.b.let("acc", k.b.type_of(a.name), t.DotWait(a.name, 0, names)) for a in acc)

    def _turn_of(self, consumer: int) -> t.Bar:
        """The barrier that lets a consumer issue its products."""
        return t.Bar(self.turn, Const(consumer % self.plan.consumers, "int"))

    def _scores(self, slot: Expr) -> Var:
        """Q K^T of this turn, begun and not awaited."""
        k = self.k
        s = ""
        pairs = zip(self.q.slots(self._queries_of(self.c)), self.keys.slots(slot), strict=True)
        for n, (q, keys) in enumerate(pairs):
            s = k.b.let("s", k.b.over("i", "j"), t.Dot(q, keys, f"d{n}", s or None, asynchronous=True)).name
        return Var(s, "real")

    def _rounded(self, w: Var) -> Var:
        """The weights as the second product's operand."""
        narrow = self.k.cast(w, self.p.variant.dtype)
        return self.k.b.let("p", self.k.b.type_of(narrow.name), t.Convert(narrow.name, "operand"))

    def _product(self, n: Expr, state: State) -> State:
        """O += P V of turn `n`, begun and not awaited."""
        k, p = self.k, self.p
        stats, acc, w = state[: self.stats], state[self.stats : -1], state[-1]
        slot, _ = self.v_ring.at(k.b, self.at(n))
        if p.normalised and not self.plan.early:
            acc = tuple(k.b.value(op("mul", a, stats[2]), "acc") for a in acc)
        operand = w if p.variant.dtype == k.b.type_of(w.name).dtype else self._rounded(w)
        if not self.plan.settled:
            self._values_of(n)
        out = []
        for a, values in zip(acc, self.values.slots(slot), strict=True):
            dot = t.Dot(operand.name, values, "j", a.name, asynchronous=True)
            out.append(k.b.let("acc", k.b.type_of(a.name), dot))
        return (*stats, *out)

    def _values_of(self, n: Expr) -> None:
        """Waits for the values of turn `n`."""
        slot, phase = self.v_ring.at(self.k.b, self.at(n))
        self.k.b.add(t.BarWait(t.Bar(self.v_ring.full, slot), phase))

    def _summed(self, l: Var, w: Var, alpha: Expr) -> Var:
        """The running sum with this turn's weights."""
        return self.k.b.value(op("add", op("mul", l, alpha), self.sums.part(w, "added")), "l")

    def _weights(self, s: Var, n: Expr, kind: Kind, stats: State, between: Callable[[Var], None]) -> tuple[State, Var]:
        """The new statistics and the weights of a turn; `between` stands before the exponentials."""
        k, p, masked = self.k, self.p, kind == "masked"
        tile = self.turns.tile(n, None if isinstance(n, Const) else kind)
        k.keys(k.b.value(op("mul", tile, self.plan.keys), "j0"), self.plan.keys)
        k.b.bindings[FIRST_KEY] = k.first
        k.guards = replace(k.guards, key=op("lt", k.key, N) if masked or _by_key(p) else Guards().key)
        score = k.scores(s)
        ends = () if ends_inside(p.by_row.alternatives) else (k.guards.key,)
        allowed = k.allowed(p.by_row.mask, *ends) if masked else None
        if not p.normalised:
            between(s)
            return (), k.plain(p.attend.normaliser.phi, score, allowed, "w")
        new = online(k, score, allowed, stats[0], between)
        return (new.m, self._summed(stats[1], new.psi, new.alpha), new.alpha), new.w

    def _close(self, state: State) -> None:
        """Normalises and stores."""
        k, plan = self.k, self.plan
        stats, unfinished = state[: self.stats], state[self.stats :]
        acc = tuple(k.b.let("acc", k.b.type_of(a.name), t.DotWait(a.name, 0)) for a in unfinished)
        k.guards = Guards(row=k.guards.row)
        if self.p.normalised:
            acc = finish(k, stats[0], self.sums.whole(stats[1], "l"), acc)
        if self.out is None:
            k.channels["e"] = k.channel_pieces("e")
            k.store_matrix("out", "e", (b, h), k.row, k.guards.row, acc)
            return
        row = op("add", self.r0, self.c * plan.rows)
        slots = self.out.slots(Const(self.c, "int"))
        if self.resident:
            k.b.add(t.CopyWait(0))
        for part, slot, (_, _, axis) in zip(acc, slots, k.pieces("d" if self.out is self.q else "e"), strict=True):
            narrow = k.cast(part, self.p.variant.dtype)
            if self.out is self.q:
                type = t.Type((t.Axis("i", plan.rows), axis), self.p.variant.dtype)
                narrow = k.b.let("o", type, t.Rename(narrow.name), "in the place of q")
            k.b.add(t.SharedStore(slot, narrow.name))
        k.b.add(t.Fence())
        for slot, (offset, _, _) in zip(slots, k.split["e"].pieces, strict=True):
            k.b.add(t.CopyOut(slot, "out", (b, h, row, Const(offset, "int"))))
        if not self.resident or self.out is self.q:
            k.b.add(t.CopyWait(0))
        if self.out is self.q:
            self._release_queries()

    def _release_queries(self) -> None:
        """Gives the place's tile of queries back."""
        self.k.b.add(self.q_ring.release(self.q_ring.at(self.k.b, self.item)[0]))

    def _queries_of(self, consumer: int) -> Expr:
        """The slot of a consumer's queries at this place."""
        slot, _ = self.q_ring.at(self.k.b, self.item)
        return op("add", op("mul", slot, self.plan.consumers), consumer)

    def _room(self, queries: int = 1) -> bool:
        """Whether the output may leave through shared memory of its own, beside the queries of so many places."""
        plan, rows = self.plan, self.plan.consumers * self.plan.rows
        taken = plan.depth * (self._bytes("d", plan.keys) + self._bytes("e", plan.keys))
        return taken + queries * self._bytes("d", rows) + self._bytes("e", rows) <= ROOM


def _by_key(p: Problem) -> bool:
    """Whether scores read tensors by key."""
    reads = [x for x in walk(p.attend.score) if isinstance(x, Load) and x.tensor not in ("q", "k")]
    return any("j" in free_vars(e) for x in reads for e in x.index)
