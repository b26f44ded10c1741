"""The axes of a state in a chunk: one along which it is written by keys, one by values; two may be taken as one.

rewrite: S[d, f, e], every read of which sums over d and f  -->  S[p, e] with d = p // F, f = p % F
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var, children, substitute, walk, with_children
from attncc.ir.free import free
from attncc.ir.nodes import Binder, Contract, Load, Reduce, Spec, State
from attncc.ir.steps import bodies
from attncc.passes.mistakes import NotCompiled

UNIT = Var("unit", "int")
"""The key axis of states without axes, of size 1."""


@dataclass(frozen=True, slots=True)
class Axes:
    """key and value are the axes it is stored with, `own` those it is declared with, `groups` which make up which."""

    key: Var | None
    value: Var | None
    extents: tuple[Expr, ...]
    """Of those of key and value that there are."""
    own: tuple[Var, ...]
    sizes: tuple[Expr, ...]
    groups: tuple[tuple[Var, ...], tuple[Var, ...]]

    @property
    def place(self) -> tuple[Expr, ...]:
        """Its own indices in terms of key and value."""
        return tuple(self.joined(v) for v in self.own)

    def joined(self, e: Expr) -> Expr:
        """`e` with axes that are taken as one in terms of that one."""
        first = self.groups[0]
        if len(first) < 2:
            return e
        assert self.key is not None
        inner = self.sizes[self.own.index(first[1])]
        return put(e, {first[0]: op("floordiv", self.key, inner), first[1]: op("mod", self.key, inner)})


def axes_of(spec: Spec, s: State, sizes: Mapping[Expr, Expr]) -> Axes:
    """The axes of a state by how it is read; NotCompiled where it has too many."""
    own, extents = s.vars, tuple(substitute(a.size, dict(sizes)) for a in s.axes)
    if len(own) > 3:
        raise NotCompiled("a state with more than three axes: not compiled yet", s.span)
    if not own:
        return Axes(UNIT, None, (Const(1, "int"),), (), (), ((UNIT,), ()))
    if len(own) == 1:
        if own[0].name == "e":
            return Axes(None, own[0], extents, own, extents, ((), own))
        return Axes(own[0], None, extents, own, extents, (own, ()))
    if len(own) == 2:
        return Axes(own[0], own[1], extents, own, extents, ((own[0],), (own[1],)))
    bound = _bound(spec, s.name)
    keys = tuple(v for v in own if v in bound)[:2]
    if len(keys) < 2:
        raise NotCompiled("a state with three axes of which reads sum over one: not compiled yet", s.span)
    (value,) = (v for v in own if v not in keys)
    known = dict(zip(own, extents, strict=True))
    both = Var(f"{keys[0].name}_{keys[1].name}", "int")
    size = op("mul", known[keys[0]], known[keys[1]])
    return Axes(both, value, (size, known[value]), own, extents, (keys, (value,)))


def alike(axes: dict[str, Axes]) -> dict[str, Axes]:
    """Keys and values exchanged where that is what it takes for an order of all axes in which keys come first."""
    behind: dict[Var, set[Var]] = {}
    found = {}
    for name, x in axes.items():
        if x.key is not None and x.value is not None:
            if x.key in _reached(behind, x.value) and len(x.groups[0]) == 1:
                x = replace(x, key=x.value, value=x.key, extents=x.extents[::-1], groups=x.groups[::-1])
            assert x.key is not None and x.value is not None
            behind.setdefault(x.key, set()).add(x.value)
        found[name] = x
    return found


def _reached(behind: Mapping[Var, set[Var]], start: Var) -> set[Var]:
    found, left = {start}, [start]
    while left:
        for v in behind.get(left.pop(), ()):
            if v not in found:
                found.add(v)
                left.append(v)
    return found


def _bound(spec: Spec, name: str) -> frozenset[Var]:
    """The indices that some sum over a state of this name binds."""
    found: set[Var] = set()
    for n in (n for body in bodies(spec) for n in walk(body)):
        if any(isinstance(x, Load) and x.tensor == name for x in walk(n)):
            if isinstance(n, Contract):
                found.add(n.axis)
            elif isinstance(n, Reduce):
                found |= {b.index for b in n.binders}
    return frozenset(found)


def put(e: Expr, table: Mapping[Expr, Expr]) -> Expr:
    """`e` with expressions for free indices; indices that it binds itself stay, and are renamed where they clash."""
    names: frozenset[Expr] = frozenset(free(e))
    here = {k: v for k, v in table.items() if k in names}
    if not here:
        return e
    coming = frozenset[Var]().union(*(free(v) for v in here.values()))
    done: dict[Expr, Expr] = dict(here)

    def go(node: Expr) -> Expr:
        if node in done:
            return done[node]
        match node:
            case Contract(a, b, axis, extent, sort, span):
                fresh = _fresh(axis, coming)
                a, b = (put(put(x, {axis: fresh}) if fresh is not axis else x, _less(here, axis)) for x in (a, b))
                found: Expr = Contract(a, b, fresh, put(extent, here), sort, span)
            case Reduce(name, body, binders, where, sort, span):
                new: tuple[Binder, ...] = binders
                less = here
                for n, x in enumerate(binders):
                    fresh = _fresh(x.index, coming)
                    if fresh is not x.index:
                        body, where = put(body, {x.index: fresh}), put(where, {x.index: fresh})
                    new = (*new[:n], Binder(fresh, put(x.size, here)), *new[n + 1 :])
                    less = _less(less, x.index)
                found = Reduce(name, put(body, less), new, put(where, less), sort, span)
            case _:
                found = with_children(node, tuple(go(c) for c in children(node)))
        done[node] = found
        return found

    return go(e)


def _less(table: Mapping[Expr, Expr], axis: Var) -> dict[Expr, Expr]:
    return {k: v for k, v in table.items() if k is not axis}


def _fresh(axis: Var, coming: frozenset[Var]) -> Var:
    while axis in coming:
        axis = Var(f"{axis.name}_", "int")
    return axis
