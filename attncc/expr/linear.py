"""Sums taken apart: terms with their coefficients, and a factor pushed into a sum where that is cheap."""

from __future__ import annotations

from collections.abc import Collection

from attncc.expr.algebra import Algebra
from attncc.expr.build import lift, op
from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.normal import normal_form
from attncc.expr.order import scalar_walk

_ONE = Const(1.0, "real")


def linear_terms(e: Expr, scalars: Collection[str] | None = None) -> list[tuple[Expr, Expr]]:
    """The additive terms of a real `e` as (coefficient, term): coefficients are free of indices, terms appear once.

    A sum under a coefficient is opened, and so is a quotient's numerator; what is itself free of indices has term 1.

    rewrite: c * (2 * x - y) + 3 --> [(2 * c, x), (-c, y), (3, 1)]
    """
    cx = Algebra(scalars)
    pending: dict[Expr, Expr] = {e: _ONE}
    terms: dict[Expr, Expr] = {}
    for node in reversed(list(scalar_walk(e))):
        if node not in pending:
            continue
        c = pending.pop(node)
        if cx.index_free(node):
            _put(cx, terms, _ONE, cx.make("mul", c, normal_form(cx, node)))
            continue
        opened = _opened(cx, node)
        for part, factor in opened:
            _put(cx, pending, part, cx.make("mul", c, normal_form(cx, factor)))
        if not opened:
            _put(cx, terms, node, c)
    return [(c, t) for t, c in terms.items()]


def _put(cx: Algebra, table: dict[Expr, Expr], key: Expr, c: Expr) -> None:
    table[key] = cx.make("add", table[key], c) if key in table else c


def _opened(cx: Algebra, e: Expr) -> list[tuple[Expr, Expr]]:
    """What a node adds up, each with its factor; nothing where it is one term."""
    match e:
        case Op("add", (a, b), "real"):
            return [(a, _ONE), (b, _ONE)]
        case Op("sub", (a, b), "real"):
            return [(a, _ONE), (b, lift(-1.0))]
        case Op("neg", (a,), "real"):
            return [(a, lift(-1.0))]
        case Op("mul", (a, b), "real") if cx.index_free(a):
            return [(b, a)]
        case Op("mul", (a, b), "real") if cx.index_free(b):
            return [(a, b)]
        case Op("div", (a, b), "real") if cx.index_free(b):
            return [(a, op("recip", b))]
    return []


def scale(e: Expr, c: Expr | float, scalars: Collection[str] | None = None) -> Expr:
    """c * e for a real `e` and a factor free of indices, in normal form, with `c` taken up by coefficients inside.

    It goes through sums and choices (max and min if c > 0 is known) where at most one multiplication more comes of
    it; else it stays outside.

    rewrite: 2.0 * (k * x + b) --> (2.0 * k) * x + 2.0 * b
    """
    cx = Algebra(scalars)
    factor = normal_form(cx, lift(c))
    root = normal_form(cx, e)
    done: dict[Expr, tuple[Expr, int]] = {}
    passable = {"add", "sub", "where"} | ({"max", "min"} if cx.bounds(factor).lo > 0 else set())
    for node in _terms_first(root, passable):
        outside = cx.make("mul", factor, node), _extra(cx, node)
        done[node] = outside
        if isinstance(node, Op) and node.name in passable and not cx.index_free(node):
            start = 1 if node.name == "where" else 0
            inside = [done[a] for a in node.args[start:]]
            extra = sum(n for _, n in inside)
            if extra <= 1:
                done[node] = cx.make(node.name, *node.args[:start], *(x for x, _ in inside)), extra
    return done[root][0]


def _extra(cx: Algebra, e: Expr) -> int:
    """How many multiplications a factor outside of `e` adds: none where a coefficient takes it up."""
    if cx.index_free(e):
        return 0
    match e:
        case Op("mul", (a, _), "real"):
            return 0 if cx.index_free(a) else 1
        case Op("neg" | "recip", _, _):
            return 0
    return 1


def _terms_first(e: Expr, passable: set[str]) -> list[Expr]:
    """The nodes a factor passes through, terms before their sums."""
    order: list[Expr] = []
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(e, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if isinstance(node, Op) and node.name in passable:
                stack.extend((a, False) for a in node.args[1 if node.name == "where" else 0 :])
    return order
