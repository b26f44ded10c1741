"""Symbolic derivatives of scalar expressions, by reverse accumulation over the DAG.

rewrite: cap * tanh(x), with respect to x --> cap * (1 - tanh(x)**2)
"""

from __future__ import annotations

from collections.abc import Sequence

from attncc.expr.build import lift, op
from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.ops_derivative import DERIVATIVES
from attncc.expr.order import scalar_walk
from attncc.passes.simplify import simplify_all

_ZERO = lift(0.0)
_ONE = lift(1.0)


def derivative(e: Expr, wrt: Expr) -> Expr:
    """d e / d wrt, simplified. `wrt` is a node taken as an independent variable, matched by identity.

    Any other atom is a constant, also one that has `wrt` inside it. Integers and truth values have derivative 0.
    """
    return gradients(e, (wrt,))[0]


def gradients(e: Expr, wrts: Sequence[Expr], seed: Expr = _ONE) -> tuple[Expr, ...]:
    """`derivative` with respect to several nodes at once, each times `seed` (the cotangent of `e`).

    The nodes are independent of one another: where one contains another, the outer one is a constant to the inner.
    """
    targets = frozenset(wrts)
    order = list(scalar_walk(e, targets))
    moving = _depends(order, targets)
    adjoint: dict[Expr, Expr] = {e: seed}
    for node in reversed(order):
        if node in targets or node not in moving or not isinstance(node, Op) or node not in adjoint:
            continue
        g = adjoint[node]
        for arg, partial in zip(node.args, DERIVATIVES[node.name], strict=True):
            if partial is None or arg not in moving:
                continue
            part = _times(g, partial(node, *node.args))
            if part is not _ZERO:
                adjoint[arg] = op("add", adjoint[arg], part) if arg in adjoint else part
    return simplify_all(tuple(adjoint.get(w, _ZERO) if w in moving else _ZERO for w in wrts))


def _depends(order: list[Expr], targets: frozenset[Expr]) -> set[Expr]:
    """The real nodes through which a target is seen."""
    moving: set[Expr] = set()
    for node in order:
        if node.sort == "real" and (node in targets or (isinstance(node, Op) and any(a in moving for a in node.args))):
            moving.add(node)
    return moving


def _times(g: Expr, partial: Expr) -> Expr:
    """g * partial; a partial that is a literal 0 or 1 leaves nothing to multiply, whatever g is."""
    if isinstance(partial, Const) and partial.value == 0:
        return _ZERO
    if g is _ZERO or partial is _ONE:
        return g
    return partial if g is _ONE else op("mul", g, partial)
