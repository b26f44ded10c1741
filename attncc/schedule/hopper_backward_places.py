"""The places of the partitioned backward: what a program has of the grid, in shared memory, and of barriers.

Where shared memory has room for what leaves, a program stays on its multiprocessor: the producer takes one place of the
grid after another and fetches the next place's tiles while consumers store dK and dV of theirs.

Heads that share keys are walked one after another where sums must have one order. Elsewhere each has places of its own,
which add to dK and dV: programs that start together read the same rows.
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Expr, Var
from attncc.schedule.beyond import beyond, near_of
from attncc.schedule.captured import Capture
from attncc.schedule.config import Tiles
from attncc.schedule.hopper_backward_stream import StagedStream, affine, packed, whole
from attncc.schedule.hopper_backward_turns import Walk, walk_of
from attncc.schedule.hopper_config import ROOM, HopperBackward
from attncc.schedule.lanes import Sums
from attncc.schedule.partitions import NONE, WARPS, Resident, Ring, claims, counter, ring
from attncc.schedule.ranges import Cut, Rows, uneven, visits
from attncc.schedule.stream import G, Guards, H, M, N, Problem, g, h
from attncc.schedule.stream_backward import key_grid
from attncc.tile import nodes as t

INT = t.Type((), "i32")
KEYS = 64
"""Of one consumer."""

State = tuple[Var, ...]
"""dK, dV, then the rows (and head) of the turn before where dQ lags, then the sums of captures."""


class Places(Resident):
    """The kernel under construction, but for what its partitions do at a place."""

    def __init__(self, p: Problem, plan: HopperBackward, wanted: frozenset[str], found: tuple[Capture, ...]) -> None:
        self.p, self.plan, self.wanted, self.found = p, plan, wanted, found
        self.shares = tuple((c, n) for c in found for n in range(len(c.sides) if c.place == "side" else 1))
        """Captures that are summed here, and of what has sums for sides the number of the side."""
        self.k: StagedStream = StagedStream(p, ("j", "i"))
        self.sums = Sums(self.k, "j", plan.lanes)
        self.k.split = {"d": whole(p.variant.D), "e": whole(p.variant.E)}
        self.k.b.reserve((p.own("statistics"), p.own("d_q_sum")))
        self.started = plan.started and affine(p) is not None
        self.needs_ds = bool({"q", "k"} & wanted) or bool(found)
        self.needs_s = self.needs_ds or "v" in wanted
        self.exchanged = "q" in wanted
        self.apart = each_head_apart(p)
        self.ahead = plan.ahead if uneven(p.by_key, "j") else 0
        self.beyond = beyond(p)

    def kernel(self) -> t.Kernel:
        p, k = self.p, self.k
        self.j0 = Var(p.own("j0"), "int")
        k.start()
        grouped = p.variant.grouped and not self.apart
        self.heads = k.b.value(op("floordiv", H, G), "group") if grouped else None
        self.d, self.e = (k.pieces(x)[0][2] for x in "de")
        self.resident = self.plan.resident and self._room()
        if not self.resident:
            self.place()
        self._memory()
        k.b.add(self.parts(2, self.plan.registers, self.plan.spare))
        if self.resident:
            self.seen(counter(p).name)
        config = t.Config(4, 1, self.plan.entry)
        grid = key_grid(p, Tiles(self.plan.rows, 2 * KEYS, config), "h" if self.apart else "g")
        return t.Kernel("keys_kernel", grid, tuple(k.tensors), k.scalars(), k.body(), config)

    def place(self) -> None:
        """The program's place in the grid, and the tiles it walks there."""
        p, k = self.p, self.k
        k.place(self.j0.name, "h" if self.apart else "g", "b")
        k.keys(self.j0, 2 * KEYS)
        k.b.axis("i", self.plan.rows)
        own = op("lt", k.key, N)
        k.guards = Guards(key=own)
        last = op("sub", op("min", op("add", self.j0, 2 * KEYS), N), 1)
        if not self.apart:
            k.b.bindings[h] = self.head(NONE)
        rows = Rows("j", self.j0, last, own, "j", p.rising)
        seen = visits(k.b, p.by_key, rows, Cut(self.plan.rows, M, k.shift), near_of(self.beyond))
        self.walk: Walk = walk_of(k.b, seen, op("lt", N, op("add", self.j0, 2 * KEYS)))

    def _room(self) -> bool:
        """Whether dK and dV may leave through shared memory of their own."""
        rows, d, e = self.plan.rows, self.d.extent, self.e.extent
        taken = self.plan.depth * rows * (2 * (d + e) + 4 * len(packed(self.p))) + 4 * KEYS * (d + e)
        taken += 0 if self.apart else 4 * KEYS * d if d == e else 4 * KEYS * (d + e)
        if self.exchanged:
            taken += 8 * KEYS * rows + 8 * 64 * self._columns()
        return taken <= ROOM

    def _columns(self) -> int:
        """Of the dQ that a consumer computes."""
        return self.d.extent // (2 if self.plan.share == "columns" else 1)

    def first(self, c: int) -> Var:
        """The first key of a consumer."""
        return self.k.b.value(op("add", self.j0, KEYS * c), "j0") if c else self.j0

    def head(self, number: Expr) -> Expr:
        """The head of turn `number` of those that share the keys."""
        if not self.p.variant.grouped or self.apart:
            return h if self.apart else g
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
        own = self.resident and not self.apart
        self.out_tile = self._buffer("out_tile", (keys, self.e), 2) if own else self.v_tile
        if "k" in self.wanted and self.d.extent != self.e.extent and not self.apart:
            self.dk_tile = self._buffer("dk_tile", (keys, self.d), 2)
        if self.resident:
            self.claims = claims(k.b, self.p, 2)

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

    def seen(self, tensor: str) -> str:
        self.k.tensors[tensor] = None
        return tensor


def each_head_apart(p: Problem) -> bool:
    """Whether heads that share keys have places of their own, which add to dK and dV as they come."""
    return p.variant.grouped and not p.variant.ordered and bool({"k", "v"} & set(p.variant.gradients))
