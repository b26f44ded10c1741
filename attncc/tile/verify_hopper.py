"""Check 11: partitions share memory and barriers only, each slot has one producer, and the machine has room."""

from __future__ import annotations

from attncc.expr.nodes import Const
from attncc.tile import nodes as t
from attncc.tile.hopper import REGISTERS, SHARED_BYTES
from attncc.tile.sizes import bytes_of
from attncc.tile.verify_faults import PartitionError
from attncc.tile.verify_scope import Checked, Place, uses

ZERO = Const(0, "int")


def partitions_are_apart(c: Checked, kernel: t.Kernel) -> None:
    """11. No register value crosses into a partition; slots have one producer; barriers are waited for and signalled.

    That phases match and nothing deadlocks is the interpreter's to check, on every interleaving it tries.
    """
    places = list(c.places(kernel))
    _values(kernel, places)
    _work(places)
    _slots(places)
    _barriers(places)
    _resources(places)


def _values(kernel: t.Kernel, places: list[Place]) -> None:
    cut = [n for n, s in enumerate(kernel.body) if isinstance(s, t.Partitions)]
    if cut and cut != [len(kernel.body) - 1]:
        raise PartitionError(f"kernel {kernel.name}: statements follow its partitions")
    outside: set[str] = set()
    for place in places:
        if isinstance(place.stmt, t.Partitions) and (place.partition or place.loops or place.branches):
            raise place.error(PartitionError, "partitions stand at the end of a kernel, not inside a body")
        if not place.partition and isinstance(place.stmt, t.Let) and place.stmt.type.axes:
            outside.add(place.stmt.name)
        if place.partition and (crossing := sorted(uses(place.stmt) & outside)):
            raise place.error(PartitionError, f"{', '.join(crossing)} lies in registers of the code before")


def _work(places: list[Place]) -> None:
    """Partitions take the same places in the same order: each in one loop over the same work, in no other body."""
    first: t.Work | None = None
    taken: set[str] = set()
    takers = 0
    for place in places:
        s = place.stmt
        if not isinstance(s, t.For) or not isinstance(s.over, t.Work):
            continue
        if not place.partition or place.loops or place.branches:
            raise place.error(PartitionError, "a loop over work stands in a partition, and in no other body there")
        if place.partition in taken:
            raise place.error(PartitionError, f"{place.partition} has a loop over work already")
        if s.order != "asc":
            raise place.error(PartitionError, "a loop over work goes up, in every partition")
        first = first or s.over
        if (s.over.claims, s.over.ahead) != (first.claims, first.ahead):
            raise place.error(PartitionError, "partitions take the places of their program in different orders")
        taken.add(place.partition)
        takers += s.over.taking
    if first is not None and takers != (first.claims is not None):
        raise PartitionError(f"{takers} partitions take places for the others")


def _written(s: t.Stmt) -> t.Slot | None:
    return s.slot if isinstance(s, t.SharedStore | t.CopyIn) else None


def _slots(places: list[Place]) -> None:
    """Who writes each buffer: partitions may share an allocation by constant slots or by parts.

    A slot that one copy fills, outside of loops, may be written by its reader afterwards: that it has been read by
    then is the interpreter's to check.
    """
    known = {p.stmt.name: p.stmt for p in places if isinstance(p.stmt, t.AllocShared)}
    writers: dict[tuple[str, object, object], str] = {}
    for place in places:
        slot = _written(place.stmt)
        if slot is None:
            continue
        once = isinstance(place.stmt, t.CopyIn) and not place.loops
        if slot.name not in known:
            raise place.error(PartitionError, f"{slot.name} is not allocated")
        if isinstance(slot.index, Const) and not 0 <= slot.index.value < known[slot.name].depth:
            raise place.error(PartitionError, f"{slot.name} has {known[slot.name].depth} slots")
        for (name, index, part), other in writers.items():
            apart = isinstance(index, Const) and isinstance(slot.index, Const) and index is not slot.index
            parts = part is not None and slot.part is not None and part != slot.part
            if name == slot.name and other != place.partition and not apart and not parts and not once:
                raise place.error(PartitionError, f"{slot.name} is written by {other} and by {place.partition}")
        if not once:
            writers[slot.name, slot.index, slot.part] = place.partition


def _barriers(places: list[Place]) -> None:
    known = {p.stmt.name: p for p in places if isinstance(p.stmt, t.AllocBar)}
    waits: set[str] = set()
    signals: set[str] = set()
    expects: dict[str, Place] = {}
    copies: dict[str, Place] = {}
    for place in places:
        match place.stmt:
            case t.BarWait(bar):
                waits.add(bar.name)
            case t.BarArrive(bar):
                signals.add(bar.name)
            case t.BarExpect(bar):
                signals.add(bar.name)
                expects[bar.name] = place
            case t.CopyIn(_, _, _, bar):
                copies[bar.name] = place
            case t.For(over=t.Work(claims=t.Claims(_, _, full, empty))):
                bar = t.Bar(full if full not in known else empty, ZERO)
                waits |= {full, empty}
                signals |= {full, empty}
            case _:
                continue
        if bar.name not in known:
            raise place.error(PartitionError, f"the barrier {bar.name} is not allocated")
    for name, place in known.items():
        if name not in waits or name not in signals:
            what = "signals" if name in waits else "waits for"
            raise place.error(PartitionError, f"nothing {what} the barrier {name}")
    for name, place in copies.items():
        if name not in expects:
            raise place.error(PartitionError, f"copies signal {name}, which expects no bytes")


def _resources(places: list[Place]) -> None:
    size = sum(bytes_of(p.stmt.type) * p.stmt.depth for p in places if isinstance(p.stmt, t.AllocShared))
    for place in places:
        if isinstance(place.stmt, t.AllocShared) and size > SHARED_BYTES:
            raise place.error(PartitionError, f"{size} bytes of shared memory; there are {SHARED_BYTES}")
        if isinstance(place.stmt, t.Partitions):
            groups = [(-(-p.warps // 4) * 128, p.registers) for p in place.stmt.parts]
            if sum(threads * registers for threads, registers in groups) > REGISTERS:
                raise place.error(PartitionError, f"more than {REGISTERS} registers")
            if any(r % 8 or not 0 <= r <= 256 for _, r in groups):
                raise place.error(PartitionError, "registers of a thread are a multiple of 8, 256 at most")
