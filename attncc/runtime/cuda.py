"""Launching cubins through the CUDA driver: no compiler, no wait, a few microseconds.

Triton's calling convention: the arguments in order, then a pointer to global scratch memory and one to a profiler's.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from attncc.runtime.kernels import Binary
from attncc.runtime.mistakes import KernelFailed

_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_OPT_IN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
_FREE_SHARED = 48 * 1024
_FORMATS = {"i64": "q", "i32": "i", "u32": "I", "u64": "Q", "i1": "?", "fp32": "f", "fp64": "d"}
_MAX_GRID = 2**31 - 1


@lru_cache(maxsize=1)
def driver() -> ctypes.CDLL:
    """The CUDA driver's library."""
    try:
        lib = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise KernelFailed(f"the CUDA driver can't be loaded: {e}") from e
    pointer, integer, unsigned = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
    lib.cuLaunchKernel.argtypes = [pointer, *[unsigned] * 7, pointer, pointer, pointer]
    lib.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
    lib.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    lib.cuFuncSetAttribute.argtypes = [pointer, integer, integer]
    lib.cuFuncGetAttribute.argtypes = [pointer, integer, pointer]
    lib.cuCtxGetCurrent.argtypes = [pointer]
    lib.cuCtxSetCurrent.argtypes = [pointer]
    lib.cuDevicePrimaryCtxRetain.argtypes = [pointer, integer]
    lib.cuDeviceGet.argtypes = [pointer, integer]
    lib.cuDeviceGetAttribute.argtypes = [pointer, integer, integer]
    lib.cuGetErrorString.argtypes = [integer, pointer]
    return lib


def _check(result: int, doing: str) -> None:
    if result:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(result, ctypes.byref(text))
        raise KernelFailed(f"{doing}: {(text.value or b'unknown error').decode()} (CUDA error {result})")


_bound = threading.local()


def ensure_context(device: int) -> None:
    """Gives this thread a current context. One that has one keeps it: torch makes the right device's current."""
    if getattr(_bound, "done", False):
        return
    lib, context = driver(), ctypes.c_void_p()
    _check(lib.cuCtxGetCurrent(ctypes.byref(context)), "asking for the current context")
    if not context.value:
        handle = ctypes.c_int()
        _check(lib.cuDeviceGet(ctypes.byref(handle), device), f"opening device {device}")
        _check(lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), f"opening device {device}")
        _check(lib.cuCtxSetCurrent(context), f"making device {device} current")
    _bound.done = True


def _load(binary: Binary, device: int) -> ctypes.c_void_p:
    """The function handle of `binary` on `device`, which is current. The module stays for the process's life."""
    lib = driver()
    ensure_context(device)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(lib.cuModuleLoadData(ctypes.byref(module), binary.image), f"loading kernel {binary.name}")
    name = binary.entry.encode()
    _check(lib.cuModuleGetFunction(ctypes.byref(function), module, name), f"finding kernel {binary.name}")
    if binary.shared > _FREE_SHARED:
        room = ctypes.c_int()
        _check(lib.cuDeviceGetAttribute(ctypes.byref(room), _SHARED_OPT_IN, device), "asking for shared memory")
        if binary.shared > room.value:
            raise KernelFailed(
                f"kernel {binary.name} needs {binary.shared} bytes of shared memory; device {device} has {room.value}"
            )
        _check(lib.cuFuncSetAttribute(function, _DYNAMIC_SHARED, binary.shared), f"preparing kernel {binary.name}")
    return function


def _current_stream() -> Callable[[int], int]:
    """Gives the handle of torch's current stream on a device."""
    quick = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return quick or (lambda device: int(torch.cuda.current_stream(device).cuda_stream))


class Kernel:
    """A launchable binary. Called with the number of programs and the arguments; runs on torch's current stream."""

    def __init__(self, binary: Binary) -> None:
        self.binary = binary
        self.pointers = tuple(t.startswith("*") for t in binary.types)
        self.packer, self.offsets = _packing(binary.types)
        self.handles: dict[int, ctypes.c_void_p] = {}
        self.free: list[tuple[Any, Any]] = []
        self.threads = 32 * binary.warps
        self.start = driver().cuLaunchKernel
        self.stream = _current_stream()

    def prepare(self, device: int) -> None:
        """Loads the binary on `device`, which is current."""
        if device not in self.handles:
            self.handles[device] = _load(self.binary, device)

    def __call__(self, programs: int, args: Sequence[Any]) -> None:
        if programs <= 0:
            return
        if programs > _MAX_GRID:
            raise KernelFailed(f"kernel {self.binary.name} needs {programs} programs, more than a grid can have")
        device = args[0].get_device()
        handle = self.handles.get(device)
        if handle is None:
            self.prepare(device)
            handle = self.handles[device]
        ensure_context(device)
        values = [a.data_ptr() if p else a for p, a in zip(self.pointers, args, strict=True)]
        scratch = None
        if self.binary.scratch:
            scratch = torch.empty(programs * self.binary.scratch, dtype=torch.uint8, device=args[0].device)
        try:
            block, table = self.free.pop()  # of this launch alone: several threads may be here
        except IndexError:
            block, table = self._block()
        self.packer.pack_into(block, 0, *values, scratch.data_ptr() if scratch is not None else 0, 0)
        result = self.start(
            handle, programs, 1, 1, self.threads, 1, 1, self.binary.shared, self.stream(device), table, None
        )
        self.free.append((block, table))
        if result:
            _check(result, f"launching kernel {self.binary.name}")

    def _block(self) -> tuple[Any, Any]:
        """Memory for one launch's arguments, and the table of their addresses."""
        block = ctypes.create_string_buffer(self.packer.size)
        base = ctypes.addressof(block)
        return block, (ctypes.c_void_p * len(self.offsets))(*(base + o for o in self.offsets))


def _packing(types: Sequence[str]) -> tuple[struct.Struct, tuple[int, ...]]:
    """How arguments are laid out in a block: each naturally aligned, the two scratch pointers last."""
    layout, offsets = "", []
    for t in (*types, "*", "*"):
        layout += "P" if t.startswith("*") else _FORMATS[t]
        offsets.append(struct.calcsize(f"@{layout}") - struct.calcsize(f"@{layout[-1]}"))
    return struct.Struct(f"@{layout}"), tuple(offsets)


def launch(kernel: Kernel, programs: int, args: Sequence[Any], *, warps: int, stages: int) -> None:
    """What a printed module's `_launch` becomes. Warps and stages are in the binary already."""
    kernel(programs, args)
