"""Small partitioned kernels, for tests of what the Gluon printer spells."""

from __future__ import annotations

from attncc.expr.nodes import Const
from attncc.tile.nodes import (
    Config,
    GridAxis,
    Kernel,
    Launch,
    Let,
    Load,
    Partition,
    Partitions,
    Program,
    Scalar,
    Stmt,
    Tensor,
    Type,
)


def small(
    body: tuple[Stmt, ...],
    tensors: tuple[Tensor, ...],
    *,
    top: tuple[Stmt, ...] = (),
    others: tuple[tuple[Stmt, ...], ...] = (),
    scalars: tuple[Scalar, ...] = (),
    grid: tuple[GridAxis, ...] = (),
) -> Program:
    """A program of one kernel: `body` runs in its first warpgroup, `others` in a warp each."""
    zeros = tuple(Const(0, "int") for _ in tensors[0].axes)
    others = others or ((Let("idle", Type((), tensors[0].dtype), Load(tensors[0].name, zeros)),),)
    parts = [Partition("first", 4, 0, body)]
    parts += [Partition(f"other{n}", 1, 24, b) for n, b in enumerate(others)]
    kernel = Kernel(
        "small",
        grid,
        tuple(t.name for t in tensors),
        tuple(s.name for s in scalars),
        (*top, Partitions(tuple(parts))),
        Config(4, 1, 168),
    )
    return Program("small_program", tensors, scalars, (kernel,), (Launch("small"),), (tensors[-1].name,))
