"""What bulk copies of a kernel move: a box of a tensor at a time, described to the hardware by the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attncc.codegen.gluon_layouts import BITS
from attncc.codegen.gluon_spelling import box_shape, descriptor_name, swizzle
from attncc.errors import InternalError
from attncc.expr.nodes import Expr
from attncc.tile.dialect import partitioned
from attncc.tile.nodes import (
    AllocShared,
    CopyIn,
    CopyOut,
    Dtype,
    Kernel,
    Let,
    Load,
    ReduceAdd,
    Store,
    Tensor,
    Type,
)
from attncc.tile.walks import every

ELEMENT: dict[Dtype, str] = {
    "f64": "fp64",
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i64": "i64",
    "i32": "i32",
    "u8": "u8",
    "bool": "i1",
}
"""Element types as they stand in the type of a descriptor."""


@dataclass(frozen=True, slots=True)
class Box:
    """What one bulk copy moves of a tensor: its extents along all axes of the tensor, and the buffer's type.

    `plain` Triton chooses the layout itself.
    """

    shape: tuple[int, ...]
    buffer: Type
    plain: bool = False

    def layout(self) -> str:
        """The shared layout the copy writes or reads, as Gluon's text."""
        return f"NVMMASharedLayout({self.swizzle()}, {BITS[self.buffer.dtype]}, rank={len(self.shape)})"

    def swizzle(self) -> int:
        """Bytes over which rows of the buffer are swizzled."""
        return swizzle(self.buffer)

    def type(self) -> str:
        """The type of a descriptor's argument."""
        box = f"{ELEMENT[self.buffer.dtype]}{list(self.shape)}"
        return f"tensordesc<{box}>" if self.plain else f"tensordesc<{box},{self.layout()}>"

    def described(self, tensor: str) -> str:
        """How the host describes a tensor for such copies."""
        swizzled = "" if self.plain else f", {self.swizzle()}"
        return f"_descriptor({tensor}, {list(self.shape)}{swizzled})"


def boxes(kernel: Kernel, tensors: dict[str, Tensor]) -> dict[str, dict[str, Box]]:
    """By tensor, then by the name of the descriptor: the boxes of the bulk copies of `kernel`, in order of use."""
    found: dict[str, list[Box]] = {}
    for tensor, box in _copied(kernel, tensors):
        same = found.setdefault(tensor, [])
        if not any(b.shape == box.shape and b.type() == box.type() for b in same):
            same.append(box)
    return {name: _named(name, same) for name, same in found.items()}


def _copied(kernel: Kernel, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Box]]:
    """What moves in bulk, and in which boxes."""
    inside = list(every(kernel.body))
    buffers = {s.name: s.type for s in inside if isinstance(s, AllocShared)}
    for s in inside:
        match s:
            case CopyIn(tensor=tensor, slot=slot) | CopyOut(tensor=tensor, slot=slot):
                yield tensor, Box(box_shape(slot, buffers[slot.name], len(tensors[tensor].axes)), buffers[slot.name])
            case Let(_, type, Load(tensor, index, bulk=True)):
                if partitioned(kernel):
                    raise InternalError(f"{tensor} is loaded in bulk into registers: partitions copy it themselves")
                yield tensor, Box(loaded_box(type, index), type, plain=True)
            case _:
                pass


def loaded_box(type: Type, index: tuple[Expr, ...]) -> tuple[int, ...]:
    """The box of a bulk load into a value of `type`, along all axes of the tensor."""
    return (*[1] * (len(index) - len(type.axes)), *(a.extent for a in type.axes))


def _named(tensor: str, same: list[Box]) -> dict[str, Box]:
    shapes = tuple(b.shape for b in same)
    named = {descriptor_name(tensor, b.shape, shapes): b for b in same}
    if len(named) < len(same):
        raise InternalError(f"{tensor} is copied in equal boxes of several layouts: {shapes}")
    return named


def addressed(kernel: Kernel) -> set[str]:
    """The tensors that `kernel` reads or writes by address."""
    found = set()
    for s in every(kernel.body):
        if isinstance(s, Store | ReduceAdd):
            found.add(s.tensor)
        elif isinstance(s, Let) and isinstance(s.op, Load) and not s.op.bulk:
            found.add(s.op.tensor)
    return found
