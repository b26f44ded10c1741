"""Partitions, shared memory and barriers of the interpreter.

Partitions are coroutines that a seeded scheduler interleaves; bulk copies land at a random later moment. Every
partition and every copy carries a vector clock; waiting for a barrier's phase joins the clocks of those that arrived.
Two accesses to a slot that overlap, one of them a write, must be ordered by these clocks, whatever order this run
happened to take: a missing barrier is found without the unlucky interleaving. An asynchronous dot reads its slots
until the DotWait that covers it, a CopyOut until its CopyWait.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from attncc.tile.interpret_faults import BarrierFault, DeadlockFault, RaceFault, TypeFault, UnwrittenFault
from attncc.tile.interpret_values import Array, Ticket, Value, rounded, shape, storage
from attncc.tile.nodes import (
    AllocBar,
    AllocShared,
    Bar,
    BarArrive,
    BarExpect,
    BarWait,
    CopyIn,
    CopyOut,
    CopyWait,
    Fence,
    SharedStore,
    Slot,
    Stmt,
    Type,
)
from attncc.tile.sizes import BYTES

if TYPE_CHECKING:
    from attncc.tile.interpret_kernel import Env, Walker

Clock = dict[str, int]


@dataclass(frozen=True, slots=True)
class Pause:
    """A point where other partitions may run; `ready` says whether this one can go on."""

    what: str = ""
    ready: Callable[[], bool] = lambda: True


@dataclass(eq=False, slots=True)
class Thread:
    """A partition (or the code around them): its clock, its unfinished dots and the loops it is in."""

    name: str
    parent: Thread | None = None
    clock: Clock = field(default_factory=dict)
    dots: list[Ticket] = field(default_factory=list)
    copies: list[Ticket] = field(default_factory=list)
    turns: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.parent is not None:
            self.clock = dict(self.parent.clock)
            self.turns = list(self.parent.turns)
        self.tick()

    def tick(self) -> int:
        """The number of the next event here."""
        self.clock[self.name] = self.clock.get(self.name, 0) + 1
        return self.clock[self.name]

    def join(self, other: Clock) -> None:
        """Everything known to `other` has happened before what follows."""
        for name, at in other.items():
            self.clock[name] = max(at, self.clock.get(name, 0))

    def finish(self) -> None:
        """The end of a partition: nothing may still read its slots."""
        if self.copies:
            raise BarrierFault(f"{self.name or 'the kernel'} ends before its {len(self.copies)} bulk copies out")

    @contextmanager
    def inside(self, loop: str, at: int) -> Iterator[None]:
        """One turn of a loop."""
        self.turns.append((loop, at))
        yield
        self.turns.pop()


def run_threads(threads: list[tuple[Thread, Generator[Pause, None, object]]], shared: SharedMemory) -> None:
    """Runs coroutines to their ends, a random ready one (or a random copy in flight) at each step."""
    waiting: dict[int, Pause] = {n: Pause() for n in range(len(threads))}
    while waiting:
        ready = [n for n, p in waiting.items() if p.ready()]
        if not ready and not shared.flying:
            stuck = "; ".join(f"{threads[n][0].name or 'the kernel'} waits for {p.what}" for n, p in waiting.items())
            raise DeadlockFault(f"deadlock: {stuck}")
        later = ready and shared.rng.random() < shared.slowness
        pick = int(shared.rng.integers(len(ready) + (0 if later else len(shared.flying))))
        if pick >= len(ready):
            shared.land(pick - len(ready))
            continue
        try:
            waiting[ready[pick]] = next(threads[ready[pick]][1])
        except StopIteration:
            threads[ready[pick]][0].finish()
            del waiting[ready[pick]]


Region = tuple[str, int, int] | None


def _overlap(a: Region, b: Region) -> bool:
    return a is None or b is None or a[0] != b[0] or (a[1] < b[1] + b[2] and b[1] < a[1] + a[2])


def _inside(a: Region, b: Region) -> bool:
    if b is None:
        return True
    return a is not None and a[0] == b[0] and b[1] <= a[1] and a[1] + a[2] <= b[1] + b[2]


@dataclass(slots=True)
class _Access:
    """A read or write of part of a buffer: by whom and when; `ticket` while an asynchronous dot may still read."""

    write: bool
    region: Region
    thread: Thread | None
    name: str
    at: int
    ticket: Ticket | None = None
    fenced: bool = True

    def before(self, clock: Clock) -> bool:
        return (self.ticket is None or self.ticket.done) and clock.get(self.name, 0) >= self.at


@dataclass(slots=True)
class _Buffer:
    type: Type
    data: Array
    written: Array
    accesses: list[_Access] = field(default_factory=list)

    @staticmethod
    def empty(type: Type) -> _Buffer:
        kind = storage(type.dtype)
        poison = np.nan if np.issubdtype(kind, np.floating) else 0
        return _Buffer(type, np.full(shape(type), poison, dtype=kind), np.zeros(shape(type), dtype=bool))


@dataclass(slots=True)
class _Barrier:
    """Phase number, arrivals and bytes still missing in it, what arrived so far and what the last phase knew."""

    name: str
    count: int
    phase: int = 0
    missing: int = 0
    bytes: int = 0
    gathering: Clock = field(default_factory=dict)
    released: Clock = field(default_factory=dict)

    def join(self, clock: Clock) -> None:
        for name, at in clock.items():
            self.gathering[name] = max(at, self.gathering.get(name, 0))

    def arrive(self, clock: Clock) -> None:
        if self.missing == 0:
            raise BarrierFault(f"{self.name} gets more than its {self.count} arrivals in phase {self.phase}")
        self.missing -= 1
        self.join(clock)
        self.settle()

    def settle(self) -> None:
        """Completes the phase once nothing is missing."""
        if self.missing == 0 and self.bytes == 0:
            self.phase += 1
            self.missing = self.count
            self.released, self.gathering = self.gathering, {}


@dataclass(slots=True)
class _Flight:
    """A bulk copy on its way: what to write where, and the barrier it signals."""

    name: str
    clock: Clock
    bar: _Barrier
    bytes: int
    write: Callable[[], None]


class SharedMemory:
    """The shared buffers and barriers of one program."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.buffers: dict[tuple[str, int], _Buffer] = {}
        self.barriers: dict[tuple[str, int], _Barrier] = {}
        self.flying: list[_Flight] = []
        self.slowness = float(rng.choice([0.0, 0.9, 0.99]))
        """How often copies in flight stay there while any thread may go on."""
        self._copies = 0

    # --- statements -------------------------------------------------------------------------------------------------

    def statement(self, s: Stmt, env: Env, thread: Thread, walker: Walker) -> Generator[Pause, None, None]:
        """A statement on shared memory or barriers; a point of interleaving before and, for waits, during it."""
        yield Pause()
        match s:
            case AllocShared(name, kind, depth):
                for k in range(depth):
                    self.buffers[name, k] = _Buffer.empty(kind)
            case AllocBar(name, depth, count):
                for k in range(depth):
                    self.barriers[name, k] = _Barrier(f"{name}[{k}]", count, missing=count)
            case SharedStore(slot, value):
                self._shared_store(slot, walker.value(value, env), env, thread, walker)
            case Fence():
                self._fence(thread)
            case BarExpect(bar, count):
                barrier = self._barrier(bar, env, walker)
                barrier.bytes += count
                self._arrive(barrier, thread)
            case BarArrive(bar, count):
                for _ in range(count):
                    self._arrive(self._barrier(bar, env, walker), thread)
            case BarWait(bar, parity):
                yield from self._wait(self._barrier(bar, env, walker), int(walker.scalar(parity, env)), thread)
            case CopyIn():
                self._copy_in(s, env, thread, walker)
            case CopyOut():
                self._copy_out(s, env, thread, walker)
            case CopyWait(pending):
                self._settle(thread, thread.copies, pending)
            case _:
                raise TypeFault(f"{type(s).__name__} is no statement of a kernel")

    def _arrive(self, barrier: _Barrier, thread: Thread) -> None:
        barrier.arrive(thread.clock)
        thread.tick()

    def _wait(self, barrier: _Barrier, parity: int, thread: Thread) -> Generator[Pause, None, None]:
        if parity not in (0, 1):
            raise BarrierFault(f"{barrier.name}: parity {parity}")

        def complete() -> bool:
            return barrier.phase % 2 != parity

        yield Pause(f"phase of parity {parity} of {barrier.name}", complete)
        thread.join(barrier.released)
        thread.tick()

    def _fence(self, thread: Thread) -> None:
        for buffer in self.buffers.values():
            for access in buffer.accesses:
                if access.thread is thread:
                    access.fenced = True

    def _barrier(self, bar: Bar, env: Env, walker: Walker) -> _Barrier:
        at = int(walker.scalar(bar.index, env))
        if (bar.name, at) not in self.barriers:
            raise BarrierFault(f"no barrier {bar.name}[{at}]")
        return self.barriers[bar.name, at]

    def finish(self) -> None:
        """The end of a program: nothing in flight that nobody waited for, no phase left half done."""
        while self.flying:
            self.land(0)
        for barrier in self.barriers.values():
            if barrier.bytes:
                raise BarrierFault(f"{barrier.name} still expects {barrier.bytes} bytes at the kernel's end")

    # --- slots ------------------------------------------------------------------------------------------------------

    def _buffer(self, slot: Slot, env: Env, walker: Walker) -> tuple[_Buffer, tuple[slice, ...], str]:
        at = int(walker.scalar(slot.index, env))
        if (slot.name, at) not in self.buffers:
            raise TypeFault(f"no shared slot {slot.name}[{at}]")
        buffer = self.buffers[slot.name, at]
        box = [slice(None)] * len(buffer.type.axes)
        if slot.part is not None:
            axis, start, extent = slot.part
            names = buffer.type.names()
            if axis not in names or start < 0 or start + extent > buffer.type.axes[names.index(axis)].extent:
                raise TypeFault(f"slot {slot.name} of {buffer.type} has no part {slot.part}")
            box[names.index(axis)] = slice(start, start + extent)
        return buffer, tuple(box), f"{slot.name}[{at}]"

    def _note(self, buffer: _Buffer, access: _Access, clock: Clock, name: str) -> None:
        """Checks an access against all earlier ones and keeps it."""
        for old in buffer.accesses:
            if (access.write or old.write) and _overlap(access.region, old.region) and not old.before(clock):
                kinds = f"{'written' if access.write else 'read'} by {access.name or 'the kernel'}"
                other = "written" if old.write else "read"
                raise RaceFault(f"slot {name} is {kinds} while {old.name or 'the kernel'} may not have {other} it yet")
        if access.write:
            buffer.accesses = [o for o in buffer.accesses if not _inside(o.region, access.region)]
        else:
            same = (access.region, access.name)
            buffer.accesses = [o for o in buffer.accesses if o.write or o.ticket or (o.region, o.name) != same]
        buffer.accesses.append(access)

    def read(
        self, slot: Slot, env: Env, thread: Thread, walker: Walker, *, ticket: Ticket | None = None, dot: bool = False
    ) -> Value:
        """The slot's elements; by a dot or a bulk copy (with a `ticket`) only where the stores before were fenced."""
        buffer, box, name = self._buffer(slot, env, walker)
        access = _Access(False, slot.part, thread, thread.name, thread.clock[thread.name], ticket)
        self._note(buffer, access, thread.clock, name)
        if not buffer.written[box].all():
            raise UnwrittenFault(f"slot {name} is read before it is full")
        unfenced = [o for o in buffer.accesses if o.write and not o.fenced and _overlap(o.region, slot.part)]
        if (dot or ticket is not None) and unfenced:
            raise RaceFault(f"slot {name} is read asynchronously and its store was not fenced")
        return Value(buffer.type.names(), buffer.data[box].copy(), buffer.type.dtype)

    def _shared_store(self, slot: Slot, value: Value, env: Env, thread: Thread, walker: Walker) -> None:
        buffer, box, name = self._buffer(slot, env, walker)
        if value.axes != buffer.type.names() or value.extents() != buffer.data[box].shape:
            raise TypeFault(f"a value of ({', '.join(value.axes)}) {value.extents()} stored to slot {name}")
        if value.dtype != buffer.type.dtype:
            raise TypeFault(f"{value.dtype} stored to slot {name} of {buffer.type.dtype}")
        access = _Access(True, slot.part, thread, thread.name, thread.clock[thread.name], fenced=False)
        self._note(buffer, access, thread.clock, name)
        buffer.data[box] = value.data
        buffer.written[box] = True

    def wait_dots(self, thread: Thread, pending: int) -> None:
        """All but the `pending` youngest dots of a partition are finished; their slots are free from here on."""
        self._settle(thread, thread.dots, pending)

    def _settle(self, thread: Thread, tickets: list[Ticket], pending: int) -> None:
        """All but the `pending` youngest asynchronous reads are over; their slots were read until now."""
        done = tickets[: max(0, len(tickets) - pending)]
        del tickets[: len(done)]
        if not done:
            return
        for ticket in done:
            ticket.done = True
        for buffer in self.buffers.values():
            for access in buffer.accesses:
                if access.ticket in done:
                    access.at = thread.clock[thread.name]

    # --- bulk copies ------------------------------------------------------------------------------------------------

    def _box(
        self, s: CopyIn | CopyOut, env: Env, walker: Walker
    ) -> tuple[_Buffer, tuple[slice, ...], str, list[Array], Array]:
        """The slot and, for each of its elements, the index on every tensor axis and whether it is in range."""
        buffer, box, name = self._buffer(s.slot, env, walker)
        tensor = walker.tensor(s.tensor)
        corner = [int(walker.scalar(e, env)) for e in s.index]
        if len(corner) != len(tensor.axes):
            raise TypeFault(f"{len(corner)} indices for the {len(tensor.axes)} axes of {s.tensor}")
        if tensor.dtype != buffer.type.dtype:
            raise TypeFault(f"a copy between {s.tensor} of {tensor.dtype} and {name} of {buffer.type.dtype}")
        offsets = np.indices(buffer.data[box].shape)
        lead = len(corner) - len(offsets)
        places: list[Array] = [np.asarray(c) for c in corner[:lead]]
        places += [np.asarray(c + o) for c, o in zip(corner[lead:], offsets, strict=True)]
        live: Array = np.ones(buffer.data[box].shape, dtype=bool)
        for place, extent in zip(places, tensor.data.shape, strict=True):
            live &= (place >= 0) & (place < extent)
        return buffer, box, name, places, live

    def _copy_in(self, s: CopyIn, env: Env, thread: Thread, walker: Walker) -> None:
        buffer, box, name, places, live = self._box(s, env, walker)
        self._copies += 1
        copy = f"copy {self._copies} to {name}"
        self._note(buffer, _Access(True, s.slot.part, None, copy, 1), thread.clock, name)
        buffer.written[box] = False
        tensor, program = walker.tensor(s.tensor), walker.number

        def write() -> None:
            buffer.data[box] = tensor.load(places, live, 0, program)
            buffer.written[box] = True

        size = int(np.prod(live.shape)) * BYTES[buffer.type.dtype]
        clock = {**thread.clock, copy: 1}
        self.flying.append(_Flight(copy, clock, self._barrier(s.bar, env, walker), size, write))
        thread.tick()

    def land(self, number: int) -> None:
        """One copy in flight arrives."""
        flight = self.flying.pop(number)
        flight.write()
        flight.bar.bytes -= flight.bytes
        flight.bar.join(flight.clock)
        flight.bar.settle()

    def _copy_out(self, s: CopyOut, env: Env, thread: Thread, walker: Walker) -> None:
        _, _, _, places, live = self._box(s, env, walker)
        ticket = Ticket()
        thread.copies.append(ticket)
        value = self.read(s.slot, env, thread, walker, ticket=ticket)
        tensor = walker.tensor(s.tensor)
        data = rounded(value.data, tensor.dtype)
        if s.add:
            tensor.add(places, live, data, walker.number, shared=True)
        else:
            tensor.store(places, live, data, walker.number)
