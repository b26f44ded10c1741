"""Integer expressions as sums: `8*(i//8) - j + w - 1` held as coefficients of canonical terms and a constant.

Collecting terms is what lets `i - j < w`, `2*j - j <= i` and `(8*j + i)//8 == j` be seen as statements about a single
`j`. Terms are products, quotients, minima, loads and so on whose own arguments are canonical, so equal terms cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from attncc.expr.build import lift, op
from attncc.expr.nodes import Const, Expr, Op, walk
from attncc.expr.order import sort_key


@dataclass(frozen=True, slots=True)
class Affine:
    """sum of coefficient * term, plus a constant; terms in the order of `sort_key`, no coefficient is 0."""

    terms: tuple[tuple[Expr, int], ...] = ()
    const: int = 0

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.const + other)
        return collect((*self.terms, *other.terms), self.const + other.const)

    def __sub__(self, other: Affine | int) -> Affine:
        return self + (-other if isinstance(other, int) else other.times(-1))

    def times(self, k: int) -> Affine:
        """Every coefficient and the constant, k times."""
        return Affine(tuple((t, c * k) for t, c in self.terms), self.const * k) if k else Affine()

    def floordiv(self, divisor: int) -> Affine:
        """The floor of the quotient by a positive number, with everything divisible taken out of the floor."""
        return _floordiv(self, divisor)

    def split(self, inside: Callable[[Expr], bool]) -> tuple[Affine, Affine]:
        """(the terms that are `inside`, the others with the constant)."""
        here = tuple(tc for tc in self.terms if inside(tc[0]))
        return Affine(here), Affine(tuple(tc for tc in self.terms if tc not in here), self.const)

    def expr(self) -> Expr:
        """The sum as an expression: positive terms, negative terms, the constant."""
        plus = [_scaled(t, c) for t, c in self.terms if c > 0]
        minus = [_scaled(t, -c) for t, c in self.terms if c < 0]
        if not plus:
            if not minus:
                return lift(self.const)
            if self.const:
                return _minus_all(lift(self.const), minus)
            return _minus_all(op("neg", minus[0]), minus[1:])
        total = plus[0]
        for p in plus[1:]:
            total = op("add", total, p)
        total = _minus_all(total, minus)
        if self.const == 0:
            return total
        return op("add", total, self.const) if self.const > 0 else op("sub", total, -self.const)


def _scaled(term: Expr, k: int) -> Expr:
    return term if k == 1 else op("mul", k, term)


def _minus_all(total: Expr, minus: Iterable[Expr]) -> Expr:
    for m in minus:
        total = op("sub", total, m)
    return total


def collect(terms: Iterable[tuple[Expr, int]], const: int) -> Affine:
    """Like terms added up."""
    sums: dict[Expr, int] = {}
    for t, c in terms:
        sums[t] = sums.get(t, 0) + c
    return Affine(tuple(sorted(((t, c) for t, c in sums.items() if c), key=lambda tc: sort_key(tc[0]))), const)


def affine(e: Expr) -> Affine:
    """An int expression, collected."""
    done: dict[Expr, Affine] = {}
    for node in walk(e):
        if node.sort == "int":
            done[node] = _collected(node, done)
    return done[e]


def leaf(e: Expr) -> Affine:
    """A single term."""
    return Affine(((e, 1),))


def _collected(e: Expr, done: dict[Expr, Affine]) -> Affine:
    match e:
        case Const(value, _):
            return Affine((), int(value))
        case Op("where", (c, a, b), _):
            x, y = done[a], done[b]
            return x if x == y else leaf(op("where", c, x.expr(), y.expr()))
        case Op(name, args, _) if all(a.sort == "int" for a in args):
            return _arithmetic(e, name, tuple(done[a] for a in args))
        case _:
            return leaf(e)


def _arithmetic(e: Expr, name: str, xs: tuple[Affine, ...]) -> Affine:
    match name, xs:
        case "add", (a, b):
            return a + b
        case "sub", (a, b):
            return a - b
        case "neg", (a,):
            return a.times(-1)
        case "mul", (a, b):
            return product(a, b)
        case "floordiv", (a, b):
            if not b.terms and b.const:
                return _floordiv(a, b.const)
        case "mod", (a, b):
            if not b.terms and b.const:
                return _mod(a, b.const)
        case "square", (a,):
            return square(a)
        case "relu", (a,):
            return extreme("max", a, Affine())
        case "abs", (a,):
            return absolute(a)
        case (("min" | "max"), (a, b)):
            return extreme(name, a, b)
        case _:
            pass
    return leaf(op(name, *(x.expr() for x in xs)))


def product(a: Affine, b: Affine) -> Affine:
    """a * b, multiplied out; a square is kept."""
    if not a.terms:
        return b.times(a.const)
    if not b.terms:
        return a.times(b.const)
    if a == b:
        return square(a)
    pairs = [(_times(x, y), m * n) for x, m in a.terms for y, n in b.terms]
    return collect([*pairs, *a.times(b.const).terms, *b.times(a.const).terms], a.const * b.const)


def square(a: Affine) -> Affine:
    """a * a; one spelling for the squares of x and -x."""
    if not a.terms:
        return Affine((), a.const**2)
    return leaf(op("square", _upright(a).expr()))


def _upright(a: Affine) -> Affine:
    return a if a.terms[0][1] > 0 else a.times(-1)


def _times(x: Expr, y: Expr) -> Expr:
    first, second = sorted((x, y), key=sort_key)
    return op("mul", first, second)


def _floordiv(a: Affine, c: int) -> Affine:
    if c < 0:
        return _floordiv(a.times(-1), -c)
    out = Affine(tuple((t, k // c) for t, k in a.terms if k % c == 0), a.const // c)
    rest = Affine(tuple((t, k) for t, k in a.terms if k % c), a.const % c)
    g = math.gcd(c, *(k for _, k in rest.terms))
    if g > 1:  # (4*i + 3)//8 is i//2
        rest, c = Affine(tuple((t, k // g) for t, k in rest.terms), rest.const // g), c // g
    match rest.terms:
        case ():
            return out
        case ((Op("floordiv", (x, Const(d, _)), _), 1),) if int(d) > 0:
            return out + _floordiv(affine(x) + rest.const * int(d), int(d) * c)
        case _:
            return out + leaf(op("floordiv", rest.expr(), c))


def _mod(a: Affine, c: int) -> Affine:
    if c < 0:
        return _mod(a.times(-1), -c).times(-1)
    rest = Affine(tuple((t, k) for t, k in a.terms if k % c), a.const % c)
    return leaf(op("mod", rest.expr(), c)) if rest.terms else Affine((), rest.const)


def absolute(a: Affine) -> Affine:
    """abs(a); one spelling for abs(x) and abs(-x)."""
    if not a.terms:
        return Affine((), abs(a.const))
    if len(a.terms) == 1 and a.const == 0 and isinstance(t := a.terms[0][0], Op) and t.name == "abs":
        return Affine(((t, abs(a.terms[0][1])),))
    return leaf(op("abs", _upright(a).expr()))


def extreme(name: str, a: Affine, b: Affine) -> Affine:
    """min or max of two sums."""
    gap = a - b
    if not gap.terms:
        return a if (gap.const <= 0) == (name == "min") else b
    first, second = sorted((a.expr(), b.expr()), key=sort_key)
    return leaf(op(name, first, second))


def at_least_zero(a: Affine) -> Expr:
    """`a >= 0` as a comparison without negative terms; a constant where it has no terms."""
    if not a.terms:
        return lift(a.const >= 0)
    strict = a.const == -1
    const = a.const + strict
    left = Affine(tuple((t, -c) for t, c in a.terms if c < 0), max(0, -const))
    right = Affine(tuple((t, c) for t, c in a.terms if c > 0), max(0, const))
    return op("lt" if strict else "le", left.expr(), right.expr())
