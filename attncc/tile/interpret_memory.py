"""Global memory of the interpreter: tensors that know which elements were written, by whom and how often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attncc.tile.interpret_faults import IndexFault, RaceFault, StoredTwiceFault, UnwrittenFault
from attncc.tile.interpret_values import Array, rounded, storage
from attncc.tile.nodes import Dtype

_NOBODY = -1
_MANY = -2


class GlobalTensor:
    """A tensor's elements, which of them hold a value, and the programs of this launch that touched each."""

    def __init__(self, name: str, axes: tuple[str, ...], dtype: Dtype, data: Array, written: bool = True) -> None:
        self.name = name
        self.axes = axes
        self.dtype = dtype
        self.data = data
        self.written = np.full(data.shape, written)
        self.stores = np.zeros(data.shape, dtype=np.int32)
        """How often each element was stored, over all launches."""
        self.begin_launch()

    @staticmethod
    def unwritten(name: str, axes: tuple[str, ...], dtype: Dtype, extents: Sequence[int]) -> GlobalTensor:
        """A new tensor whose elements must not be read; reals are poisoned with NaN."""
        kind = storage(dtype)
        poison = np.nan if np.issubdtype(kind, np.floating) else 0
        return GlobalTensor(name, axes, dtype, np.full(tuple(extents), poison, dtype=kind), written=False)

    def begin_launch(self) -> None:
        """Launches run one after the other: what earlier ones did is ordered before this one."""
        self._reader = np.full(self.data.shape, _NOBODY, dtype=np.int32)
        self._writer = np.full(self.data.shape, _NOBODY, dtype=np.int32)
        self._adder = np.full(self.data.shape, _NOBODY, dtype=np.int32)

    def _places(self, index: Sequence[Array], guard: Array) -> tuple[tuple[Array, ...], Array]:
        """Flat index arrays of the lanes whose guard holds, and which lanes those are."""
        lanes = np.broadcast_arrays(*index, guard)
        live = lanes[-1].astype(bool)
        places = tuple(np.asarray(x[live], dtype=np.int64) for x in lanes[:-1])
        for axis, place, extent in zip(self.axes, places, self.data.shape, strict=True):
            wrong = place[(place < 0) | (place >= extent)]
            if wrong.size:
                raise IndexFault(f"{self.name}: index {int(wrong[0])} on axis {axis} of extent {extent}, guard true")
        return places, live

    def _where(self, places: tuple[Array, ...], bad: Array) -> str:
        first = int(np.flatnonzero(bad)[0])
        return f"{self.name}[{', '.join(str(int(p[first])) for p in places)}]"

    def read_whole(self, index: Sequence[Array], guard: Array) -> None:
        """A bulk copy knows no guard: it reads what lies in the tensor."""
        *lanes, live = np.broadcast_arrays(*index, guard)
        inside = [(x >= 0) & (x < extent) for x, extent in zip(lanes, self.data.shape, strict=True)]
        wrong = np.logical_and.reduce(inside) & ~live.astype(bool)
        if wrong.any():
            where = self._where(tuple(x.ravel() for x in lanes), wrong.ravel())
            raise IndexFault(f"{where} is read in bulk, and its guard is false")

    def load(self, index: Sequence[Array], guard: Array, other: float | int | bool, program: int) -> Array:
        """The elements at `index`, `other` where the guard is false."""
        places, live = self._places(index, guard)
        self._expect_written(places)
        writer, adder = self._writer[places], self._adder[places]
        foreign = ((writer != _NOBODY) & (writer != program)) | ((adder != _NOBODY) & (adder != program))
        if foreign.any():
            raise RaceFault(f"{self._where(places, foreign)} is read while another program of the launch writes it")
        reader = self._reader[places]
        self._reader[places] = np.where((reader == _NOBODY) | (reader == program), program, _MANY)
        out = np.full(live.shape, other, dtype=self.data.dtype)
        out[live] = self.data[places]
        return out

    def _expect_written(self, places: tuple[Array, ...]) -> None:
        unwritten = ~self.written[places]
        if unwritten.any():
            raise UnwrittenFault(f"{self._where(places, unwritten)} is read before anything was stored there")

    def _expect_no_reader(self, places: tuple[Array, ...], program: int) -> None:
        reader = self._reader[places]
        foreign = (reader != _NOBODY) & (reader != program)
        if foreign.any():
            raise RaceFault(f"{self._where(places, foreign)} is written while another program of the launch reads it")

    def store(self, index: Sequence[Array], guard: Array, value: Array, program: int) -> None:
        """Puts elements; no element twice in one launch."""
        places, live = self._places(index, guard)
        self._expect_no_reader(places, program)
        again = (self._writer[places] != _NOBODY) | (self._adder[places] != _NOBODY)
        if again.any():
            raise StoredTwiceFault(f"{self._where(places, again)} is stored twice in one launch")
        before = self.stores[places]
        np.add.at(self.stores, places, 1)
        twice = self.stores[places] > before + 1
        if twice.any():
            raise StoredTwiceFault(f"{self._where(places, twice)} is stored twice by one statement")
        self._writer[places] = program
        self.written[places] = True
        self.data[places] = rounded(np.broadcast_to(value, live.shape)[live], self.dtype)

    def add(self, index: Sequence[Array], guard: Array, value: Array, program: int, shared: bool) -> None:
        """Adds to elements that hold a value already; where not `shared`, by one program only."""
        places, live = self._places(index, guard)
        self._expect_written(places)
        self._expect_no_reader(places, program)
        writer, adder = self._writer[places], self._adder[places]
        foreign = (writer != _NOBODY) & (writer != program)
        if not shared:
            foreign |= (adder != _NOBODY) & (adder != program)
        if foreign.any():
            raise RaceFault(f"{self._where(places, foreign)} is added to by two programs of the launch")
        self._adder[places] = program
        terms = np.broadcast_to(value, live.shape)[live].astype(self.data.dtype)
        np.add.at(self.data, places, terms)
        self.data[places] = rounded(self.data[places], self.dtype)

    def finish(self) -> None:
        """An output at the end of its program: every element holds a value and was stored at most once."""
        if not self.written.all():
            first = np.argwhere(~self.written)[0]
            raise UnwrittenFault(f"output {self.name}[{', '.join(map(str, first))}] was never stored")
        if (self.stores > 1).any():
            first = np.argwhere(self.stores > 1)[0]
            raise StoredTwiceFault(f"output {self.name}[{', '.join(map(str, first))}] was stored by two launches")
