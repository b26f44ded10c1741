"""Walks over a Spec: every expression it holds, every step of its state program."""

from __future__ import annotations

from collections.abc import Iterator

from attncc.expr.nodes import Expr, walk
from attncc.ir.nodes import Assign, Gradient, Keep, Load, Micro, Spec, Step


def bodies(spec: Spec) -> Iterator[Expr]:
    """The right sides of statements, states, steps and out."""
    yield from (s.body for s in spec.statements)
    if spec.recurrence is not None:
        for state in spec.recurrence.states:
            yield state.init
            if state.per is not None:
                yield state.per
        yield from (s.body for s in flat(spec.recurrence.steps) if isinstance(s, Assign | Keep))
    yield spec.out.body


def flat(steps: tuple[Step, ...]) -> Iterator[Step]:
    """Every step in order, a Micro before its own."""
    for step in steps:
        yield step
        if isinstance(step, Micro):
            yield from flat(step.steps)


def reads(e: Expr) -> frozenset[str]:
    """The names of all tensors that `e` loads or differentiates by."""
    return frozenset(n.tensor if isinstance(n, Load) else n.of for n in walk(e) if isinstance(n, Load | Gradient))
