"""late: values are computed where they are first read, not where they could be.

rewrite: a = f(x); ...; b = g(a)  -->  ...; a = f(x); b = g(a)

What is computed long before it is read takes registers until then. Statements of a loop stay in it.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.nodes import free_vars
from attncc.tile import nodes as t
from attncc.tile.verify_scope import uses


def late(kernel: t.Kernel) -> t.Kernel:
    """`kernel` with every Let before its first reader."""
    return replace(kernel, body=_body(kernel.body))


def _body(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
    waiting = {s.name: s for s in body if isinstance(s, t.Let)}
    placed: list[t.Stmt] = []

    def place(s: t.Stmt) -> None:
        for name in sorted(_read(s), key=lambda n: order.get(n, -1)):
            if name in waiting:
                place(waiting.pop(name))
        placed.append(replace(s, body=_body(s.body)) if isinstance(s, t.For) else s)

    order = {s.name: n for n, s in enumerate(body) if isinstance(s, t.Let)}
    for s in body:
        if not isinstance(s, t.Let):
            place(s)
    return tuple(placed)


def _read(s: t.Stmt) -> set[str]:
    """The names a statement reads, those of its own body with it."""
    found = set(uses(s))
    match s:
        case t.For(body=inner, carried=carried, over=over):
            found |= {c.start for c in carried} | {n for x in inner for n in _read(x)}
            if isinstance(over, t.Count):
                found |= free_vars(over.lo) | free_vars(over.hi)
        case t.If(then=then, orelse=orelse):
            found |= {n for x in (*then, *orelse) for n in _read(x)}
        case _:
            pass
    return found
