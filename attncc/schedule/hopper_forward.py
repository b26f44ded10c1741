"""The forward kernel in partitions: a producer's warp copies tiles, two or three warpgroups compute.

Turn n of a consumer, software-pipelined by one product:

    S(n) = Q K(n)^T begins;  under it O is rescaled and the weights of turn n-1 are rounded, if they are not yet
    O += P(n-1) V(n-1) begins;  under it, once S(n) is there, P(n) = weights of S(n);  O is awaited

so that between S(n) and S(n + 1) stand a maximum and the exponentials alone. O of a `lazy` maximum is rescaled in few
turns. An `early` O is awaited before the exponentials: P(n - 1) then makes room for P(n), and a third consumer fits.

A program stays on its multiprocessor: the producer takes one place of the grid after another and fetches the next
place's tiles while consumers end with theirs; its queries, too, where there is room for those of two places.

Where a place is higher than a tile of keys is wide, a consumer passes over the first tiles that only rows of others see
(`own`); the masked turns that are left to it end where its own rows need the mask no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.hopper_config import ROOM, HopperForward
from attncc.schedule.hopper_rows import RowPlaces, State
from attncc.schedule.joined import Channels
from attncc.schedule.key_terms import joined
from attncc.schedule.lanes import Sums
from attncc.schedule.partitions import (
    ALL,
    NONE,
    WARPS,
    Kind,
    buffers,
    claims,
    parity,
    ring,
)
from attncc.schedule.stream import Guards, Problem, b, h
from attncc.schedule.stream_forward import SLACK, finish, initial_statistics, online
from attncc.tile import nodes as t


def partitioned_forward(p: Problem, plan: HopperForward) -> t.Kernel:
    """out and, for normalised weights, lse."""
    forward = _Forward(p, plan)
    return forward.kernel_of("forward_kernel", ("q", "k", "v", "out", *forward.join.tensors))


class _Forward(RowPlaces):
    """The kernel under construction. State: statistics, accumulators, last the weights that are not multiplied yet."""

    plan: HopperForward

    def __init__(self, p: Problem, plan: HopperForward) -> None:
        super().__init__(p, plan)
        self.join = joined(self.k, plan) if self.beyond is None else Channels()
        self.sums = Sums(self.k, "i", plan.lanes)
        self.resident = plan.resident and self._room()
        self.queries = 2 if self.resident and plan.fetched and self._room(2) else 1
        """Places whose queries are there."""
        self.stats = 0 if not p.normalised else 2 if plan.early else 3
        """m, l and, where O is rescaled a turn later, what sums of earlier turns are worth."""

    def memory(self) -> None:
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
            self.issuing = k.b.fresh("turn")
            k.b.add(t.AllocBar(self.issuing, c, WARPS))
            k.b.add(t.BarArrive(t.Bar(self.issuing, NONE), WARPS))
        if self.resident:
            self.claims = claims(k.b, self.p, c)
        self.join.memory()

    # --- the producer

    def feed(self) -> Expr:
        k, plan = self.k, self.plan
        _, first = self.begin(self.q_ring, self.item, plan.consumers * self.bytes("d", plan.rows))
        for c in range(plan.consumers):
            self.copy(self.q, "q", "d", (b, h, op("add", self.r0, c * plan.rows)), self._queries_of(c), first)

        def fill(n: Expr, row: Expr) -> None:
            at = (b, k.kv_head(), row)
            slot, full = self.begin(self.k_ring, self.at(n), self.bytes("d", plan.keys) + self.join.turn_bytes)
            self.copy(self.keys, "k", "d", at, slot, full)
            self.join.arrive((b, h, row), slot, full)
            slot, full = self.begin(self.v_ring, self.at(n), self.bytes("e", plan.keys), later=1)
            self.copy(self.values, "v", "e", at, slot, full)

        return self.every_turn(fill)

    # --- a consumer

    def consume(self, c: int) -> Expr:
        k = self.k
        self.c = c
        own = self.own_turns(c) if self.plan.own else ALL
        self.own_rows(c)
        self.join.begin(k.b.axis("i", self.plan.rows))
        acc = k.zeros("acc", "i", "e")
        state = acc
        if self.p.normalised:
            m, l = initial_statistics(k, self.sums.type())
            state = (*(m, l, l)[: self.stats], *acc)
        slot, phase = self.q_ring.at(k.b, self.item)
        k.b.add(t.BarWait(t.Bar(self.q_ring.full, slot), phase))
        if own.first is not NONE:
            self._pass(own.first)
        state = self.walk(state, own)
        if self.out is not self.q:
            self._release_queries()
        self._close(self._product(op("sub", self.turns.total, 1), state))
        return self.turns.total

    def turn(self, n: Expr, kind: Kind, state: State, first: bool = False) -> State:
        k = self.k
        slot, phase = self.k_ring.at(k.b, self.at(n))
        k.b.add(t.BarWait(t.Bar(self.k_ring.full, slot), phase))
        if self.plan.turns:
            k.b.add(t.BarWait(self._turn_of(self.c), parity(k.b, self.at(n), 1)))
        s = self.products(self.q.slots(self._queries_of(self.c)), self.keys, slot, "s", "d")
        s = self.join.added(s, slot)
        if not first:
            state = self._product(op("sub", n, 1), state)
        stats, acc = state[: self.stats], state[self.stats : self.stats + len(self.values.names)]
        if self.plan.turns:
            k.b.add(t.BarArrive(self._turn_of(self.c + 1), WARPS))
        s = k.b.let("s", k.b.type_of(s.name), t.DotWait(s.name, 0 if first else len(acc)))
        ended: list[Var] = []

        def end(*before: Var) -> None:
            """The product of the turn before is awaited, behind `before`; with it both tiles of that turn are free."""
            ended.extend(acc if first else self.awaited(acc, "acc", *before))
            k.b.add(self.k_ring.release(slot))

        early = (lambda m: end(s, m)) if self.plan.early else (lambda m: None)
        self.keys_of(n, kind, first)
        new, w = self._weights(s, kind, stats, early)
        if self.plan.settled:
            self._values_of(n)
        if not self.plan.early:
            end(w)
        elif self.p.normalised:
            ended = [self._rescaled(a, new[2]) for a in ended]
        return (*new[: self.stats], *ended, self.operand(w, "p") if self.plan.rounded else w)

    def _pass(self, count: Expr) -> None:
        """Lets the first `count` turns pass: their tiles are given back as they come, and never before."""
        k = self.k

        def turn(n: Var, _: State) -> State:
            slot, phase = self.k_ring.at(k.b, self.at(n))
            k.b.add(t.BarWait(t.Bar(self.k_ring.full, slot), phase))
            self._values_of(n)
            if self.plan.turns:
                k.b.add(t.BarWait(self._turn_of(self.c), parity(k.b, self.at(n), 1)))
                k.b.add(t.BarArrive(self._turn_of(self.c + 1), WARPS))
            k.b.add(self.k_ring.release(slot))
            return ()

        note = "keys: tiles that no row of this consumer sees"
        k.loop(t.Count(NONE, count), "n", "", (), turn, note, 1, "asc")

    def _turn_of(self, consumer: int) -> t.Bar:
        """The barrier that lets a consumer issue its products."""
        return t.Bar(self.issuing, Const(consumer % self.plan.consumers, "int"))

    def _product(self, n: Expr, state: State) -> State:
        """O += P V of turn `n`, begun and not awaited."""
        k, p = self.k, self.p
        stats, acc, w = state[: self.stats], state[self.stats : -1], state[-1]
        slot, _ = self.v_ring.at(k.b, self.at(n))
        if p.normalised and not self.plan.early:
            acc = tuple(self._rescaled(a, stats[2]) for a in acc)
        operand = w if p.variant.dtype == k.b.type_of(w.name).dtype else self.operand(w, "p")
        if not self.plan.settled:
            self._values_of(n)
        return (*stats, *self.added(acc, operand, self.values, slot, "acc"))

    def _rescaled(self, acc: Var, alpha: Var) -> Var:
        """What O is worth beside a new maximum."""
        body = op("mul", acc, alpha)
        if not self.plan.lazy:
            return self.k.b.value(body, "acc")
        return self.k.b.let("acc", self.k.b.type_of(acc.name), t.Map(body, spared=True))

    def _values_of(self, n: Expr) -> None:
        """Waits for the values of turn `n`."""
        slot, phase = self.v_ring.at(self.k.b, self.at(n))
        self.k.b.add(t.BarWait(t.Bar(self.v_ring.full, slot), phase))

    def _summed(self, l: Var, w: Var, alpha: Expr) -> Var:
        """The running sum with this turn's weights."""
        return self.k.b.value(op("add", op("mul", l, alpha), self.sums.part(w, "added")), "l")

    def _weights(self, s: Var, kind: Kind, stats: State, between: Callable[[Var], None]) -> tuple[State, Var]:
        """The new statistics and the weights of a turn; `between` stands before the exponentials."""
        k = self.k
        score, allowed = k.scores(s), self.allowed(kind)
        if not self.p.normalised:
            between(s)
            return (), k.plain(self.p.attend.normaliser.phi, score, allowed, "w")
        new = online(k, score, allowed, stats[0], between, SLACK if self.plan.lazy else 0.0)
        return (new.m, self._summed(stats[1], new.psi, new.alpha), new.alpha), new.w

    def _close(self, state: State) -> None:
        """Normalises and stores."""
        k, stats = self.k, state[: self.stats]
        acc = self.awaited(state[self.stats :], "acc")
        k.guards = Guards(row=k.guards.row)
        if self.p.normalised:
            acc = finish(k, stats[0], self.sums.whole(stats[1], "l"), acc)
        if self.out is None:
            k.channels["e"] = k.channel_pieces("e")
            k.store_matrix("out", "e", (b, h), k.row, k.guards.row, acc)
            return
        self.leave("out", "e", acc, self.out, self.c, "d" if self.out is self.q else "")
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
        taken = plan.depth * (self.bytes("d", plan.keys) + self.bytes("e", plan.keys))
        return taken + self.join.bytes + queries * self.bytes("d", rows) + self.bytes("e", rows) <= ROOM
