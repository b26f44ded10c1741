"""Bringing whole expressions into normal form, bottom up."""

from __future__ import annotations

from collections.abc import Collection

from attncc.expr.algebra import Algebra, fold
from attncc.expr.integers import FAMILY as INTEGERS
from attncc.expr.integers import PRODUCTS as INTEGER_PRODUCTS
from attncc.expr.nodes import Expr, Op, children, with_children
from attncc.expr.order import scalar_walk
from attncc.expr.products import FAMILY as PRODUCTS


def normal_form(cx: Algebra, e: Expr) -> Expr:
    """The normal form of one expression within a run."""
    return normal_forms(list(scalar_walk(e)), (e,), cx)[e]


def normal_forms(
    order: list[Expr], roots: tuple[Expr, ...], cx: Algebra | Collection[str] | None, deep: bool = False
) -> dict[Expr, Expr]:
    """The normal forms of all nodes of `order` (children first) that aren't inner ones of a family.

    `cx` is a run's memo tables, or the names of the scalars for a new one. `deep` goes into atoms.
    """
    if not isinstance(cx, Algebra):
        cx = Algebra(cx, len(order))
    inner = _inner(order, roots)
    done: dict[Expr, Expr] = {}
    for node in order:
        if isinstance(node, Op):
            args = tuple(done[a] for a in node.args)
            raw = node in inner and fold(node.name, args) is None
            done[node] = Op(node.name, args, node.sort) if raw else cx.make(node.name, *args)
        else:
            done[node] = with_children(node, tuple(done[c] for c in children(node))) if deep else node
    return done


def _family(e: Expr) -> str:
    """Nodes of one family are brought into normal form together, at their topmost."""
    if not isinstance(e, Op):
        return ""
    if e.sort == "bool":
        return e.name if e.name in ("and", "or") else ""
    if e.sort == "int":
        return "" if e.name not in INTEGERS else "product" if e.name in INTEGER_PRODUCTS else "sum"
    return "real" if e.name in PRODUCTS else ""


def _inner(order: list[Expr], roots: tuple[Expr, ...]) -> set[Expr]:
    """The nodes that only nodes of their own family use."""
    inner = {n for n in order if _family(n)} - set(roots)
    for node in order:
        family = "" if isinstance(node, Op) and node.name == "rsqrt" else _family(node)
        inner.difference_update([c for c in children(node) if c in inner and _family(c) != family])
    return inner
