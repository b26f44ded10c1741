"""dQ alone, in partitions: a producer's warp copies tiles of keys, warpgroups of 64 queries each compute.

Where every sum has one order, dQ is summed by the programs that own its rows. Turn n of a consumer:

    S(n) = Q K(n)^T begins;  dQ += dS(n-1) K(n-1) begins;  dP(n) = dO V(n)^T begins
    w = weights of S(n), under the other two;  both are awaited, the slot of turn n-1 is given back
    dS(n) = w (dP(n) - delta), rounded for its product

Queries and dO stay in registers.
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr
from attncc.schedule.captured import by_product
from attncc.schedule.hopper_config import HopperQueries
from attncc.schedule.hopper_rows import RowPlaces, State
from attncc.schedule.partitions import Buffers, Kind, buffers, claims, ring
from attncc.schedule.stream import Problem, b, h
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
        row_bytes = self.bytes("d", 1) + self.bytes("e", 1)
        _, own = self.begin(self.own_ring, self.item, plan.consumers * plan.rows * row_bytes)
        for c in range(plan.consumers):
            at = (b, h, op("add", self.r0, c * plan.rows))
            self.copy(self.q, "q", "d", at, Const(c, "int"), own)
            self.copy(self.d_out, "d_out", "e", at, Const(c, "int"), own)

        def fill(n: Expr, row: Expr) -> None:
            slot, full = self.begin(self.ring, self.at(n), plan.keys * row_bytes)
            self.copy(self.keys, "k", "d", (b, k.kv_head(), row), slot, full)
            self.copy(self.values, "v", "e", (b, k.kv_head(), row), slot, full)

        return self.every_turn(fill)

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
        dq = self._ended(self._product(last, state), last)
        factor = by_product(self.p)[0]
        self.leave("d_q", "d", tuple(scaled(k, v, factor, "dq") for v in dq), self.out, c)
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
        (dp,) = self.awaited((dp,), "dp", known.w)
        if not first:
            dq = self._ended(dq, before)
        ds = score_gradient(k, known, dp)
        return (*dq, self.operand(product_gradient(k, ds)[1], "ds"))

    def _product(self, n: Expr, state: State) -> State:
        """dQ += dS K of turn `n`, begun and not awaited."""
        slot, _ = self.ring.at(self.k.b, self.at(n))
        return self.added(state[:-1], state[-1], self.keys, slot, "dq")

    def _ended(self, dq: State, n: Expr) -> State:
        """dQ with turn `n`, whose slot is given back."""
        done = self.awaited(dq, "dq")
        self.k.b.add(self.ring.release(self.ring.at(self.k.b, self.at(n))[0]))
        return done
