"""Scalar simplification: constant folding, identities, one normal form for products, choices, integers and logic.

rewrite: cap * tanh(qk / (sqrt(D) * cap)) --> cap * tanh((rsqrt(D) / cap) * qk)

The value is preserved (up to rounding) wherever every sub-expression has a finite value; what has none may gain one.
Atoms are leaves here: `simplify_deep` also goes into them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from attncc.expr.algebra import Algebra
from attncc.expr.build import op
from attncc.expr.linear import linear_terms, scale
from attncc.expr.nodes import Const, Expr, Var, children, walk
from attncc.expr.normal import normal_forms
from attncc.expr.order import scalar_walk, sort_key
from attncc.ir.nodes import Contract, Reduce, Weights

__all__ = [
    "index_free",
    "linear_terms",
    "scale",
    "simplify",
    "simplify_all",
    "simplify_deep",
    "sort_key",
    "split_by_vars",
    "unbound_vars",
]


def simplify(e: Expr, scalars: Collection[str] | None = None) -> Expr:
    """The normal form of `e`.

    `scalars` names the variables that are one number per launch; products gather them (see products). Without it
    they are the sizes and the real variables but `s`.
    """
    return simplify_all((e,), scalars)[0]


def simplify_all(es: Sequence[Expr], scalars: Collection[str] | None = None) -> tuple[Expr, ...]:
    """`simplify` of several expressions that share nodes."""
    done = normal_forms(list(scalar_walk(tuple(es))), tuple(es), scalars)
    return tuple(done[e] for e in es)


def simplify_deep(e: Expr, scalars: Collection[str] | None = None) -> Expr:
    """`simplify`, also of what stands inside atoms."""
    return normal_forms(list(walk(e)), (e,), scalars, deep=True)[e]


def index_free(e: Expr, scalars: Collection[str] | None = None) -> bool:
    """Whether `e` is one number per launch: no variable under it, also inside atoms, but `scalars`."""
    return Algebra(scalars).index_free(e)


def split_by_vars(
    e: Expr, groups: Sequence[Collection[str]], scalars: Collection[str] | None = None
) -> tuple[Expr, ...]:
    """A real `e` as parts that sum to it: one per group, and last the remaining terms.

    A term goes to the first group that names all its free variables, scalars aside; a part without terms is 0.
    """
    cx = Algebra(scalars)
    parts: list[list[Expr]] = [[] for _ in range(len(groups) + 1)]
    for coefficient, term in linear_terms(e, scalars):
        names = {v.name for v in unbound_vars(term) if not cx.index_free(v)}
        at = next((k for k, group in enumerate(groups) if names <= set(group)), len(groups))
        parts[at].append(op("mul", coefficient, term))
    return simplify_all([_sum(part) for part in parts], scalars)


def _sum(terms: Iterable[Expr]) -> Expr:
    result: Expr = Const(0.0, "real")
    for t in terms:
        result = op("add", result, t)
    return result


def unbound_vars(e: Expr) -> frozenset[Var]:
    """The variables of `e` less those that a sum, a reduction or weights inside it bind."""
    free: dict[Expr, frozenset[Var]] = {}
    for node in walk(e):
        if isinstance(node, Var):
            free[node] = frozenset((node,))
            continue
        under = frozenset[Var]().union(*(free[c] for c in children(node)))
        free[node] = under - _bound(node)
    return free[e]


def _bound(node: Expr) -> frozenset[Var]:
    match node:
        case Contract():
            return frozenset((node.axis,))
        case Reduce():
            return frozenset(b.index for b in node.binders)
        case Weights():
            return frozenset(b.index for b in node.keys)
    return frozenset()
