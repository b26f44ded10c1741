"""Repeated calls of one compiled half: what shapes, strides and constants decide is decided once.

A printed host function computes sizes, strides and scalars, allocates, and launches. All but the addresses is the same
at every call with the same shapes and strides: the first call is recorded, later ones allocate, write the addresses
into arguments that are packed already, and launch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from attncc.runtime.cuda import NOTHING, Block, Kernel, current_stream, ensure_context, refused
from attncc.runtime.maps import BYTES, Maps
from attncc.runtime.zeros import capturing, on_stream

Steps = Sequence[Sequence[Any]]
"""What a host function does, where it only allocates and launches: ["alloc", name, fill or None],
["kept", name, 0] and ["launch", [the tensor behind each argument, or None]]."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One launch of a recorded call."""

    kernel: Kernel
    programs: int
    args: tuple[Any, ...]


def record(
    function: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], keywords: Mapping[str, Any]
) -> tuple[tuple[Tensor, ...], list[Recorded]]:
    """Calls a host function; its results, and what it launched."""
    launched: list[Recorded] = []

    def launch(kernel: Kernel, programs: int, args: tuple[Any, ...], **_: Any) -> None:
        launched.append(Recorded(kernel, programs, args))
        kernel(programs, args)

    assert isinstance(function, FunctionType)
    again = FunctionType(function.__code__, {**function.__globals__, "_launch": launch}, function.__name__)
    return again(*args, **keywords), launched


def prepare(
    steps: Steps | None,
    names: Sequence[str],
    args: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
    launched: Sequence[Recorded],
) -> Prepared | None:
    """What repeats the recorded call with `args`, named `names`; None where some step is more than a launch."""
    if steps is None or any(r.kernel.binary.scratch for r in launched) or not all(t.numel() for t in args):
        return None
    known = dict(zip(names, args, strict=True))
    wanted = [s[1] for s in steps if s[0] == "launch"]
    if len(wanted) != len(launched):
        return None
    fills = {s[1]: s[2] for s in steps if s[0] != "launch"}
    kept = [s[1] for s in steps if s[0] == "kept"]
    made = {n: t for n, t in outputs.items() if n in fills}
    for tensors, launch in zip(wanted, launched, strict=True):
        for name, arg in zip(tensors, launch.args, strict=True):
            if name is not None and (made if name in fills else known).setdefault(name, arg) is not arg:
                return None  # a copy in its place: made anew at every call
    zeros = [made.pop(n) for n in kept]
    slots = {n: at for at, n in enumerate([*names, *made, *kept])}
    return Prepared(
        args[0],
        [(t, fills[n]) for n, t in made.items()],
        zeros,
        [
            _Launch(r, [None if n is None else slots[n] for n in t], args[0].get_device())
            for t, r in zip(wanted, launched, strict=True)
            if r.programs > 0
        ],
        [slots[n] for n in outputs],
    )


class Prepared:
    """A call of one half, prepared for tensors of the same shapes, strides and types as the recorded ones."""

    def __init__(
        self,
        first: Tensor,
        made: list[tuple[Tensor, float | None]],
        zeros: list[Tensor],
        launches: list[_Launch],
        outputs: list[int],
    ) -> None:
        self.device = first.get_device()
        self.zeros = [(tuple(t.shape), t.dtype, t.device) for t in zeros]
        self.made = [
            (tuple(t.shape), t.stride(), None if t.dtype == first.dtype else t.dtype, fill) for t, fill in made
        ]
        self.launches = launches
        self.pick: Callable[[list[Tensor]], Any] = itemgetter(*outputs)
        self.single = len(outputs) == 1
        self.stream = current_stream()
        self.capturing = capturing()
        self.last: tuple[int, ctypes.c_void_p, list[int]] = (-1, ctypes.c_void_p(0), [])
        """The stream of the last call, as the driver takes it, and the addresses of the zeros it keeps."""

    def __call__(self, args: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results for `args`, on the current stream of their device."""
        ensure_context(self.device)
        tensors = [*args]
        new = args[0].new_empty_strided
        for shape, strides, dtype, fill in self.made:
            t = new(shape, strides) if dtype is None else new(shape, strides, dtype=dtype)
            if fill is not None:
                t.fill_(fill)
            tensors.append(t)
        addresses = [t.data_ptr() for t in tensors]
        last = self.last
        stream = self.stream(self.device)
        if last[0] != stream or (self.zeros and self.capturing()):
            last = self._of(stream, tensors)
        addresses += last[2]
        for launch in self.launches:
            launch(addresses, last[1])
        found = self.pick(tensors)
        return (found,) if self.single else found

    def _of(self, stream: int, tensors: list[Tensor]) -> tuple[int, ctypes.c_void_p, list[int]]:
        """`last` for a stream; zeros of a call that is captured into a graph join its tensors."""
        handle = ctypes.c_void_p(stream)
        if self.zeros and self.capturing():
            own = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in self.zeros]
            tensors += own
            return stream, handle, [t.data_ptr() for t in own]
        self.last = (stream, handle, [on_stream(*z, stream).data_ptr() for z in self.zeros])
        return self.last


class _Launch:
    """One launch; its arguments lie packed in memory, all but the addresses. It keeps no tensor alive."""

    def __init__(self, recorded: Recorded, slots: Sequence[int | None], device: int) -> None:
        self.kernel = kernel = recorded.kernel
        self.start = kernel.start
        self.grid = (kernel.handle(device), kernel.grid(recorded.programs), *kernel.sizes)
        self.pointers: list[tuple[int, int]] = []
        """(which word of the block, whose address)."""
        self.maps: list[tuple[int, int, Maps, tuple[int, ...], tuple[int, ...]]] = []
        """(where in the block, whose address, the maps, shape, strides)."""
        for p, maps, slot, arg in zip(kernel.layout.parameters, kernel.maps, slots, recorded.args, strict=True):
            if p.pointer and slot is not None:
                self.pointers.append((p.offset // 8, slot))
            elif maps is not None and slot is not None:
                self.maps.append((p.offset, slot, maps, tuple(arg.shape), arg.stride()))
        first = Block(kernel)
        first.pack(recorded.args, None)
        self.packed = bytes(first.bytes)
        self.free = [first]

    def __call__(self, addresses: list[int], stream: ctypes.c_void_p) -> None:
        try:
            block = self.free.pop()  # of this launch alone: several threads may be here
        except IndexError:
            block = Block(self.kernel)
            block.bytes[:] = self.packed
        if block.addresses != addresses:
            for word, slot in self.pointers:
                block.words[word] = addresses[slot]
            for at, slot, maps, shape, strides in self.maps:
                block.bytes[at : at + BYTES] = maps.of(addresses[slot], shape, strides)
            block.addresses = addresses
        result = self.start(*self.grid, stream, block.table, NOTHING)
        self.free.append(block)
        if result:
            refused(result, self.kernel)
