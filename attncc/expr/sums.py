"""The normal form of real sums. They keep their association, which the author may have chosen for accuracy:
only constants are gathered, equal terms added and signs taken out of the operands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.order import sort_key
from attncc.expr.products import ZERO, negated

if TYPE_CHECKING:
    from attncc.expr.algebra import Algebra

FAMILY = frozenset({"add", "sub"})


def normal(cx: Algebra, name: str, a: Expr, b: Expr) -> Expr:
    """rewrite: (x + 1.0) - 3.0 --> x - 2.0;  x - -y --> x + y;  2.0 * x + x --> 3.0 * x"""
    if isinstance(b, Const):
        return _plus_constant(cx, a, b.value if name == "add" else -b.value)
    if isinstance(a, Const):
        return _plus_constant(cx, b, a.value) if name == "add" else _constant_less(cx, a.value, b)
    same = _equal_terms(cx, a, b, 1 if name == "add" else -1)
    if same is not None:
        return same
    minus_a, minus_b = negated(a), negated(b)
    if name == "sub":
        if minus_b is not None:
            return cx.make("add", a, minus_b)
        return _pair("sub", a, b) if minus_a is None else cx.make("neg", _sum(minus_a, b))
    if minus_a is not None and minus_b is not None:
        return cx.make("neg", _sum(minus_a, minus_b))
    if minus_a is None and minus_b is None:
        return _sum(a, b)
    return _pair("sub", b, minus_a) if minus_b is None and minus_a is not None else _pair("sub", a, minus_b or b)


def _pair(name: str, a: Expr, b: Expr) -> Expr:
    return Op(name, (a, b), "real")


def _sum(a: Expr, b: Expr) -> Expr:
    return _pair("add", *sorted((a, b), key=sort_key))


def _plus_constant(cx: Algebra, a: Expr, c: float) -> Expr:
    """a + c, the constant last."""
    match a:
        case Op("add", (x, Const(d, _)), "real"):
            return cx.build("add", x, d + c)
        case Op("sub", (x, Const(d, _)), "real"):
            return cx.build("add", x, c - d)
        case Op("sub", (Const(d, _), x), "real"):
            return cx.build("sub", d + c, x)
    if c == 0:
        return a
    minus = negated(a)
    if minus is not None:
        return _pair("sub", Const(c, "real"), minus)
    return _pair("add", a, Const(c, "real")) if c > 0 else _pair("sub", a, Const(-c, "real"))


def _constant_less(cx: Algebra, c: float, b: Expr) -> Expr:
    """c - b, the constant first."""
    match b:
        case Op("add", (x, Const(d, _)), "real"):
            return cx.build("sub", c - d, x)
        case Op("sub", (x, Const(d, _)), "real"):
            return cx.build("sub", c + d, x)
        case Op("sub", (Const(d, _), x), "real"):
            return cx.build("add", x, c - d)
    if c == 0:
        return cx.make("neg", b)
    minus = negated(b)
    return _pair("sub", Const(c, "real"), b) if minus is None else cx.build("add", minus, c)


def _equal_terms(cx: Algebra, a: Expr, b: Expr, sign: int) -> Expr | None:
    """rewrite: 2.0 * x + 3.0 * x --> 5.0 * x, to 0 only where x is never infinite"""
    (p, x), (q, y) = literal_factor(a), literal_factor(b)
    q *= sign
    if x is not y or not abs(p + q) < 1e280:
        return None
    if p + q == 0:
        return ZERO if cx.finite(x) else None
    return cx.build("mul", p + q, x) if abs(p + q) > 1e-280 else None


def literal_factor(e: Expr) -> tuple[float, Expr]:
    """e as a literal times the rest."""
    match e:
        case Op("mul", (Const(value, _), x), "real"):
            return float(value), x
        case Op("neg", (x,), "real"):
            return -1.0, x
    return 1.0, e
