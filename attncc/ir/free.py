"""The variables an expression of the Spec IR leaves free."""

from __future__ import annotations

from collections.abc import Iterable

from attncc.expr.nodes import Expr, Var, children, walk
from attncc.ir.nodes import Binder, Contract, Normaliser, Reduce, S, Scan, Weights

INDICES = ("b", "h", "g", "i", "j", "n", "d", "e")
"""In scope without declaration."""

SIZES = ("B", "H", "G", "M", "N", "D", "E")

Free = dict[Expr, frozenset[Var]]


def free(e: Expr) -> frozenset[Var]:
    """Indices, sizes and constants of `e`; Contract and Reduce bind theirs, a normaliser binds the score.

    The keys of Weights and the axis of a Scan stay free: their value is still a function of them.
    """
    known: Free = {}
    for node in walk(e):
        known[node] = _free(node, known)
    return known[e]


def _free(e: Expr, known: Free) -> frozenset[Var]:
    match e:
        case Var():
            return frozenset({e})
        case Contract(a, b, axis, extent):
            return ((known[a] | known[b]) - {axis}) | known[extent]
        case Reduce(_, body, binders, where):
            return ((known[body] | known[where]) - {b.index for b in binders}) | _sizes(binders, known)
        case Scan(_, body, binder):
            return known[body] | {binder.index} | known[binder.size]
        case Weights():
            keys = _sizes(e.keys, known) | {k.index for k in e.keys}
            extra = known[e.dropout] if e.dropout is not None else frozenset()
            return known[e.score] | known[e.mask] | _of_normaliser(e.normaliser, known) | keys | extra
        case _:
            return frozenset().union(*(known[c] for c in children(e)))


def _sizes(binders: Iterable[Binder], known: Free) -> frozenset[Var]:
    return frozenset[Var]().union(*(known[b.size] for b in binders))


def _of_normaliser(n: Normaliser, known: Free) -> frozenset[Var]:
    inner = frozenset[Var]().union(*(known[f] - {S} for f in (n.phi, n.psi) if f is not None))
    outer = frozenset[Var]().union(*(known[x] for x in (n.z, *(v for _, v in n.options)) if x is not None))
    return inner | outer
