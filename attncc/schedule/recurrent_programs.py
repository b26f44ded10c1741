"""Host programs of a state program whose tokens are walked one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attncc.ir.nodes import Spec
from attncc.schedule.chunk_backward import collected
from attncc.schedule.chunk_values import ROLES
from attncc.schedule.given import with_given
from attncc.schedule.heads import without_groups
from attncc.schedule.programs import Pair
from attncc.schedule.recurrent import Problem, Walk, forward_kernel, last_tensors
from attncc.schedule.recurrent_backward import refuse, start_of, starts, starts_kernel, tokens_kernel
from attncc.schedule.state_tensors import gradient, inputs, scalars, tensor
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t


def programs(spec: Spec, variant: Variant) -> Pair:
    """The programs of one variant of a state program; NotCompiled where it has none."""
    r = spec.recurrence
    assert r is not None
    p = Problem(with_given(spec, variant.first), variant, tuple((s.name, s.init) for s in r.states))
    kernel = forward_kernel(p)
    last = last_tensors(p, "f64" if variant.dtype == "f64" else "f32")
    steps: list[t.Step] = [t.Alloc(tensor(p, "out"), like="q"), *(t.Alloc(x) for x in last), t.Launch(kernel.name)]
    outputs = ("out", *(x.name for x in last))
    forward = t.Program("forward", inputs(p), scalars(p), (kernel,), tuple(steps), outputs)
    backward = _backward(p, last) if variant.gradients else None
    if variant.grouped:
        return Pair(forward, backward)
    return Pair(without_groups(forward), None if backward is None else without_groups(backward))


def _backward(p: Problem, last: tuple[t.Tensor, ...]) -> t.Program:
    names = [*ROLES, "out", *(x.name for x in p.spec.params), *(x.name for x in last)]
    reserved = (*(start_of(n) for n in Walk(p).names), *(f"d_{n}" for n in names))
    first, second = Walk(p, reserved), Walk(p, reserved, backwards=True)
    refuse(second)
    states = starts_kernel(p, first)
    tokens, shares = tokens_kernel(p, second)
    given = (*inputs(p), tensor(p, "out"), tensor(p, "d_out"), *(replace(x, name=f"d_{x.name}") for x in last))
    steps: list[t.Step] = [t.Alloc(x) for x in starts(p, first)]
    steps += [t.Launch(states.name), *(t.Alloc(s.buffer, 0.0) for s in shares), t.Launch(tokens.name)]
    like: Any = p
    for name in p.variant.gradients:
        steps += collected(like, name, shares, gradient(p, name), first.k.real)
    outputs = tuple(f"d_{n}" for n in p.variant.gradients)
    return t.Program("backward", given, scalars(p), (states, tokens), tuple(steps), outputs)
