"""Tensor maps: what a GPU's bulk copies need to know of a tensor, 128 bytes that the CUDA driver encodes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attncc.runtime.kernels import Map
from attncc.runtime.mistakes import KernelFailed

BYTES = 128
ALIGNMENT = 64
_ELEMENTS = {"u8": 0, "i1": 0, "i32": 3, "i64": 5, "fp16": 6, "fp32": 7, "fp64": 8, "bf16": 9}
"""CUtensorMapDataType."""
_PLAIN_ORDER = 0  # CU_TENSOR_MAP_INTERLEAVE_NONE
_PROMOTION = 2  # CU_TENSOR_MAP_L2_PROMOTION_L2_128B
_ZEROS = 0  # CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE: reads outside give 0
_KEPT = 512
"""Maps of a descriptor that are kept before all are forgotten."""


def describable(tensor: Tensor, box: Sequence[int], swizzle: int = 0) -> Tensor:
    """What a printed module's `_descriptor` becomes: a tensor that a map can describe, most often `tensor` itself.

    No map has an axis without elements, or one that does not move in memory.
    """
    if not tensor.numel():
        return tensor.new_zeros((*(1 for _ in box[1:]), 16))
    return tensor.contiguous() if 0 in tensor.stride() else tensor


def steps(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Strides as the driver accepts them: those along axes of one element are never used, but checked."""
    return (*(s if n > 1 else 16 for n, s in zip(shape[:-1], strides[:-1], strict=True)), 1)


class Maps:
    """The tensor maps of one descriptor of a kernel, by address, shape and strides."""

    def __init__(self, name: str, element: str, chosen: Map, encode: Callable[..., int]) -> None:
        self.name, self.encode = name, encode
        self.element = _ELEMENTS[element]
        self.swizzle, self.size, self.box = chosen
        self.kept: dict[tuple[Any, ...], bytes] = {}

    def of(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
        """The map of a tensor."""
        key = (address, shape, strides)
        found = self.kept.get(key)
        if found is None:
            if len(self.kept) >= _KEPT:
                self.kept.clear()
            found = self.kept[key] = self._encoded(address, shape, strides)
        return found

    def _encoded(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
        """A fresh map. The driver counts axes from the innermost, and strides in bytes without that one's."""
        rank = len(shape)
        room = ctypes.create_string_buffer(BYTES + ALIGNMENT)
        start = -ctypes.addressof(room) % ALIGNMENT
        result = self.encode(
            ctypes.c_void_p(ctypes.addressof(room) + start),
            self.element,
            rank,
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * rank)(*reversed(shape)),
            (ctypes.c_uint64 * rank)(*(s * self.size for s in reversed(steps(shape, strides)[:-1])), 0),
            (ctypes.c_uint32 * rank)(*reversed(self.box)),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            _PLAIN_ORDER,
            self.swizzle,
            _PROMOTION,
            _ZEROS,
        )
        if result:
            raise KernelFailed(
                f"the driver can't describe {self.name}, of shape {list(shape)} and strides {list(strides)}, "
                f"for copies of {list(self.box)} (CUDA error {result})"
            )
        return room.raw[start : start + BYTES]
