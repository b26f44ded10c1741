"""What is read from memory is read first, and a turn of a loop reads for the next one.

early: ...; a = load[x]  -->  a = load[x]; ...
ahead: for t: a = load[t]; ...  -->  a' = load[first]; for t with a = a': next = load[t + 1]; ...; yield next

A program that computes before it reads waits for memory more than once. What a read's place is computed of moves with
it; nothing is read before what writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from attncc.errors import InternalError
from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.nodes import Expr, Sort, Var, substitute
from attncc.schedule.builder import Builder
from attncc.tile import nodes as t
from attncc.tile.verify_scope import uses
from attncc.tile.walks import every

_SORTS: tuple[Sort, ...] = ("int", "real", "bool")


def early(kernel: t.Kernel) -> t.Kernel:
    """`kernel` with every read as early in its block as its place is known."""
    return replace(kernel, body=_first(kernel.body))


def _first(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
    front = _reads(body)
    names = {s.name for s in front}
    rest = [s for s in body if not (isinstance(s, t.Let) and s.name in names)]
    return (*front, *(replace(s, body=_first(s.body)) if isinstance(s, t.For) else s for s in rest))


def _reads(body: Iterable[t.Stmt], given: Iterable[str] = ()) -> list[t.Let]:
    """The reads of a block and what their places are computed of, where that is elementwise and not `given`."""
    moving: dict[str, t.Let] = {}
    fixed, written = set(given), set[str]()
    found: dict[str, t.Let] = {}
    for s in body:
        match s:
            case t.Let(name, _, t.Load(tensor)) if tensor not in written and not uses(s) & fixed:
                moving[name] = s
                found |= {x.name: x for x in _needed(s, moving)}
            case t.Let(name, _, t.Map() | t.Iota() | t.Cast() | t.Rename() | t.Full()) if not uses(s) & fixed:
                moving[name] = s
            case t.Let(name):
                fixed.add(name)
            case _:
                fixed |= {c.name for c in s.carried} if isinstance(s, t.For | t.If) else set()
                written |= {x.tensor for x in every((s,)) if isinstance(x, t.Store | t.ReduceAdd)}
    return [s for s in body if isinstance(s, t.Let) and s.name in found]


def _needed(s: t.Let, moving: dict[str, t.Let]) -> Iterator[t.Let]:
    for name in uses(s):
        if name in moving:
            yield from _needed(moving[name], moving)
    yield s


def ahead(b: Builder, loop: t.For, guard: Callable[[list[Expr], list[str]], Expr]) -> t.For:
    """`loop`, over numbers, with the reads of a turn in the turn before; those of the first are added to the scope.

    `guard` says of scalar conditions and axes where both hold.
    """
    assert isinstance(loop.over, t.Count)
    lo, hi = loop.over.lo, loop.over.hi
    moved = _reads(loop.body, {c.name for c in loop.carried})
    loads = [s for s in moved if isinstance(s.op, t.Load)]
    index = ivar(loop.index)
    last = op("sub", hi, 1)
    first = _renamed(b, moved, {index: op("min", lo, last)}, lambda s: guard([op("lt", lo, hi)], list(s.type.names())))
    for s in first.values():
        b.add(s)
    coming = _renamed(b, moved, {index: op("min", op("add", index, 1), last)})
    carried = tuple(t.Carry(s.name, s.type, first[s.name].name) for s in loads)
    rest = [s for s in loop.body[:-1] if s not in loads]
    end = loop.body[-1]
    assert isinstance(end, t.Yield)
    out = t.Yield((*end.values, *(coming[s.name].name for s in loads)))
    return replace(loop, carried=(*loop.carried, *carried), body=(*coming.values(), *rest, out))


def _renamed(
    b: Builder, moved: list[t.Let], at: dict[Expr, Expr], when: Callable[[t.Let], Expr] = lambda s: TRUE
) -> dict[str, t.Let]:
    """The same statements at another place, under new names, by their old ones; they read only where `when` holds."""
    found: dict[str, t.Let] = {}
    known = dict(at)
    for s in moved:
        made = _operation(s.op, known, {n: x.name for n, x in found.items()})
        if isinstance(made, t.Load):
            made = replace(made, guard=conj(made.guard, when(s)))
        found[s.name] = replace(s, name=b.fresh(s.name), op=made)
        known |= {Var(s.name, sort): Var(found[s.name].name, sort) for sort in _SORTS}
    return found


def _operation(made: t.Op, known: dict[Expr, Expr], names: dict[str, str]) -> t.Op:
    match made:
        case t.Load(_, index, guard):
            return replace(made, index=tuple(substitute(x, known) for x in index), guard=substitute(guard, known))
        case t.Map(e) | t.Full(e) | t.Iota(e):
            return type(made)(substitute(e, known))
        case t.Cast(value) | t.Rename(value):
            return replace(made, value=names.get(value, value))
        case _:
            raise InternalError("this is computed of no place")
