"""dQ alone, in partitions: a producer's warp copies tiles of keys, warpgroups of 64 queries each compute.

Where every sum has one order, or walks are short by data, dQ is summed by the programs that own its rows. Turn n of a
consumer:

    S(n) = Q K(n)^T begins;  dQ += dS(n-1) K(n-1) begins;  dP(n) = dO V(n)^T begins
    w = weights of S(n), under the other two;  both are awaited, the slot of turn n-1 is given back
    dS(n) = w (dP(n) - delta), rounded for its product

Queries and dO stay in registers. Where the kernel of keys comes `after`, rows of O are there, too: their statistics are
computed here, and left for it.
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.captured import by_product
from attncc.schedule.hopper_backward_rows import endless, statistics_tiles, store_packed
from attncc.schedule.hopper_config import ROOM, HopperBackward, HopperQueries
from attncc.schedule.hopper_rows import RowPlaces, State
from attncc.schedule.partitions import Buffers, Kind, buffers, claims, ring
from attncc.schedule.stream import Problem, Stream, b, h
from attncc.schedule.stream_backward import pair_scores, product_gradient, scaled, score_gradient, statistics_of
from attncc.tile import nodes as t


def partitioned_queries(p: Problem, plan: HopperQueries, after: HopperBackward | None = None) -> t.Kernel:
    """d_q, from q, k, v, d_out and the row statistics; or from out and lse, where the kernel of `after` comes later."""
    more = () if after is None else ("out",)
    return _Queries(p, plan, after).kernel_of("queries_kernel", ("q", "k", "v", "d_out", "d_q", *more))


def fits(plan: HopperQueries, after: HopperBackward) -> bool:
    """Whether a place's rows are whole tiles of what the kernel of keys reads, a consumer's within one."""
    return plan.rows * plan.consumers % after.rows == 0 and after.rows % plan.rows == 0


class _Known(Stream):
    """A stream of rows whose statistics the kernel may have computed itself."""

    def __init__(self, p: Problem) -> None:
        super().__init__(p, ("i", "j"))
        self.known: dict[str, Var] = {}

    def stat(self, tensor: str, hint: str, other: float = 0.0) -> Var:
        """One number per row."""
        return self.known[tensor] if tensor in self.known else super().stat(tensor, hint, other)


class _Queries(RowPlaces):
    """The kernel under construction. State: dQ by pieces of the channels, then dS of the turn before, rounded."""

    plan: HopperQueries
    k: _Known

    def __init__(self, p: Problem, plan: HopperQueries, after: HopperBackward | None) -> None:
        super().__init__(p, plan)
        self.k, self.after = _Known(p), after
        self.resident = plan.resident
        d, e = self.bytes("d", 1), self.bytes("e", 1)
        self.turn_bytes = plan.keys * (d + e)
        self.own_bytes = plan.consumers * plan.rows * (d + e + (0 if after is None else e))
        taken = self.own_bytes + plan.consumers * plan.rows * d
        self.depth = max(2, min(plan.depth, (ROOM - taken) // self.turn_bytes))
        """As planned, or as there is room for beside what arrives and leaves of rows."""

    def memory(self) -> None:
        k, plan, c = self.k, self.plan, self.plan.consumers
        i, j = k.b.axis("i", plan.rows), t.Axis("j", plan.keys)
        self.q, self.d_out = buffers(k, "q_tile", i, "d", c), buffers(k, "do_tile", i, "e", c)
        if self.after is not None:
            self.o = buffers(k, "o_tile", i, "e", c)
        self.keys, self.values = buffers(k, "k_tile", j, "d", self.depth), buffers(k, "v_tile", j, "e", self.depth)
        self.out = buffers(k, "out_tile", i, "d", c)
        self.own_ring, self.ring = ring(k.b, "own", 1, c), ring(k.b, "keys", self.depth, c)
        if self.resident:
            self.claims = claims(k.b, self.p, c)

    # --- the producer

    def feed(self) -> Expr:
        k, plan = self.k, self.plan
        _, own = self.begin(self.own_ring, self.item, self.own_bytes)
        for c in range(plan.consumers):
            at, mine = (b, h, op("add", self.r0, c * plan.rows)), Const(c, "int")
            self.copy(self.q, "q", "d", at, mine, own)
            self.copy(self.d_out, "d_out", "e", at, mine, own)
            if self.after is not None:
                self.copy(self.o, "out", "e", at, mine, own)

        def fill(n: Expr, row: Expr) -> None:
            slot, full = self.begin(self.ring, self.at(n), self.turn_bytes)
            self.copy(self.keys, "k", "d", (b, k.kv_head(), row), slot, full)
            self.copy(self.values, "v", "e", (b, k.kv_head(), row), slot, full)

        return self.every_turn(fill)

    # --- a consumer

    def consume(self, c: int) -> Expr:
        k = self.k
        self.own_rows(c)
        slot, phase = self.own_ring.at(k.b, self.item)
        k.b.add(t.BarWait(t.Bar(self.own_ring.full, slot), phase))
        mine = self.mine = Const(c, "int")
        self.held = self._held(self.q, mine, "q", "d"), self._held(self.d_out, mine, "d_out", "e")
        if self.after is None:
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

    def _statistics(self, after: HopperBackward) -> None:
        """Those of a consumer's rows, for itself and for the kernel that comes after."""
        k, p = self.k, self.p
        outs = self._held(self.o, self.mine, "o", "e")
        k.b.add(self.own_ring.release(self.own_ring.at(k.b, self.item)[0]))
        delta, log_z = statistics_of(k, _values(outs), _values(self.held[1]))
        log_z = endless(k, log_z)
        k.known = {p.own("delta"): delta, p.own("log_z"): log_z}
        before, within = divmod(int(self.mine.value) * self.plan.rows, after.rows)
        tile = k.b.value(op("add", op("floordiv", self.r0, after.rows), before), "tile")
        lane = k.b.let("lane", t.Type(k.b.over("i").axes, "i32"), t.Iota(Const(within, "int")))
        end = op("mul", statistics_tiles(after), after.rows)
        store_packed(k, after, (delta, log_z), tile, lane, op("lt", k.row, end))

    def turn(self, n: Expr, kind: Kind, state: State, first: bool = False) -> State:
        k = self.k
        slot, phase = self.ring.at(k.b, self.at(n))
        k.b.add(t.BarWait(t.Bar(self.ring.full, slot), phase))
        s = self.products(self.held[0], self.keys, slot, "s", "d")
        before = op("sub", n, 1)
        dq = state if first else self._product(before, state)
        dp = self.products(self.held[1], self.values, slot, "dp", "e")
        if first and self.after is not None:
            self._statistics(self.after)
        later = len(self.values.names) + (0 if first else len(dq))
        s = k.b.let("s", k.b.type_of(s.name), t.DotWait(s.name, later))
        self.keys_of(n, kind, first)
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


def _values(names: tuple[str, ...]) -> tuple[Var, ...]:
    return tuple(Var(n, "real") for n in names)
