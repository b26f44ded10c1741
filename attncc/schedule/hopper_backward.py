"""The backward kernel in partitions: a producer's warp copies tiles, two warpgroups of 64 keys each compute.

A program owns 128 keys and walks the tiles of queries that see them. Scores are laid out key by query, so that weights
and dS are the first operands of dV and dK as they lie in registers. A turn of a consumer, where dQ lags:

    S = K Q^T begins;  dQ of the turn before begins;  S is awaited
    w = weights of S, under dQ;  dQ is awaited and leaves: a bulk addition to a float32 buffer
    dP = V dO^T and dV += w dO begin;  dP is awaited;  dS goes to shared memory, for both consumers' dQ
    dK += dS Q;  both are awaited, the slot of Q, dO and the row statistics is given back

The producer walks the same turns and knows nothing else. Before the first turn dS is 0 and its dQ leaves for rows
outside of the tensor, so that all turns are alike.

Where shared memory has room for what leaves, a program stays on its multiprocessor: the producer takes one place of the
grid after another and fetches the next place's tiles while consumers store dK and dV of theirs.
"""

from __future__ import annotations

from collections.abc import Callable

from attncc.expr.build import TRUE, conj, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.differentiate import derivative
from attncc.passes.simplify import scale
from attncc.passes.stream import LOG2E
from attncc.schedule.captured import Capture, split_coefficient
from attncc.schedule.config import Tiles
from attncc.schedule.hopper_backward_stream import StagedStream, affine, packed, whole
from attncc.schedule.hopper_backward_turns import Walk, walk_of
from attncc.schedule.hopper_config import ROOM, HopperBackward
from attncc.schedule.masks import ends_inside
from attncc.schedule.partitions import WARPS, Ring, claims, counter, parity, ring
from attncc.schedule.ranges import Cut, Rows, uneven, visits
from attncc.schedule.separate import separate
from attncc.schedule.steps import reads_at_rows
from attncc.schedule.stream import ZERO, G, Guards, H, M, N, Problem, b, g, h
from attncc.schedule.stream_backward import Scores, key_grid, pair_scores, product_gradient, scaled, score_gradient
from attncc.tile import nodes as t

NONE = Const(0, "int")
INT = t.Type((), "i32")
KEYS = 64
"""Of one consumer."""

State = tuple[Var, ...]
"""dK, dV, then the rows (and head) of the turn before where dQ lags, then the sums of captures."""
Turn = Callable[[bool, Expr, Expr, State], State]


def partitioned_keys(p: Problem, plan: HopperBackward, wanted: frozenset[str], found: tuple[Capture, ...]) -> t.Kernel:
    """dK, dV and the float32 sum of dQ, where wanted, and the captures of j alone or of neither index."""
    return _Keys(p, plan, wanted, found).kernel()


class _Keys:
    """The kernel under construction."""

    def __init__(self, p: Problem, plan: HopperBackward, wanted: frozenset[str], found: tuple[Capture, ...]) -> None:
        self.p, self.plan, self.wanted, self.found = p, plan, wanted, found
        self.k = StagedStream(p, ("j", "i"))
        self.k.split = {"d": whole(p.variant.D), "e": whole(p.variant.E)}
        self.k.b.reserve((p.own("statistics"), p.own("d_q_sum")))
        self.started = plan.started and affine(p) is not None
        self.needs_ds = bool({"q", "k"} & wanted) or bool(found)
        self.needs_s = self.needs_ds or "v" in wanted
        self.exchanged = "q" in wanted

    def kernel(self) -> t.Kernel:
        p, k = self.p, self.k
        self.j0 = Var(p.own("j0"), "int")
        k.start()
        self.heads = k.b.value(op("floordiv", H, G), "group") if p.variant.grouped else None
        self.d, self.e = (k.pieces(x)[0][2] for x in "de")
        self.resident = self.plan.resident and self._room()
        if not self.resident:
            self._place()
        self._memory()
        parts = (*(self._consumer(c) for c in range(2)), self._producer())
        k.b.add(t.Partitions(parts))
        if self.resident:
            self._seen(counter(p).name)
        config = t.Config(4, 1, self.plan.entry)
        grid = key_grid(p, Tiles(self.plan.rows, 2 * KEYS, config))
        return t.Kernel("keys_kernel", grid, tuple(k.tensors), k.scalars(), k.body(), config)

    def _place(self) -> None:
        """The program's place in the grid, and the tiles it walks there."""
        p, k = self.p, self.k
        k.place(self.j0.name, "g", "b")
        k.keys(self.j0, 2 * KEYS)
        k.b.axis("i", self.plan.rows)
        own = op("lt", k.key, N)
        k.guards = Guards(key=own)
        last = op("sub", op("min", op("add", self.j0, 2 * KEYS), N), 1)
        k.b.bindings[h] = self._head(NONE)
        seen = visits(k.b, p.by_key, Rows("j", self.j0, last, own, "j", p.rising), Cut(self.plan.rows, M, k.shift))
        self.walk: Walk = walk_of(k.b, seen, op("lt", N, op("add", self.j0, 2 * KEYS)))

    def _partition(self, name: str, warps: int, registers: int, body: Callable[[], Expr]) -> t.Partition:
        """The code of some warps at one place, or at every place of a resident program; `body` ends at a turn."""
        k = self.k
        self.item: Expr = NONE
        self.before: Expr = NONE
        with k.b.partition() as scope:
            if self.resident:
                taken = k.b.let("taken", INT, t.Full(NONE), "turns at the places before")

                def place(item: Var, state: State) -> State:
                    self.item, self.before = item, state[0]
                    self._place()
                    return (k.b.value(op("add", self.before, body()), "taken"),)

                work = t.Work(self.claims, warps == 1, self.plan.ahead if uneven(self.p.by_key, "j") else 0)
                k.loop(work, "item", "", (taken,), place, "the places of this program", 1, "asc")
                if warps > 1:
                    k.b.add(t.CopyWait(0))
            else:
                body()
        return t.Partition(name, warps, registers, tuple(scope.statements))

    def _at(self, n: Expr) -> Expr:
        """Turn `n` of this place, counted from the program's first."""
        return op("add", self.before, n)

    def _room(self) -> bool:
        """Whether dK and dV may leave through shared memory of their own."""
        rows, d, e = self.plan.rows, self.d.extent, self.e.extent
        taken = self.plan.depth * rows * (2 * (d + e) + 4 * len(packed(self.p))) + 4 * KEYS * (d + e)
        taken += 4 * KEYS * max(d, e) if d == e else 4 * KEYS * (d + e)
        if self.exchanged:
            taken += 8 * KEYS * rows + 8 * 64 * self._columns()
        return taken <= ROOM

    def _columns(self) -> int:
        """Of the dQ that a consumer computes."""
        return self.d.extent // (2 if self.plan.share == "columns" else 1)

    def _first(self, c: int) -> Var:
        """The first key of a consumer."""
        return self.k.b.value(op("add", self.j0, KEYS * c), "j0") if c else self.j0

    def _head(self, number: Expr) -> Expr:
        """The head of turn `number` of those that share the keys."""
        if not self.p.variant.grouped:
            return g
        return self.k.b.value(op("add", op("mul", g, op("floordiv", H, G)), number), "h")

    def _memory(self) -> None:
        k, plan = self.k, self.plan
        rows, keys = t.Axis("i", plan.rows), k.b.axis("j", KEYS)
        self.q_tile = self._buffer("q_tile", (rows, self.d), plan.depth)
        self.do_tile = self._buffer("do_tile", (rows, self.e), plan.depth)
        self.k_tile = self._buffer("k_tile", (keys, self.d), 2)
        self.v_tile = self._buffer("v_tile", (keys, self.e), 2)
        if packed(self.p):
            numbers = t.Axis("i", plan.rows * len(packed(self.p)))
            k.statistics = self._buffer("statistics_tile", (numbers,), plan.depth, "f32")
        self._owned()
        self.ring: Ring = ring(k.b, "rows", plan.depth, 2)
        if self.exchanged:
            self._exchange(rows, keys)
        self.out_tile = self._buffer("out_tile", (keys, self.e), 2) if self.resident else self.v_tile
        if "k" in self.wanted and self.d.extent != self.e.extent:
            self.dk_tile = self._buffer("dk_tile", (keys, self.d), 2)
        if self.resident:
            self.claims: t.Claims = claims(k.b, self.p, 2)

    def _owned(self) -> None:
        """The barriers of the program's own keys and values."""
        k = self.k
        self.own_full, self.k_empty, self.v_empty = (k.b.fresh(n) for n in ("own_full", "k_empty", "v_empty"))
        k.b.add(t.AllocBar(self.own_full, 1))
        if self.resident:
            k.b.add(t.AllocBar(self.k_empty, 1, 2 * WARPS))
            k.b.add(t.AllocBar(self.v_empty, 1, 2 * WARPS))

    def _exchange(self, rows: t.Axis, keys: t.Axis) -> None:
        """Two turns' dS of both consumers, a barrier array each, and what their dQ leaves through."""
        k = self.k
        self.ds_tile = tuple(self._buffer(f"ds{c}_tile", (keys, rows), 2) for c in range(2))
        self.ds_full = tuple(k.b.fresh(f"ds{c}_full") for c in range(2))
        for name in self.ds_full:
            k.b.add(t.AllocBar(name, 2))
        self.dq_type = t.Type((t.Axis("i", 64), t.Axis(self.d.name, self._columns())), "f32")
        self.dq_tile = self._buffer("dq_tile", self.dq_type.axes, 2, "f32")

    def _buffer(self, hint: str, axes: tuple[t.Axis, ...], depth: int, dtype: t.Dtype | None = None) -> str:
        name = self.k.b.fresh(hint)
        self.k.b.add(t.AllocShared(name, t.Type(axes, dtype or self.p.variant.dtype), depth))
        return name

    # --- the walk over heads and tiles, the same in every partition

    def _loops(self, start: Expr, state: State, turn: Turn) -> State:
        """Every turn of one head: `turn(masked, its number, its tile, state)`."""
        for masked, count in self.walk.loops(start):

            def one(n: Var, state: State, masked: bool = masked) -> State:
                here = n if start is NONE else op("sub", n, start)
                tile = self.k.b.value(self.walk.tile(here, masked), "tile")
                return turn(masked, n, tile, state)

            note = "queries: tiles that need the mask" if masked else "queries: tiles inside the mask"
            state = self.k.loop(count, "n", "", state, one, note, 1, "asc")
        return state

    def _heads(self, state: State, head: Callable[[Expr, State], State]) -> tuple[State, Expr]:
        """`head(its first turn, state)` for every head that shares the keys; the number of all turns."""
        k = self.k
        if self.heads is None:
            return head(NONE, state), self.walk.total

        def one(number: Var, state: State) -> State:
            k.b.bindings[h] = self._head(number)
            return head(k.b.value(op("mul", number, self.walk.total), "turn"), state)

        final = k.loop(t.Count(NONE, self.heads), "n", "", state, one, "heads that share the keys", 1, "asc")
        return final, k.b.value(op("mul", self.heads, self.walk.total), "turn")

    # --- the producer

    def _producer(self) -> t.Partition:
        return self._partition("producer", 1, self.plan.spare, self._feed)

    def _feed(self) -> Expr:
        """Fetches the keys and values of a place once the place before needs its own no more, then walks."""
        k, bar = self.k, t.Bar(self.own_full, NONE)
        phase = parity(k.b, self.item, 1)
        for tile, tensor, empty in ((self.v_tile, "v", self.v_empty), (self.k_tile, "k", self.k_empty)):
            if self.resident:
                k.b.add(t.BarWait(t.Bar(empty, NONE), op("sub", 1, phase)))
            if tensor == "v":
                k.b.add(t.BarExpect(bar, 4 * KEYS * (self.d.extent + self.e.extent)))
            for c in range(2):
                at = (b, g, self._first(c), NONE)
                k.b.add(t.CopyIn(t.Slot(tile, Const(c, "int")), self._seen(tensor), at, bar))
        return self._heads((), lambda start, state: self._loops(start, state, self._fill))[1]

    def _fill(self, masked: bool, n: Expr, tile: Expr, state: State) -> State:
        """Waits until the slot of turn `n` is empty and begins to fill it."""
        k, rows = self.k, self.plan.rows
        slot, phase = self.ring.at(k.b, self._at(n))
        bar = t.Bar(self.ring.full, slot)
        k.b.add(t.BarWait(t.Bar(self.ring.empty, slot), op("sub", 1, phase)))
        numbers = 4 * len(packed(self.p))
        k.b.add(t.BarExpect(bar, rows * (2 * (self.d.extent + self.e.extent) + numbers)))
        at = (b, k.head(), k.b.value(op("mul", tile, rows), "i0"), NONE)
        k.b.add(t.CopyIn(t.Slot(self.q_tile, slot), self._seen("q"), at, bar))
        if numbers:
            name = self._seen(self.p.own("statistics"))
            k.b.add(t.CopyIn(t.Slot(k.statistics, slot), name, (b, k.head(), tile, NONE), bar))
        k.b.add(t.CopyIn(t.Slot(self.do_tile, slot), self._seen("d_out"), at, bar))
        return state

    def _seen(self, tensor: str) -> str:
        self.k.tensors[tensor] = None
        return tensor

    # --- a consumer

    def _consumer(self, c: int) -> t.Partition:
        return self._partition(f"consumer{c}", 4, self.plan.registers, lambda: self._consume(c))

    def _consume(self, c: int) -> Expr:
        k = self.k
        self.c, self.mine = c, Const(c, "int")
        k.keys(self._first(c), KEYS)
        k.parts = separate(scale(self.p.attend.score, LOG2E), self._first(c))
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
        self._send(k.b.let("nothing", type, t.Full(ZERO)), NONE)
        before: State = (k.b.let("before", INT, t.Map(M), "rows of the turn before"),)
        if self.heads is not None:
            before += (k.b.let("head", INT, t.Map(op("mul", g, self.heads)), "its head"),)
        return before

    def _one_head(self, start: Expr, state: State) -> State:
        k = self.k
        sums = tuple(k.b.let("sum", k.b.over("j"), t.Full(ZERO), f"for {c.load.tensor}") for c in self.found)
        final = self._loops(start, (*state, *sums), self._turn)
        for c, total in zip(self.found, final[len(state) :], strict=True):
            self._store_sum(c, scaled(k, total, split_coefficient(c.factor)[0], "sum"))
        return final[: len(state)]

    def _store_sum(self, c: Capture, total: Var) -> None:
        """One number per key, or one per consumer."""
        k = self.k
        self._seen(c.buffer)
        if c.place == "key":
            k.b.add(t.Store(c.buffer, (b, k.head(), k.key), total.name, self.own))
            return
        valid = k.b.value(op("where", self.own, total, ZERO), "sum")
        one = k.b.let("total", t.Type((), self.p.real), t.Reduce("sum", valid.name, "j"))
        number = k.b.value(op("floordiv", self.j0, 2 * KEYS), "program")
        k.b.add(t.Store(c.buffer, (b, k.head(), number, self.mine), one.name))

    def _turn(self, masked: bool, n: Expr, tile: Expr, state: State) -> State:
        k, plan = self.k, self.plan
        dk, dv, before, sums = self._parts(state)
        k.slot, phase = self.ring.at(k.b, self._at(n))
        i0 = k.b.value(op("mul", tile, plan.rows), "i0")
        self._rows(masked, i0)
        k.b.add(t.BarWait(t.Bar(self.ring.full, k.slot), phase))
        self._forget(op("sub", M, i0))
        s = self._product(self.k_tile, self.q_tile, self.d, "s", self._start())
        under = before and not (masked and plan.calm)
        dq = self._dq(n) if under else ()
        s = k.b.let("s", k.b.type_of(s.name), t.DotWait(s.name, len(dq)))
        known = pair_scores(k, s, self._allowed(masked), self.started)
        w = self._operand(known.w) if dv or (masked and plan.calm) else None
        if before:
            self._leave(dq or self._dq(n), before)
        if self.needs_ds:
            dp = self._product(self.v_tile, self.do_tile, self.e, "dp", self._delta())
        if dv and w is not None:
            dv = self._accumulate(dv, w, self.do_tile)
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
            dk = self._from_ds(n, ds, dk)
            if sums:
                dv = self._both(dv, (), len(dk))[0]
                sums = self._added(sums, ds)
        later = self._dq(n) if self.exchanged and not plan.lag else ()
        dv, dk = self._both(dv, dk, len(later))
        k.b.add(self.ring.release(k.slot))
        at: State = (i0,)
        if self.heads is not None:
            at += (k.b.value(k.head(), "h"),)
        if later:
            self._leave(later, at)
        return (*dk, *dv, *(at if before else ()), *sums)

    # --- parts of a turn

    def _parts(self, state: State) -> tuple[State, State, State, State]:
        """(dK, dV, the turn before, sums)."""
        a = int("k" in self.wanted)
        b = a + int("v" in self.wanted)
        c = len(state) - len(self.found)
        return state[:a], state[a:b], state[b:c], state[c:]

    def _product(self, left: str, right: str, channel: t.Axis, hint: str, start: Var | None) -> Var:
        """The score-shaped product of this consumer's keys and the turn's rows, begun and not awaited."""
        begin = start.name if start is not None else None
        pair = t.Slot(left, self._own(self.c)), t.Slot(right, self.k.slot)
        dot = t.Dot(*pair, channel.name, begin, asynchronous=True)
        return self.k.b.let(hint, self.k.b.over("i", "j"), dot)

    def _forget(self, positive: Expr) -> None:
        """Makes what follows compute the addresses of K and V, and what depends on rows, anew.

        Kept from one turn to the next, or from a turn's beginning to its end, they take registers that the
        accumulators need. So they hang on a number that is 0 in a way no compiler sees.
        """
        self.zero = self.k.b.value(op("min", positive, 0), "zero")

    def _own(self, consumer: int) -> Expr:
        """The slot of a consumer's keys."""
        return op("add", self.zero, consumer) if consumer else self.zero

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

    def _operand(self, value: Var) -> Var:
        """A score-shaped value as the first operand of a product."""
        narrow = self.k.cast(value, self.p.variant.dtype)
        return self.k.b.let(f"{value.name}_a", self.k.b.type_of(narrow.name), t.Convert(narrow.name, "operand"))

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
        if self.exchanged:
            self._send(narrow, op("add", n, 1) if self.plan.lag else n)
        return self._accumulate(dk, self._operand(narrow), self.q_tile) if dk else ()

    def _added(self, sums: State, ds: Var) -> State:
        k, out = self.k, []
        for c, total in zip(self.found, sums, strict=True):
            _, rest = split_coefficient(c.factor)
            rest = None if rest is None else separate(rest, self._first(self.c)).whole()
            part = k.b.let("part", k.b.over("j"), t.Reduce("sum", scaled(k, ds, rest, "share").name, "i"))
            out.append(k.b.value(op("add", total, part), "sum"))
        return tuple(out)

    # --- dQ

    def _exchanges(self, n: Expr) -> tuple[Expr, Expr]:
        """(slot, parity of its phase) of the dS numbered `n`; where dQ lags, a place has one more than turns."""
        number = op("add", self.item, self._at(n)) if self.plan.lag else self._at(n)
        return Ring("", "", 2).at(self.k.b, number)

    def _send(self, ds: Var, n: Expr) -> None:
        """dS number `n` to shared memory."""
        slot, _ = self._exchanges(n)
        self.k.b.add(t.SharedStore(t.Slot(self.ds_tile[self.c], slot), ds.name))
        self.k.b.add(t.Fence())
        self.k.b.add(t.BarArrive(t.Bar(self.ds_full[self.c], slot)))

    def _dq(self, n: Expr) -> State:
        """This consumer's share of dQ from dS number `n`, begun and not awaited; a value per product."""
        k, share, d = self.k, self.plan.share, self.d
        slot, phase = self._exchanges(n)
        other = self.c if share == "keys" else 1 - self.c
        k.b.add(t.BarWait(t.Bar(self.ds_full[other], slot), phase))
        rows = ("i", 64 * self.c, 64) if share == "rows" else None
        columns = (d.name, d.extent // 2 * self.c, d.extent // 2) if share == "columns" else None
        out: State = ()
        for half in (self.c,) if share == "keys" else (0, 1):
            ds, keys = t.Slot(self.ds_tile[half], slot, rows), t.Slot(self.k_tile, self._own(half), columns)
            dot = t.Dot(ds, keys, "j", out[-1].name if out else None, asynchronous=True)
            out += (k.b.let("dq", self.dq_type, dot),)
        return out

    def _leave(self, dq: State, at: State) -> None:
        """Adds dQ to the rows `at` (and of the head there)."""
        k, share, slot = self.k, self.plan.share, t.Slot(self.dq_tile, self.mine)
        value = k.b.let("dq", self.dq_type, t.DotWait(dq[-1].name, 0))
        k.b.add(t.CopyWait(0))
        k.b.add(t.SharedStore(slot, value.name))
        k.b.add(t.Fence())
        row = op("add", at[0], 64 * self.c) if share == "rows" and self.c else at[0]
        column = Const(self.d.extent // 2 * self.c if share == "columns" else 0, "int")
        head = at[1] if len(at) > 1 else k.head()
        k.b.add(t.CopyOut(slot, self._seen(self.p.own("d_q_sum")), (b, head, row, column), True))

    # --- the end

    def _finish(self, dk: State, dv: State, before: State, turns: Expr) -> None:
        k = self.k
        if self.resident:
            k.b.add(t.BarArrive(t.Bar(self.v_empty, NONE), WARPS))
        elif dv:
            self._store("d_v", dv[0], self.out_tile)
        if before:
            self._forget(M)
            self._leave(self._dq(turns), before)
        if self.resident:
            k.b.add(t.BarArrive(t.Bar(self.k_empty, NONE), WARPS))
            if dv:
                k.b.add(t.CopyWait(0))
                self._store("d_v", dv[0], self.out_tile)
        if dk:
            factor = split_coefficient(derivative(self.p.attend.score, self.p.attend.product))[0]
            whole = scaled(k, dk[0], factor, "dk")
            k.b.add(t.CopyWait(0))
            self._store("d_k", whole, self.out_tile if self.d.extent == self.e.extent else self.dk_tile)
        if not self.resident:
            k.b.add(t.CopyWait(0))

    def _store(self, tensor: str, value: Var, through: str) -> None:
        """A result of this consumer's keys, through a buffer that nobody reads any more."""
        k = self.k
        narrow = k.cast(value, self.p.variant.dtype)
        if through is self.out_tile and tensor == "d_k":
            type = t.Type((k.b.axis("j", KEYS), self.e), self.p.variant.dtype)
            narrow = k.b.let("dk_rows", type, t.Rename(narrow.name))
        slot = t.Slot(through, self.mine)
        k.b.add(t.SharedStore(slot, narrow.name))
        k.b.add(t.Fence())
        k.b.add(t.CopyOut(slot, self._seen(tensor), (b, g, self._first(self.c), NONE)))
