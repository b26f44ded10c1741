"""Masks as trees of `and` and `or` over isolated literals, and their disjunctive normal form.

Every leaf has two readings: `outer` is necessary for the literal, `inner` sufficient. They differ only where the
literal could not be isolated exactly, and then the leaf also carries the literal itself as its `source`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

from attncc.expr.nodes import Expr
from attncc.passes.bounds.affine import Affine


@dataclass(frozen=True, slots=True)
class Bound:
    """lower: index >= outer; upper: index < outer. `source` is None where this is the literal exactly."""

    side: Literal["lower", "upper"]
    outer: Affine
    inner: Affine
    source: Expr | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """outer >= 0, without the index."""

    outer: Affine
    inner: Affine
    source: Expr | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """A condition without the index that is no inequality of integers, or its negation."""

    condition: Expr
    holds: bool


@dataclass(frozen=True, slots=True)
class Opaque:
    """A condition on the index that says nothing about an interval."""

    source: Expr


@dataclass(frozen=True, slots=True)
class And:
    """All of `parts`; `source` is the mask's expression for it."""

    parts: tuple[Formula, ...]
    source: Expr


@dataclass(frozen=True, slots=True)
class Or:
    """Any of `parts`; `source` is the mask's expression for it."""

    parts: tuple[Formula, ...]
    source: Expr


Leaf = Bound | Row | Fact | Opaque
Formula = Leaf | And | Or
Conjunct = tuple[Leaf, ...]
"""Leaves that hold together, each once, in the order of the mask."""


def normal_form(f: Formula, cap: int) -> tuple[Conjunct, ...]:
    """At most `cap` conjuncts whose union is `f`."""
    match f:
        case Or(parts, source):
            return _capped([c for p in parts for c in normal_form(p, cap)], cap, source)
        case And(parts, source):
            product: tuple[Conjunct, ...] = ((),)
            for p in parts:
                right = normal_form(p, cap)
                product = _capped([_joined(a, b) for a in product for b in right], cap, source)
            return product
        case Bound() | Row() | Fact() | Opaque():
            return ((f,),)
        case _:
            assert_never(f)


def _joined(a: Conjunct, b: Conjunct) -> Conjunct:
    return tuple(dict.fromkeys((*a, *b)))


def _capped(conjuncts: list[Conjunct], cap: int, source: Expr) -> tuple[Conjunct, ...]:
    kept = absorbed([c for c in conjuncts if not contradicts(c)])
    while len(kept) > cap:
        kept = absorbed(_merged(kept, source))
    return tuple(kept)


def absorbed(conjuncts: list[Conjunct]) -> list[Conjunct]:
    """`a or (a and b)` is `a`."""
    sets = [frozenset(c) for c in conjuncts]
    return [
        c
        for n, c in enumerate(conjuncts)
        if not any(s < sets[n] or (s == sets[n] and m < n) for m, s in enumerate(sets) if m != n)
    ]


def _merged(conjuncts: list[Conjunct], source: Expr) -> list[Conjunct]:
    """The two most alike as one: what they share and `source`, whose disjuncts both are."""
    sets = [frozenset(c) for c in conjuncts]
    pairs = ((a, b) for b in range(len(sets)) for a in range(b))
    a, b = max(pairs, key=lambda ab: len(sets[ab[0]] & sets[ab[1]]))
    shared = tuple(x for x in conjuncts[a] if x in sets[b])
    return [c for n, c in enumerate(conjuncts) if n not in (a, b)] + [_joined(shared, (Opaque(source),))]


def contradicts(c: Conjunct) -> bool:
    """Two leaves that can't hold together, or one that never does."""
    lowers = [x.outer for x in c if isinstance(x, Bound) and x.side == "lower"]
    uppers = [x.outer for x in c if isinstance(x, Bound) and x.side == "upper"]
    rows = [x.outer for x in c if isinstance(x, Row)]
    gaps = [u - lo - 1 for u in uppers for lo in lowers] + rows
    gaps += [a + b for n, a in enumerate(rows) for b in rows[:n]]
    if any(not g.terms and g.const < 0 for g in gaps):
        return True
    facts = {(x.condition, x.holds) for x in c if isinstance(x, Fact)}
    return any((condition, not holds) in facts for condition, holds in facts)
