"""The backward kernel in partitions: a producer's warp copies tiles, two warpgroups of 64 keys each compute.

A program owns 128 keys and walks the tiles of queries that see them. Scores are laid out key by query, so that weights
and dS are the first operands of dV and dK as they lie in registers. A turn of a consumer, where dQ lags:

    S = K Q^T begins;  dQ of the turn before begins;  S is awaited
    w = weights of S, under dQ;  dQ is awaited and laid out in shared memory
    dP = V dO^T and dV += w dO begin;  dQ leaves: a bulk addition to a float32 buffer;  dP is awaited
    dS is stored to shared memory;  dK += dS Q begins;  dS is told of, for both consumers' dQ
    both are awaited, the slot of Q, dO and the row statistics is given back

The producer walks the same turns and knows nothing else. Before the first turn dS is 0 and its dQ leaves for rows
outside of the tensor, so that all turns are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attncc.expr.build import TRUE, conj, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.beyond import FIRST_KEY, FIRST_ROW, lies_before
from attncc.schedule.captured import CONSUMERS, Capture, by_product, split_coefficient
from attncc.schedule.hopper_backward_exchange import Exchange
from attncc.schedule.hopper_backward_places import INT, KEYS, State
from attncc.schedule.hopper_backward_rows import sums_of
from attncc.schedule.hopper_backward_stream import affine, packed
from attncc.schedule.hopper_config import HopperBackward
from attncc.schedule.masks import ends_inside
from attncc.schedule.partitions import NONE, WARPS, Kind, parity
from attncc.schedule.separate import separate
from attncc.schedule.steps import reads_at_rows
from attncc.schedule.stream import ZERO, Guards, M, N, Problem, b, g, h, i, j
from attncc.schedule.stream_backward import Scores, pair_scores, product_gradient, scaled, score_gradient
from attncc.tile import nodes as t

Turn = Callable[[Kind, Expr, Expr, State], State]
NOTES: Mapping[Kind, str] = {
    "masked": "queries: tiles that need the mask",
    "full": "queries: tiles inside the mask",
    "far": "queries: tiles where tables have one value",
}


def partitioned_keys(p: Problem, plan: HopperBackward, wanted: frozenset[str], found: tuple[Capture, ...]) -> t.Kernel:
    """dK, dV and the float32 sum of dQ, where wanted, and the captures of j alone or of neither index."""
    return _Keys(p, plan, wanted, found).kernel()


class _Keys(Exchange):
    """The kernel under construction."""

    # --- the walk over heads and tiles, the same in every partition

    def _loops(self, start: Expr, state: State, turn: Turn) -> State:
        """Every turn of one head: `turn(its kind, its number, its tile, state)`."""
        k, p = self.k, self.p
        for kind, count in self.walk.loops(start):

            def one(n: Var, state: State, kind: Kind = kind) -> State:
                here = n if start is NONE else op("sub", n, start)
                tile = k.b.value(self.walk.tile(here, kind), "tile")
                return turn(kind, n, tile, state)

            if kind == "far" and self.beyond is not None:
                self.p = k.p = self.beyond.problem
            state = k.loop(count, "n", "", state, one, NOTES[kind], 1, "asc")
            self.p = k.p = p
        return state

    def _heads(self, state: State, head: Callable[[Expr, State], State]) -> tuple[State, Expr]:
        """`head(its first turn, state)` for every head that shares the keys; the number of all turns."""
        k = self.k
        if self.heads is None:
            return head(NONE, state), self.walk.total

        def one(number: Var, state: State) -> State:
            k.b.bindings[h] = self.head(number)
            return head(k.b.value(op("mul", number, self.walk.total), "turn"), state)

        final = k.loop(t.Count(NONE, self.heads), "n", "", state, one, "heads that share the keys", 1, "asc")
        return final, k.b.value(op("mul", self.heads, self.walk.total), "turn")

    # --- the producer

    def feed(self) -> Expr:
        """Fetches the keys and values of a place once the place before needs its own no more, then walks."""
        k, bar = self.k, t.Bar(self.own_full, NONE)
        phase = parity(k.b, self.item, 1)
        for tile, tensor, empty in ((self.v_tile, "v", self.v_empty), (self.k_tile, "k", self.k_empty)):
            if self.resident:
                k.b.add(t.BarWait(t.Bar(empty, NONE), op("sub", 1, phase)))
            if tensor == "v":
                k.b.add(t.BarExpect(bar, 4 * KEYS * (self.d.extent + self.e.extent)))
            for c in range(2):
                at = (b, k.kv_head(), self.first(c), NONE)
                k.b.add(t.CopyIn(t.Slot(tile, Const(c, "int")), self.seen(tensor), at, bar))
        return self._heads((), lambda start, state: self._loops(start, state, self._fill))[1]

    def _fill(self, kind: Kind, n: Expr, tile: Expr, state: State) -> State:
        """Waits until the slot of turn `n` is empty and begins to fill it."""
        k, rows = self.k, self.plan.rows
        slot, phase = self.ring.at(k.b, self.at(n))
        bar = t.Bar(self.ring.full, slot)
        k.b.add(t.BarWait(t.Bar(self.ring.empty, slot), op("sub", 1, phase)))
        numbers = 4 * len(packed(self.p))
        k.b.add(t.BarExpect(bar, rows * (2 * (self.d.extent + self.e.extent) + numbers)))
        at = (b, k.head(), k.b.value(op("mul", tile, rows), "i0"), NONE)
        k.b.add(t.CopyIn(t.Slot(self.q_tile, slot), self.seen("q"), at, bar))
        if numbers:
            name = self.seen(self.p.own("statistics"))
            k.b.add(t.CopyIn(t.Slot(k.statistics, slot), name, (b, k.head(), tile, NONE), bar))
        k.b.add(t.CopyIn(t.Slot(self.do_tile, slot), self.seen("d_out"), at, bar))
        return state

    # --- a consumer

    def consume(self, c: int) -> Expr:
        k = self.k
        self.c, self.mine = c, Const(c, "int")
        k.keys(self.first(c), KEYS)
        k.b.axis("i", self.plan.rows)
        self.own = op("lt", k.key, N)
        k.guards = Guards(key=self.own)
        dk = k.zeros("dk", "j", "d") if "k" in self.wanted else ()
        dv = k.zeros("dv", "j", "e") if "v" in self.wanted else ()
        before = self._before() if self.exchanged else ()
        k.b.add(t.BarWait(t.Bar(self.own_full, NONE), parity(k.b, self.item, 1)))
        final, turns = self._heads((*dk, *dv, *before), self._one_head)
        self._finish(final[: len(dk)], final[len(dk) : len(dk) + len(dv)], final[len(dk) + len(dv) :], turns)
        return turns

    def _before(self) -> State:
        """The turn before the first: no dS, and its rows lie outside."""
        if not self.plan.lag:
            return ()
        k = self.k
        type = t.Type(k.b.over("j", "i").axes, self.p.variant.dtype)
        self.store_ds(k.b.let("nothing", type, t.Full(ZERO)), NONE)
        self.send_ds(NONE)
        before: State = (k.b.let("before", INT, t.Map(M), "rows of the turn before"),)
        if self.heads is not None:
            before += (k.b.let("head", INT, t.Map(op("mul", g, self.heads)), "its head"),)
        return before

    def _one_head(self, start: Expr, state: State) -> State:
        k = self.k
        sums = tuple(k.b.let("sum", self.sums.type(), t.Full(ZERO), f"for {c.load.tensor}") for c, _ in self.shares)
        final = self._loops(start, (*state, *sums), self._turn)
        for (c, n), parts in zip(self.shares, final[len(state) :], strict=True):
            total = self.sums.whole(parts, "sum")
            self._store_sum(c, n, scaled(k, total, split_coefficient(c.factor)[0], "sum"))
        return final[: len(state)]

    def _store_sum(self, c: Capture, n: int, total: Var) -> None:
        """One number per key, or one per consumer and side."""
        k = self.k
        self.seen(c.buffer)
        if c.place == "key":
            k.b.add(t.Store(c.buffer, (b, k.head(), k.key), total.name, self.own))
            return
        valid = k.b.value(op("where", self.own, total, ZERO), "sum")
        one = k.b.let("total", t.Type((), self.p.real), t.Reduce("sum", valid.name, "j"))
        number = k.b.value(op("floordiv", self.j0, 2 * KEYS), "program")
        k.b.add(t.Store(c.buffer, (b, k.head(), number, Const(CONSUMERS * n + self.c, "int")), one.name))

    def _turn(self, kind: Kind, n: Expr, tile: Expr, state: State) -> State:
        k, plan, masked = self.k, self.plan, kind == "masked"
        dk, dv, before, sums = self._parts(state)
        k.slot, phase = self.ring.at(k.b, self.at(n))
        i0 = k.b.value(op("mul", tile, plan.rows), "i0")
        self._rows(masked, i0)
        k.b.bindings |= {FIRST_KEY: self.j0, FIRST_ROW: op("add", i0, k.shift)}
        k.b.add(t.BarWait(t.Bar(self.ring.full, k.slot), phase))
        self.forget(op("sub", M, i0))
        s = self._product(self.k_tile, self.q_tile, self.d, "s", self._start())
        under = before and not (masked and plan.calm)
        dq = self.begin_dq(n) if under else ()
        s = k.b.let("s", k.b.type_of(s.name), t.DotWait(s.name, len(dq)))
        known = pair_scores(k, s, self._allowed(masked), self.started)
        w = self.operand(known.w, f"{known.w.name}_a") if dv or (masked and plan.calm) else None
        if before:
            self.lay_out(dq or self.begin_dq(n))
        if self.needs_ds:
            dp = self._product(self.v_tile, self.do_tile, self.e, "dp", self._delta())
        if dv and w is not None:
            dv = self._accumulate(dv, w, self.do_tile)
        if before:
            self.leave(before)
        if self.needs_ds:
            pending = 0 if masked and plan.calm else len(dv)
            dp = k.b.let("dp", k.b.type_of(dp.name), t.DotWait(dp.name, pending))
            if plan.hold == "product":
                s = k.b.let("s", k.b.type_of(s.name), t.DotWait(s.name, pending), "what follows is computed again")
            self._rows(masked, k.b.value(op("add", i0, self.zero), "i0"))
            if plan.hold == "product" and masked and plan.calm and self.p.exponential and w is not None:
                wide = k.b.let("w", k.b.type_of(known.w.name), t.Cast(w.name), "once more, as the product had them")
                known = Scores(wide, k.scores(s), None, None, None)
            elif plan.hold == "product":
                known = pair_scores(k, s, self._allowed(masked), self.started)
            ds = score_gradient(k, known, dp, self.p.exponential)
            if sums:
                sums = self._added(sums, ds, kind == "far")
            dk = self._from_ds(n, ds, dk)
        later = self.begin_dq(n) if self.exchanged and not plan.lag else ()
        dv, dk = self._both(dv, dk, len(later))
        k.b.add(self.ring.release(k.slot))
        at: State = (i0,)
        if self.heads is not None:
            at += (k.b.value(k.head(), "h"),)
        if later:
            self.lay_out(later)
            self.leave(at)
        return (*dk, *dv, *(at if before else ()), *sums)

    # --- parts of a turn

    def _parts(self, state: State) -> tuple[State, State, State, State]:
        """(dK, dV, the turn before, sums)."""
        a = int("k" in self.wanted)
        b = a + int("v" in self.wanted)
        c = len(state) - len(self.shares)
        return state[:a], state[a:b], state[b:c], state[c:]

    def _product(self, left: str, right: str, channel: t.Axis, hint: str, start: Var | None) -> Var:
        """The score-shaped product of this consumer's keys and the turn's rows, begun and not awaited."""
        begin = start.name if start is not None else None
        pair = t.Slot(left, self.keys_of(self.c)), t.Slot(right, self.k.slot)
        dot = t.Dot(*pair, channel.name, begin, asynchronous=True)
        return self.k.b.let(hint, self.k.b.over("i", "j"), dot)

    def _start(self) -> Var | None:
        slope = affine(self.p) if self.started else None
        return None if slope is None else self.k.started(slope)

    def _delta(self) -> Var | None:
        return self.k.stat(self.p.own("delta"), "minus_delta") if self.p.exponential else None

    def _rows(self, masked: bool, i0: Var) -> None:
        """The rows of a turn."""
        k = self.k
        k.rows(i0, self.plan.rows)
        guarded = masked or reads_at_rows(self.p)
        k.guards = Guards(op("lt", k.row, M) if guarded else Guards().row, self.own)

    def _allowed(self, masked: bool) -> Expr | None:
        """The predicate of a partial tile: the mask, and the ends of the axes where nothing else keeps them out.

        Rows past the end have an infinite Z. Keys past the end are outside of a mask whose bounds need no clamp.
        """
        p = self.p
        clamped = bool(p.by_row.alternatives) and not ends_inside(p.by_row.alternatives)
        ends = () if p.normalised and not clamped else (self.own,) if p.normalised else (self.k.guards.row, self.own)
        allowed = conj(p.by_key.mask, *ends)
        return self.k.allowed(allowed) if masked and allowed is not TRUE else None

    def _accumulate(self, acc: State, left: Var, right: str) -> State:
        """acc + left @ the turn's rows of `right`, begun and not awaited."""
        (a,) = acc
        dot = t.Dot(left.name, t.Slot(right, self.k.slot), "i", a.name, asynchronous=True)
        return (self.k.b.let(a.name.split("_")[0], self.k.b.type_of(a.name), dot),)

    def _both(self, dv: State, dk: State, later: int) -> tuple[State, State]:
        """The accumulators once this turn is in them; `later` dots were begun after theirs."""
        k = self.k
        done = tuple(k.b.let(v.name.split("_")[0], k.b.type_of(v.name), t.DotWait(v.name, later)) for v in (*dv, *dk))
        return done[: len(dv)], done[len(dv) :]

    def _from_ds(self, n: Expr, ds: Var, dk: State) -> State:
        """dS on its way to the other products: shared for dQ, a register operand for dK."""
        k = self.k
        if not {"q", "k"} & self.wanted:
            return ()
        narrow = k.cast(product_gradient(k, ds)[1], self.p.variant.dtype)
        number = op("add", n, 1) if self.plan.lag else n
        if self.exchanged:
            self.store_ds(narrow, number)
        dk = self._accumulate(dk, self.operand(narrow, f"{narrow.name}_a"), self.q_tile) if dk else ()
        if self.exchanged:
            self.send_ds(number)
        return dk

    def _added(self, sums: State, ds: Var, far: bool) -> State:
        """The sums with this turn's dS; far away all of it is on one side of what tables tell apart."""
        k, out = self.k, []
        whole: Var | None = None
        for (c, n), total in zip(self.shares, sums, strict=True):
            part: Expr
            if far and c.near is not None:
                whole = self.sums.part(ds, "part") if whole is None else whole
                values = (ZERO, whole) if c.sides[n] else (whole, ZERO)
                part = op("where", lies_before(c.near), *values)
            else:
                part = self.sums.part(self._share(c, n, ds), "part")
            out.append(k.b.value(op("add", total, part), "sum"))
        return tuple(out)

    def _share(self, c: Capture, n: int, ds: Var) -> Var:
        """What the turn's pairs add to a sum, its coefficient left out."""
        if c.near is not None:
            beyond = (op("lt", j, op("add", i, c.near.first)), op("lt", op("add", i, c.near.last), j))
            return self.k.b.value(op("where", beyond[c.sides[n]], ds, ZERO), "share")
        rest = split_coefficient(c.factor)[1]
        return ds if rest is None else scaled(self.k, ds, separate(rest, self.first(self.c)).whole(), "share")

    # --- the end

    def _finish(self, dk: State, dv: State, before: State, turns: Expr) -> None:
        k = self.k
        if self.resident:
            k.b.add(t.BarArrive(t.Bar(self.v_empty, NONE), WARPS))
        elif dv:
            self._store("d_v", dv[0])
        if before:
            self.forget(M)
            self.lay_out(self.begin_dq(turns))
            self.leave(before)
        if self.resident:
            k.b.add(t.BarArrive(t.Bar(self.k_empty, NONE), WARPS))
            if dv:
                self._store("d_v", dv[0])
        if dk:
            self._store("d_k", dk[0])
        if not self.resident:
            k.b.add(t.CopyWait(0))

    def _store(self, tensor: str, value: Var) -> None:
        """A result of this consumer's keys: through a buffer that nobody reads any more, or added to other heads'."""
        k = self.k
        if self.apart:
            prefix = "d" if tensor == "d_k" else "e"
            k.channels[prefix] = k.channel_pieces(prefix)
            ((c, real, _),) = k.pieces(prefix)
            place = (b, k.kv_head(), k.key, c)
            k.b.add(t.ReduceAdd(self.seen(sums_of(self.p, tensor)), place, value.name, "atomic", conj(self.own, real)))
            return
        through = self.out_tile
        if tensor == "d_k":
            value = scaled(k, value, by_product(self.p)[0], "dk")
            k.b.add(t.CopyWait(0))
            through = self.out_tile if self.d.extent == self.e.extent else self.dk_tile
        elif self.resident:
            k.b.add(t.CopyWait(0))
        narrow = k.cast(value, self.p.variant.dtype)
        if through is self.out_tile and tensor == "d_k":
            type = t.Type((k.b.axis("j", KEYS), self.e), self.p.variant.dtype)
            narrow = k.b.let("dk_rows", type, t.Rename(narrow.name))
        slot = t.Slot(through, self.mine)
        k.b.add(t.SharedStore(slot, narrow.name))
        k.b.add(t.Fence())
        k.b.add(t.CopyOut(slot, self.seen(tensor), (b, g, self.first(self.c), NONE)))
