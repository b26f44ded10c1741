"""rewrite: a mask  -->  `must` and `may`, conditions on the corners of a tile

Three-valued logic over intervals, written as expressions: `must` implies the mask on the whole tile, and where `may`
is false the mask is false on the whole tile. It serves literals that don't isolate and is sound for every mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attncc.expr.build import FALSE, TRUE, conj, disj, op
from attncc.expr.nodes import Expr, Op, Var, free_vars
from attncc.ir.nodes import Load, Segment
from attncc.passes.bounds.affine import Affine, affine, at_least_zero, extreme, leaf, product, square
from attncc.passes.bounds.derived import NextFlag
from attncc.passes.bounds.facts import SIZES, Facts, N
from attncc.passes.bounds.guards import negation
from attncc.passes.bounds.logic import flattened

Interval = tuple[Affine, Affine]
"""First and last value."""
Test = tuple[Expr, Expr]
"""(must, may)."""
UNKNOWN: Test = (FALSE, TRUE)


@dataclass(frozen=True)
class BoxTest:
    """Conditions on a tile's corners, and the derived arrays that they read."""

    must: Expr
    may: Expr
    aux: tuple[NextFlag, ...]


def box_test(e: Expr, intervals: Mapping[str, tuple[Expr, Expr]], *, positive: frozenset[str] = SIZES) -> BoxTest:
    """The test of a bool expression whose indices run over `intervals`: name to first and last value, inclusive.

    Neither condition mentions those indices. A flag read at them is looked up in derived arrays; other reads at them
    are unknown. Give the guarded mask of `Bounds` or a residue of it: the guards are relied on.
    """
    box = _Box({k: (affine(lo), affine(hi)) for k, (lo, hi) in intervals.items()}, Facts(positive | SIZES))
    must, may = box.test(e)
    return BoxTest(must, may, tuple(box.aux))


@dataclass(frozen=True)
class _Box:
    intervals: Mapping[str, Interval]
    facts: Facts
    aux: dict[NextFlag, None] = field(default_factory=dict)

    def fixed(self, e: Expr) -> bool:
        return not free_vars(e) & self.intervals.keys()

    def test(self, e: Expr) -> Test:
        if self.fixed(e):
            return e, e
        match e:
            case Op("not", (x,), _):
                must, may = self.test(x)
                return negation(may), negation(must)
            case Op(("and" | "or") as name, _, _):
                tests = [self.test(x) for x in flattened(e, name)]
                join = _all if name == "and" else _any
                return join([must for must, _ in tests]), join([may for _, may in tests])
            case Op("where", (c, a, b), _):
                (if_c, may_c), (must_a, may_a), (must_b, may_b) = self.test(c), self.test(a), self.test(b)
                both = _all([must_a, must_b])
                must = _any([both, _all([if_c, must_a]), _all([negation(may_c), must_b])])
                return must, _any([_all([may_c, may_a]), _all([negation(if_c), may_b])])
            case Op(("lt" | "le" | "eq" | "ne") as name, (a, b), _) if a.sort == "int":
                return self.comparison(name, affine(b) - affine(a))
            case Op(("eq" | "ne") as name, (a, b), _) if a.sort == "bool":
                same, other = self.agree(self.test(a), self.test(b)), self.agree(self.test(negation(a)), self.test(b))
                return (same, negation(other)) if name == "eq" else (other, negation(same))
            case Load(tensor, index, "bool"):
                return self.flag(tensor, index)
            case _:
                return UNKNOWN

    def agree(self, a: Test, b: Test) -> Expr:
        """That two conditions have the same value on the whole tile."""
        return _any([_all([a[0], b[0]]), _all([negation(a[1]), negation(b[1])])])

    def flag(self, tensor: str, index: tuple[Expr, ...]) -> Test:
        """Is the next position with the flag, or the next without, beyond the tile?"""
        moving = [n for n, x in enumerate(index) if not self.fixed(x)]
        span = self.span(affine(index[moving[0]]))
        if len(moving) != 1 or span is None:
            return UNKNOWN
        (axis,) = moving
        start = (*index[:axis], _within(span[0]).expr(), *index[axis + 1 :])
        with_, without = (leaf(self.next(flag, tensor, start, axis)) for flag in (True, False))
        return at_least_zero(without - span[1] - 1), at_least_zero(span[1] - with_)

    def next(self, flag: bool, tensor: str, index: tuple[Expr, ...], axis: int) -> Load:
        array = NextFlag(f"{tensor}_next_{str(flag).lower()}", flag, tensor, axis)
        self.aux[array] = None
        return Load(array.name, index, "int")

    def comparison(self, name: str, gap: Affine) -> Test:
        """gap > 0, >= 0, == 0 or != 0."""
        span = self.span(gap)
        if span is None:
            return UNKNOWN
        lo, hi = span
        if name in ("lt", "le"):
            strict = int(name == "lt")
            return at_least_zero(lo - strict), at_least_zero(hi - strict)
        must = _all([at_least_zero(lo), at_least_zero(hi.times(-1))])
        may = _all([at_least_zero(lo.times(-1)), at_least_zero(hi)])
        return (must, may) if name == "eq" else (negation(may), negation(must))

    def span(self, a: Affine) -> Interval | None:
        """The values of a sum; like terms cancelled before."""
        lo = hi = Affine((), a.const)
        for t, c in a.terms:
            found = self.term(t)
            if found is None:
                return None
            x, y = (z.times(c) for z in found)
            lo, hi = (lo + x, hi + y) if c > 0 else (lo + y, hi + x)
        return lo, hi

    def term(self, t: Expr) -> Interval | None:
        if self.fixed(t):
            return leaf(t), leaf(t)
        match t:
            case Var(name, _):
                return self.intervals[name]
            case Segment(tensor, at, _):
                span = self.span(affine(at))
                return span and (_segment(tensor, span[0]), _segment(tensor, span[1]))
            case Op("where", (c, a, b), _):
                return self.choice(self.test(c), self.span(affine(a)), self.span(affine(b)))
            case Op(name, args, _) if all(x.sort == "int" for x in args):
                spans = [self.span(affine(x)) for x in args]
                known = [s for s in spans if s is not None]
                return self.operation(name, args, known) if len(known) == len(spans) else None
            case _:
                return None

    def operation(self, name: str, args: tuple[Expr, ...], spans: list[Interval]) -> Interval | None:
        match name, spans:
            case (("min" | "max"), [(a, b), (c, d)]):
                return extreme(name, a, c), extreme(name, b, d)
            case "abs", [x]:
                return _magnitude(x)
            case "square", [x]:
                lo, hi = _magnitude(x)
                return square(lo), square(hi)
            case "mul", [x, y]:
                return self.multiplied(args, x, y)
            case "floordiv", [(a, b), (c, _)] if self.fixed(args[1]) and self.facts.is_positive(args[1]):
                return _quotient(a, c), _quotient(b, c)
            case "mod", [(a, b), (c, _)] if self.fixed(args[1]) and self.facts.is_positive(args[1]):
                return _remainder(a, b, c)
            case _:
                return None

    def multiplied(self, args: tuple[Expr, ...], x: Interval, y: Interval) -> Interval:
        a, b = args
        if self.fixed(b):
            a, b, x, y = b, a, y, x
        if self.fixed(a) and self.facts.is_positive(a):
            return product(x[0], y[0]), product(x[0], y[1])
        ends = [product(p, q) for p in x for q in y]
        lo = hi = ends[0]
        for z in ends[1:]:
            lo, hi = extreme("min", lo, z), extreme("max", hi, z)
        return lo, hi

    def choice(self, test: Test, a: Interval | None, b: Interval | None) -> Interval | None:
        if a is None or b is None:
            return None
        must, may = test
        lo = op("where", must, a[0].expr(), op("where", may, extreme("min", a[0], b[0]).expr(), b[0].expr()))
        hi = op("where", must, a[1].expr(), op("where", may, extreme("max", a[1], b[1]).expr(), b[1].expr()))
        return affine(lo), affine(hi)


def _magnitude(x: Interval) -> Interval:
    lo, hi = x
    return extreme("max", Affine(), extreme("max", lo, hi.times(-1))), extreme("max", lo.times(-1), hi)


def _segment(tensor: str, at: Affine) -> Affine:
    return leaf(Segment(tensor, _within(at).expr()))


def _within(at: Affine) -> Affine:
    """The nearest position to a corner that may be out of range; the mask's own guards speak of the rest."""
    return extreme("max", Affine(), extreme("min", at, leaf(N) - 1))


def _quotient(a: Affine, c: Affine) -> Affine:
    return affine(op("floordiv", a.expr(), c.expr()))


def _remainder(a: Affine, b: Affine, c: Affine) -> Interval:
    """Between two multiples of c a remainder rises with its argument; across one it takes every value."""
    width = b - a
    if not width.terms and not c.terms and width.const >= c.const - 1:
        return Affine(), c - 1
    same = op("eq", _quotient(a, c).expr(), _quotient(b, c).expr())
    lo = op("where", same, op("mod", a.expr(), c.expr()), 0)
    return affine(lo), affine(op("where", same, op("mod", b.expr(), c.expr()), (c - 1).expr()))


def _all(parts: list[Expr]) -> Expr:
    return FALSE if FALSE in parts else conj(*dict.fromkeys(parts))


def _any(parts: list[Expr]) -> Expr:
    return TRUE if TRUE in parts else disj(*dict.fromkeys(parts))
