"""rewrite: a comparison of integers  -->  bounds on one index, whatever surrounds it inverted

An inequality is held as `part + outer >= 0` with `part` the terms that mention the index. min, max, abs and where
become `and` and `or`; a lone quotient or product is inverted exactly, floors included; what remains (a remainder, a
quotient beside other terms) is replaced by its extremes, which loosens `outer` and tightens `inner`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from attncc.expr.build import conj, op
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars
from attncc.ir.nodes import Load, Segment
from attncc.passes.bounds.affine import Affine, absolute, affine, leaf
from attncc.passes.bounds.derived import Derived, Kind
from attncc.passes.bounds.facts import Facts
from attncc.passes.bounds.formula import And, Bound, Formula, Opaque, Or, Row
from attncc.passes.bounds.guards import Guards

BRANCHES = 64


@dataclass
class Isolator:
    """Isolates `index`; notes the derived arrays that the bounds read."""

    index: str
    facts: Facts
    guards: Guards
    condition: Callable[[Expr, bool], Formula]
    """The formula of a `where`'s condition, or of its negation."""
    branches: int = BRANCHES
    """How many more min, max, abs and where may be split; sums of many would double with each."""
    aux: dict[Derived, None] = field(default_factory=dict)
    reads: dict[Expr, tuple[tuple[Affine, ...], tuple[Affine, ...]]] = field(default_factory=dict)
    """What the derived arrays' elements are at least and at most, as far as the reader can use it."""

    def mentions(self, e: Expr) -> bool:
        """Whether the index stands in `e`."""
        return self.index in free_vars(e)

    def split(self) -> bool:
        """Takes one of the branches there may be; False where none is left."""
        self.branches -= 1
        return self.branches >= 0

    def at_least_zero(self, a: Affine, source: Expr) -> Formula:
        """The formula of a >= 0."""
        return self.between(a, a, source)

    def between(self, outer: Affine, inner: Affine, source: Expr) -> Formula:
        """The formula of a literal that needs outer >= 0 and follows from inner >= 0, with the same index terms."""
        part, rest = outer.split(self.mentions)
        return self._solve(part, rest, inner - part, source, outer == inner)

    def _solve(self, part: Affine, outer: Affine, inner: Affine, source: Expr, exact: bool) -> Formula:
        more, outer = (part + outer).split(self.mentions)
        inner = inner + (part - more)
        part = more
        note = None if exact else source
        if not part.terms:
            return Row(outer, inner, note)
        for t, k in part.terms:
            if isinstance(t, Op) and t.name in ("abs", "min", "max", "where"):
                if not self.split():
                    return Opaque(source)
                return self._branches(t, k, part - leaf(t).times(k), outer, inner, source, exact)
        if len(part.terms) == 1:
            (t, k) = part.terms[0]
            if t is Var(self.index, "int"):
                return _bound(k, outer, inner, note)
            found = self._inverted(t, k, outer, inner, source, exact)
            if found is not None:
                return found
        return self._loosened(part, outer, inner, source)

    def _branches(
        self, t: Op, k: int, part: Affine, outer: Affine, inner: Affine, source: Expr, exact: bool
    ) -> Formula:
        def branch(x: Affine) -> Formula:
            return self._solve(part + x.times(k), outer, inner, source, exact)

        if t.name == "where":
            c, a, b = t.args
            yes = And((self.condition(c, False), branch(affine(a))), source)
            return Or((yes, And((self.condition(c, True), branch(affine(b))), source)), source)
        xs = (affine(t.args[0]), affine(t.args[0]).times(-1) if t.name == "abs" else affine(t.args[1]))
        either = (t.name == "min") != (k > 0)
        return (Or if either else And)(tuple(map(branch, xs)), source)

    def _inverted(self, t: Expr, k: int, outer: Affine, inner: Affine, source: Expr, exact: bool) -> Formula | None:
        """k * t + rest >= 0 solved for what stands inside `t`."""
        match t:
            case Op("floordiv", (x, c), _) if not self.mentions(c) and self.facts.is_positive(c):

                def edge(rest: Affine) -> Affine:
                    m = rest.floordiv(abs(k))  # t >= -m, or t <= m
                    cm = affine(op("mul", c, m.expr()))
                    return cm if k > 0 else cm + affine(c) - 1

                return self._solve(_sign(k, affine(x)), edge(outer), edge(inner), source, exact)
            case Op("mul", (x, y), _) if self.mentions(x) != self.mentions(y):
                x, c = (x, y) if self.mentions(x) else (y, x)
                if self.facts.is_positive(c):
                    kc = affine(c).times(abs(k)).expr()

                    def quotient(rest: Affine) -> Affine:
                        return affine(op("floordiv", rest.expr(), kc))

                    return self._solve(_sign(k, affine(x)), quotient(outer), quotient(inner), source, exact)
            case Op("square", (x,), _) if not outer.terms and not inner.terms:
                roots = [Affine((), _root(k, rest.const)) for rest in (outer, inner)]
                return self._solve(_sign(k, absolute(affine(x))), roots[0], roots[1], source, exact)
            case Segment(_, at, _) if exact and abs(k) == 1:
                return self._segment(t, at, k, outer, source)
            case _:
                pass
        return None

    def _segment(self, t: Segment, at: Expr, k: int, rest: Affine, source: Expr) -> Formula | None:
        """Offsets ascend, so comparing the segments of two positions is comparing one with the other's ends."""
        match rest:
            case Affine(((Segment(tensor, there, _), other),), (0 | -1) as const) if tensor == t.tensor and other == -k:
                lower = k > 0
                kind: Kind = "first" if lower == (const == 0) else "last"
                end = leaf(self.derived(kind, t.tensor, (there,), 0, True))
                gap = affine(at) - end if lower else end - affine(at)
                return self.guarded(self.at_least_zero(gap + const, source), source)
            case _:
                return None

    def _loosened(self, part: Affine, outer: Affine, inner: Affine, source: Expr) -> Formula:
        for t, k in part.terms:
            match t:
                case Op("mod", (_, c), _) if not self.mentions(c) and self.facts.is_positive(c):
                    spread = (affine(c) - 1).times(k)
                    outer, inner = (outer + spread, inner) if k > 0 else (outer, inner + spread)
                    return self._solve(part - leaf(t).times(k), outer, inner, source, False)
                case Op("floordiv", (x, Const(c, _)), _) if int(c) > 0:  # c * (x//c) is x - x % c
                    c = int(c)
                    part = (part - leaf(t).times(k)).times(c) + affine(x).times(k)
                    outer, inner = outer.times(c), inner.times(c)
                    slack = -k * (c - 1)
                    outer, inner = (outer, inner + slack) if k > 0 else (outer + slack, inner)
                    return self._solve(part, outer, inner, source, False)
                case _:
                    pass
        return Opaque(source)

    def derived(self, kind: Kind, tensor: str, index: tuple[Expr, ...], axis: int, segments: bool) -> Load:
        """A read of a derived array at `index`, noted as needed."""
        array = Derived(f"{tensor}_{kind}", kind, tensor, axis, segments)
        self.aux[array] = None
        read = Load(array.name, index, "int")
        at = affine(index[axis])
        # An axis of another length than N would need its own last position; no upper end is claimed.
        self.reads[read] = ((Affine(),), (at,)) if kind in ("first", "run_first") else ((at,), ())
        return read

    def same_value(self, a: Load, b: Load, source: Expr, equal: bool) -> Formula | None:
        """t[.., x] == t[.., y], or != : x lies between the first and last position with the value at y, or outside."""
        where = [n for n, (x, y) in enumerate(zip(a.index, b.index, strict=True)) if x is not y]
        if len(where) != 1:
            return None
        (axis,) = where
        if self.mentions(b.index[axis]):
            a, b = b, a
        if self.mentions(b) or not self.mentions(a.index[axis]):
            return None
        if any(self.mentions(x) for n, x in enumerate(a.index) if n != axis):
            return None
        at = affine(a.index[axis])
        first, last, run_first, run_last = (
            leaf(self.derived(kind, a.tensor, b.index, axis, False))
            for kind in ("first", "last", "run_first", "run_last")
        )
        if equal:
            low = self.between(at - first, at - run_first, source)
            return self.guarded(And((low, self.between(last - at, run_last - at, source)), source), source)
        below = self.between(run_first - at - 1, first - at - 1, source)
        above = self.between(at - run_last - 1, at - last - 1, source)
        return self.guarded(Or((below, above), source), source)

    def guarded(self, f: Formula, source: Expr) -> Formula:
        """What is known of derived arrays holds in range only, so their bounds go with the guards, negated or not."""
        guards = tuple(self.condition(g, False) for g in self.guards.of(source))
        return And((*guards, f), conj(*self.guards.of(source), source)) if guards else f


def _sign(k: int, a: Affine) -> Affine:
    return a if k > 0 else a.times(-1)


def _root(k: int, rest: int) -> int:
    """The constant r such that k * x*x + rest >= 0 is abs(x) + r >= 0 for k > 0, r - abs(x) >= 0 for k < 0."""
    if k < 0:
        return math.isqrt(rest // -k) if rest >= 0 else -1
    least = -(rest // k)
    return -(math.isqrt(least - 1) + 1) if least > 0 else 0


def _bound(k: int, outer: Affine, inner: Affine, source: Expr | None) -> Bound:
    """k * index + rest >= 0."""
    if k > 0:
        return Bound("lower", outer.floordiv(k).times(-1), inner.floordiv(k).times(-1), source)
    return Bound("upper", outer.floordiv(-k) + 1, inner.floordiv(-k) + 1, source)
