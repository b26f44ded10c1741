"""Bytes of elements and of tiles."""

from __future__ import annotations

from math import prod

from attncc.tile.nodes import Dtype, Type

BYTES: dict[Dtype, int] = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "u8": 1, "bool": 1}


def bytes_of(type: Type) -> int:
    """The size of a tile."""
    return BYTES[type.dtype] * prod(a.extent for a in type.axes)
