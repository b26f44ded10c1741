"""sink: what only a store under a condition of the whole program reads is computed under it, too.

rewrite: a = f(x); ...; store a if c  -->  ...; if c: a = f(x); store a
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from attncc.expr.build import conj, conjuncts
from attncc.expr.nodes import Expr, free_vars
from attncc.schedule.late import made, read
from attncc.tile import nodes as t


def sink(kernel: t.Kernel) -> t.Kernel:
    """`kernel` with its stores under conditions of the whole program as branches."""
    body = kernel.body
    axes = {s.name: s.type.names() for s in body if isinstance(s, t.Let)}
    for s in body:
        if isinstance(s, t.Store) and (whole := [c for c in conjuncts(s.guard) if _whole(c, axes)]):
            body = _branch(body, s, conj(*whole))
    return replace(kernel, body=body)


def _whole(condition: Expr, axes: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a condition differs from program to program, but not inside of one."""
    names = free_vars(condition)
    return bool(names) and not any(axes.get(n, ()) for n in names)


def _branch(body: tuple[t.Stmt, ...], store: t.Store, condition: Expr) -> tuple[t.Stmt, ...]:
    """`body` with a store under a part of its guard, and with it what nothing else reads."""
    inside: set[int] = {body.index(store)}
    readers: dict[str, set[int]] = {}
    for n, s in enumerate(body):
        for name in read(s) - set(made(s)):
            readers.setdefault(name, set()).add(n)
    outside = free_vars(condition)
    for n in range(len(body) - 1, -1, -1):
        found = made(body[n])
        if found and not outside & set(found) and _all_inside(found, readers, inside):
            inside.add(n)
    rest = conj(*(c for c in conjuncts(store.guard) if c not in conjuncts(condition)))
    moved = tuple(s for n, s in enumerate(body) if n in inside and s is not store)
    branch = t.If(condition, (*moved, replace(store, guard=rest), t.Yield(())), (t.Yield(()),))
    return tuple(branch if s is store else s for n, s in enumerate(body) if n not in inside or s is store)


def _all_inside(names: Sequence[str], readers: Mapping[str, set[int]], inside: set[int]) -> bool:
    """Whether some are read, and none elsewhere."""
    found = [readers.get(n, set()) for n in names]
    return any(found) and all(x <= inside for x in found)
