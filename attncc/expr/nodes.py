"""Scalar expressions: the frozen, hash-consed DAG under both IRs.

Four kinds of node::

    Const(value, sort)      a literal
    Var(name, sort)         an index, a size, a constant parameter, or (in the Tile IR) a value in scope
    Op(name, args, sort)    a row of the op table (attncc.expr.ops) applied to expressions
    Atom                    a leaf to every scalar pass; the Spec IR derives Load, Contract, Reduce ... from it

Building the same node twice returns the same object, so equality is identity, hashing is free and a
dictionary keyed by nodes is a memo table. Texts that have a node in common share it, too: it shows where it stands in
the one that was read or `placed` last. Sorts are "int", "real" and "bool". Integer division and modulus floor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

Sort = Literal["int", "real", "bool"]


class _Interned(type):
    """Returns the one live instance of a class with the given fields."""

    _live: ClassVar[WeakValueDictionary[Any, Any]] = WeakValueDictionary()

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Op and not kwargs and (known := cls._live.get((cls, *args))) is not None:  # the usual case, and quick
            return known
        node = super().__call__(*args, **kwargs)
        key = (cls, *(_key(getattr(node, f.name)) for f in dataclasses.fields(node) if f.compare))
        known = cls._live.setdefault(key, node)
        places = _places.get()
        if places is not None and known not in places and (span := getattr(node, "span", None)) is not None:
            places[known] = span
            object.__setattr__(known, "span", span)
        return known


_places: ContextVar[dict[Any, Any] | None] = ContextVar("places", default=None)


@contextmanager
def placing() -> Iterator[dict[Any, Any]]:
    """Collects where nodes that are made stand in a text, each at the first of its places; that is what they show."""
    places: dict[Any, Any] = {}
    token = _places.set(places)
    try:
        yield places
    finally:
        _places.reset(token)


def placed(places: tuple[tuple[Any, Any], ...]) -> None:
    """Lets nodes show their places in one of the texts that have them."""
    for node, span in places:
        object.__setattr__(node, "span", span)


def _key(value: Any) -> Any:
    """1, 1.0 and True are equal to Python and different to us."""
    if isinstance(value, tuple):
        return tuple(_key(v) for v in value)
    return (type(value), value) if isinstance(value, (bool, int, float)) else value


class Expr(metaclass=_Interned):
    """Base of every scalar expression; compared by identity, which interning makes the same as by value."""

    __slots__ = ("__weakref__",)
    sort: Sort

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), tuple(getattr(self, f.name) for f in dataclasses.fields(self)))  # type: ignore[arg-type]

    def __deepcopy__(self, memo: dict[int, Any]) -> Expr:
        return self


@dataclass(frozen=True, eq=False, slots=True)
class Const(Expr):
    """A literal; negative zero is stored as zero."""

    value: int | float | bool
    sort: Sort

    def __post_init__(self) -> None:
        kinds = {"bool": bool, "int": int, "real": float}
        if type(self.value) is not kinds[self.sort]:
            raise TypeError(f"{self.value!r} is no {self.sort} constant")
        if self.value == 0 and self.sort == "real":
            object.__setattr__(self, "value", 0.0)
        if isinstance(self.value, float) and math.isnan(self.value):
            raise ValueError("NaN is no constant")


@dataclass(frozen=True, eq=False, slots=True)
class Var(Expr):
    """A named scalar: an index, a size, a constant parameter, or a value of the Tile IR."""

    name: str
    sort: Sort


@dataclass(frozen=True, eq=False, slots=True)
class Op(Expr):
    """`name` is a row of the op table; build it with `attncc.expr.build.op`, which checks and promotes sorts."""

    name: str
    args: tuple[Expr, ...]
    sort: Sort


class Atom(Expr):
    """A leaf to scalar passes. Subclasses are frozen dataclasses whose Expr-valued fields are its `children`."""

    __slots__ = ()


def children(e: Expr) -> tuple[Expr, ...]:
    """The expressions directly under `e`, in field order; tuples of expressions are flattened."""
    match e:
        case Const() | Var():
            return ()
        case Op(_, args, _):
            return args
        case _:
            return tuple(c for f in dataclasses.fields(e) for c in _exprs(getattr(e, f.name)))  # type: ignore[arg-type]


def _exprs(value: Any) -> Iterator[Expr]:
    if isinstance(value, Expr):
        yield value
    elif isinstance(value, tuple):
        for v in value:
            yield from _exprs(v)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _exprs(getattr(value, f.name))


def with_children(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """`e` with its `children` replaced, in the same order."""
    match e:
        case Const() | Var():
            return e
        case Op(name, _, sort):
            return Op(name, new, sort)
        case _:
            it = iter(new)
            return _rebuild(e, it)  # type: ignore[no-any-return]


def _rebuild(value: Any, it: Iterator[Expr]) -> Any:
    def put(v: Any) -> Any:
        if isinstance(v, Expr):
            return next(it)
        if isinstance(v, tuple):
            return tuple(put(x) for x in v)
        if dataclasses.is_dataclass(v) and not isinstance(v, type):
            return _rebuild(v, it)
        return v

    return dataclasses.replace(value, **{f.name: put(getattr(value, f.name)) for f in dataclasses.fields(value)})


def walk(e: Expr) -> Iterator[Expr]:
    """Every distinct node under `e`, children first, each once (iterative: depth is not bounded by Python's stack)."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(e, False)]
    while stack:
        node, ready = stack.pop()
        if node in seen:
            continue
        if ready:
            seen.add(node)
            yield node
        else:
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(children(node)) if c not in seen)


def rewrite(e: Expr, rule: Callable[[Expr], Expr | None]) -> Expr:
    """Bottom up, once per distinct node: `rule(node with rewritten children)` or, where it gives None, that node."""
    done: dict[Expr, Expr] = {}
    for node in walk(e):
        old = children(node)
        new = tuple(done[c] for c in old)
        fresh = node if new == old else with_children(node, new)
        done[node] = rule(fresh) or fresh
    return done[e]


def substitute(e: Expr, table: dict[Expr, Expr]) -> Expr:
    """Simultaneous replacement of whole nodes; replaced parts are not looked into again."""
    done: dict[Expr, Expr] = dict(table)
    for node in walk(e):
        if node not in done:
            old = children(node)
            new = tuple(done[c] for c in old)
            done[node] = node if new == old else with_children(node, new)
    return done[e]


def free_vars(e: Expr) -> frozenset[str]:
    """Names of every Var under `e`, binders included (binders are Vars of their own name)."""
    return frozenset(n.name for n in walk(e) if isinstance(n, Var))
