"""What Gluon calls things: element types, layouts and the names that changed between Triton's versions."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping

from attncc.codegen.gluon_layouts import BITS, Blocked, Layout, Mma, Operand, Runs, Slice
from attncc.errors import InternalError
from attncc.tile.nodes import Dtype, Slot, Type

TESTED = ((3, 6), (3, 9))
"""The versions of Triton (major, minor) whose compilers have taken every kernel of the tests."""

DTYPES: Mapping[Dtype, str] = {
    "f64": "gl.float64",
    "f32": "gl.float32",
    "f16": "gl.float16",
    "bf16": "gl.bfloat16",
    "i64": "gl.int64",
    "i32": "gl.int32",
    "u8": "gl.uint8",
    "bool": "gl.int1",
}

BULK: Mapping[str, tuple[str, str]] = {
    "copy_in": ("tma.async_copy_global_to_shared", "tma.async_load"),
    "copy_out": ("tma.async_copy_shared_to_global", "tma.async_store"),
    "copy_add": ("_add_shared_to_global", "tma.async_atomic_add"),
}
"""Bulk copies before and since Triton 3.9. Before, an addition is a helper of the printed module."""


def bulk(name: str, triton: tuple[int, int]) -> str:
    """The spelling of a bulk copy in a version of Triton."""
    return BULK[name][triton >= (3, 9)]


def swizzle(type_: Type) -> int:
    """Bytes over which rows of a shared buffer are swizzled: the longest pattern its rows fill."""
    row = type_.axes[-1].extent * BITS[type_.dtype] // 8
    if len(type_.axes) < 2:
        return 0
    return next((w for w in (128, 64, 32) if row % w == 0), 0)


def box_shape(slot: Slot, buffer: Type, rank: int) -> tuple[int, ...]:
    """What one bulk copy moves to or from a slot of `buffer`, over all `rank` axes of the tensor."""
    extents = [a.extent for a in buffer.axes]
    if slot.part is not None:
        axis, _, extent = slot.part
        extents[buffer.names().index(axis)] = extent
    return (*([1] * (rank - len(extents))), *extents)


def descriptor_name(tensor: str, box: tuple[int, ...], boxes: Collection[tuple[int, ...]]) -> str:
    """The name of the descriptor for copies of `box` (extents along all axes of the tensor), one of `boxes`.

    Boxes are told apart by their rows' length, or, where two share it, by all their extents.
    """
    if len(set(boxes)) < 2:
        return f"{tensor}_desc"
    alike = {b for b in boxes if b[-1] == box[-1]}
    return f"{tensor}_desc_{box[-1] if len(alike) < 2 else 'x'.join(str(n) for n in box if n > 1)}"


class Layouts:
    """Names for the layouts a module uses, defined once at its top."""

    def __init__(self) -> None:
        self.defined: dict[str, str] = {}

    def register(self, layout: Layout) -> str:
        """The name of a register layout."""
        match layout:
            case Mma(columns, bits, warps):
                name = f"MMA_{columns}" + (f"_B{bits}" if bits != 16 else "") + (f"_W{warps}" if warps != 4 else "")
                text = f"gl.NVMMADistributedLayout([3, 0], [{warps}, 1], [16, {columns}, {256 // bits}])"
            case Operand(parent):
                of = self.register(parent)
                name, text = of.replace("MMA", "A"), f"gl.DotOperandLayout(0, {of}, {32 // parent.bits})"
            case Slice(dim, parent):
                of = self.register(parent)
                name = f"{'ROWS' if dim == 1 else 'COLS'}_{of.removeprefix('MMA_')}"
                text = f"gl.SliceLayout({dim}, {of})"
            case Runs():
                raise InternalError("a tile in runs is only added up")
            case Blocked(shape, run, warps):
                name = f"BLOCKED_{'x'.join(map(str, shape))}_W{warps}"
                text = _blocked(shape, run, warps)
        self.defined.setdefault(name, text)
        return name

    def comparison(self, steps: list[str], other: float) -> str:
        """The name of the instructions that choose between a value and `other` by comparisons of pairs of integers."""
        first, *rest = (f"setp.{step}{{}}.s32 p, ${2 * n + 2}, ${2 * n + 3}{{}};" for n, step in enumerate(steps))
        lines = [first.format("", ""), *(x.format(".and", ", p") for x in rest)]
        bits = struct.pack(">f", other).hex().upper()
        name = "_".join(("WHERE", *(s.upper() for s in steps), *(() if math.isinf(other) else (f"ELSE_{bits}",))))
        lines = ["{ .reg .pred p;", *lines, f"selp.f32 $0, $1, 0f{bits}, p; }}"]
        self.defined.setdefault(name, "\n" + "".join(f'    "{line} "\n' for line in lines))
        return name

    def scaling(self, count: int) -> str:
        """The names of the instructions that multiply a thread's `count` values by factors, and of their operands.

        Values lie two in one row, two in the other; so do the factors, of which the first and the third are compared.
        """
        lines = (
            f'"{{ .reg .pred p, q; setp.neu.f32 p, ${2 * count}, 1.0; setp.neu.f32 q, ${2 * count + 2}, 1.0; "',
            '"or.pred p, p, q; vote.sync.any.pred p, p, -1; "',
            f'+ "".join(f"mov.f32 ${{n}}, ${{n + {count}}}; " for n in range({count}))',
            '+ "@!p bra SAME; "',
            f'+ "".join(f"mul.f32 ${{n}}, ${{n}}, ${{n + {2 * count}}}; " for n in range({count}))',
            '+ "SAME: }"',
        )
        self.defined.setdefault(f"SCALED_{count}", "\n" + "".join(f"    {line}\n" for line in lines))
        self.defined.setdefault(f"SCALED_{count}_OPERANDS", f'",".join(["=&f"] * {count} + ["f"] * {2 * count})')
        return f"SCALED_{count}, SCALED_{count}_OPERANDS"

    def shared(self, type_: Type, rank: int) -> str:
        """The name of a shared buffer's layout, seen with `rank` axes (a bulk copy sees those of the whole tensor)."""
        width, bits = swizzle(type_), BITS[type_.dtype]
        name = f"SHARED_{width}_B{bits}_R{rank}"
        self.defined.setdefault(name, f"gl.NVMMASharedLayout({width}, {bits}, rank={rank})")
        return name


def _blocked(shape: tuple[int, ...], run: int, warps: int) -> str:
    rank = len(shape)
    lanes = [1] * rank
    left = 32
    for dim in reversed(range(rank)):
        room = max(1, shape[dim] // (run if dim == rank - 1 else 1))
        lanes[dim] = min(left, room) if dim else left
        left //= lanes[dim]
    runs = [1] * (rank - 1) + [run]
    across = [warps] + [1] * (rank - 1)
    return f"gl.BlockedLayout({runs}, {lanes}, {across}, {list(reversed(range(rank)))})"
