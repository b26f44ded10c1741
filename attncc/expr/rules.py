"""Single rewrite rules, by the operation at the root: each takes the arguments in normal form and gives the new
normal form, or None where it doesn't apply. Every rule is a named function with its equation as docstring."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from attncc.expr.build import FALSE, TRUE, lift
from attncc.expr.integers import UNIT, from_linear, linear
from attncc.expr.interval import step as interval_step
from attncc.expr.interval import verdict
from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.products import negated

if TYPE_CHECKING:
    from attncc.expr.algebra import Algebra

Rule = Callable[..., Expr | None]


def same_operands(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
    """max(x, x) --> x"""
    return a if a is b else None


def _gather_constant(name: str) -> Rule:
    def gather_constant(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
        """max(max(x, 1), 2) --> max(x, 2)"""
        c, x = (a, b) if isinstance(a, Const) else (b, a)
        match x:
            case Op(inner, args, _) if inner == name and isinstance(c, Const):
                for k, d in enumerate(args):
                    if isinstance(d, Const):
                        return cx.make(name, cx.make(name, c, d), args[1 - k])
        return None

    return gather_constant


def _decided_extreme(name: str) -> Rule:
    def decided_extreme(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
        """max(exp(x), -1.0) --> exp(x)"""
        p, q = cx.bounds(a), cx.bounds(b)
        if p.lo >= q.hi:
            return a if name == "max" else b
        if q.lo >= p.hi:
            return b if name == "max" else a
        return None

    return decided_extreme


def sign_known(cx: Algebra, x: Expr) -> Expr | None:
    """abs(exp(x)) --> exp(x);  abs(-x) --> abs(x)"""
    if cx.bounds(x).lo >= 0:
        return x
    if cx.bounds(x).hi <= 0:
        return cx.make("neg", x)
    positive = _without_sign(x)
    return None if positive is None else cx.make("abs", positive)


def _without_sign(x: Expr) -> Expr | None:
    match x:
        case Op("neg", (y,), "int"):
            return y
        case _ if x.sort == "real":
            return negated(x)
    return None


def relu_decided(cx: Algebra, x: Expr) -> Expr | None:
    """relu(exp(x)) --> exp(x)"""
    if cx.bounds(x).lo >= 0:
        return x
    return lift(0.0 if x.sort == "real" else 0) if cx.bounds(x).hi <= 0 else None


def even(name: str) -> Rule:
    """The rule of an even function: a negated argument loses its sign."""

    def even_function(cx: Algebra, x: Expr) -> Expr | None:
        """cos(-x) --> cos(x)"""
        positive = negated(x)
        return None if positive is None else cx.make(name, positive)

    return even_function


def _inverse(outer: str, inner: str) -> Rule:
    def inverse(cx: Algebra, x: Expr) -> Expr | None:
        """log(exp(x)) --> x"""
        return x.args[0] if isinstance(x, Op) and x.name == inner else None

    inverse.__name__ = f"{outer}_of_{inner}"
    return inverse


def known_power(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
    """x ** 2.0 --> square(x);  x ** -0.5 --> rsqrt(x);  2.0 ** x --> exp2(x)"""
    match a, b:
        case _, Const(0.0, _):
            return lift(1.0)
        case _, Const(1.0, _):
            return a
        case _, Const(2.0, _):
            return cx.make("square", a)
        case _, Const(-1.0, _):
            return cx.make("recip", a)
        case _, Const(0.5, _):
            return cx.make("sqrt", a)
        case _, Const(-0.5, _):
            return cx.make("rsqrt", a)
        case _, Const(n, _) if n == math.floor(n) and 2 < n <= 8:
            return cx.make("mul", cx.build("pow", a, n - 1), a)
        case Const(2.0, _), _:
            return cx.make("exp2", b)
    return None


def whole_already(cx: Algebra, x: Expr) -> Expr | None:
    """floor(real(i)) --> i"""
    return x.args[0] if isinstance(x, Op) and x.name == "real" and x.args[0].sort == "int" else None


def divide_known(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
    """x // 1 --> x;  (4 * i + r) // 4 --> i + r // 4;  (i // 2) // 3 --> i // 6"""
    quotient = _quotient(cx, a, b)
    if quotient is not None:
        return lift(quotient)
    match b:
        case Const(1, "int"):
            return a
        case Const(c, "int") if c != 0:
            whole, rest = _multiples(cx, a, int(c))
            if whole:
                return cx.make("add", from_linear(whole), cx.make("floordiv", from_linear(rest), b))
            if isinstance(a, Op) and a.name == "floordiv" and isinstance(a.args[1], Const):
                if c > 0 and a.args[1].value > 0:
                    return cx.make("floordiv", a.args[0], lift(int(a.args[1].value) * int(c)))
    return None


def modulo_known(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
    """x % 1 --> 0;  (4 * i + r) % 4 --> r % 4;  (i % 6) % 6 --> i % 6"""
    quotient = _quotient(cx, a, b)
    if quotient == 0:
        return a
    match b:
        case Const(1 | -1, "int"):
            return lift(0)
        case Const(c, "int") if c != 0:
            whole, rest = _multiples(cx, a, int(c))
            if whole:
                return cx.make("mod", from_linear(rest), b)
    return None


def _quotient(cx: Algebra, a: Expr, b: Expr) -> int | None:
    """The quotient where intervals fix it."""
    known = {a: cx.bounds(a), b: cx.bounds(b)}
    if 0 in known[b]:
        return None
    q = interval_step(Op("floordiv", (a, b), "int"), known)
    return int(q.lo) if q.lo == q.hi and q.finite else None


def _multiples(cx: Algebra, a: Expr, c: int) -> tuple[dict[Expr, int], dict[Expr, int]]:
    """The terms of `a` that c divides, each divided by c, and the other terms; a constant is split."""
    whole: dict[Expr, int] = {}
    rest: dict[Expr, int] = {}
    for t, k in linear(cx, a).items():
        if k % c == 0:
            whole[t] = k // c
        elif t is UNIT and not 0 < k / c < 1:
            whole[t], rest[t] = k // c, k % c
        else:
            rest[t] = k
    return whole, rest


def _decided(name: str) -> Rule:
    def decided_comparison(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
        """exp(x) < 0.0 --> False"""
        known = {a: cx.bounds(a), b: cx.bounds(b)}
        truth = verdict(interval_step(Op(name, (a, b), "bool"), known))
        return None if truth is None else lift(truth)

    return decided_comparison


def _reflexive(value: bool) -> Rule:
    def identical_operands(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
        """i <= i --> True (of reals only what NaN can't contradict)"""
        return lift(value) if a is b and (a.sort != "real" or not value) else None

    return identical_operands


def equal_bools(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
    """p == True --> p;  p == False --> not p"""
    for x, y in ((a, b), (b, a)):
        if x is TRUE or x is FALSE:
            return y if x is TRUE else cx.make("not", y)
    return None


def unequal_bools(cx: Algebra, a: Expr, b: Expr) -> Expr | None:
    """p != False --> p"""
    same = equal_bools(cx, a, b)
    return None if same is None else cx.make("not", same)


_COMPLEMENT = {"lt": ("le", True), "le": ("lt", True), "eq": ("ne", False), "ne": ("eq", False)}


def negate(cx: Algebra, x: Expr) -> Expr | None:
    """not not p --> p;  not (i < j) --> j <= i (of integers)"""
    match x:
        case Op("not", (y,), _):
            return y
        case Op("lt" | "le" | "eq" | "ne" as name, (a, b), _) if a.sort == "int":
            other, swap = _COMPLEMENT[name]
            return cx.make(other, b, a) if swap else cx.make(other, a, b)
    return None


def choose(cx: Algebra, c: Expr, a: Expr, b: Expr) -> Expr | None:
    """where(True, x, y) --> x;  where(c, x, x) --> x;  where(not c, x, y) --> where(c, y, x)"""
    if c is TRUE or c is FALSE or a is b:
        return b if c is FALSE else a
    if isinstance(c, Op) and c.name == "not":
        return cx.make("where", c.args[0], b, a)
    if a.sort == "bool":
        return _choose_bool(cx, c, a, b)
    return None


def _choose_bool(cx: Algebra, c: Expr, a: Expr, b: Expr) -> Expr | None:
    """where(c, p, False) --> c and p"""
    if a is FALSE:
        return cx.make("and", cx.make("not", c), b)
    if b is FALSE:
        return cx.make("and", c, a)
    if a is TRUE:
        return cx.make("or", c, b)
    return cx.make("or", cx.make("not", c), a) if b is TRUE else None


def same_condition(cx: Algebra, c: Expr, a: Expr, b: Expr) -> Expr | None:
    """where(c, where(c, x, y), z) --> where(c, x, z)"""
    match a, b:
        case Op("where", (d, x, _), _), _ if d is c:
            return cx.make("where", c, x, b)
        case _, Op("where", (d, _, y), _) if d is c:
            return cx.make("where", c, a, y)
    return None


RULES: dict[str, tuple[Rule, ...]] = {
    "max": (same_operands, _gather_constant("max"), _decided_extreme("max")),
    "min": (same_operands, _gather_constant("min"), _decided_extreme("min")),
    "abs": (sign_known,),
    "relu": (relu_decided,),
    "cos": (even("cos"),),
    "log": (_inverse("log", "exp"),),
    "log2": (_inverse("log2", "exp2"),),
    "exp": (_inverse("exp", "log"),),
    "exp2": (_inverse("exp2", "log2"),),
    "pow": (known_power,),
    "floor": (whole_already,),
    "ceil": (whole_already,),
    "floordiv": (divide_known,),
    "mod": (modulo_known,),
    "lt": (_reflexive(False), _decided("lt")),
    "le": (_reflexive(True), _decided("le")),
    "eq": (_reflexive(True), _decided("eq"), equal_bools),
    "ne": (_reflexive(False), _decided("ne"), unequal_bools),
    "not": (negate,),
    "where": (choose, same_condition),
}


def rule_names() -> dict[str, tuple[str, ...]]:
    """The names of the rules per operation."""
    return {name: tuple(getattr(r, "__name__", "") for r in rules) for name, rules in RULES.items()}
