"""The normal form of real products.

    coefficient * where(condition, numerator / denominator, 0)

The coefficient gathers the literal and all factors that are one number per launch; equal factors are gathered in
powers. Valid wherever the product's factors are finite; a factor that isn't one number per launch never cancels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.order import sort_key

if TYPE_CHECKING:
    from attncc.expr.algebra import Algebra

FAMILY = frozenset({"mul", "div", "neg", "recip", "square", "rsqrt"})
ZERO = Const(0.0, "real")
ONE = Const(1.0, "real")
MINUS_ONE = Const(-1.0, "real")
_TINY = 1e-280

Powers = dict[Expr, tuple[int, int]]
"""Base -> (how often it multiplies, how often it divides)."""


def normal(cx: Algebra, e: Op) -> Expr:
    """rewrite: (x * cap) / 2.0 --> (0.5 * cap) * x"""
    powers, conditions = _factors(cx, e)
    literal, powers = _literal(powers)
    if literal == 0 and all(cx.finite(b) and p[1] == 0 for b, p in powers.items()):
        return ZERO
    free = {b: _cancelled(b, p) for b, p in powers.items() if cx.index_free(b)}
    rest = {b: p for b, p in powers.items() if b not in free}
    coefficient = _coefficient(literal, free)
    if not conditions:
        return _into_signs(cx, coefficient, rest) or scaled(coefficient, _fraction(rest))
    condition = conditions[0]
    for c in conditions[1:]:
        condition = cx.make("and", condition, c)
    body = _fraction(rest)
    if body is None:
        return cx.make("where", condition, coefficient, ZERO)
    body = cx.make("where", condition, body, ZERO)
    return ZERO if body is ZERO else scaled(coefficient, body)


def scaled(coefficient: Expr, body: Expr | None) -> Expr:
    """coefficient * body, both in normal form; the sign of -1 is taken into a difference."""
    if body is None or coefficient is ONE:
        return coefficient if body is None else body
    if coefficient is MINUS_ONE:
        return _negation(body)
    return Op("mul", (coefficient, body), "real")


def negated(e: Expr, depth: int = 3) -> Expr | None:
    """-e where that takes a minus sign away; in a normal form none stands deeper than in the coefficient's literal."""
    match e:
        case Const(value, "real") if value < 0:
            return Const(-value, "real")
        case Op("neg", (x,), "real"):
            return x
        case Op("mul" | "div" as name, (a, b), "real") if depth:
            positive = negated(a, depth - 1)
            if positive is not ONE:
                return positive and Op(name, (positive, b), "real")
            return b if name == "mul" else Op("recip", (b,), "real")
    return None


def _negation(e: Expr) -> Expr:
    """rewrite: -(a - b) --> b - a;  -(a + 2.0) --> -2.0 - a"""
    match e:
        case Op("sub", (a, b), "real"):
            if isinstance(a, Const) and a.value < 0:
                return Op("add", (b, Const(-a.value, "real")), "real")
            return Op("sub", (b, a), "real")
        case Op("add", (a, Const(value, _)), "real"):
            return Op("sub", (Const(-value, "real"), a), "real")
    return Op("neg", (e,), "real")


def _factors(cx: Algebra, e: Op) -> tuple[Powers, list[Expr]]:
    """Bases with their powers, and the conditions without which the product is 0."""
    pending: Powers = {e: (1, 0)}
    powers: Powers = {}
    conditions: dict[Expr, None] = {}
    for node, opened in cx.parents_first(e, _opened):
        if node not in pending:
            continue
        up, down = pending.pop(node)
        if opened and isinstance(node, Op) and node.name == "where":
            if down:
                opened = []
            else:
                conditions[_gate(cx, node)] = None
        for child, num, den in opened:
            old = pending.get(child, (0, 0))
            pending[child] = (old[0] + up * num + down * den, old[1] + up * den + down * num)
        if not opened:
            powers[node] = (up, down)
    return powers, list(conditions)


def _opened(node: Expr) -> list[tuple[Expr, int, int]]:
    """The factors of one node, each with how often it multiplies and divides; none where it is a base."""
    match node:
        case Op("mul", (a, b), "real"):
            return [(a, 1, 0), (b, 1, 0)]
        case Op("div", (a, b), _):
            return [(a, 1, 0), (b, 0, 1)]
        case Op("neg", (a,), "real"):
            return [(MINUS_ONE, 1, 0), (a, 1, 0)]
        case Op("recip", (a,), _):
            return [(a, 0, 1)]
        case Op("square", (a,), "real"):
            return [(a, 2, 0)]
        case Op("rsqrt", (a,), _) if not isinstance(a, Const):
            return [(Op("sqrt", (a,), "real"), 0, 1)]
        case Op("where", (_, a, b), "real") if (a is ZERO) != (b is ZERO):
            return [(b if a is ZERO else a, 1, 0)]
    return []


def _gate(cx: Algebra, choice: Expr) -> Expr:
    """Where a choice between a value and 0 is not 0."""
    assert isinstance(choice, Op)
    return cx.make("not", choice.args[0]) if choice.args[1] is ZERO else choice.args[0]


def _literal(powers: Powers) -> tuple[float, Powers]:
    """The product of the constants, and the other factors; a constant stays where the product would leave the range,
    and so does a divisor of 0."""
    literal = 1.0
    kept = {b: p for b, p in powers.items() if not isinstance(b, Const)}
    for c in sorted((b for b in powers if isinstance(b, Const)), key=sort_key):
        up, down = powers[c]
        try:
            value = literal * _whole_power(c.value, up) / _whole_power(c.value, down)
        except OverflowError:
            kept[c] = up, down
        except ZeroDivisionError:
            kept[c] = min(up, 1), 1
        else:
            if in_range(value) or (value == 0 and (literal == 0 or c.value == 0)):
                literal = value
            else:
                kept[c] = up, down
    return literal, kept


def in_range(x: float) -> bool:
    """Far from overflow and underflow."""
    return _TINY < abs(x) < 1 / _TINY


def _whole_power(x: float, n: int) -> float:
    return float(x ** (n % 2 if abs(x) == 1 else n))


def _cancelled(base: Expr, power: tuple[int, int]) -> tuple[int, int]:
    """rewrite: cap / cap --> 1"""
    both = 0 if isinstance(base, Const) else min(power)
    return power[0] - both, power[1] - both


def _coefficient(literal: float, free: Powers) -> Expr:
    fraction = _fraction(free)
    if fraction is None or literal == 1.0:
        return Const(literal, "real") if fraction is None else fraction
    if isinstance(fraction, Op) and fraction.name == "recip" and literal != -1.0:
        return Op("div", (Const(literal, "real"), fraction.args[0]), "real")
    return scaled(Const(literal, "real"), fraction)


def _fraction(powers: Powers) -> Expr | None:
    """rewrite: x / sqrt(y) --> x * rsqrt(y)"""
    above: dict[Expr, int] = {}
    below: dict[Expr, int] = {}
    for base, (up, down) in powers.items():
        if up:
            above[base] = up
        if down and isinstance(base, Op) and base.name == "sqrt":
            above[Op("rsqrt", base.args, "real")] = down
        elif down:
            below[base] = down
    num, den = _monomial(above), _monomial(below)
    if den is None:
        return num
    return Op("recip", (den,), "real") if num is None else Op("div", (num, den), "real")


def _monomial(powers: dict[Expr, int]) -> Expr | None:
    """rewrite: x**2 * y**3 --> y * square(x * y)"""
    result: Expr | None = None
    ordered = sorted(powers, key=sort_key)
    for bit in reversed(range(max((n.bit_length() for n in powers.values()), default=0))):
        factors = [b for b in ordered if powers[b] >> bit & 1]
        if result is not None:
            factors.append(Op("square", (result,), "real"))
            factors.sort(key=sort_key)
        result = factors[0]
        for f in factors[1:]:
            result = Op("mul", (result, f), "real")
    return result


def _into_signs(cx: Algebra, coefficient: Expr, rest: Powers) -> Expr | None:
    """rewrite: x * where(c, 1.0, where(d, -1.0, 0.0)) --> where(c, x, where(d, -x, 0.0))"""
    choice = next((b for b in sorted(rest, key=sort_key) if rest[b] == (1, 0) and _is_sign(b)), None)
    others = {b: p for b, p in rest.items() if b is not choice}
    if choice is None or (not others and coefficient is ONE):
        return None
    value = scaled(coefficient, _fraction(others))
    leaves = {ONE: value, MINUS_ONE: cx.make("neg", value), ZERO: ZERO}

    def spread(e: Expr) -> Expr:
        if e in leaves:
            return leaves[e]
        c, a, b = e.args  # type: ignore[attr-defined]
        return cx.make("where", c, spread(a), spread(b))

    return spread(choice)


def _is_sign(e: Expr, depth: int = 4) -> bool:
    """A choice, a few deep, between 1, -1 and 0."""
    match e:
        case Const(value, "real"):
            return depth < 4 and value in (-1.0, 0.0, 1.0)
        case Op("where", (_, a, b), "real"):
            return depth > 0 and _is_sign(a, depth - 1) and _is_sign(b, depth - 1)
    return False
