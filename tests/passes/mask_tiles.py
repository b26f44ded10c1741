"""Masks and bounds evaluated with numpy, the way kernels use them: which tiles are visited, which are full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attncc.expr.build import ivar
from attncc.expr.nodes import Const, Expr, Op, Var, children, walk
from attncc.ir.nodes import Load, Segment
from attncc.passes.bounds import Bounds, BoxTest, Derived, NextFlag, box_test

Array = NDArray[Any]
FAR = 1 << 40
GARBAGE = 77  # what a read out of range gives

OPS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "neg": np.negative,
    "abs": np.abs,
    "square": np.square,
    "min": np.minimum,
    "max": np.maximum,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}


@dataclass(frozen=True)
class World:
    """Sizes, constants and arrays of one call; b and h are fixed by `scalars`."""

    N: int
    M: int
    scalars: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)

    @property
    def offset(self) -> int:
        """Key coordinate of the first query row."""
        return self.N - self.M

    def env(self, i: Array, j: Array) -> dict[str, Any]:
        return {"N": self.N, "M": self.M, **self.scalars, "i": i, "j": j}

    def positions(self, index: str) -> Array:
        return np.arange(self.N) if index == "j" else np.arange(self.offset, self.N)


def value(e: Expr, world: World, i: Array, j: Array) -> Array:
    """`e` at positions i and j. A comparison that reads out of range is false; elsewhere such a read gives anything."""
    env = world.env(i, j)
    done: dict[Expr, Any] = {}
    inside: dict[Expr, Any] = {}
    for node in walk(e):
        inside[node] = np.True_
        for c in children(node):
            inside[node] = inside[node] & inside[c]
        match node:
            case Const(v, _):
                done[node] = np.asarray(v)
            case Var(name, _):
                done[node] = np.asarray(env[name])
            case Op(name, args, _):
                done[node] = OPS[name](*(done[a] for a in args))
                if name == "where":
                    inside[node] = np.where(done[args[0]], inside[args[1]], inside[args[2]])
                if name in ("lt", "le", "eq", "ne"):
                    done[node] = done[node] & inside[node]
                    inside[node] = np.True_
            case Load(tensor, index, sort):
                array = world.arrays[tensor]
                at = [done[x] for x in index]
                for x, size in zip(at, array.shape, strict=True):
                    inside[node] = inside[node] & (x >= 0) & (x < size)
                clipped = tuple(np.clip(x, 0, n - 1) for x, n in zip(at, array.shape, strict=True))
                done[node] = np.where(inside[node], array[clipped], GARBAGE if sort == "int" else True)
                if sort == "bool":
                    done[node] = done[node] & inside[node]
                    inside[node] = np.True_
            case Segment(tensor, at, _):
                inside[node] = inside[node] & (done[at] >= 0) & (done[at] < world.N)
                done[node] = np.searchsorted(world.arrays[tensor], done[at], side="right") - 1
            case _:
                raise AssertionError(node)
    return np.asarray(done[e])


def dense(mask: Expr, world: World) -> Array:
    """The mask of every (query row, key)."""
    i, j = world.positions("i")[:, None], world.positions("j")[None]
    return np.broadcast_to(value(mask, world, i, j), (world.M, world.N)).astype(bool)


def derive(d: Derived | NextFlag, world: World) -> Array:
    """A derived array by its definition, one position at a time."""
    if isinstance(d, NextFlag):
        wanted = d.flag
        return np.apply_along_axis(lambda flags: _next(flags == wanted), d.axis, world.arrays[d.tensor])
    if d.segments:
        ids = np.searchsorted(world.arrays[d.tensor], np.arange(world.N), side="right") - 1
        return _positions(ids, d.kind)
    return np.apply_along_axis(lambda ids: _positions(ids, d.kind), d.axis, world.arrays[d.tensor])


def _next(hits: Array) -> Array:
    n = len(hits)
    later = hits[None] & (np.arange(n)[None] >= np.arange(n)[:, None])
    return np.where(later.any(1), later.argmax(1), n)


def _positions(ids: Array, kind: str) -> Array:
    same = ids[:, None] == ids[None]
    n = len(ids)
    if kind.startswith("run"):
        breaks = np.cumsum(np.concatenate([[0], ids[1:] != ids[:-1]]))
        same = breaks[:, None] == breaks[None]
    return np.asarray(same.argmax(1) if kind.endswith("first") else n - 1 - same[:, ::-1].argmax(1))


def with_derived(bounds: Bounds | BoxTest, world: World) -> World:
    """`world` with the arrays that the bounds read."""
    extra = {d.name: derive(d, world) for d in bounds.aux}
    return World(world.N, world.M, world.scalars, {**world.arrays, **extra})


def blocks(x: Array, tile: int, empty: Any) -> Array:
    """A vector cut into tiles, the last one filled up."""
    pad = -len(x) % tile
    return np.concatenate([x, np.full(pad, empty, x.dtype)]).reshape(-1, tile)


def tiles(bounds: Bounds, world: World, tile: int) -> tuple[Array, Array]:
    """(visited, full) for every tile of the other index (rows) and of the index (columns)."""
    world = with_derived(bounds, world)
    other = "i" if bounds.index == "j" else "j"
    at = world.positions(other)
    nowhere = np.asarray(0)  # no bound may depend on the index itself
    i, j = (at, nowhere) if other == "i" else (nowhere, at)
    space = world.positions(bounds.index)
    edges = (space[0] if len(space) else 0) + np.arange(-(-len(space) // tile)) * tile
    shape = (-(-len(at) // tile), len(edges))
    visited, full = np.zeros(shape, bool), np.zeros(shape, bool)
    for a in bounds.alternatives:
        rows, lower, upper, full_lower, full_upper = (
            np.broadcast_to(value(e, world, i, j), at.shape)
            for e in (a.rows, a.lower, a.upper, a.full_lower, a.full_upper)
        )
        some = rows & (lower < upper)
        assert (lower[some] >= space[0]).all() and (upper[some] <= space[-1] + 1).all()
        first = blocks(np.where(some, lower, FAR), tile, FAR).min(1)
        last = blocks(np.where(some, upper, -FAR), tile, -FAR).max(1)
        visited |= (edges[None] < last[:, None]) & (edges[None] + tile > first[:, None])
        inner_first = blocks(np.where(rows, full_lower, FAR), tile, -FAR).max(1)
        inner_last = blocks(np.where(rows, full_upper, -FAR), tile, FAR).min(1)
        full |= (edges[None] >= inner_first[:, None]) & (edges[None] + tile <= inner_last[:, None])
    return visited, full


def corners(mask: Expr, world: World, tile: int, positive: frozenset[str] = frozenset()) -> tuple[Array, Array]:
    """(must, may) of every query tile (rows) and key tile."""
    names = {"i": ("i_lo", "i_hi"), "j": ("j_lo", "j_hi")}
    test = box_test(mask, {k: (ivar(lo), ivar(hi)) for k, (lo, hi) in names.items()}, positive=positive)
    i_lo = world.positions("i")[::tile, None]
    j_lo = world.positions("j")[None, ::tile]
    ends = {"i_lo": i_lo, "i_hi": np.minimum(i_lo + tile, world.N) - 1}
    ends |= {"j_lo": j_lo, "j_hi": np.minimum(j_lo + tile, world.N) - 1}
    world = with_derived(test, world)
    here = World(world.N, world.M, {**world.scalars, **ends}, world.arrays)
    none = np.asarray(0)
    shape = (i_lo.shape[0], j_lo.shape[1])
    must, may = (np.broadcast_to(value(x, here, none, none), shape) for x in (test.must, test.may))
    return must, may


def brute(mask: Array, tile: int) -> tuple[Array, Array]:
    """(tiles with a true pair, tiles of which every existing pair is true); rows are query tiles."""
    m, n = mask.shape
    cut = [np.arange(0, size, tile) for size in (m, n)]
    some = np.logical_or.reduceat(np.logical_or.reduceat(mask, cut[0], 0), cut[1], 1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(mask, cut[0], 0), cut[1], 1)
    return some, every


def support(bounds: Bounds, world: World) -> Array:
    """The union of the alternatives, residue included, as a dense mask."""
    world = with_derived(bounds, world)
    i, j = world.positions("i")[:, None], world.positions("j")[None]
    index = j if bounds.index == "j" else i
    out = np.zeros((world.M, world.N), bool)
    for a in bounds.alternatives:
        rows, lower, upper = (value(e, world, i, j) for e in (a.rows, a.lower, a.upper))
        part = rows & (lower <= index) & (index < upper)
        for r in a.residue:
            part = part & value(r, world, i, j)
        out |= part
    return out
