"""Who reads what: the names that operations and statements read, and those that must be printed for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from attncc.codegen.torch_kinds import Span
from attncc.codegen.torch_places import plan
from attncc.errors import InternalError
from attncc.expr.build import TRUE
from attncc.expr.nodes import Expr, Var, free_vars
from attncc.tile import nodes as t

if TYPE_CHECKING:
    from attncc.codegen.torch_facts import Facts


def mapped(node: Any, rule: Callable[[Expr], Expr]) -> Any:
    """`node` with `rule` applied to every expression in its fields."""

    def put(v: Any) -> Any:
        if isinstance(v, Expr):
            return rule(v)
        if isinstance(v, tuple):
            return tuple(put(x) for x in v)
        if is_dataclass(v) and not isinstance(v, type) and not isinstance(v, t.Type):
            return mapped(v, rule)
        return v

    return replace(node, **{f.name: put(getattr(node, f.name)) for f in fields(node)})


def operands(x: Any) -> Iterator[str]:
    """The names an operation, a range or a statement reads, with repetition; nested bodies included."""
    match x:
        case Expr():
            yield from sorted(free_vars(x))
        case t.Full(value):
            yield from operands(value)
        case t.Iota(base):
            yield from operands(base)
        case t.Map(body):
            yield from operands(body)
        case t.Load(_, index, guard):
            for e in (*index, guard):
                yield from operands(e)
        case t.Reduce(_, value) | t.Scan(_, value) | t.Cast(value) | t.TopK(value) | t.TriInverse(value):
            yield value
        case t.SplitAxis(value) | t.JoinAxis(value) | t.Rename(value) | t.Convert(value) | t.DotWait(value):
            yield value
        case t.GatherAxis(value, index):
            yield value
            yield index
        case t.Dot(a, b, _, start):
            if not (isinstance(a, str) and isinstance(b, str)):
                raise InternalError("a product of shared buffers has no torch spelling")
            yield a
            yield b
            if start is not None:
                yield start
        case t.Ranges(_, extent, pieces):
            yield from operands(extent)
            for p in pieces:
                for f in fields(p):
                    yield from operands(getattr(p, f.name)) if isinstance(getattr(p, f.name), Expr) else ()
        case t.Count(lo, hi):
            yield from operands(lo)
            yield from operands(hi)
        case t.Let(_, _, operation):
            yield from operands(operation)
        case t.Store(_, index, value, guard) | t.ReduceAdd(_, index, value, _, guard):
            for e in (*index, guard):
                yield from operands(e)
            yield value
        case t.Yield(values):
            yield from values
        case t.For(_, over, carried, body):
            yield from operands(over)
            yield from (c.start for c in carried)
            for s in body:
                yield from operands(s)
        case t.If(condition, then, orelse):
            yield from operands(condition)
            for s in (*then, *orelse):
                yield from operands(s)
        case _:
            raise InternalError(f"{type(x).__name__} has no torch spelling")


def needed(body: tuple[t.Stmt, ...], facts: Facts) -> frozenset[str]:
    """Names that something printed reads as a Python object; spans and lanes that only steer slices are not."""
    found: set[str] = set()
    for s in reversed(body):
        _need(s, found, facts)
    return frozenset(found)


def _need(s: t.Stmt, found: set[str], facts: Facts) -> None:
    match s:
        case t.Let(name):
            kind = facts.kinds[name]
            if name in found:
                found.update(operands(kind.offset) if isinstance(kind, Span) else reads(s.op, facts))
                found.update(free_vars(facts.scale[name]) if name in facts.scale else ())
        case t.For(_, over, carried, body):
            for inner in reversed(body):
                _need(inner, found, facts)
            for inner in reversed(body):  # what a turn reads of the turn before
                _need(inner, found, facts)
            found.update(reads(over, facts))
            found.update(c.start for c in carried)
        case t.If(condition, then, orelse):
            for inner in (*reversed(then), *reversed(orelse)):
                _need(inner, found, facts)
            found.update(operands(condition))
        case _:
            found.update(reads(s, facts))


def reads(x: Any, facts: Facts) -> Iterator[str]:
    """The names the printed form of `x` reads."""
    match x:
        case t.Load(_, index, guard) if guard is TRUE and plan(index, facts) is not None:
            yield from _steered(index, facts)
        case t.Store(_, index, value, guard) | t.ReduceAdd(_, index, value, _, guard) if (
            guard is TRUE and plan(index, facts, target=True) is not None
        ):
            yield value
            yield from _steered(index, facts)
        case t.Map() if isinstance(x.body, Var):
            yield x.body.name
        case _:
            yield from operands(x)


def _steered(index: tuple[Expr, ...], facts: Facts) -> Iterator[str]:
    for place in plan(index, facts) or ():
        for e in place.numbers():
            yield from sorted(n for n in free_vars(e) if n not in facts.batch)
