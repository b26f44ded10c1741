"""States that come with a call and go back to it.

rewrite: state S[d, e] = init, called with a value of S  -->  state S[d, e] = S_first, a captured tensor over b, h, d, e
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import ivar
from attncc.ir.nodes import Axis, Load, Param, Spec, State
from attncc.passes.mistakes import NotCompiled


def first_of(state: str) -> str:
    """The tensor a state starts with."""
    return f"{state}_first"


def last_of(state: str) -> str:
    """The tensor a state ends in."""
    return f"{state}_last"


def with_given(spec: Spec, names: tuple[str, ...]) -> Spec:
    """`spec` with these states started by captured tensors, which are its last parameters in the order of states."""
    r = spec.recurrence
    if r is None or not names:
        return spec
    taken = {p.name for p in spec.params} | {c.name for c in spec.constants}
    chosen = [s for s in r.states if s.name in names]
    for s in chosen:
        if first_of(s.name) in taken:
            raise NotCompiled(f"`{first_of(s.name)}` is the tensor that `{s.name}` starts with", s.span)
    states = tuple(replace(s, init=_load(s)) if s in chosen else s for s in r.states)
    params = (*spec.params, *(_param(s) for s in chosen))
    return replace(spec, params=params, recurrence=replace(r, states=states))


def _param(s: State) -> Param:
    axes = (Axis("b", ivar("B")), Axis("h", ivar("H")), *s.axes)
    return Param(first_of(s.name), "real", axes, span=s.span)


def _load(s: State) -> Load:
    return Load(first_of(s.name), (ivar("b"), ivar("h"), *s.vars), "real")
