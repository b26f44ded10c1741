"""A backward walk of one warpgroup, by hand, with every feature that partitioned kernels use and no eye to speed.

S and dP lie key by query. Row statistics come by a bulk copy of one axis, dQ leaves by additions in bulk, channels may
come in pieces. Captured tensors are read per query, per key, per pair and as a scalar; a gradient is summed per key and
over the tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attncc.expr.build import conj, ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Var
from attncc.tile.nodes import (
    Alloc,
    AllocBar,
    AllocShared,
    Axis,
    Bar,
    BarArrive,
    BarExpect,
    BarWait,
    Config,
    CopyIn,
    CopyOut,
    CopyWait,
    Count,
    Fence,
    GridAxis,
    Kernel,
    Launch,
    Partition,
    Partitions,
    Program,
    ReduceAdd,
    Scalar,
    SharedLoad,
    SharedStore,
    Slot,
    Store,
    Tensor,
    Type,
)
from tests.tile.programs.build import Builder

ZERO = Const(0, "int")
b, h, N, H, j0 = (ivar(x) for x in ("b", "h", "N", "H", "j0"))
B = ivar("B")


@dataclass(frozen=True)
class Plan:
    """`pieces` are (offset, extent) of the channels."""

    pieces: tuple[tuple[int, int], ...] = ((0, 128),)
    rows: int = 64
    captures: bool = True

    @property
    def D(self) -> int:
        return sum(n for _, n in self.pieces)


def tensors(plan: Plan) -> dict[str, Tensor]:
    """What the kernel reads and writes."""
    d, tiles = Const(plan.D, "int"), op("floordiv", op("add", N, plan.rows - 1), plan.rows)
    rows = [Tensor(x, ("b", "h", "i", "d"), (B, H, N, d), "bf16", strided=True) for x in ("q", "k", "v", "d_out")]
    packed = Tensor("stats", ("x",), (op("mul", op("mul", B, H), op("mul", tiles, 2 * plan.rows)),), "f32")
    captured = [
        Tensor("bias", ("h", "i", "j"), (H, N, N), "bf16", strided=True),
        Tensor("slopes", ("h",), (H,), "f32"),
        Tensor("doc", ("b", "i"), (B, N), "i32", strided=True),
        Tensor("keep", ("b", "j"), (B, N), "bool"),
        Tensor("shift", ("b", "h", "i"), (B, H, N), "f16", strided=True, near=False),
        Tensor("table", ("h", "o"), (H, op("sub", op("mul", N, 2), 1)), "f32"),
    ]
    out = [Tensor(x, ("b", "h", "i", "d"), (B, H, N, d), "bf16", strided=True) for x in ("d_k", "d_v")]
    sums = [
        Tensor("d_q_sum", ("b", "h", "i", "d"), (B, H, N, d), "f32"),
        Tensor("d_keys", ("b", "h", "j"), (B, H, N), "f32"),
        Tensor("d_slopes", ("h",), (H,), "f32"),
        Tensor("d_table", ("h", "o"), (H, op("sub", op("mul", N, 2), 1)), "f32"),
        Tensor("count", ("b", "h"), (B, H), "i32"),
    ]
    return {t.name: t for t in (*rows, packed, *(captured if plan.captures else ()), *out, *sums)}


def program(plan: Plan) -> Program:
    """The kernel in a program that allocates what it writes."""
    known = tensors(plan)
    written = ("d_k", "d_v", "d_q_sum", "d_keys", "d_slopes", "d_table", "count")
    x = Builder()
    _Backward(plan, x).write()
    grid = (GridAxis("j0", N, "tile", 64, "j"), GridAxis("h", H, "batch"), GridAxis("b", B, "batch"))
    kernel = Kernel("keys", grid, tuple(known), ("B", "H", "N", "c"), tuple(x.here), Config(4, 1, 168))
    steps = [Alloc(known[n], None if n in ("d_k", "d_v") else 0) for n in written]
    scalars = (*(Scalar(n, "int") for n in "BHN"), Scalar("c", "real"))
    inputs = tuple(t for n, t in known.items() if n not in written)
    return Program("backward_by_hand", inputs, scalars, (kernel,), (*steps, Launch("keys")), written)


class _Backward:
    def __init__(self, plan: Plan, x: Builder) -> None:
        self.plan, self.x = plan, x
        self.i, self.j = Axis("i", plan.rows), Axis("j", 64)
        self.d = [Axis(f"d{n}", extent) for n, (_, extent) in enumerate(plan.pieces)]

    def write(self) -> None:
        x = self.x
        self.tiles = x.int_("tiles", op("floordiv", op("add", N, self.plan.rows - 1), self.plan.rows))
        self.first = x.int_("first_tile", op("floordiv", j0, self.plan.rows), "the first tile that sees these keys")
        for n, d in enumerate(self.d):
            for name, axis, depth in (("k", self.j, 1), ("v", self.j, 1), ("q", self.i, 2), ("do", self.i, 2)):
                x.add(AllocShared(f"{name}_s{n}", Type((axis, d), "bf16"), depth))
            x.add(AllocShared(f"dq_s{n}", Type((self.i, self._part(d)), "f32")))
        x.add(
            AllocShared("stats_s", Type((Axis("x", 2 * self.plan.rows),), "f32"), 2),
            AllocShared("ds_s", Type((self.j, self.i), "bf16")),
            AllocBar("kv", 1),
            AllocBar("full", 2),
            AllocBar("empty", 2),
        )
        parts = []
        for name, warps, registers, write in (
            ("consumer", 4, 240, self._consumer),
            ("producer", 1, 24, self._producer),
        ):
            with x.body() as body:
                write()
            parts.append(Partition(name, warps, registers, tuple(body)))
        x.add(Partitions(tuple(parts)))

    def _corner(self, row: Expr, piece: int, beyond: int = 0) -> tuple[Expr, ...]:
        return (b, h, row, Const(self.plan.pieces[piece][0] + beyond, "int"))

    def _part(self, d: Axis) -> Axis:
        """The channels of dQ that are computed at once."""
        return Axis(d.name, min(d.extent, 64))

    def _producer(self) -> None:
        x, plan = self.x, self.plan
        kv = Bar("kv", ZERO)
        x.add(BarExpect(kv, 2 * 64 * plan.D * 2))
        for n in range(len(self.d)):
            for name in "kv":
                x.add(CopyIn(Slot(f"{name}_s{n}", ZERO), name, self._corner(j0, n), kv))
        with x.loop("t", Count(self.first, self.tiles), {}) as loop:
            turn = x.int_("turn", op("sub", loop.index, self.first))
            slot, phase = x.int_("slot", op("mod", turn, 2)), x.int_("phase", op("mod", op("floordiv", turn, 2), 2))
            full = Bar("full", slot)
            x.add(BarWait(Bar("empty", slot), op("sub", 1, phase)))
            x.add(BarExpect(full, 2 * plan.rows * plan.D * 2 + 8 * plan.rows))
            row = op("mul", loop.index, plan.rows)
            at = op("add", op("mul", op("add", op("mul", b, H), h), self.tiles), loop.index)
            x.add(CopyIn(Slot("stats_s", slot), "stats", (op("mul", at, 2 * plan.rows),), full))
            for n in range(len(self.d)):
                for name, tensor in (("q", "q"), ("do", "d_out")):
                    x.add(CopyIn(Slot(f"{name}_s{n}", slot), tensor, self._corner(row, n), full))
            loop.next()

    def _consumer(self) -> None:
        x = self.x
        self.key = x.iota("key", self.j, j0)
        state = {f"dk{n}": x.full(f"dk{n}", (self.j, d), 0.0) for n, d in enumerate(self.d)}
        state |= {f"dv{n}": x.full(f"dv{n}", (self.j, d), 0.0) for n, d in enumerate(self.d)}
        state["sum"] = x.full("sum", (self.j,), 0.0)
        state["seen"] = x.int_("seen0", ZERO)
        if self.plan.captures:
            own = op("lt", self.key, N)
            self.keep = x.load("keep_j", Type((self.j,), "bool"), "keep", (b, self.key), own, False)
            self.doc_key = x.load("doc_j", Type((self.j,), "i32"), "doc", (b, self.key), own, -1)
            self.slope = x.load("slope", Type((), "f32"), "slopes", (h,))
        x.add(BarWait(Bar("kv", ZERO), ZERO))
        with x.loop("t", Count(self.first, self.tiles), state) as loop:
            loop.next(**self._turn(loop.index, loop.carried))
        self._leave(loop.carried)

    def _turn(self, t: Var, state: dict[str, Var]) -> dict[str, Var]:
        x, i, j = self.x, self.i, self.j
        turn = x.int_("turn", op("sub", t, self.first))
        slot, phase = x.int_("slot", op("mod", turn, 2)), x.int_("phase", op("mod", op("floordiv", turn, 2), 2))
        x.add(BarWait(Bar("full", slot), phase))
        s = self._sum("s", "k", "q", slot, None)
        delta = self._statistic("delta", slot, 1)
        dp = self._sum("dp", "v", "do", slot, delta)
        s = x.wait("s", s, 1)
        row = x.iota("row", i, op("mul", t, self.plan.rows))
        score = self._score(s, row, t)
        log_z = self._statistic("log_z", slot, 0)
        p = x.map("p", op("exp2", op("sub", score, log_z)))
        p16 = x.cast("p16", p, "bf16")
        new = {}
        for n, d in enumerate(self.d):
            dv = x.dot("dv", (j, d), p16, Slot(f"do_s{n}", slot), "i", state[f"dv{n}"], asynchronous=True)
            new[f"dv{n}"] = dv
        dp = x.wait("dp", dp, len(self.d))
        ds = x.map("ds", op("mul", p, dp))
        ds16 = x.cast("ds16", ds, "bf16")
        x.add(SharedStore(Slot("ds_s", ZERO), ds16.name), Fence())
        for n, d in enumerate(self.d):
            dk = x.dot("dk", (j, d), ds16, Slot(f"q_s{n}", slot), "i", state[f"dk{n}"], asynchronous=True)
            new[f"dk{n}"] = dk
        new = {name: x.wait(name, value, 0) for name, value in new.items()}
        x.add(BarArrive(Bar("empty", slot)))
        for n, d in enumerate(self.d):
            for beyond in range(0, d.extent, 64):
                self._add_queries(t, n, d, beyond)
        new["sum"] = x.map("sum", op("add", state["sum"], x.reduce("part", "sum", ds, "i")))
        some = x.reduce("some", "any", x.reduce("some_j", "any", x.map("one", op("lt", 0.5, p)), "i"), "j")
        new["seen"] = x.map("seen", op("add", state["seen"], op("where", some, 1, 0)))
        if self.plan.captures:
            self._tables(ds, row)
        return new

    def _add_queries(self, t: Var, n: int, d: Axis, beyond: int) -> None:
        """Adds some channels of dQ = dS K in memory."""
        x, part = self.x, self._part(d)
        keys = Slot(f"k_s{n}", ZERO, (d.name, beyond, part.extent) if part.extent < d.extent else None)
        dq = x.wait("dq", x.dot("dq", (self.i, part), Slot("ds_s", ZERO), keys, "j", asynchronous=True), 0)
        x.add(CopyWait(0), SharedStore(Slot(f"dq_s{n}", ZERO), dq.name), Fence())
        corner = self._corner(op("mul", t, self.plan.rows), n, beyond)
        x.add(CopyOut(Slot(f"dq_s{n}", ZERO), "d_q_sum", corner, add=True))

    def _statistic(self, name: str, slot: Expr, part: int) -> Var:
        """One number per query from the packed statistics."""
        rows = self.plan.rows
        packed = Slot("stats_s", slot, ("x", part * rows, rows))
        value = self.x.let(f"{name}_x", Type((Axis("x", rows),), "f32"), SharedLoad(packed))
        return self.x.rename(name, value, "i")

    def _sum(self, name: str, left: str, right: str, slot: Expr, start: Var | None) -> Var:
        for n in range(len(self.d)):
            a, c = Slot(f"{left}_s{n}", ZERO), Slot(f"{right}_s{n}", slot)
            start = self.x.dot(name, (self.j, self.i), a, c, f"d{n}", start, asynchronous=True)
        assert start is not None
        return start

    def _score(self, s: Var, row: Var, t: Var) -> Var:
        """The score in base two, masked; what differs by query is read for every tile."""
        x = self.x
        score: Expr = op("mul", s, rvar("c"))
        seen: list[Expr] = [op("le", self.key, row), op("lt", row, N)]
        if self.plan.captures:
            inside = op("lt", row, N)
            both = conj(op("lt", self.key, N), inside)
            bias = x.load("bias_ij", Type((self.j, self.i), "bf16"), "bias", (h, row, self.key), both)
            shift = x.load("shift_i", Type((self.i,), "f16"), "shift", (b, h, row), inside)
            offset = op("add", op("sub", row, self.key), op("sub", N, 1))
            table = x.load("table_ij", Type((self.j, self.i), "f32"), "table", (h, offset), both)
            doc = x.load("doc_i", Type((self.i,), "i32"), "doc", (b, row), inside, -2)
            distance = op("real", op("sub", row, self.key))
            score = op("add", score, op("mul", self.slope, distance))
            for value in (x.cast("bias32", bias, "f32"), x.cast("shift32", shift, "f32"), table):
                score = op("add", score, value)
            seen += [op("eq", doc, self.doc_key), Var(self.keep.name, "bool")]
        masked = x.map("score", score)

        def mask() -> Var:
            return x.map("score", op("where", conj(*seen), masked, Const(-math.inf, "real")))

        return x.choose("score", op("lt", t, op("add", self.first, 1)), masked, mask, "tiles that need the mask")

    def _tables(self, ds: Var, row: Var) -> None:
        """A gradient added at an index of the pair."""
        offset = self.x.map("offset", op("add", op("sub", row, self.key), op("sub", N, 1)))
        guard = conj(op("lt", self.key, N), op("lt", row, N))
        share = self.x.rename("share", ds, "j", "i")
        self.x.add(ReduceAdd("d_table", (h, offset), share.name, "atomic", guard))

    def _leave(self, state: dict[str, Var]) -> None:
        x = self.x
        x.add(CopyWait(0))
        for n in range(len(self.d)):
            for name, slot in (("dk", f"k_s{n}"), ("dv", f"v_s{n}")):
                x.add(SharedStore(Slot(slot, ZERO), x.cast(name, state[f"{name}{n}"], "bf16").name))
        x.add(Fence())
        for n in range(len(self.d)):
            for name, slot in (("d_k", f"k_s{n}"), ("d_v", f"v_s{n}")):
                x.add(CopyOut(Slot(slot, ZERO), name, self._corner(j0, n)))
        own = op("lt", self.key, N)
        x.add(Store("d_keys", (b, h, self.key), state["sum"].name, own))
        valid = x.map("valid", op("where", own, state["sum"], 0.0))
        total = x.reduce("total", "sum", valid, "j")
        x.add(ReduceAdd("d_slopes", (h,), total.name, "atomic"))
        x.add(ReduceAdd("count", (b, h), state["seen"].name, "atomic"), CopyWait(0))
