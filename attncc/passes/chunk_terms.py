"""Sums of products with states: what is linear in a state, told apart into a read and what it is multiplied by.

rewrite: sum over d, f of q[d] * q[f] * (S[d, f, e] + x[e])  -->  read(q[d] * q[f], S) + (sum over d, f ...) * x[e]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attncc.expr.build import TRUE, op
from attncc.expr.nodes import Const, Expr, Op, Var, children, with_children
from attncc.ir.free import free
from attncc.ir.nodes import Contract, Load, Reduce
from attncc.passes.chunk_gates import ONE, ZERO
from attncc.passes.mistakes import NotCompiled

MINUS = Const(-1.0, "real")
Bound = tuple[tuple[Var, Expr], ...]


@dataclass(frozen=True, slots=True)
class Term:
    """The sum of the product of `factors` over the indices in `bound`, each with its size."""

    bound: Bound
    factors: tuple[Expr, ...]


def product(factors: list[Expr]) -> Expr:
    """Their product, 1 of none."""
    total: Expr = ONE
    for f in factors:
        total = f if total is ONE else op("mul", total, f)
    return total


def summed(e: Expr, axis: Var, extent: Expr) -> Expr:
    """The sum of `e` over an axis."""
    return Contract(e, ONE, axis, extent) if axis in free(e) else op("mul", e, op("real", extent))


@dataclass(frozen=True, slots=True)
class Reader:
    """Takes expressions apart; `stateful` tells whether a state stands inside, `settle` makes a term's value."""

    stateful: Callable[[Expr], bool]
    settle: Callable[[Term], Expr]

    def read(self, e: Expr) -> Expr:
        """`e` with everything that is linear in a state settled."""
        if not self.stateful(e):
            return e
        match e:
            case Contract() | Load() | Reduce("sum" | "mean"):
                total: Expr = ZERO
                for term in self.terms(e):
                    part = self.settle(term)
                    total = part if total is ZERO else op("add", total, part)
                return total
            case _:
                return with_children(e, tuple(self.read(c) for c in children(e)))

    def terms(self, e: Expr) -> list[Term]:
        """`e` as a sum of terms; what is not linear in a state is settled inside."""
        if not self.stateful(e):
            return [] if e is ZERO else [Term((), (e,))]
        match e:
            case Load():
                return [Term((), (e,))]
            case Op("add", (a, b)):
                return self.terms(a) + self.terms(b)
            case Op("sub", (a, b)):
                return self.terms(a) + [_times(p, MINUS) for p in self.terms(b)]
            case Op("neg", (a,)):
                return [_times(p, MINUS) for p in self.terms(a)]
            case Op("mul", (a, b)):
                return [self.joined(p, r) for p in self.terms(a) for r in self.terms(b)]
            case Op("div", (a, b)):
                below = op("recip", self.read(b))
                return [self.joined(p, Term((), (below,))) for p in self.terms(a)]
            case Op("where", (c, a, b)):
                c = self.read(c)
                return [_times(p, op("where", c, ONE, ZERO)) for p in self.terms(a)] + [
                    _times(p, op("where", c, ZERO, ONE)) for p in self.terms(b)
                ]
            case Contract(a, b, axis, extent):
                return [self.bound(t, axis, extent) for t in self.terms(op("mul", a, b))]
            case Reduce("sum" | "mean" as name, body, binders, where) if not self.stateful(where):
                if where is not TRUE:
                    if name == "mean":
                        raise NotCompiled("a mean of a state over some of its places: not compiled yet", e.span)
                    body = op("mul", op("where", where, ONE, ZERO), body)
                found = self.terms(body)
                for x in binders:
                    found = [self.bound(t, x.index, x.size) for t in found]
                    if name == "mean":
                        found = [_times(t, op("recip", op("real", x.size))) for t in found]
                return found
            case _:
                return [Term((), (self.read(e),))]

    def bound(self, t: Term, axis: Var, extent: Expr) -> Term:
        """The sum of a term over one index more."""
        if any(axis is x for x, _ in t.bound):
            t = Term((), (self.settle(t),))
        return Term((*t.bound, (axis, extent)), t.factors)

    def joined(self, a: Term, b: Term) -> Term:
        """The product of two terms; what one sums over must mean nothing to the other."""
        if _meets(a, b):
            a = Term((), (self.settle(a),))
        if _meets(b, a):
            b = Term((), (self.settle(b),))
        return Term((*a.bound, *b.bound), (*a.factors, *b.factors))


def _times(t: Term, factor: Expr) -> Term:
    return Term(t.bound, (factor, *t.factors))


def _meets(a: Term, b: Term) -> bool:
    inner = {x for x, _ in a.bound}
    return any(inner & free(f) for f in b.factors) or bool(inner & {x for x, _ in b.bound})


# --- products ---------------------------------------------------------------------------------------------------------


def apart(factors: list[Expr], axes: frozenset[Var]) -> list[list[Expr]]:
    """A product as a sum of products whose factors have one of the axes at most, where it has such a form."""
    found: list[list[Expr]] = [[]]
    for f in factors:
        found = [[*p, *r] for p in found for r in _split(f, axes)]
    return found


def _split(e: Expr, axes: frozenset[Var]) -> list[list[Expr]]:
    many = len(free(e) & axes) > 1
    match e:
        case Op("mul", (a, b)):
            return [[*p, *r] for p in _split(a, axes) for r in _split(b, axes)]
        case Op("add", (a, b)) if many:
            return _split(a, axes) + _split(b, axes)
        case Op("sub", (a, b)) if many:
            return _split(a, axes) + [[MINUS, *p] for p in _split(b, axes)]
        case Op("neg", (a,)):
            return [[MINUS, *p] for p in _split(a, axes)]
        case Op("div", (a, b)) if many or isinstance(b, Op):
            return [[*p, *r] for p in _split(a, axes) for r in _split(op("recip", b), axes)]
        case Op("recip", (Op("exp", (x,)),)):
            return [[op("exp", op("neg", x))]]
        case Op("recip", (Op("mul", (a, b)),)) if many:
            return [[*p, *r] for p in _split(op("recip", a), axes) for r in _split(op("recip", b), axes)]
        case Op("where", (c, a, b)) if many:
            yes, no = op("where", c, ONE, ZERO), op("where", c, ZERO, ONE)
            return [[yes, *p] for p in _split(a, axes)] + [[no, *p] for p in _split(b, axes)]
        case _:
            return [[e]]


def plain(bound: Bound, factors: list[Expr]) -> Expr:
    """The sum of a product over indices, without a state: what does not vary with an index stands outside its sum."""
    total: Expr = ZERO
    for p in apart(factors, _axes(factors)) if bound else [factors]:
        part = product(gathered(bound, p))
        total = part if total is ZERO else op("add", total, part)
    return total


def gathered(bound: Bound, factors: list[Expr]) -> list[Expr]:
    """Factors without the indices in `bound`: those that vary with one are summed over it."""
    for axis, extent in bound:
        here = [f for f in factors if axis in free(f)]
        rest = [f for f in factors if f not in here]
        if not here:
            factors = [*rest, op("real", extent)]
            continue
        alone = [f for f in here if not _axes([f]) - {axis}]
        others = [f for f in here if f not in alone]
        first = [*alone, *others[:-1]]
        factors = [*rest, Contract(product(first), others[-1] if others else ONE, axis, extent)]
    return factors


def _axes(factors: list[Expr]) -> frozenset[Var]:
    known = {*"bhgijBHGMNDE"}
    return frozenset(v for f in factors for v in free(f) if v.sort == "int" and v.name not in known)


def parts_of(along: tuple[Var, ...], factors: list[Expr], scalars: list[Expr]) -> tuple[Expr, ...]:
    """Factors along two axes as one product along each; () where one varies with both, or there is one axis."""
    if len(along) < 2 or any(len(free(f) & set(along)) != 1 for f in factors):
        return ()
    each = [product([f for f in factors if a in free(f)]) for a in along]
    return (product([*scalars, each[0]]), *each[1:])
