"""The kernels of weights under gates along channels, and of sums along channels: added up, some channels at a time.

A level takes the running sums of all rows and of the rows between halves, both inputs and their product's operand: of
64 channels these leave room for a second program on a multiprocessor, which hides the steps of the first.
"""

from __future__ import annotations

from collections.abc import Iterator

from attncc.expr.build import op
from attncc.expr.nodes import Const, Var, walk
from attncc.ir.nodes import Contract, Reduce
from attncc.schedule.chunk import Forward
from attncc.schedule.chunk_problem import Problem
from attncc.tile import nodes as t

PART = 64
"""Channels at a time."""


def parted(p: Problem) -> str:
    """The axis of channels that is taken in parts: all that is stored are sums along it; "" for none."""
    _, reads = p.gated
    names = {r.axis.name for r in reads if r.axis is not None}
    if len(names) != 1 or p.variant.target == "torch":
        return ""
    (name,) = names
    behind = [e for e in p.sums if e not in p.sums_near]
    whole = {x for e in (*p.near, *behind) for x in walk(e) if isinstance(x, Contract | Reduce)} - {*p.sums}
    plain = not whole and all(along == name for e in behind for along in _axes(e))
    return name if plain and p.extents[name] > PART else ""


def totals(p: Problem) -> bool:
    """Whether a chunk keeps sums along channels, and nothing else without channels but weights."""
    return bool(p.sums) and not p.sums_near and not p.of_tokens


def _axes(e: Contract | Reduce) -> Iterator[str]:
    match e:
        case Contract():
            yield e.axis.name
        case Reduce():
            yield from (x.index.name for x in e.binders)


def statements(f: Forward, states: tuple[Var, ...], axis: str) -> None:
    """What is kept of a chunk: what has `axis` is stored part by part, sums along it once they are added up."""
    k, b, kept = f.k, f.k.b, f.kept
    kept.later, kept.part = [], axis
    with b.inner() as scope:
        index = b.loop_index("part")
        k.channel(axis, f.p.extents[axis], b.value(op("mul", index, PART), f"{axis}0"))
        f.chunk(states)
        carried, sums = [], []
        for _, v, _ in kept.later:
            start = b.let("none", b.type_of(v.name), t.Full(Const(0.0, "real")), depth=0)
            carry, total = b.carry("sum", start, scope.depth)
            carried.append(carry)
            sums.append(k.value(op("add", total, v), "sum"))
        b.add(t.Yield(tuple(v.name for v in sums)))
    parts = Const(-(-f.p.extents[axis] // PART), "int")
    over = t.Count(Const(0, "int"), parts)
    note = "some channels after others"
    b.add(t.For(index.name, over, tuple(carried), tuple(scope.statements), order="asc", note=note))
    stored, kept.later = kept.later, None
    for (n, _, dtype), v in zip(stored, b.leave(tuple(carried)), strict=True):
        kept.store(n, v, dtype)
