"""Plain kernels around the partitioned backward: row statistics packed by tile before it, dQ cast after it."""

from __future__ import annotations

import math

from attncc.expr.build import TRUE, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.stream import LOG2E
from attncc.schedule.captured import Capture, by_product
from attncc.schedule.config import Tiles
from attncc.schedule.hopper_backward_stream import affine, packed
from attncc.schedule.hopper_config import HopperBackward
from attncc.schedule.partitions import NONE
from attncc.schedule.stream import B, G, H, M, N, Problem, Stream, b, g, h
from attncc.schedule.stream_backward import gradients_of_z, key_grid, row_statistics, scaled
from attncc.schedule.stream_forward import row_grid, row_program
from attncc.tile import nodes as t


def statistics_kernel(p: Problem, plan: HopperBackward, of_z: tuple[Capture, ...], plain: bool) -> t.Kernel:
    """What a turn needs of its rows, side by side, and the gradients of what z reads.

    `plain` also writes delta and log2 Z as they are, for a kernel of rows.
    """
    k = Stream(p, ("i", "j"))
    tiles = Tiles(plan.rows, 16, t.Config(warps=4, stages=1))
    row_program(k, tiles)
    delta, log_z = row_statistics(k)
    if plain:
        k.store_stat(p.own("delta"), delta)
        k.store_stat(p.own("log_z"), log_z)
    gradients_of_z(k, of_z, delta, log_z, plan.rows)
    tile = k.b.value(op("floordiv", Var(p.own("i0"), "int"), plan.rows), "tile")
    lane = k.b.let("lane", t.Type(k.b.over("i").axes, "i32"), t.Iota(NONE))
    store_packed(k, plan, (delta, endless(k, log_z)), tile, lane)
    return t.Kernel("statistics_kernel", row_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)


def endless(k: Stream, log_z: Var) -> Var:
    """log2 Z with an infinite Z in rows past the end: their weights are 0 without a mask."""
    return k.b.value(op("where", k.guards.row, log_z, Const(math.inf, "real")), "log_z")


def store_packed(
    k: Stream, plan: HopperBackward, known: tuple[Var, Var], tile: Expr, lane: Expr, inside: Expr = TRUE
) -> None:
    """Leaves delta and log2 Z of rows `inside` side by side for the kernel of keys, tile by tile.

    Where dP's accumulator starts at a statistic it is -delta, where that of q @ k does it is -log2 Z in units of the
    product.
    """
    p, (delta, log_z) = k.p, known
    slope = affine(p) if plan.started else None
    first = log_z if slope is None else k.b.value(op("mul", log_z, -1.0 / (slope * LOG2E)), "start")
    second = k.b.value(op("neg", delta), "minus_delta") if p.exponential else delta
    name = p.own("statistics")
    k.tensors[name] = None
    for n, value in enumerate((first, second)):
        at = k.b.value(op("add", lane, n * plan.rows), "lane") if n else lane
        k.b.add(t.Store(name, (b, h, tile, at), value.name, inside))


def statistics_tiles(plan: HopperBackward) -> Expr:
    """How many tiles of rows the statistics have."""
    return op("floordiv", op("add", M, plan.rows - 1), plan.rows)


def statistics(p: Problem, plan: HopperBackward) -> t.Tensor:
    """A row of the statistics of `plan.rows` queries per tile."""
    extents = (B, H, statistics_tiles(plan), Const(plan.rows * len(packed(p)), "int"))
    return t.Tensor(p.own("statistics"), ("b", "h", "t", "x"), extents, p.real)


def query_sums(p: Problem) -> t.Tensor:
    """What all programs add dQ to, its common factor left out."""
    return t.Tensor(p.own("d_q_sum"), ("b", "h", "i", "d"), (B, H, M, Const(p.variant.D, "int")), p.real)


def sums_of(p: Problem, tensor: str) -> str:
    """What heads that share keys add `tensor`, dK or dV, to."""
    return p.own(f"{tensor}_sum")


def key_sums(p: Problem, tensor: str) -> t.Tensor:
    """dK or dV of all heads that share them; dK without its factor."""
    prefix, size = ("d", p.variant.D) if tensor == "d_k" else ("e", p.variant.E)
    return t.Tensor(sums_of(p, tensor), ("b", "g", "j", prefix), (B, G, N, Const(size, "int")), p.real)


def _sums(k: Stream, source: str, prefix: str, at: tuple[Expr, ...], guard: Expr, hint: str) -> tuple[Var, ...]:
    """A float32 sum, a value per channel piece; `at` are the indices before the channel."""
    rows, parts = k.b.axes_of(at[-1]), []
    k.tensors[source] = None
    for c, real, channels in k.pieces(prefix):
        type = t.Type((*rows, channels), k.p.real)
        parts.append(k.b.let(hint, type, t.Load(source, (*at, c), op("and", guard, real))))
    return tuple(parts)


def cast_keys_kernel(p: Problem, wanted: tuple[str, ...]) -> t.Kernel:
    """d_k and d_v, where wanted, from their float32 sums."""
    k = Stream(p, ("j", "i"))
    tiles = Tiles(16, 64, t.Config(warps=4, stages=1))
    j0 = Var(p.own("j0"), "int")
    k.start(j0.name, "g", "b")
    k.keys(j0, tiles.keys)
    for name, prefix in (("d_k", "d"), ("d_v", "e")):
        if name.removeprefix("d_") in wanted:
            guard = op("lt", k.key, N)
            parts = _sums(k, sums_of(p, name), prefix, (b, g, k.key), guard, name)
            factor = by_product(p)[0] if name == "d_k" else None
            k.store_matrix(name, prefix, (b, g), k.key, guard, tuple(scaled(k, x, factor, name) for x in parts))
    return t.Kernel("cast_keys_kernel", key_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)


def cast_kernel(p: Problem) -> t.Kernel:
    """d_q from its float32 sum."""
    k = Stream(p, ("i", "j"))
    tiles = Tiles(64, 16, t.Config(warps=4, stages=1))
    row_program(k, tiles)
    parts = _sums(k, p.own("d_q_sum"), "d", (b, h, k.row), k.guards.row, "dq")
    factor = by_product(p)[0]
    k.store_matrix("d_q", "d", (b, h), k.row, k.guards.row, tuple(scaled(k, x, factor, "dq") for x in parts))
    return t.Kernel("cast_kernel", row_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)
