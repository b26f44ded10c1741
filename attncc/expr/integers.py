"""The normal form of integers: a sum of products with literal coefficients, ordered; exact, so freely regrouped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.order import sort_key

if TYPE_CHECKING:
    from attncc.expr.algebra import Algebra

FAMILY = frozenset({"add", "sub", "neg", "mul", "square"})
PRODUCTS = frozenset({"mul", "square"})
UNIT = Const(1, "int")

Linear = dict[Expr, int]
"""Product of variables -> its coefficient; UNIT carries the constant."""


def normal(cx: Algebra, e: Op) -> Expr:
    """rewrite: 2 * (i - j) + j --> 2 * i - j"""
    return from_linear(linear(cx, e))


def linear(cx: Algebra, e: Expr) -> Linear:
    """The coefficients of `e`, whose operands are in normal form."""
    total: Linear = {}
    pending: Linear = {e: 1}
    for node, terms in cx.parents_first(e, lambda n: _opened(cx, n)):
        if node not in pending:
            continue
        c = pending.pop(node)
        if not terms:
            k, base = (node.value, UNIT) if isinstance(node, Const) else (1, node)
            total[base] = total.get(base, 0) + c * int(k)
        for child, k in terms:
            pending[child] = pending.get(child, 0) + c * k
    return {t: c for t, c in total.items() if c != 0}


def from_linear(terms: Linear) -> Expr:
    """The sum, first a positive term, then by `sort_key`, the constant last."""
    ordered = sorted((t for t in terms if t is not UNIT), key=sort_key)
    constant = terms.get(UNIT, 0)
    first = next((t for t in ordered if terms[t] > 0), None)
    if first is not None:
        ordered.remove(first)
        result: Expr = _term(terms[first], first)
    elif constant or not ordered:
        result, constant = Const(constant, "int"), 0
    else:
        first = ordered.pop(0)
        result = _term(terms[first], first)
    for t in ordered:
        result = Op("add" if terms[t] > 0 else "sub", (result, _term(abs(terms[t]), t)), "int")
    if constant:
        result = Op("add" if constant > 0 else "sub", (result, Const(abs(constant), "int")), "int")
    return result


def _term(c: int, x: Expr) -> Expr:
    if c == 1:
        return x
    return Op("neg", (x,), "int") if c == -1 else Op("mul", (Const(c, "int"), x), "int")


def _opened(cx: Algebra, node: Expr) -> list[tuple[Expr, int]]:
    """The terms of one node with their coefficients; none where it is a single term."""
    match node:
        case Op("add", (a, b), "int"):
            return [(a, 1), (b, 1)]
        case Op("sub", (a, b), "int"):
            return [(a, 1), (b, -1)]
        case Op("neg", (a,), "int"):
            return [(a, -1)]
        case Op("mul" | "square", _, "int"):
            c, product = _product(cx, node)
            return [] if product is node else [(product, c)]
    return []


def _product(cx: Algebra, e: Expr) -> tuple[int, Expr]:
    """The literal coefficient of a product and its ordered factors."""
    coefficient = 1
    powers: dict[Expr, int] = {}
    pending: dict[Expr, int] = {e: 1}
    for node, parts in cx.parents_first(e, _factors):
        if node not in pending:
            continue
        n = pending.pop(node)
        for child, k in parts:
            pending[child] = pending.get(child, 0) + n * k
        if isinstance(node, Const):
            coefficient *= int(node.value) ** n
        elif not parts:
            powers[node] = n
    if coefficient == 0:
        return 0, UNIT
    return coefficient, _monomial(powers)


def _factors(node: Expr) -> list[tuple[Expr, int]]:
    match node:
        case Op("mul", (a, b), "int"):
            return [(a, 1), (b, 1)]
        case Op("neg", (a,), "int"):
            return [(Const(-1, "int"), 1), (a, 1)]
        case Op("square", (a,), "int"):
            return [(a, 2)]
    return []


def _monomial(powers: dict[Expr, int]) -> Expr:
    """rewrite: x**2 * y**3 --> y * square(x * y)"""
    result: Expr | None = None
    ordered = sorted(powers, key=sort_key)
    for bit in reversed(range(max((n.bit_length() for n in powers.values()), default=0))):
        factors = [b for b in ordered if powers[b] >> bit & 1]
        if result is not None:
            factors.append(Op("square", (result,), "int"))
            factors.sort(key=sort_key)
        result = factors[0]
        for f in factors[1:]:
            result = Op("mul", (result, f), "int")
    return result or UNIT
