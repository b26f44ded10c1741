"""Causal attention by hand, forward only: a small program for the tests of the text form, interpreter and verifier."""

from __future__ import annotations

from attncc.expr.build import conj, ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Var
from attncc.tile.nodes import (
    Alloc,
    Axis,
    Carry,
    Cast,
    Config,
    Dot,
    Dtype,
    For,
    Full,
    GridAxis,
    Interval,
    Iota,
    Kernel,
    Launch,
    Let,
    Load,
    Map,
    Program,
    Ranges,
    Reduce,
    Scalar,
    Stmt,
    Store,
    Tensor,
    Type,
    Yield,
)

LOG2E = 1.4426950408889634
LOWEST = -1e30

b, h, g, i, j, d, e = (ivar(x) for x in "bhgijde")
B, H, G, M, N = (ivar(x) for x in "BHGMN")
r, i0, j0 = ivar("r"), ivar("i0"), ivar("j0")


def int_(n: int) -> Const:
    return Const(n, "int")


def causal(dtype: Dtype = "f32", rows: int = 16, keys: int = 8, D: int = 8) -> Program:
    """softmax(scale * q k where j <= i) v and lse, one program per row tile; scores in units of log2."""
    real: Dtype = "f64" if dtype == "f64" else "f32"
    q = Tensor("q", ("b", "h", "i", "d"), (B, H, M, int_(D)), dtype, strided=True)
    k = Tensor("k", ("b", "g", "j", "d"), (B, G, N, int_(D)), dtype, strided=True)
    v = Tensor("v", ("b", "g", "j", "e"), (B, G, N, int_(D)), dtype, strided=True)
    out = Tensor("out", ("b", "h", "i", "e"), (B, H, M, int_(D)), dtype, strided=True)
    lse = Tensor("lse", ("b", "h", "i"), (B, H, M), real)
    scalars = (*(Scalar(x, "int") for x in "BHGMN"), Scalar("scale", "real"))
    scalars += (Scalar("c0", "real", op("mul", rvar("scale"), LOG2E)),)
    kernel = Kernel(
        "forward",
        (GridAxis("i0", M, "tile", rows, "i", True), GridAxis("h", H, "batch"), GridAxis("b", B, "batch")),
        ("q", "k", "v", "out", "lse"),
        ("H", "G", "M", "N", "c0"),
        body(dtype, real, rows, keys, D),
        Config(4, 2),
    )
    steps = (Alloc(out, like="q"), Alloc(lse), Launch("forward"))
    return Program("causal", (q, k, v), scalars, (kernel,), steps, ("out", "lse"))


def body(dtype: Dtype, real: Dtype, rows: int, keys: int, D: int) -> tuple[Stmt, ...]:
    """The kernel: rows that may lie outside M, tiles up to the diagonal, the mask on every tile."""
    axis = {"i": Axis("i", rows), "j": Axis("j", keys), "d": Axis("d", D), "e": Axis("e", D)}

    def over(names: str, kind: Dtype = real) -> Type:
        return Type(tuple(axis[n] for n in names), kind)

    index, row = Type((), "i32"), op("lt", r, M)
    last: Expr = op("min", N, op("add", op("add", i0, rows), ivar("shift")))
    turn: tuple[Stmt, ...] = (
        Let("j", over("j", "i32"), Iota(j0)),
        Let("kt", over("jd", dtype), Load("k", (b, g, j, d), op("lt", j, N))),
        Let("vt", over("je", dtype), Load("v", (b, g, j, e), op("lt", j, N))),
        Let("qk", over("ij"), Dot("qt", "kt", "d")),
        Let("seen", over("ij", "bool"), Map(conj(op("le", j, i), op("lt", j, N)))),
        Let("s", over("ij"), Map(op("where", truth("seen"), op("mul", rvar("qk"), rvar("c0")), float("-inf")))),
        Let("top", over("i"), Reduce("max", "s", "j")),
        Let("m1", over("i"), Map(op("max", rvar("m"), rvar("top")))),
        Let("p", over("ij"), Map(op("exp2", op("sub", rvar("s"), rvar("m1"))))),
        Let("fade", over("i"), Map(op("exp2", op("sub", rvar("m"), rvar("m1"))))),
        Let("row_sum", over("i"), Reduce("sum", "p", "j")),
        Let("l1", over("i"), Map(op("add", op("mul", rvar("l"), rvar("fade")), rvar("row_sum")))),
        Let("faded", over("ie"), Map(op("mul", rvar("acc"), rvar("fade")))),
        Let("pt", over("ij", dtype), Cast("p")),
        Let("acc1", over("ie"), Dot("pt", "vt", "j", "faded")),
        Yield(("m1", "l1", "acc1")),
    )
    tiles = Interval(int_(0), op("floordiv", op("add", op("max", last, 0), keys - 1), keys))
    carried = (Carry("m", over("i"), "m_"), Carry("l", over("i"), "l_"), Carry("acc", over("ie"), "acc_"))
    return (
        Let("g", index, Map(op("floordiv", h, op("floordiv", H, G)))),
        Let("shift", index, Map(op("sub", N, M))),
        Let("r", over("i", "i32"), Iota(i0), "rows"),
        Let("i", over("i", "i32"), Map(op("add", r, ivar("shift")))),
        Let("d", over("d", "i32"), Iota(int_(0))),
        Let("e", over("e", "i32"), Iota(int_(0))),
        Let("qt", over("id", dtype), Load("q", (b, h, r, d), row)),
        Let("m_", over("i"), Full(Const(LOWEST, "real"))),
        Let("l_", over("i"), Full(Const(0.0, "real"))),
        Let("acc_", over("ie"), Full(Const(0.0, "real"))),
        For("j0", Ranges(keys, N, (tiles,)), carried, turn, "j", "any", 2, "keys up to the diagonal"),
        Let("empty", over("i", "bool"), Map(op("eq", rvar("l"), 0.0))),
        Let("z", over("i"), Map(op("where", truth("empty"), 1.0, rvar("l")))),
        Let("o", over("ie"), Map(op("div", rvar("acc"), rvar("z")))),
        Let("ot", over("ie", dtype), Cast("o")),
        Store("out", (b, h, r, e), "ot", row),
        Let("sum", over("i"), Map(op("div", op("add", rvar("m"), op("log2", rvar("z"))), LOG2E))),
        Let("lse_", over("i"), Map(op("where", truth("empty"), float("-inf"), rvar("sum")))),
        Store("lse", (b, h, r), "lse_", row),
    )


def truth(name: str) -> Expr:
    """A bool value."""
    return Var(name, "bool")
