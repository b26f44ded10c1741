"""How the arguments of a kernel lie in memory: Triton's calling convention.

Pointers and numbers in order, each naturally aligned; a descriptor is its tensor map, aligned to 64 bytes, then the
tensor's shape in 32 and its strides in 64 bits. Two pointers close the list: global scratch memory and a profiler's.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from attncc.runtime.maps import ALIGNMENT, BYTES

_FORMATS = {"i64": "q", "i32": "i", "u32": "I", "u64": "Q", "i1": "?", "fp32": "f", "fp64": "d", "*": "Q"}
_DESCRIPTOR = re.compile(r"tensordesc<(\w+)\[([^]]*)\]")


@dataclass(frozen=True, slots=True)
class Parameter:
    """Where an argument lies. `rank` is that of a descriptor's tensor, 0 for all others."""

    offset: int
    pointer: bool = False
    element: str = ""
    rank: int = 0


@dataclass(slots=True)
class Layout:
    """The arguments of a kernel in one block of memory."""

    parameters: list[Parameter] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Of everything the driver is passed a pointer to."""
    format: str = "="
    size: int = 0

    def place(self, code: str, alignment: int) -> int:
        """Room for one more; its offset."""
        gap = -self.size % alignment
        self.format += f"{gap}x{code}" if gap else code
        at = self.size + gap
        self.size = at + struct.calcsize(f"={code}")
        self.offsets.append(at)
        return at

    def number(self, kind: str) -> int:
        """Room for a number or a pointer."""
        code = _FORMATS[kind]
        return self.place(code, struct.calcsize(f"={code}"))


def layout_of(types: Sequence[str]) -> Layout:
    """Where arguments of `types` lie."""
    made = Layout()
    for kind in types:
        found = _DESCRIPTOR.match(kind)
        if found:
            rank = found[2].count(",") + 1
            made.parameters.append(Parameter(made.place(f"{BYTES}s", ALIGNMENT), element=found[1], rank=rank))
            for width in ("i32", "i64"):
                for _ in range(rank):
                    made.number(width)
        else:
            pointer = kind.startswith("*")
            made.parameters.append(Parameter(made.number("*" if pointer else kind), pointer=pointer))
    for _ in range(2):
        made.number("*")
    return made
