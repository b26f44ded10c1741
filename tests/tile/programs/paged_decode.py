"""Decoding over a page table, by hand: one query a head, its keys scattered over pages, long rows split and merged.

Kernel `part`: one program per (split, kv head, batch row). The query heads of a kv head are packed into the rows of one
product. A program walks its share of the row's own pages; the number of a page is loaded from the table and used as an
index. Kernel `merge`: one program per (head, batch row) weighs the parts by their sums.
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
LOWEST = -(2.0**127)
"""Where maxima start: finite, so that an empty part never computes inf - inf."""
ZERO = Const(0, "int")


@dataclass(frozen=True)
class Plan:
    """Shapes of the tiles: `page` keys a page, `rows` query heads of a kv head at most, `splits` parts at most."""

    D: int = 64
    E: int = 64
    dtype: Dtype = "f32"
    page: int = 64
    rows: int = 16
    splits: int = 16
    warps: int = 4


def program(plan: Plan) -> Program:
    """out and lse of one query a head. `pages` numbers the pages of each row in order; S is the number of splits."""
    b, h, g, p, t, s = (ivar(x) for x in "BHGPTS")
    d, e, page = (Const(x, "int") for x in (plan.D, plan.E, plan.page))
    inputs = (
        Tensor("q", ("b", "h", "d"), (b, h, d), plan.dtype, strided=True),
        Tensor("k", ("p", "g", "j", "d"), (p, g, page, d), plan.dtype, strided=True),
        Tensor("v", ("p", "g", "j", "e"), (p, g, page, e), plan.dtype, strided=True),
        Tensor("pages", ("b", "t"), (b, t), "i32"),
        Tensor("length", ("b",), (b,), "i32"),
    )
    part_out = Tensor("part_out", ("b", "h", "s", "e"), (b, h, s, e), "f32")
    part_lse = Tensor("part_lse", ("b", "h", "s"), (b, h, s), "f32")
    out = Tensor("out", ("b", "h", "e"), (b, h, e), plan.dtype)
    lse = Tensor("lse", ("b", "h"), (b, h), "f32")
    scalars = (
        *(Scalar(x, "int") for x in "BHGPTS"),
        Scalar("scale", "real"),
        Scalar("c0", "real", op("mul", rvar("scale"), LOG2E)),
    )
    part = Kernel(
        "part",
        (GridAxis("s", s, "split"), GridAxis("g", g, "batch"), GridAxis("b", b, "batch")),
        ("q", "k", "v", "pages", "length", "part_out", "part_lse"),
        ("H", "G", "P", "T", "S", "c0"),
        _part(plan),
        Config(plan.warps, 2),
    )
    merge = Kernel(
        "merge",
        (GridAxis("h", h, "batch"), GridAxis("b", b, "batch")),
        ("part_out", "part_lse", "out", "lse"),
        ("H", "S"),
        _merge(plan),
        Config(1, 1),
    )
    steps = (Alloc(part_out), Alloc(part_lse), Launch("part"), Alloc(out), Alloc(lse), Launch("merge"))
    return Program("paged_decode", inputs, scalars, (part, merge), steps, ("out", "lse"))


def _part(plan: Plan) -> tuple[Stmt, ...]:
    x = Builder()
    r, j, d, e = Axis("r", plan.rows), Axis("j", plan.page), Axis("d", plan.D), Axis("e", plan.E)
    group = x.int_("group", op("floordiv", ivar("H"), ivar("G")))
    row, dd, ee = (x.iota(n, a, ZERO) for n, a in (("row", r), ("dd", d), ("ee", e)))
    head = x.map("head", op("add", op("mul", ivar("g"), group), row))
    own = op("lt", row, group)
    q = x.load("q_r", Type((r, d), plan.dtype), "q", (ivar("b"), head, dd), own, 0.0, "the heads that share keys")
    size = x.load("size", Type((), "i32"), "length", (ivar("b"),))
    full = op("floordiv", op("add", size, plan.page - 1), plan.page)
    full = x.int_("count", op("max", full, 0), "pages of this row")
    share = x.int_("share", op("floordiv", op("add", full, op("sub", ivar("S"), 1)), ivar("S")))
    lo = op("mul", ivar("s"), share)
    hi = op("min", op("add", lo, share), full)
    start = {"m": x.full("m", (r,), LOWEST), "l": x.full("l", (r,), 0.0), "o": x.full("o", (r, e), 0.0)}
    with x.loop("turn", Count(lo, hi), start, order="any", note="this split's pages") as loop:
        state = _page(x, plan, q, size, loop.index, loop.carried, (r, j, d, e), (dd, ee))
        loop.next(**state)
    l, o = loop["l"], loop["o"]
    place = (ivar("b"), head, ivar("s"))
    scaled = x.map("o_n", op("mul", o, _inverse(l)))
    x.add(Store("part_out", (*place, ee), scaled.name, own))
    x.add(Store("part_lse", place, x.map("lse2", op("add", loop["m"], op("log2", l))).name, own))
    return tuple(x.here)


def _page(
    x: Builder,
    plan: Plan,
    q: Var,
    size: Var,
    turn: Var,
    state: dict[str, Var],
    axes: tuple[Axis, Axis, Axis, Axis],
    channels: tuple[Var, Var],
) -> dict[str, Var]:
    """One page of keys: the usual streaming step."""
    r, j, d, e = axes
    number = x.load("number", Type((), "i32"), "pages", (ivar("b"), turn), op("lt", turn, ivar("T")), 0)
    page = x.int_("page", op("max", op("min", number, op("sub", ivar("P"), 1)), 0), "never outside the pool")
    slot = x.iota("slot", j, ZERO)
    key = x.map("key", op("add", op("mul", turn, plan.page), slot))
    live = op("lt", key, size)
    k = x.load("k_j", Type((j, d), plan.dtype), "k", (page, ivar("g"), slot, channels[0]), live, 0.0)
    v = x.load("v_j", Type((j, e), plan.dtype), "v", (page, ivar("g"), slot, channels[1]), live, 0.0)
    score = op("mul", x.dot("s_qk", (r, j), q, k, "d"), rvar("c0"))
    s = x.map("score", op("where", live, score, Const(-math.inf, "real")))
    m = x.map("m_new", op("max", state["m"], x.reduce("top", "max", s, "j")))
    alpha = x.map("alpha", op("exp2", op("sub", state["m"], m)))
    p = x.map("p", op("exp2", op("sub", s, m)))
    l = x.map("l_new", op("add", op("mul", state["l"], alpha), x.reduce("total", "sum", p, "j")))
    old = x.map("o_old", op("mul", state["o"], alpha))
    weights = p if plan.dtype == "f32" else x.cast("p_n", p, plan.dtype)
    return {"m": m, "l": l, "o": x.dot("o_new", (r, e), weights, v, "j", old)}


def _merge(plan: Plan) -> tuple[Stmt, ...]:
    x = Builder()
    s, e = Axis("s", plan.splits), Axis("e", plan.E)
    part, ee = x.iota("part_s", s, ZERO), x.iota("ee", e, ZERO)
    live = op("lt", part, ivar("S"))
    place = (ivar("b"), ivar("h"), part)
    lse = x.load("lse_s", Type((s,), "f32"), "part_lse", place, live, -math.inf)
    o = x.load("o_s", Type((s, e), "f32"), "part_out", (*place, ee), live, 0.0)
    top = x.map("top", op("max", x.reduce("peak", "max", lse, "s"), LOWEST))
    weight = x.map("weight", op("exp2", op("sub", lse, top)), note="0 for a part without keys")
    total = x.reduce("total", "sum", weight, "s")
    mixed = x.reduce("mixed", "sum", x.map("weighed", op("mul", o, weight)), "s")
    out = x.map("out_n", op("mul", mixed, _inverse(total)))
    out = out if plan.dtype == "f32" else x.cast("out_c", out, plan.dtype)
    x.add(Store("out", (ivar("b"), ivar("h"), ee), out.name))
    natural = x.map("lse_n", op("mul", op("add", top, op("log2", total)), 1 / LOG2E))
    x.add(Store("lse", (ivar("b"), ivar("h")), natural.name))
    return tuple(x.here)


def _inverse(total: Expr) -> Expr:
    """1 / total, or 1 where there is nothing."""
    return op("recip", op("where", op("lt", 0.0, total), total, 1.0))
