"""States that start anew by a key, as states with one more change.

rewrite: state S per key  -->  state S; S = init if key(i) != key(i - 1) else S, before the token's own steps
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import ivar, op
from attncc.expr.nodes import substitute
from attncc.ir.nodes import Assign, Load, Spec, State


def without_restarts(spec: Spec) -> Spec:
    """`spec` whose states start anew by their own steps. Token 0 is compared with itself: it starts nothing."""
    r = spec.recurrence
    if r is None or all(s.per is None for s in r.states):
        return spec
    first = tuple(_anew(s) for s in r.states if s.per is not None)
    states = tuple(replace(s, per=None) for s in r.states)
    return replace(spec, recurrence=replace(r, states=states, steps=(*first, *r.steps)))


def _anew(s: State) -> Assign:
    assert s.per is not None
    i = ivar("i")
    before = substitute(s.per, {i: op("max", op("sub", i, 1), 0)})
    own = Load(s.name, (ivar("b"), ivar("h"), *s.vars), "real", s.span)
    return Assign(s.name, s.vars, op("where", op("eq", s.per, before), own, s.init), s.span)
