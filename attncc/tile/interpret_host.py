"""The interpreter's host steps: gathers, scatters, sums and first/last positions on whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import numpy as np

from attncc.expr.nodes import Expr, Var
from attncc.tile.interpret_faults import IndexFault, TypeFault, UnwrittenFault
from attncc.tile.interpret_memory import GlobalTensor
from attncc.tile.interpret_values import Array, evaluate, host_value, rounded
from attncc.tile.nodes import FirstLast, Gather, ScatterAdd, SumAxes, Tensor

Scalars = Mapping[str, float | bool]


def extents_of(tensor: Tensor, scalars: Scalars) -> tuple[int, ...]:
    """A tensor's extents as numbers."""
    return tuple(int(host_value(e, scalars)) for e in tensor.extents)


def _data(source: GlobalTensor) -> Array:
    if not source.written.all():
        raise UnwrittenFault(f"{source.name} is read by a host step before it is fully stored")
    return source.data


def _indices(index: tuple[Expr, ...], axes: tuple[str, ...], extents: tuple[int, ...], scalars: Scalars) -> list[Array]:
    """Every index expression at every element of a tensor with these axes."""
    grid = dict(zip(axes, np.indices(extents), strict=True))

    def lookup(v: Var) -> Array:
        return grid[v.name] if v.name in grid else np.asarray(host_value(v, scalars))

    return [np.broadcast_to(evaluate(e, lookup, np.float64), extents) for e in index]


def _inside(name: str, index: list[Array], extents: tuple[int, ...]) -> tuple[Array, ...]:
    for place, extent in zip(index, extents, strict=True):
        if place.size and (place.min() < 0 or place.max() >= extent):
            raise IndexFault(f"{name}: a host step reaches {int(place.min())} .. {int(place.max())} of {extent}")
    return tuple(index)


def host_step(
    step: Gather | ScatterAdd | SumAxes | FirstLast, tensors: Mapping[str, GlobalTensor], scalars: Scalars
) -> GlobalTensor:
    """The tensor a host step makes."""
    source, out = tensors[step.source], step.out
    extents = extents_of(out, scalars)
    match step:
        case Gather(_, _, index):
            places = _inside(source.name, _indices(index, out.axes, extents, scalars), source.data.shape)
            data = _data(source)[places]
        case ScatterAdd(_, _, index, add):
            places = _inside(out.name, _indices(index, source.axes, source.data.shape, scalars), extents)
            data = _data(tensors[out.name]).copy() if add else np.zeros(extents, dtype=source.data.dtype)
            np.add.at(data, places, _data(source))
        case SumAxes(_, _, axes):
            kept = tuple(a for a in source.axes if a not in axes)
            summed = _data(source).sum(axis=tuple(source.axes.index(a) for a in axes))
            data = np.asarray(summed).transpose([kept.index(a) for a in out.axes])
        case FirstLast():
            data = first_last(_data(source), step.kind)
        case _:
            assert_never(step)
    if data.shape != extents:
        raise TypeFault(f"{type(step).__name__} makes {data.shape}, {out.name} is declared {extents}")
    return GlobalTensor(out.name, out.axes, out.dtype, rounded(data, out.dtype))


def first_last(ids: Array, kind: str) -> Array:
    """For each position of the last axis, the first or last one with the same id, anywhere or in its run."""
    n = ids.shape[-1]
    same = ids[..., :, None] == ids[..., None, :]
    if kind.startswith("run"):
        breaks = np.cumsum(np.diff(ids, axis=-1, prepend=ids[..., :1]) != 0, axis=-1)
        same = breaks[..., :, None] == breaks[..., None, :]
    positions = np.arange(n)
    if kind.endswith("first"):
        return np.asarray(np.where(same, positions, n).min(axis=-1, initial=n))
    return np.asarray(np.where(same, positions, -1).max(axis=-1, initial=-1))
