"""Stored arrays and how one element each is read from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attncc.reference.scope import Ranges
from attncc.reference.values import Value, apply, common_shape, either, join_strays, spread, union


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in storage order. `kinds` are its axes' names: an axis "m" holds query rows and is read at i.

    `strays` marks, at full shape, elements of a derived array that were computed from reads out of range.
    """

    data: Tensor
    kinds: tuple[str, ...]
    strays: Mapping[str, Tensor] = field(default_factory=dict)


def gather(name: str, tensor: Stored, names: list[str], places: list[Value], ranges: Ranges) -> Value:
    """tensor[places], one Value per axis; `names` are the index variables, "" for anything else."""
    rows = [_row(p, kind, ranges) for p, kind in zip(places, tensor.kinds, strict=True)]
    whole = _whole_axes(tensor, names, rows, ranges)
    strays = join_strays(*(r.strays for r in rows))
    for at, row in enumerate(rows):
        if at not in whole:
            size = tensor.data.shape[at]
            out = Value((row.data < 0) | (row.data >= size), row.axes)
            if bool(out.data.any()):
                strays[name] = either(strays[name], out) if name in strays else out
    found = _read(tensor.data, names, rows, whole)
    for other, where in tensor.strays.items():
        read = _read(where, names, rows, whole)
        strays = join_strays(strays, {other: read})
    return Value(found.data, found.axes, strays)


def _row(place: Value, kind: str, ranges: Ranges) -> Value:
    if kind != "m":
        return place
    first = ranges.sizes["N"] - ranges.sizes["M"]
    return apply(lambda p: p - first, place)


def _whole_axes(tensor: Stored, names: list[str], rows: list[Value], ranges: Ranges) -> set[int]:
    """The positions at which the index simply runs along the whole axis."""
    others = union(*(r.axes for r, n in zip(rows, names, strict=True) if r.axes != (n,)))
    whole: set[int] = set()
    for at, (name, row) in enumerate(zip(names, rows, strict=True)):
        fits = row.axes == (name,) and row.data.shape[0] == tensor.data.shape[at]
        based = tensor.kinds[at] == "m" if name == "i" else tensor.kinds[at] != "m"
        if fits and based and name not in others and names.count(name) == 1:
            whole.add(at)
    return whole


def _read(data: Tensor, names: list[str], rows: list[Value], whole: set[int]) -> Value:
    kept = tuple(names[at] for at in sorted(whole))
    rest = [at for at in range(len(rows)) if at not in whole]
    if not rest:
        return Value(data, kept)
    data = data.permute(*rest, *sorted(whole))
    axes = union(*(rows[at].axes for at in rest))
    shape = common_shape(*(spread(rows[at], axes) for at in rest))
    if 0 in data.shape[: len(rest)]:
        return Value(data.new_zeros(shape + tuple(data.shape[len(rest) :])), axes + kept)
    flat = torch.zeros(shape, dtype=torch.int64, device=data.device)
    for p, at in enumerate(rest):
        flat = flat * data.shape[p] + spread(rows[at], axes).clamp(0, data.shape[p] - 1)
    taken = data.flatten(0, len(rest) - 1).index_select(0, flat.flatten())
    return Value(taken.reshape(shape + tuple(data.shape[len(rest) :])), axes + kept)
