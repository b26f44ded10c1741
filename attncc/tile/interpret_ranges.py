"""Ranges as the interpreter walks them, and the counter of the pairs they visit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, assert_never

import numpy as np

from attncc.expr.nodes import Expr
from attncc.tile.interpret_faults import RangesFault
from attncc.tile.interpret_values import Array
from attncc.tile.nodes import Interval, Listed, Piece, Ranges, Strided

Number = Callable[[Expr], int]
"""The value of a scalar integer expression here."""


def tiles(ranges: Ranges, number: Number, listed: Callable[[str, int], int]) -> list[int]:
    """The tile numbers of all pieces in the order of the pieces, checked: none twice, none off the axis."""
    found = [t for piece in ranges.pieces for t in _tiles_of(piece, number, listed)]
    extent = number(ranges.extent)
    for t in found:
        start, end = t * ranges.tile, (t + 1) * ranges.tile
        if t < 0 or start >= extent:
            raise RangesFault(f"tile {t} (position {start}) is outside the axis of extent {extent}")
        if ranges.full and end > extent:
            raise RangesFault(f"tile {t} ends at {end}, beyond extent {extent}, in ranges promised full")
    if len(set(found)) < len(found):
        twice = next(t for k, t in enumerate(found) if t in found[:k])
        raise RangesFault(f"tile {twice} is visited twice: the pieces overlap")
    return found


def _tiles_of(piece: Piece, number: Number, listed: Callable[[str, int], int]) -> list[int]:
    match piece:
        case Interval(lo, hi):
            return list(range(number(lo), number(hi)))
        case Strided(base, length, period, count):
            first, run, step = number(base), number(length), number(period)
            return [first + step * k + n for k in range(number(count)) for n in range(run)]
        case Listed(tensor, offset, count):
            start = number(offset)
            return [listed(tensor, start + k) for k in range(number(count))]
        case _:
            assert_never(piece)


def ordered(numbers: list[int], order: Literal["any", "asc", "desc"], rng: np.random.Generator) -> list[int]:
    """The turns of a loop: "any" is shuffled, the others must come sorted (desc is walked from the end)."""
    if order == "any":
        return [numbers[k] for k in rng.permutation(len(numbers))]
    if numbers != sorted(numbers):
        raise RangesFault(f"a loop in order {order} over ranges that do not ascend: {numbers}")
    return numbers if order == "asc" else numbers[::-1]


@dataclass(slots=True)
class Visits:
    """How often one kernel's loops saw each pair (row, column) of the grid's tile axis and the loop's axis.

    One array per value of `keys`: the batch axes of the grid and the loops around. `full` counts the visits by
    loops that promised full tiles.
    """

    axes: tuple[str, str]
    keys: tuple[str, ...]
    extents: tuple[int, int]
    counts: dict[tuple[int, ...], Array] = field(default_factory=dict)
    full: dict[tuple[int, ...], Array] = field(default_factory=dict)

    def record(self, key: tuple[int, ...], rows: slice, columns: slice, full: bool) -> None:
        """One more visit of a block of pairs."""
        for table, on in ((self.counts, True), (self.full, full)):
            if key not in table:
                table[key] = np.zeros(self.extents, dtype=np.int32)
            if on:
                table[key][rows, columns] += 1

    def dense(self, axes: tuple[str, str] | None = None, *, full: bool = False) -> Array:
        """Counts as one array over the keys and `axes` (the order of the kernel where none is asked for)."""
        table = self.full if full else self.counts
        sizes = tuple(max((k[n] for k in table), default=-1) + 1 for n in range(len(self.keys)))
        out = np.zeros((*sizes, *self.extents), dtype=np.int32)
        for key, count in table.items():
            out[key] = count
        return out if axes in (None, self.axes) else np.swapaxes(out, -1, -2)

    def check(self, mask: Array, axes: tuple[str, str] | None = None) -> None:
        """RangesFault unless every pair of `mask` was seen exactly once, others at most once, full tiles are true."""
        count, full = self.dense(axes), self.dense(axes, full=True)
        if (count > 1).any():
            raise RangesFault(f"pair {tuple(map(int, np.argwhere(count > 1)[0]))} is visited twice")
        missed = np.argwhere(np.logical_and(mask, count == 0))
        if missed.size:
            raise RangesFault(f"pair {tuple(map(int, missed[0]))} is true and never visited")
        wrong = np.argwhere(np.logical_and(full > 0, np.logical_not(mask)))
        if wrong.size:
            raise RangesFault(f"pair {tuple(map(int, wrong[0]))} is false and visited in a tile promised full")
