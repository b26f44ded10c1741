"""Replaces operations that no printer spells by ones that all do.

TriInverse becomes dots: the inverse of a unit lower triangular matrix in blocks of 1, then 2, 4 ... rows. With P the
inverse of the diagonal blocks of size s and B what lies below them inside blocks of 2 s, P - P B P is the inverse of
the diagonal blocks of size 2 s. This is blockwise forward substitution: unlike a product of powers of the matrix, it
never forms anything larger than the inverse itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from attncc.errors import InternalError
from attncc.expr.build import ivar, op, rvar
from attncc.expr.nodes import Const, Expr
from attncc.tile.nodes import (
    Axis,
    Dot,
    For,
    If,
    Iota,
    Kernel,
    Let,
    Map,
    Partitions,
    Program,
    Rename,
    Stmt,
    TriInverse,
    Type,
)

Precision = Literal["ieee", "tf32"]


def expand(program: Program) -> Program:
    """rewrite: x = TriInverse(l) --> dots, masks and renamings that end in x.

    Products are rounded to tf32 in programs with 16-bit inputs, which is finer than their own rounding.
    """
    half = any(t.dtype in ("f16", "bf16") for t in program.inputs)
    precision: Precision = "tf32" if half else "ieee"
    return replace(program, kernels=tuple(_kernel(k, precision) for k in program.kernels))


def _kernel(kernel: Kernel, precision: Precision) -> Kernel:
    return replace(kernel, body=_body(kernel.body, precision))


def _body(body: tuple[Stmt, ...], precision: Precision) -> tuple[Stmt, ...]:
    done: list[Stmt] = []
    for s in body:
        match s:
            case Let(op=TriInverse() as o):
                done += _tri_inverse(s, o, precision)
            case For():
                done.append(replace(s, body=_body(s.body, precision)))
            case If():
                done.append(replace(s, then=_body(s.then, precision), orelse=_body(s.orelse, precision)))
            case Partitions(parts):
                done.append(Partitions(tuple(replace(p, body=_body(p.body, precision)) for p in parts)))
            case _:
                done.append(s)
    return tuple(done)


def _tri_inverse(s: Let, o: TriInverse, precision: Precision) -> list[Stmt]:
    """The Lets that end in `s.name`; every other name starts with it."""
    if s.type.names() != (o.row, o.column) or s.type.axes[0].extent != s.type.axes[1].extent:
        raise InternalError(f"{s.name}: TriInverse of a value over {s.type.names()}, not over its row and column")
    row, column = s.type.axes
    x = s.name
    if row.extent == 1:
        return [Let(x, s.type, Map(op("add", op("mul", rvar(o.value), 0.0), 1.0)), s.note)]
    made: list[Stmt] = [
        Let(f"{x}_row", Type((row,), "i32"), Iota(Const(0, "int"))),
        Let(f"{x}_col", Type((column,), "i32"), Iota(Const(0, "int"))),
        Let(f"{x}_1" if row.extent > 2 else x, s.type, Map(_first(x, o.value)), s.note),
    ]
    inner = Axis(f"{column.name}_{x}", column.extent)
    size = 2
    while size < row.extent:
        made += _double(x, o.value, size, (row, column, inner), s.type.dtype, precision)
        size *= 2
    return made


def _first(x: str, value: str) -> Expr:
    """Blocks of 2: I - B, where B is the one element below the diagonal of each."""
    row, column = ivar(f"{x}_row"), ivar(f"{x}_col")
    minus = op("where", _below(row, column, 1), op("neg", rvar(value)), 0.0)
    return op("where", op("eq", row, column), 1.0, minus)


def _below(row: Expr, column: Expr, size: int) -> Expr:
    """Inside a diagonal block of 2 * size, below its two diagonal blocks of `size`, given column < row elsewhere."""
    same = op("eq", op("floordiv", row, 2 * size), op("floordiv", column, 2 * size))
    return op("and", same, op("lt", op("floordiv", column, size), op("floordiv", row, size)))


def _double(
    x: str, value: str, size: int, axes: tuple[Axis, Axis, Axis], dtype: object, precision: Precision
) -> list[Stmt]:
    """From the inverse of diagonal blocks of `size`, named by size / 2, to that of blocks twice as large."""
    row, column, inner = axes
    own = Type((row, column), "f32" if dtype == "f32" else "f64")
    turned, back = Type((column, inner), own.dtype), Type((inner, column), own.dtype)
    old, new = f"{x}_{size // 2}", x if size * 2 >= row.extent else f"{x}_{size}"
    below = op("where", _below(ivar(f"{x}_row"), ivar(f"{x}_col"), size), op("neg", rvar(value)), 0.0)
    return [
        Let(f"{x}_b{size}", own, Map(below)),
        Let(f"{x}_c{size}", turned, Rename(f"{x}_b{size}")),
        Let(f"{x}_p{size}", Type((row, inner), own.dtype), Dot(old, f"{x}_c{size}", column.name, precision=precision)),
        Let(f"{x}_q{size}", back, Rename(old)),
        Let(new, own, Dot(f"{x}_p{size}", f"{x}_q{size}", inner.name, old, precision=precision)),
    ]
