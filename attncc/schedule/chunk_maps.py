"""Rows that are read and written after a long computation: made once, for all kernels that walk.

    maps             x or w of every token, as a tensor of the inputs' element type
    maps_gradients   from the gradients of those to the gradients of what they are made of

Every part of a head's channels, and every pass over the chunks, would else compute them again: sines and cosines of
positions by channels, for one, take longer than all that a chunk does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attncc.expr.build import ivar
from attncc.expr.nodes import Const, Var
from attncc.schedule.chunk import Forward, map_of
from attncc.schedule.chunk_forward import chunk_kernel
from attncc.schedule.chunk_problem import Problem
from attncc.tile import nodes as t

B, H, N = ivar("B"), ivar("H"), ivar("N")
ROWS = 16
"""Tokens of a program: no two meet, and long computations of many elements take long to compile."""


def gradient_of(n: int) -> str:
    """The tensor of the gradients of the n-th rows."""
    return f"d_{map_of(n)}"


def tensors(p: Problem) -> tuple[t.Tensor, ...]:
    """Where all rows are stored."""
    sizes = ((axis.name, Const(p.extents[axis.name], "int")) for _, axis in p.maps)
    found = ((("b", "h", "t", name), (B, H, N, size)) for name, size in sizes)
    return tuple(t.Tensor(map_of(n), *x, p.variant.dtype) for n, x in enumerate(found))


def kernels(p: Problem, reserved: tuple[str, ...]) -> tuple[t.Kernel, ...]:
    """The kernel that makes the rows, if there are any."""
    if not p.maps:
        return ()
    f = Forward(p, reserved)
    first, f.count = f.k.b.position("first"), ROWS
    f.k.tokens(first, f.count)
    for n, (v, (_, axis)) in enumerate(zip(f.rows(), p.maps, strict=True)):
        f.k.store(map_of(n), f.row_at(axis), v, f.row_guard(axis), p.variant.dtype)
    return (chunk_kernel("maps_kernel", f, first.name),)


def store(f: Forward, of: Mapping[str, Var]) -> dict[int, t.Tensor]:
    """Stores the gradients of the rows that a chunk has loaded; the tensors, by number."""
    whole, axes = tensors(f.p), [axis for _, axis in f.maps]
    found = {n: replace(whole[n], name=gradient_of(n)) for n, v in f.loaded.items() if v.name in of}
    for n in found:
        value = f.k.over(of[f.loaded[n].name], "i", axes[n].name)
        f.k.store(gradient_of(n), f.row_at(axes[n]), value, f.row_guard(axes[n]), f.p.variant.dtype)
    return found


def load(f: Forward, n: int, like: Var) -> Var:
    """The gradient of the n-th rows."""
    k, (_, axis) = f.k, f.p.maps[n]
    type = replace(k.b.type_of(like.name), dtype=f.p.variant.dtype)
    return k.cast(k.load(gradient_of(n), f.row_at(axis), f.row_guard(axis), type, "a"), k.real)
