"""Calls of state programs: which form runs, and states that come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from attncc.errors import SpecError
from attncc.runtime.checks import check_states
from attncc.runtime.interface import Captured, Interface, Number, size
from attncc.runtime.mistakes import NoStates, WrongKind, WrongSize
from attncc.schedule.variant import Form, Target

T = TypeVar("T")
FORMS = ("auto", "chunk", "recurrent")
FEW: Mapping[Target, int] = {"torch": 2, "triton": 16, "gluon": 16}
"""Tokens up to which one after another is quicker than all at a time."""
REFUSED = ("E450", "E452")
"""The codes of what a form can't do: others may."""


def forms(chosen: str, tokens: int, target: Target, scaled: bool) -> tuple[Form, ...]:
    """The forms that may run a call, the first that compiles is taken: chunks where states are `scaled`."""
    match chosen:
        case "chunk":
            return ("chunk",)
        case "recurrent":
            return ("recurrent",)
        case _:
            return ("recurrent", "chunk") if tokens <= FEW[target] and not scaled else ("chunk", "recurrent")


def first_compiled(tried: tuple[Form, ...], make: Callable[[Form], T]) -> T:
    """What `make` gives for the first form that it does not refuse; the refusal of chunks where all are."""
    refusals: dict[Form, SpecError] = {}
    for form in tried:
        try:
            return make(form)
        except SpecError as error:
            if error.code not in REFUSED:
                raise
            refusals[form] = error
    raise refusals.get("chunk") or refusals[tried[0]]


def with_first(face: Interface, names: tuple[str, ...]) -> Interface:
    """`face` with these states' first values as its last captured tensors."""
    more = tuple(Captured(f"{s.name}_first", s.sort, s.axes) for s in face.states if s.name in names)
    return replace(face, params=(*face.params, *more)) if more else face


def shapes(face: Interface, known: Mapping[str, Number]) -> tuple[tuple[int, ...], ...]:
    """The shape of every state."""
    return tuple(tuple(size(a.size, known) or 0 for a in s.axes) for s in face.states)


def check_step(
    face: Interface, constants: Mapping[str, Number], sizes: Mapping[str, int], q: Tensor, state: Mapping[str, Any]
) -> None:
    """CallError where a call that writes over its states can't: all must be there, wide, and no element twice."""
    given = check_states(face, constants, sizes, q, state)
    missing = [s.name for s in face.states if s.name not in given]
    if missing:
        raise NoStates(f"{face.name} steps with all of its states, and {', '.join(missing)} is missing")
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    for name in given:
        if state[name].dtype != wide:
            raise WrongKind(f"the state {name} is written over: it must be {wide}, not {state[name].dtype}")
        if any(s == 0 and n > 1 for s, n in zip(state[name].stride(), state[name].shape, strict=True)):
            raise WrongSize(f"the state {name} is written over: it can't be an expanded tensor")
