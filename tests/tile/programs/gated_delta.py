"""A chunkwise gated delta rule, by hand: S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T, o_t = S_t^T q_t.

Per chunk, with G the running sum of log2 a and D_ij = 2^(G_i - G_j): delta = (I + L)^-1 beta (v - 2^G k S), where
L = beta tril(k k^T D, -1); o = 2^G q S + tril(q k^T D) delta; S becomes 2^G_last S + (k 2^(G_last - G))^T delta. One
program walks the chunks of a head in order and carries S; the columns of v are cut into tiles, which never meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attncc.expr.build import ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Var
from attncc.tile.nodes import (
    Alloc,
    Axis,
    Config,
    Count,
    Dtype,
    GridAxis,
    Kernel,
    Launch,
    Program,
    Scalar,
    Stmt,
    Store,
    Tensor,
    Type,
)
from tests.tile.programs.build import Builder

LOG2E = math.log2(math.e)
LOWEST_GATE = -126.0
"""A log2 gate below this is this: one such step leaves nothing of a float32, and differences stay finite."""


@dataclass(frozen=True)
class Plan:
    """Shapes of the tiles."""

    D: int = 64
    E: int = 64
    dtype: Dtype = "f32"
    chunk: int = 32
    columns: int = 32
    warps: int = 4


def program(plan: Plan) -> Program:
    """o and the last state of every head; `s0` is the first."""
    b, h, n = ivar("B"), ivar("H"), ivar("N")
    d, e = Const(plan.D, "int"), Const(plan.E, "int")
    inputs = (
        Tensor("q", ("b", "h", "i", "d"), (b, h, n, d), plan.dtype, strided=True),
        Tensor("k", ("b", "h", "j", "d"), (b, h, n, d), plan.dtype, strided=True),
        Tensor("v", ("b", "h", "j", "e"), (b, h, n, e), plan.dtype, strided=True),
        Tensor("gate", ("b", "h", "j"), (b, h, n), "f32"),
        Tensor("beta", ("b", "h", "j"), (b, h, n), "f32"),
        Tensor("s0", ("b", "h", "d", "e"), (b, h, d, e), "f32"),
    )
    out = Tensor("out", ("b", "h", "i", "e"), (b, h, n, e), plan.dtype, strided=True)
    state = Tensor("state", ("b", "h", "d", "e"), (b, h, d, e), "f32")
    scalars = (*(Scalar(x, "int") for x in "BHN"), Scalar("E", "int", e), Scalar("scale", "real"))
    kernel = Kernel(
        "delta",
        (
            GridAxis("e0", ivar("E"), "tile", plan.columns, "e"),
            GridAxis("h", h, "batch"),
            GridAxis("b", b, "batch"),
        ),
        (*(t.name for t in inputs), "out", "state"),
        ("H", "N", "E", "scale"),
        _Body(plan).write(),
        Config(plan.warps, 1),
    )
    steps = (Alloc(out, like="v"), Alloc(state), Launch("delta"))
    return Program("gated_delta", inputs, scalars, (kernel,), steps, ("out", "state"))


class _Body:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.x = plan, Builder()
        self.i, self.j, self.l = (Axis(a, plan.chunk) for a in "ijl")
        self.d, self.e = Axis("d", plan.D), Axis("e", plan.columns)

    def write(self) -> tuple[Stmt, ...]:
        x, plan = self.x, self.plan
        self.row_d = x.iota("dd", self.d, Const(0, "int"))
        self.col_e = x.iota("ee", self.e, ivar("e0"))
        self.inside = op("lt", self.col_e, ivar("E"))
        place = (ivar("b"), ivar("h"), self.row_d, self.col_e)
        start = x.load("start", Type((self.d, self.e), "f32"), "s0", place, self.inside, 0.0)
        chunks = op("floordiv", op("add", ivar("N"), plan.chunk - 1), plan.chunk)
        loop = Count(Const(0, "int"), chunks)
        with x.loop("chunk", loop, {"s": start}, order="asc", note="one chunk after another") as turn:
            self.first = op("mul", turn.index, plan.chunk)
            turn.next(s=self._chunk(turn["s"]))
        x.add(Store("state", place, turn["s"].name, self.inside))
        return tuple(x.here)

    def _rows(self, name: str, axis: Axis, tensor: str, other: Axis, column: Var, guard: Expr | None = None) -> Var:
        """Rows of this chunk of q, k or v; 0 behind the end."""
        x = self.x
        at = x.iota(f"at_{name}", axis, self.first)
        live = op("lt", at, ivar("N"))
        type_ = Type((axis, other), self.plan.dtype)
        guard = live if guard is None else op("and", live, guard)
        return x.load(name, type_, tensor, (ivar("b"), ivar("h"), at, column), guard, 0.0)

    def _vector(self, name: str, tensor: str) -> Var:
        at = self.x.iota(f"at_{name}", self.j, self.first)
        place = (ivar("b"), ivar("h"), at)
        return self.x.load(name, Type((self.j,), "f32"), tensor, place, op("lt", at, ivar("N")), 0.0)

    def _decay(self, name: str, row: Axis, row_sum: Var, column_sum: Var, column: Axis, *, strict: bool) -> Var:
        """2^(G_row - G_column) where the column is before the row, 0 elsewhere: masked before the exponential."""
        x = self.x
        r, c = (x.iota(f"{name}_{a.name}", a, Const(0, "int")) for a in (row, column))
        seen = op("lt" if strict else "le", c, r)
        gap = x.map(f"{name}_gap", op("where", seen, op("sub", row_sum, column_sum), Const(-math.inf, "real")))
        return x.map(name, op("exp2", gap))

    def _chunk(self, s: Var) -> Var:
        """Writes this chunk's rows of out; the state behind it."""
        x, narrow = self.x, self.plan.dtype
        q = self._rows("q_i", self.i, "q", self.d, self.row_d)
        k = self._rows("k_j", self.j, "k", self.d, self.row_d)
        v = self._rows("v_j", self.j, "v", self.e, self.col_e, self.inside)
        beta = self._vector("beta_j", "beta")
        gate = self._vector("gate_j", "gate")
        gate = x.map("gate2", op("max", op("mul", gate, LOG2E), LOWEST_GATE), note="in log2, never -inf")
        total_j = x.scan("sum_j", "sum", gate, "j")
        total_i, total_l = (x.rename(f"sum_{a}", total_j, a) for a in "il")
        last = x.reduce("sum_last", "sum", gate, "j")
        # delta = (I + L)^-1 beta (v - 2^G k S)
        pairs = x.dot("kk", (self.j, self.l), k, x.rename("k_l", k, "l", "d"), "d")
        decay = self._decay("before", self.j, total_j, total_l, self.l, strict=True)
        lower = x.map("lower", op("mul", op("mul", pairs, beta), decay))
        inverse = self._narrow("inverse", x.inverse("inv", lower, "j", "l"))
        narrow_s = self._narrow("s_in", s)
        seen = x.dot("ks", (self.j, self.e), k, narrow_s, "d")
        wide_v = v if narrow == "f32" else x.cast("v_w", v, "f32")
        error = x.map("error", op("mul", beta, op("sub", wide_v, op("mul", op("exp2", total_j), seen))))
        right = x.rename("error_l", self._narrow("error_n", error), "l", "e")
        delta = self._narrow("delta_n", x.dot("delta", (self.j, self.e), inverse, right, "l"))
        # out = 2^G q S + tril(q k^T 2^(G_i - G_j)) delta
        scores = x.dot("qk", (self.i, self.j), q, k, "d")
        weights = x.map("p", op("mul", scores, self._decay("upto", self.i, total_i, total_j, self.j, strict=False)))
        far = x.map("far", op("mul", x.dot("qs", (self.i, self.e), q, narrow_s, "d"), op("exp2", total_i)))
        near = x.dot("o", (self.i, self.e), self._narrow("p_n", weights), delta, "j", far)
        self._store(self._narrow("o_n", x.map("o_s", op("mul", near, rvar("scale")))))
        # S = 2^G_last S + (k 2^(G_last - G))^T delta
        wide_k = k if narrow == "f32" else x.cast("k_w", k, "f32")
        aged = x.map("k_aged", op("mul", wide_k, op("exp2", op("sub", last, total_j))))
        kept = x.map("s_kept", op("mul", s, op("exp2", last)))
        return x.dot("s_next", (self.d, self.e), self._narrow("k_n", aged), delta, "j", kept)

    def _narrow(self, name: str, value: Var) -> Var:
        """An operand in the inputs' element type."""
        return value if self.plan.dtype == "f32" else self.x.cast(name, value, self.plan.dtype)

    def _store(self, value: Var) -> None:
        at = self.x.iota("at_out", self.i, self.first)
        guard = op("and", op("lt", at, ivar("N")), self.inside)
        self.x.add(Store("out", (ivar("b"), ivar("h"), at, self.col_e), value.name, guard))
