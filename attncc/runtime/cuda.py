"""Launching cubins through the CUDA driver: no compiler, no wait, a few microseconds."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from attncc.runtime.kernels import Binary
from attncc.runtime.maps import Maps, steps
from attncc.runtime.mistakes import KernelFailed
from attncc.runtime.parameters import layout_of

_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_OPT_IN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
_FREE_SHARED = 48 * 1024
_MAX_GRID = 2**31 - 1


@lru_cache(maxsize=1)
def driver() -> ctypes.CDLL:
    """The CUDA driver's library."""
    try:
        lib = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise KernelFailed(f"the CUDA driver can't be loaded: {e}") from e
    pointer, integer, unsigned = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
    lib.cuLaunchKernel.restype = integer  # its arguments are ready-made objects: converting eleven takes longer
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
    if hasattr(lib, "cuTensorMapEncodeTiled"):
        lib.cuTensorMapEncodeTiled.argtypes = [pointer, unsigned, unsigned, *[pointer] * 5, *[unsigned] * 4]
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


def current_stream() -> Callable[[int], int]:
    """Gives the handle of torch's current stream on a device."""
    quick = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return quick or (lambda device: int(torch.cuda.current_stream(device).cuda_stream))


class Kernel:
    """A launchable binary. Called with the number of programs and the arguments; runs on torch's current stream."""

    def __init__(self, binary: Binary) -> None:
        self.binary = binary
        self.layout = layout_of(binary.types)
        self.packer = struct.Struct(self.layout.format)
        self.maps = self._maps()
        self.handles: dict[int, ctypes.c_void_p] = {}
        self.free: list[Block] = []
        self.start = driver().cuLaunchKernel
        self.stream = current_stream()
        u, b = ctypes.c_uint, binary
        self.sizes = (u(1), u(1), u(32 * b.warps), u(1), u(1), u(b.shared))
        """The grid beside its first axis, the threads of a program, its shared memory."""

    def _maps(self) -> tuple[Maps | None, ...]:
        chosen = iter(self.binary.maps)
        return tuple(
            Maps(f"tensor {n} of kernel {self.binary.name}", p.element, next(chosen), driver().cuTensorMapEncodeTiled)
            if p.rank
            else None
            for n, p in enumerate(self.layout.parameters)
        )

    def handle(self, device: int) -> ctypes.c_void_p:
        """The binary's function on `device`, which is current."""
        found = self.handles.get(device)
        if found is None:
            found = self.handles[device] = _load(self.binary, device)
        return found

    def prepare(self, device: int) -> None:
        """Loads the binary on `device`, which is current."""
        self.handle(device)

    def __call__(self, programs: int, args: Sequence[Any]) -> None:
        if programs <= 0:
            return
        device = args[0].get_device()
        handle = self.handle(device)
        ensure_context(device)
        scratch = None
        if self.binary.scratch:
            scratch = torch.empty(programs * self.binary.scratch, dtype=torch.uint8, device=args[0].device)
        try:
            block = self.free.pop()  # of this launch alone: several threads may be here
        except IndexError:
            block = Block(self)
        block.pack(args, scratch)
        stream = ctypes.c_void_p(self.stream(device))
        result = self.start(handle, self.grid(programs), *self.sizes, stream, block.table, NOTHING)
        self.free.append(block)
        if result:
            refused(result, self)

    def grid(self, programs: int) -> ctypes.c_uint:
        """The first axis of the grid, as the driver takes it."""
        if programs > _MAX_GRID:
            raise KernelFailed(f"kernel {self.binary.name} needs {programs} programs, more than a grid can have")
        return ctypes.c_uint(programs)


NOTHING = ctypes.c_void_p()


def refused(result: int, kernel: Kernel) -> None:
    """Raises what the driver says of a launch."""
    _check(result, f"launching kernel {kernel.binary.name}")


class Block:
    """Memory for the arguments of one launch at a time, and the table of their addresses."""

    __slots__ = ("addresses", "bytes", "kernel", "memory", "table", "words")

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        offsets = kernel.layout.offsets
        self.memory = ctypes.create_string_buffer(-(-kernel.packer.size // 8) * 8)
        self.bytes = memoryview(self.memory).cast("B")
        self.words = self.bytes.cast("Q")
        self.addresses: list[int] = []
        """What was written last, where only addresses change."""
        base = ctypes.addressof(self.memory)
        self.table = (ctypes.c_void_p * len(offsets))(*(base + o for o in offsets))

    def pack(self, args: Sequence[Any], scratch: torch.Tensor | None) -> None:
        """Every argument: tensors for pointers and for descriptors."""
        values: list[Any] = []
        for p, maps, a in zip(self.kernel.layout.parameters, self.kernel.maps, args, strict=True):
            if p.pointer:
                values.append(a.data_ptr())
            elif maps is None:
                values.append(a)
            else:
                shape, strides = tuple(a.shape), a.stride()
                values += [maps.of(a.data_ptr(), shape, strides), *shape, *steps(shape, strides)]
        values += [0 if scratch is None else scratch.data_ptr(), 0]
        self.kernel.packer.pack_into(self.memory, 0, *values)


def launch(kernel: Kernel, programs: int, args: Sequence[Any], *, warps: int, stages: int, registers: int = 0) -> None:
    """What a printed module's `_launch` becomes. How it is configured is in the binary already."""
    kernel(programs, args)
