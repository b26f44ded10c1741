"""sink: what only a store under a condition of the whole program reads is computed under it, too.

rewrite: a = f(x); ...; store a if c  -->  ...; if c: a = f(x); store a
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import TRUE
from attncc.expr.nodes import Const, free_vars
from attncc.schedule.late import read
from attncc.tile import nodes as t


def sink(kernel: t.Kernel) -> t.Kernel:
    """`kernel` with its stores of single elements under conditions as branches."""
    body = kernel.body
    types = {s.name: s.type for s in body if isinstance(s, t.Let)}
    for s in body:
        if isinstance(s, t.Store) and not isinstance(s.guard, Const) and not types[s.value].axes:
            body = _branch(body, s)
    return replace(kernel, body=body)


def _branch(body: tuple[t.Stmt, ...], store: t.Store) -> tuple[t.Stmt, ...]:
    """`body` with a store under its guard, and with it what nothing else reads."""
    inside: set[int] = {body.index(store)}
    readers: dict[str, set[int]] = {}
    for n, s in enumerate(body):
        for name in read(s):
            readers.setdefault(name, set()).add(n)
    condition = free_vars(store.guard)
    for n in range(len(body) - 1, -1, -1):
        s = body[n]
        if isinstance(s, t.Let) and s.name not in condition and readers.get(s.name) and readers[s.name] <= inside:
            inside.add(n)
    moved = tuple(s for n, s in enumerate(body) if n in inside and s is not store)
    branch = t.If(store.guard, (*moved, replace(store, guard=TRUE), t.Yield(())), (t.Yield(()),))
    return tuple(branch if s is store else s for n, s in enumerate(body) if n not in inside or s is store)
