"""late: values are computed where they are first read, not where they could be.

rewrite: a = f(x); ...; b = g(a)  -->  ...; a = f(x); b = g(a)

What is computed long before it is read takes registers until then. Statements of a loop stay in it. A loop that only
computes is a value, too, and computed before what is read with it: a loop leaves little, and all that is there already
takes registers while it runs.
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
    waiting: dict[str, t.Let | t.For] = {n: s for s in body for n in _made(s) if isinstance(s, t.Let | t.For)}
    order = {n: at for at, s in enumerate(body) for n in _made(s)}
    looped: set[str] = set()
    for s in body:
        if isinstance(s, t.For) or _read(s) & looped:
            looped |= set(_made(s))
    placed: list[t.Stmt] = []

    def place(s: t.Stmt) -> None:
        for name in sorted(_read(s), key=lambda n: (n not in looped, order.get(n, -1))):
            if name in waiting:
                found = waiting[name]
                for made in _made(found):
                    del waiting[made]
                place(found)
        placed.append(replace(s, body=_body(s.body)) if isinstance(s, t.For) else s)

    for s in body:
        if not _made(s):
            place(s)
    return tuple(placed)


def _made(s: t.Stmt) -> tuple[str, ...]:
    """The names that a statement gives values to, where it does nothing else."""
    match s:
        case t.Let(name):
            return (name,)
        case t.For(carried=carried, body=inner) if all(isinstance(x, t.Yield) or _made(x) for x in inner):
            return tuple(c.name for c in carried)
        case _:
            return ()


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
