"""Walking an expression as a scalar (atoms are leaves), and a structural order on expressions that is stable
from one process to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Container, Iterator
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from attncc.expr.nodes import Atom, Const, Expr, Op, Var, children

Children = Callable[[Expr], tuple[Expr, ...]]
SortKey = tuple[int, str, float, str]

_KEYS: WeakKeyDictionary[Expr, SortKey] = WeakKeyDictionary()


def scalar_walk(e: Expr | tuple[Expr, ...], leaves: Collection[Expr] = ()) -> Iterator[Expr]:
    """Every distinct node under `e` (one or several roots), children first; atoms and `leaves` are not opened."""
    roots = (e,) if isinstance(e, Expr) else e
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in seen:
            continue
        if ready or not isinstance(node, Op) or node in leaves:
            seen.add(node)
            yield node
        else:
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(node.args) if c not in seen)


def operands(e: Expr) -> tuple[Expr, ...]:
    """The arguments of an operation; atoms have none."""
    return e.args if isinstance(e, Op) else ()


def missing(e: Expr, memo: Container[Expr], under: Children = children) -> Iterator[Expr]:
    """The nodes under `e` that a memo table lacks, children first; what it has isn't looked into."""
    stack: list[tuple[Expr, bool]] = [(e, False)]
    while stack:
        node, ready = stack.pop()
        if node in memo:
            continue
        if ready:
            yield node
        else:
            stack.append((node, True))
            stack.extend((c, False) for c in under(node) if c not in memo)


def sort_key(e: Expr) -> SortKey:
    """A total order: constants by value, variables by name, atoms, operations; equal only for the same node."""
    for node in missing(e, _KEYS):
        _KEYS[node] = _key(node)
    return _KEYS[e]


def _key(e: Expr) -> SortKey:
    match e:
        case Const(value, sort):
            return (0, sort, float(_clamped(value)), repr(value))
        case Var(name, sort):
            return (1, name, 0.0, sort)
        case Op(name, _, sort):
            return (3, name, 0.0, _digest(e))
        case Atom():
            return (2, type(e).__name__, 0.0, _digest(e))
    raise TypeError(f"{type(e).__name__} is no expression")


def _clamped(value: float) -> float:
    return max(-1e300, min(1e300, value))


def _digest(e: Expr) -> str:
    h = blake2b(type(e).__name__.encode(), digest_size=12)

    def put(value: Any) -> None:
        if isinstance(value, Expr):
            h.update(repr(_KEYS[value]).encode())
        elif isinstance(value, tuple):
            h.update(b"(")
            for v in value:
                put(v)
            h.update(b")")
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            h.update(type(value).__name__.encode())
            fields(value)
        else:
            h.update(repr(value).encode())
        h.update(b";")

    def fields(node: Any) -> None:
        for f in dataclasses.fields(node):
            if f.compare:
                put(getattr(node, f.name))

    fields(e)
    return h.hexdigest()
