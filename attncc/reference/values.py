"""Tensors with named axes, and the record of where they were read out of range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Strays = Mapping[str, "Value"]
"""For each tensor read out of range: where, as a bool Value."""


@dataclass(frozen=True, slots=True)
class Value:
    """`data` with one name per dimension. `strays` marks the elements that depend on a read out of range."""

    data: Tensor
    axes: tuple[str, ...] = ()
    strays: Strays = field(default_factory=dict)


def union(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """All names once, in order of first appearance."""
    return tuple(dict.fromkeys(name for group in groups for name in group))


def spread(value: Value, axes: tuple[str, ...]) -> Tensor:
    """`value`'s data with its dimensions in the order of `axes`, size 1 where it lacks one."""
    order = [value.axes.index(a) for a in axes if a in value.axes]
    data = value.data.permute(order)
    shape = iter(data.shape)
    return data.reshape([next(shape) if a in value.axes else 1 for a in axes])


def apply(fn: Callable[..., Tensor], *values: Value) -> Value:
    """`fn` elementwise, axes aligned by name; an element is astray where any operand's is."""
    axes = union(*(v.axes for v in values))
    return Value(fn(*(spread(v, axes) for v in values)), axes, join_strays(*(v.strays for v in values)))


def either(a: Value, b: Value) -> Value:
    """a or b, of bools."""
    return apply(torch.logical_or, a, b)


def both(a: Value, b: Value) -> Value:
    """a and b, of bools."""
    return apply(torch.logical_and, a, b)


def inverse(a: Value) -> Value:
    """not a."""
    return apply(torch.logical_not, a)


def join_strays(*groups: Strays) -> dict[str, Value]:
    """Astray in any of the groups, tensor by tensor."""
    joined: dict[str, Value] = {}
    for group in groups:
        for name, where in group.items():
            joined[name] = either(joined[name], where) if name in joined else where
    return joined


def limit_strays(strays: Strays, where: Value) -> dict[str, Value]:
    """Only the elements at which `where` holds."""
    bare = Value(where.data, where.axes)
    return {name: both(at, bare) for name, at in strays.items()}


def reduce_strays(strays: Strays, axes: tuple[str, ...]) -> dict[str, Value]:
    """Astray if any element along `axes` is."""
    return {name: reduced(torch.any, at, axes) for name, at in strays.items()}


def reduced(fn: Callable[..., Tensor], value: Value, axes: tuple[str, ...]) -> Value:
    """`fn(data, dim=)` applied to one named dimension after the other; names `value` lacks are ignored."""
    for axis in axes:
        if axis in value.axes:
            dim = value.axes.index(axis)
            kept = value.axes[:dim] + value.axes[dim + 1 :]
            value = Value(fn(value.data, dim=dim), kept, reduce_strays(value.strays, (axis,)))
    return value


def common_shape(*tensors: Tensor) -> tuple[int, ...]:
    """The shape these broadcast to."""
    return tuple(torch.broadcast_shapes(*(t.shape for t in tensors)))  # type: ignore[no-untyped-call]


def expanded(value: Value, axes: tuple[str, ...], sizes: Mapping[str, int]) -> Tensor:
    """`value` over exactly `axes`, in that order and at full size."""
    return spread(value, axes).expand([sizes[a] for a in axes])
