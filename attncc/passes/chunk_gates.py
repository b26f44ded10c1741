"""Gates in logarithms, with what is proved of them; softmax over channels in the form that does not overflow.

rewrite: exp(a)     --> a              sigmoid(x) --> -softplus(-x)          where(c, f, g) --> where(c, log f, log g)
rewrite: softmax(x over r) at r        --> exp(x - max(x over r)) / sum(exp(x - max(x over r)) over r)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from attncc.expr.build import TRUE, op
from attncc.expr.interval import Interval, bounds
from attncc.expr.nodes import Const, Expr, Op, rewrite, substitute, walk
from attncc.ir.nodes import Load, Param, Reduce, S, Weights
from attncc.passes.mistakes import NotCompiled
from attncc.passes.stream import LOG2E, SHIFT, X, streamed

ONE, ZERO = Const(1.0, "real"), Const(0.0, "real")
TINY = Const(1e-30, "real")
"""A gate below this is this: it forgets everything."""
LOWEST = Const(float("-inf"), "real")


def interval(e: Expr, params: Mapping[str, Param]) -> Interval:
    """Where `e` lies if every input lies within its declared bounds."""
    return bounds(e, {n: _declared(n, params) for n in walk(e) if isinstance(n, Load)})


def clamped(e: Expr, params: Mapping[str, Param]) -> Expr:
    """`e` with every input kept within its declared bounds; inside them it is passed on with its derivative."""

    def rule(node: Expr) -> Expr | None:
        if not isinstance(node, Load) or node.sort != "real":
            return None
        known = _declared(node, params)
        found: Expr = node
        if math.isfinite(known.hi):
            found = op("where", op("lt", float(known.hi), found), float(known.hi), found)
        if math.isfinite(known.lo):
            found = op("where", op("lt", found, float(known.lo)), float(known.lo), found)
        return found

    return rewrite(e, rule)


def _declared(load: Load, params: Mapping[str, Param]) -> Interval:
    param = params.get(load.tensor)
    if param is None or param.bounds is None:
        return Interval()
    low, high = param.bounds
    assert isinstance(low, Const) and isinstance(high, Const)
    return Interval(float(low.value), float(high.value))


def logarithm(gate: Expr) -> tuple[Expr, Expr]:
    """(log, linear) of a gate that is never negative, which is exp(log) * linear; what is 0 by a choice is no factor.

    linear is what no exponential is known of: it may be 0, and has a derivative there.
    """
    match gate:
        case Const(value) if value > 0:
            return Const(math.log(value), "real"), ONE
        case Const(0.0):
            return op("log", TINY), ONE
        case Op("exp", (x,)):
            return x, ONE
        case Op("sigmoid", (x,)):
            return op("neg", op("softplus", op("neg", x))), ONE
        case Op("mul", (a, b)):
            (p, x), (r, y) = logarithm(a), logarithm(b)
            return _added(p, r), y if x is ONE else x if y is ONE else op("mul", x, y)
        case Op("where", (c, a, b)):
            (p, x), (r, y) = logarithm(a), logarithm(b)
            return op("where", c, p, r), ONE if x is ONE and y is ONE else op("where", c, x, y)
        case _:
            return ZERO, gate


def _added(a: Expr, b: Expr) -> Expr:
    return b if a is ZERO else a if b is ZERO else op("add", a, b)


def floored(linear: Expr) -> Expr:
    """The logarithm of a gate, of 0 that of a number so low that nothing is left."""
    return op("log", op("where", op("lt", linear, TINY), TINY, linear))


def weights_of(w: Weights) -> Expr:
    """Weights over one channel axis as a quotient that is anchored at the largest score."""
    if len(w.keys) != 1 or w.normaliser.kind not in ("ratio", "none") or w.dropout is not None:
        raise NotCompiled("these weights have no form in a chunk yet", w.span)
    n, binder = w.normaliser, w.keys[0]

    def masked(e: Expr) -> Expr:
        return e if w.mask is TRUE else op("where", w.mask, e, ZERO)

    if n.psi is None:
        return masked(substitute(n.phi, {S: w.score}))
    x = op("mul", w.score, LOG2E)
    top: Expr = Reduce("max", x if w.mask is TRUE else op("where", w.mask, x, LOWEST), (binder,))
    if w.mask is not TRUE:
        top = op("where", op("eq", top, LOWEST), ZERO, top)

    def at(f: Expr) -> Expr:
        return masked(substitute(streamed(f), {X: x, SHIFT: top}))

    total: Expr = Reduce("sum", at(n.psi), (binder,))
    if n.z is not None:
        total = op("add", total, substitute(streamed(n.z), {X: x, SHIFT: top}))
    if w.mask is not TRUE:
        total = op("where", op("eq", total, ZERO), ONE, total)
    return op("div", at(n.phi), total)
