"""Expressions of reads that come as a number times a power of e of any size, so that neither overflows.

rewrite: (e^m a) / max(|e^m b|, 1)  -->  e^(m - n) a / max(|b| e^(m - n), e^-n)  with n = max(m, 0)

What is homogeneous passes the exponent on; terms of a sum, a maximum or a comparison are brought to the larger of their
exponents first; any other function takes the number itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Op, children, with_children
from attncc.ir.nodes import Contract, Load, Reduce

ZERO = Const(0.0, "real")
Power = Callable[[Expr, str], Expr]
"""e to an exponent, with why it is at most 0."""
Pair = tuple[Expr, Expr | None]
"""A number, and the exponent of what it is to be multiplied with; None for 0."""
_LIKE = {"neg": 1.0, "abs": 1.0, "relu": 1.0, "square": 2.0, "recip": -1.0, "sqrt": 0.5, "rsqrt": -0.5}
_JOINED = frozenset({"add", "sub", "max", "min", "lt", "le", "eq", "ne"})


def scaled(e: Expr, exponents: Mapping[Expr, Expr], power: Power, least: float) -> Expr:
    """`e`, in which each atom of `exponents` is e to that times the atom of its name with ` scaled` behind it."""
    return plain(_Pass(exponents, power, least).pair(e), power, least)


def plain(x: Pair, power: Power, least: float) -> Expr:
    """A number times its power of e: as large as it is, 0 where it is too small, without 0 times infinity.

    e to `least` is no smaller than the numbers that are held.
    """
    number, exponent = x
    if exponent is None:
        return number
    half = op("mul", op("abs", exponent), -0.5)
    part = power(op("where", op("lt", half, least), least, half), "half of what is negated")
    up = op("div", op("div", number, part), part)
    return op("where", op("lt", 0.0, exponent), up, op("mul", op("mul", number, part), part))


class _Pass:
    def __init__(self, exponents: Mapping[Expr, Expr], power: Power, least: float) -> None:
        self.exponents, self.power, self.least = exponents, power, least
        self.known: dict[Expr, Pair] = {}

    def pair(self, e: Expr) -> Pair:
        if e not in self.known:
            self.known[e] = self._pair(e)
        return self.known[e]

    def value(self, e: Expr) -> Expr:
        return plain(self.pair(e), self.power, self.least)

    def _pair(self, e: Expr) -> Pair:
        match e:
            case Load(tensor, index, sort, span) if e in self.exponents:
                return Load(f"{tensor} scaled", index, sort, span), self.exponents[e]
            case Op("mul", (a, b)):
                (x, m), (y, n) = self.pair(a), self.pair(b)
                return op("mul", x, y), _sum(m, n)
            case Op("div", (a, b)):
                (x, m), (y, n) = self.pair(a), self.pair(b)
                return op("div", x, y), _sum(m, None if n is None else op("neg", n))
            case Op("where", (c, a, b)):
                (x, y), m = self.joined(a, b)
                return op("where", self.value(c), x, y), m
            case Op("pow", (a, Const(k) as b)):
                x, m = self.pair(a)
                return op("pow", x, b), None if m is None else op("mul", m, float(k))
            case Op(name, (a,)) if name in _LIKE:
                x, m = self.pair(a)
                return op(name, x), None if m is None else op("mul", m, _LIKE[name])
            case Op(name, (a, b)) if name in _JOINED:
                (x, y), m = self.joined(a, b)
                return op(name, x, y), None if e.sort == "bool" else m
            case Contract(a, b, axis, extent, sort, span):
                (x, m), (y, n) = self.pair(a), self.pair(b)
                return Contract(x, y, axis, extent, sort, span), _sum(m, n)
            case Reduce(name, body, binders, where, sort, span) if name in ("sum", "mean", "max", "min"):
                x, m = self.pair(body)
                return Reduce(name, x, binders, self.value(where), sort, span), m
            case _:
                parts = children(e)
                return (with_children(e, tuple(self.value(c) for c in parts)) if parts else e), None

    def joined(self, a: Expr, b: Expr) -> tuple[tuple[Expr, Expr], Expr | None]:
        """Two numbers brought to one exponent, the larger."""
        (x, m), (y, n) = self.pair(a), self.pair(b)
        if m is n or b is ZERO:
            return (x, y), m
        if a is ZERO:
            return (x, y), n
        m, n = m or ZERO, n or ZERO
        top = op("max", m, n)
        why = "less the larger of two"
        return (op("mul", x, self.power(op("sub", m, top), why)), op("mul", y, self.power(op("sub", n, top), why))), top


def _sum(m: Expr | None, n: Expr | None) -> Expr | None:
    if m is None or n is None:
        return n if m is None else m
    return op("add", m, n)
