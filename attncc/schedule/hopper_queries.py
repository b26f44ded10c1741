"""dQ alone, in partitions: a producer's warp copies tiles of keys, warpgroups of 64 queries each compute.

Where every sum has one order, dQ is summed by the programs that own its rows. Turn n of a consumer:

    S(n) = Q K(n)^T begins;  dQ += dS(n-1) K(n-1) begins;  dP(n) = dO V(n)^T begins
    w = weights of S(n), under the other two;  both are awaited, the slot of turn n-1 is given back
    dS(n) = w (dP(n) - delta), rounded for its product

Queries and dO stay in registers. The producer walks the same turns, masked ones first, and knows nothing else.
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr
from attncc.schedule.captured import by_product
from attncc.schedule.hopper_config import HopperQueries
from attncc.schedule.hopper_rows import RowPlaces, State
from attncc.schedule.partitions import Buffers, Kind, Ring, buffers, claims, ring
from attncc.schedule.stream import Guards, Problem, b, h
from attncc.schedule.stream_backward import pair_scores, product_gradient, scaled, score_gradient
from attncc.tile import nodes as t


def partitioned_queries(p: Problem, plan: HopperQueries) -> t.Kernel:
    """d_q, from q, k, v, d_out and the row statistics."""
    return _Queries(p, plan).kernel_of("queries_kernel", ("q", "k", "v", "d_out", "d_q"))


class _Queries(RowPlaces):
    """The kernel under construction. State: dQ by pieces of the channels, then dS of the turn before, rounded."""

    def __init__(self, p: Problem, plan: HopperQueries) -> None:
        super().__init__(p, plan)
        self.resident = plan.resident

    def memory(self) -> None:
        k, plan, c = self.k, self.plan, self.plan.consumers
        i, j = k.b.axis("i", plan.rows), t.Axis("j", plan.keys)
        self.q, self.d_out = buffers(k, "q_tile", i, "d", c), buffers(k, "do_tile", i, "e", c)
        self.keys, self.values = buffers(k, "k_tile", j, "d", plan.depth), buffers(k, "v_tile", j, "e", plan.depth)
        self.out = buffers(k, "out_tile", i, "d", c)
        self.own_ring, self.ring = ring(k.b, "own", 1, c), ring(k.b, "keys", plan.depth, c)
        if self.resident:
            self.claims = claims(k.b, self.p, c)

    # --- the producer

    def feed(self) -> Expr:
        k, plan = self.k, self.plan
        own = self._begin(self.own_ring, self.item, plan.consumers * plan.rows)[1]
        for c in range(plan.consumers):
            at = (b, h, op("add", self.r0, c * plan.rows))
            self.copy(self.q, "q", "d", at, Const(c, "int"), own)
            self.copy(self.d_out, "d_out", "e", at, Const(c, "int"), own)

        def fill(n: Expr, row: Expr) -> None:
            slot, full = self._begin(self.ring, self.at(n), plan.keys)
            self.copy(self.keys, "k", "d", (b, k.kv_head(), row), slot, full)
            self.copy(self.values, "v", "e", (b, k.kv_head(), row), slot, full)

        return self.every_turn(fill)

    def _begin(self, ring: Ring, n: Expr, rows: int) -> tuple[Expr, t.Bar]:
        """Waits until the slot of turn `n` is empty; it, and its barrier, told of `rows` rows of both channel axes."""
        slot, phase = ring.at(self.k.b, n)
        full = t.Bar(ring.full, slot)
        self.k.b.add(t.BarWait(t.Bar(ring.empty, slot), op("sub", 1, phase)))
        self.k.b.add(t.BarExpect(full, self.bytes("d", rows) + self.bytes("e", rows)))
        return slot, full

    # --- a consumer

    def consume(self, c: int) -> Expr:
        k = self.k
        self.own_rows(c)
        slot, phase = self.own_ring.at(k.b, self.item)
        k.b.add(t.BarWait(t.Bar(self.own_ring.full, slot), phase))
        mine = Const(c, "int")
        self.held = self._held(self.q, mine, "q", "d"), self._held(self.d_out, mine, "d_out", "e")
        k.b.add(self.own_ring.release(slot))
        state = self.walk(k.zeros("dq", "i", "d"))
        last = op("sub", self.turns.total, 1)
        dq = self._awaited(self._product(last, state), last)
        self._store(dq, mine, op("add", self.r0, c * self.plan.rows))
        return self.turns.total

    def _held(self, tiles: Buffers, mine: Expr, hint: str, prefix: str) -> tuple[str, ...]:
        """A consumer's rows of a tensor, in registers."""
        k, rows = self.k, self.k.b.axis("i", self.plan.rows)
        types = (t.Type((rows, piece), self.p.variant.dtype) for *_, piece in k.pieces(prefix))
        pairs = zip(types, tiles.slots(mine), strict=True)
        return tuple(k.b.let(hint, type, t.SharedLoad(slot)).name for type, slot in pairs)

    def turn(self, n: Expr, kind: Kind, state: State) -> State:
        k, first = self.k, isinstance(n, Const)
        slot, phase = self.ring.at(k.b, self.at(n))
        k.b.add(t.BarWait(t.Bar(self.ring.full, slot), phase))
        s = self.products(self.held[0], self.keys, slot, "s", "d")
        before = op("sub", n, 1)
        dq = state if first else self._product(before, state)
        dp = self.products(self.held[1], self.values, slot, "dp", "e")
        later = len(self.values.names) + (0 if first else len(dq))
        s = k.b.let("s", k.b.type_of(s.name), t.DotWait(s.name, later))
        self.keys_of(n, kind)
        known = pair_scores(k, s, self.allowed(kind))
        dp = k.b.let("dp", k.b.type_of(dp.name), t.DotWait(dp.name, 0, (known.w.name,)))
        if not first:
            dq = self._awaited(dq, before)
        ds = score_gradient(k, known, dp)
        narrow = k.cast(product_gradient(k, ds)[1], self.p.variant.dtype)
        return (*dq, k.b.let("ds", k.b.type_of(narrow.name), t.Convert(narrow.name, "operand")))

    def _product(self, n: Expr, state: State) -> State:
        """dQ += dS K of turn `n`, begun and not awaited."""
        slot, _ = self.ring.at(self.k.b, self.at(n))
        return self.added(state[:-1], state[-1], self.keys, slot, "dq")

    def _awaited(self, dq: State, n: Expr) -> State:
        """dQ with turn `n`, whose slot is given back."""
        k = self.k
        done = tuple(k.b.let("dq", k.b.type_of(a.name), t.DotWait(a.name, 0)) for a in dq)
        k.b.add(self.ring.release(self.ring.at(k.b, self.at(n))[0]))
        return done

    def _store(self, dq: State, mine: Expr, row: Expr) -> None:
        k = self.k
        k.guards = Guards(row=k.guards.row)
        factor = by_product(self.p)[0]
        done = tuple(k.cast(scaled(k, v, factor, "dq"), self.p.variant.dtype) for v in dq)
        k.b.add(t.CopyWait(0))
        slots = self.out.slots(mine)
        for value, slot in zip(done, slots, strict=True):
            k.b.add(t.SharedStore(slot, value.name))
        k.b.add(t.Fence())
        for slot, (offset, _, _) in zip(slots, k.split["d"].pieces, strict=True):
            k.b.add(t.CopyOut(slot, "d_q", (b, h, row, Const(offset, "int"))))
        if not self.resident:
            k.b.add(t.CopyWait(0))
