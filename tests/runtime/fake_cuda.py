"""A CUDA driver that only records, so that launches are tested where there is no GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch


class Recorder:
    """Stands for libcuda: writes handles, reads the arguments of launches from memory."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.maps: list[dict[str, Any]] = []
        """What tensor maps were asked for. The n-th map is the number n."""
        self.stream = 4242
        self.result = 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> int:
            self.calls.append((name, *args))
            if name == "cuModuleGetFunction":
                args[0]._obj.value = 7777
            if name == "cuDeviceGetAttribute":
                args[0]._obj.value = 232448
            if name == "cuCtxGetCurrent":
                args[0]._obj.value = 1
            if name == "cuTensorMapEncodeTiled":
                self.maps.append(read_map(args))
                ctypes.memmove(args[0].value, len(self.maps).to_bytes(128, "little"), 128)
            if name == "cuGetErrorString":
                args[1]._obj.value = b"out of luck"
            return self.result if name == "cuLaunchKernel" else 0

        return call

    def launches(self) -> list[tuple[Any, ...]]:
        return [c for c in self.calls if c[0] == "cuLaunchKernel"]


def read_map(args: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of cuTensorMapEncodeTiled by name."""
    where, kind, rank, address, dims, strides, box, elements, *modes = args
    assert where.value % 64 == 0
    return {
        "type": kind,
        "address": address.value,
        "dims": list(dims)[:rank],
        "strides": list(strides)[: rank - 1],
        "box": list(box)[:rank],
        "elements": list(elements)[:rank],
        **dict(zip(("interleave", "swizzle", "promotion", "fill"), modes, strict=True)),
    }


class OnGpu:
    """A tensor to the launcher."""

    device = torch.device("cpu")

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address

    def get_device(self) -> int:
        return 0
