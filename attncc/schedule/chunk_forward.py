"""The kernel that writes out, chunk by chunk."""

from __future__ import annotations

from attncc.expr.build import conj, ivar, op
from attncc.expr.nodes import Const, Var, walk
from attncc.ir.nodes import Contract, Reduce
from attncc.schedule.chunk import Forward, Problem
from attncc.schedule.given import last_of
from attncc.schedule.prune import prune
from attncc.tile import nodes as t

B, H, M, N = (ivar(x) for x in "BHMN")


def columns_of(p: Problem) -> int:
    """How many channels e a program owns; 0 for all of them, where they meet or are few."""
    sums = [n for body in p.form.bodies for n in walk(body) if isinstance(n, Contract | Reduce)]
    bound = {n.axis.name for n in sums if isinstance(n, Contract)}
    bound |= {x.index.name for n in sums if isinstance(n, Reduce) for x in n.binders}
    bound |= {r.axis.name for r in p.form.reads if r.axis is not None}
    keys = {s.key.name for s in p.form.states if s.key is not None}
    if p.variant.target == "torch" or p.variant.E <= 64 or "e" in bound | keys:
        return 0
    return 64


def last_tensors(p: Problem, real: t.Dtype) -> tuple[t.Tensor, ...]:
    """The tensors that take the states behind the last token, where they are wanted."""
    found = []
    for s in p.form.states if p.variant.last else ():
        axes = [x.name for x in s.axes.own]
        extents = (Const(p.extents[a], "int") for a in axes)
        if s.scale_of:
            continue
        found.append(t.Tensor(last_of(s.name), ("b", "h", *axes), (B, H, *extents), real))
    return tuple(found)


def store_last(f: Forward, states: tuple[Var, ...]) -> None:
    """Stores the states behind the last token; one that the programs of a head share is stored by the first of them."""
    k = f.k
    for s, v in f.plain(states):
        names = k.b.type_of(v.name).names()
        guard = conj(*(k.inside[n] for n in names))
        if k.columns and "e" not in names:
            guard = conj(op("eq", ivar("e0"), 0), guard)
        place = tuple(k.value(x, "at") for x in s.axes.place)
        value = v if place else k.sum(s.name, v, names[0])  # a number is held over an axis of one element
        k.store(last_of(s.name), (ivar("b"), ivar("h"), *place), value, guard, k.real)


def forward_kernel(p: Problem) -> t.Kernel:
    """out, chunk by chunk."""
    columns = columns_of(p)
    f = Forward(p, tuple(last_of(s.name) for s in p.form.states), columns)
    k, b = f.k, f.k.b
    states = f.initial()
    with b.inner() as scope:
        carried, names = [], []
        for s, v in zip(p.form.states, states, strict=True):
            c, name = b.carry(s.name, v, scope.depth)
            carried.append(c)
            names.append(name)
        index = b.loop_index("chunk")
        k.tokens(b.value(op("mul", index, f.count), "first"), f.count)
        new, out = f.chunk(tuple(names))
        guard = conj(op("le", 0, k.row), op("lt", k.row, M), k.live, k.inside["e"])
        k.store("out", (ivar("b"), ivar("h"), k.row, b.bindings[ivar("e")]), out, guard, p.variant.dtype)
        b.add(t.Yield(tuple(v.name for v in new)))
    chunks = t.Count(Const(0, "int"), op("floordiv", op("add", N, f.count - 1), f.count))
    note = "one chunk after another"
    b.add(t.For(index.name, chunks, tuple(carried), tuple(scope.statements), order="asc", stages=1, note=note))
    left = b.leave(tuple(carried))
    if p.variant.last:
        store_last(f, left)
    grid: tuple[t.GridAxis, ...] = (t.GridAxis("h", H, "batch"), t.GridAxis("b", B, "batch"))
    scalars = ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants))
    if columns:
        grid = (t.GridAxis("e0", ivar("E"), "tile", columns, "e"), *grid)
        scalars = (*scalars, "E")
    warps = 8 if p.variant.D * (columns or p.variant.E) >= 8192 else 4
    body = tuple(b.scope.statements)
    return prune(t.Kernel("forward_kernel", grid, tuple(k.tensors), scalars, body, t.Config(warps, 1)))
