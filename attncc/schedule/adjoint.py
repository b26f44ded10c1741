"""Reverse accumulation over the statements of a kernel: the adjoint of every value that a result depends on.

rewrite: y = f(x), adjoint of y known  -->  adjoint of x += (d f / d x) * adjoint of y, summed over the axes x lacks
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace

from attncc.errors import InternalError
from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars
from attncc.passes.differentiate import gradients
from attncc.schedule.chunk_moved import LN2
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

ZERO = Const(0.0, "real")


@dataclass(frozen=True, slots=True)
class Power:
    """2 to the power of the value `of`, whose axes are called `axes`."""

    of: str
    axes: tuple[str, ...]


class Adjoints:
    """The adjoints in one scope; `moving` are the values whose adjoints are wanted, or pass on to such."""

    def __init__(self, k: Chunk, statements: Iterable[t.Stmt], wanted: frozenset[str]) -> None:
        self.k = k
        self.lets = [s for s in statements if isinstance(s, t.Let)]
        self.moving = set(wanted) - k.still
        self.of: dict[str, Var] = {}
        self.given: frozenset[str] = frozenset()
        """Values whose adjoints are whole from the start."""
        self.ends: frozenset[str] = frozenset()
        """Values whose adjoints are not passed on."""
        self.passed: set[tuple[str, str]] = set()
        """Products whose adjoints an operand has already."""
        for s in self.lets:
            real = s.type.dtype in ("f64", "f32", "f16", "bf16") and s.name not in k.still
            if real and any(x in self.moving for x in (*_operands(s.op), *self._behind(s.name))):
                self.moving.add(s.name)

    def add(self, name: str, e: Expr) -> None:
        """Adds `e`, over at most the value's own axes, to its adjoint."""
        if name in self.given:
            return
        names = self.k.b.type_of(name).names()
        one = self.k.value(e, "a")
        part = self.k.over(one, *names)
        known = self.of.get(name)
        self.of[name] = part if known is None else self._joined(known, part)

    def _joined(self, known: Var, part: Var) -> Var:
        """Their sum; a product begins with the other, where both lie alike."""
        b = self.k.b
        for product, other in ((known, part), (part, known)):
            made, type = b.made.get(product.name), b.type_of(product.name)
            if isinstance(made, t.Dot) and made.start is None and type == b.type_of(other.name):
                return b.let("a", type, replace(made, start=other.name))
        return self.k.value(op("add", known, part), "a")

    def run(self) -> None:
        """Passes every adjoint on, the last statement's first.

        What is summed over queries lies with its keys behind, as the product with weights over (i, j) makes it.
        """
        with nullcontext() if self.k.upright else self.k.turned():
            for s in reversed(self.lets):
                if s.name in self.of and s.name not in self.k.still | self.ends:
                    self._pass_on(s, self.of[s.name])

    def _behind(self, name: str) -> tuple[str, ...]:
        return self.k.known[name][0] if name in self.k.known else ()

    def _pass_on(self, s: t.Let, a: Var) -> None:
        if s.name in self.k.known:
            names, rule = self.k.known[s.name]
            for name, e in zip(names, rule(a), strict=True):
                self._to(name, e)
            return
        match s.op:
            case t.Map(body):
                self._map(s, body, a)
            case t.Cast(value) | t.DotWait(value):
                self._to(value, a)
            case t.Rename(value):
                self._renamed(s, value, a)
            case t.Reduce("sum", value, _):
                self._to(value, a)
            case t.Reduce("max", value, _):
                at_top = op("eq", Var(value, "real"), Var(s.name, "real"))
                self._to(value, op("where", at_top, a, ZERO))
            case t.Scan("sum", value, axis, reverse, exclusive):
                if value in self.moving:
                    scan = t.Scan("sum", a.name, axis, not reverse, exclusive)
                    self.add(value, self.k.b.let("a", self.k.b.type_of(a.name), scan))
            case t.Dot():
                self._dot(s, s.op, a)
            case t.Load() | t.Full() | t.Iota():
                pass
            case _:
                raise InternalError(f"no adjoint of {type(s.op).__name__}")

    def _to(self, name: str, e: Expr) -> None:
        if name in self.moving:
            self.add(name, e)

    def _map(self, s: t.Let, body: Expr, a: Var) -> None:
        match body:
            case Op("where", (_, inner, Const(value=low))) if low == float("-inf"):
                body = inner  # only powers are computed from it, and where they are 0 so is what comes back
            case _:
                pass
        names = [n for n in sorted(free_vars(body)) if n in self.moving]
        if not names or self._scaled(s, a) or self._faded(s, body, a):
            return
        wrts = [Var(n, "real") for n in names]
        for name, part in zip(names, gradients(body, wrts, a), strict=True):
            if part is not ZERO:
                self.add(name, self._summed(part, s.type, self.k.b.type_of(name)))

    def _scaled(self, s: t.Let, a: Var) -> bool:
        """Of a product's rows times a factor: the gradient of those rows is also the factor's, summed with them.

        rewrite: y = 2^g (x @ w)  -->  a = 2^g (adjoint of y @ w^T), adjoint of x += a, of g += log 2 * sum of x a
        """
        known = self.k.scaled.get(s.name)
        if known is None or known.product.name not in self.moving:
            return False
        d = self.k.b.made[known.product.name]
        assert isinstance(d, t.Dot) and isinstance(d.a, str) and isinstance(d.b, str)
        exponent = self._exponent(known.factor)
        own = {x for n in free_vars(known.factor) for x in self.k.b.type_of(n).names()}
        pairs = ((d.a, d.b), (d.b, d.a))
        fitting = [p for p in pairs if p[0] in self.moving and own <= set(self.k.b.type_of(p[0]).names())]
        if exponent is None or not fitting:
            return False
        name, other = fitting[0]
        found, factor = self._product(a, name, other, d.axis)
        found = self.k.value(op("mul", known.factor if factor is None else op("mul", factor, known.factor), found), "a")
        self._to(name, found)
        self._to_exponent(exponent, op("mul", self.k.widened(Var(name, "real")), found))
        if other in self.moving:
            self.passed.add((known.product.name, name))
            self.add(known.product.name, op("mul", known.factor, a))
        return True

    def _faded(self, s: t.Let, body: Expr, a: Var) -> bool:
        """Of a value times a power: what the value gets is the exponent's, too.

        rewrite: y = x 2^g  -->  b = 2^g * adjoint of y, adjoint of x += b, of g += log 2 * sum of x b
        """
        match body:
            case Op("mul", (Var() as one, Var() as other)):
                pairs = ((one, other), (other, one))
            case _:
                return False
        for x, f in pairs:
            exponent = self._exponent(f)
            if exponent is not None and exponent.axes and set(self.k.b.type_of(x.name).names()) == set(s.type.names()):
                found = self.k.value(op("mul", a, f), "a")
                self._to(x.name, found)
                self._to_exponent(exponent, op("mul", x, found))
                return True
        return False

    def _exponent(self, f: Expr) -> Power | None:
        """Of a power of two that moves, times what does not."""
        match f:
            case Op("mul", (x, y)):
                moving, *others = sorted((x, y), key=lambda v: not free_vars(v) & self.moving)
                return None if any(free_vars(v) & self.moving for v in others) else self._exponent(moving)
            case Var(name) if name in self.moving:
                match self.k.b.made.get(name):
                    case t.Map(Op("exp2", (Var(of),))) if of in self.moving:
                        return Power(of, self.k.b.type_of(name).names())
                    case t.Rename(value):
                        found = self._exponent(Var(value, "real"))
                        return None if found is None else Power(found.of, self.k.b.type_of(name).names())
        return None

    def _to_exponent(self, p: Power, e: Expr) -> None:
        """Adds log 2 times the sum of `e` over the axes that a power lacks."""
        one = self.k.value(e, "a")
        kept = replace(self.k.b.type_of(p.of), axes=tuple(t.Axis(n, self.k.b.extent(n)) for n in p.axes))
        total = self.k.value(op("mul", self._summed(one, self.k.b.type_of(one.name), kept), LN2), "a")
        names = self.k.b.type_of(p.of).names()
        if p.axes != names:
            new = dict(zip(p.axes, names, strict=True))
            axes = tuple(t.Axis(new[x.name], x.extent) for x in self.k.b.type_of(total.name).axes)
            total = self.k.b.let("a", t.Type(axes, self.k.real), t.Rename(total.name))
        self.add(p.of, total)

    def _summed(self, e: Expr, whole: t.Type, kept: t.Type) -> Expr:
        """`e` over `whole`, summed over the axes that are not kept."""
        lost = [x for x in whole.names() if x not in kept.names()]
        if not lost:
            return e
        v = self.k.over(self.k.value(e, "a"), *whole.names())
        for axis in lost:
            v = self.k.sum("a", v, axis)
        return v

    def _renamed(self, s: t.Let, value: str, a: Var) -> None:
        if value in self.moving:
            old, new = self.k.b.type_of(value), dict(zip(s.type.names(), self.k.b.type_of(value).names(), strict=True))
            extents = {x.name: x.extent for x in old.axes}
            mine = tuple(t.Axis(new[x.name], extents[new[x.name]]) for x in self.k.b.type_of(a.name).axes)
            self.add(value, self.k.b.let("a", t.Type(mine, self.k.real), t.Rename(a.name)))

    def _dot(self, s: t.Let, d: t.Dot, a: Var) -> None:
        assert isinstance(d.a, str) and isinstance(d.b, str)
        if d.start is not None:
            self._to(d.start, a)
        for name, other in ((d.a, d.b), (d.b, d.a)):
            if name in self.moving and (s.name, name) not in self.passed:
                found, factor = self._product(a, name, other, d.axis)
                self.add(name, found if factor is None else op("mul", factor, found))

    def _product(self, a: Var, name: str, other: str, summed: str) -> tuple[Var, Expr | None]:
        """What a product's adjoint gives one of its operands, by means of the other; and a factor of that."""
        (axis,) = set(self.k.b.type_of(other).names()) - {summed}
        left, factor = self.k.unscaled(a, axis)
        right = Var(other, "real")
        if isinstance(factor, Const) and self._weights(right):
            right, factor = self.k.value(op("mul", self.k.widened(right), factor), "a"), None
        pair, out = self.k.fitted(left, right, axis, self.k.b.type_of(name).names())
        return self.k.dot("a", *pair, axis, out), factor

    def _weights(self, v: Var) -> bool:
        """Whether an operand pairs tokens: it is small, and made for the product."""
        return set(self.k.b.type_of(v.name).names()) == {"i", "j"}


def _operands(x: t.Op) -> frozenset[str]:
    match x:
        case t.Map(body):
            return free_vars(body)
        case t.Dot(a, b, _, start):
            return frozenset(n for n in (a, b, start) if isinstance(n, str))
        case t.Reduce(_, value) | t.Scan(_, value) | t.Cast(value) | t.Rename(value) | t.DotWait(value):
            return frozenset({value})
        case _:
            return frozenset()
