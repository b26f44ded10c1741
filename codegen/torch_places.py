"""How each axis of a tensor is cut by an access, where plain slices can do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attncc.codegen.torch_kinds import ZERO, Span
from attncc.expr.nodes import Expr, Op, Var

if TYPE_CHECKING:
    from attncc.codegen.torch_facts import Facts


@dataclass(frozen=True, slots=True)
class At:
    """One position: a number."""

    index: Expr

    def numbers(self) -> tuple[Expr, ...]:
        return (self.index,)


@dataclass(frozen=True, slots=True)
class Along:
    """Consecutive positions of a value's axis."""

    span: Span

    def numbers(self) -> tuple[Expr, ...]:
        return (self.span.offset,)


@dataclass(frozen=True, slots=True)
class Every:
    """The batch positions themselves, each `repeat` times, or one in `step` from `offset` on."""

    axis: str
    repeat: Expr | None = None
    step: Expr | None = None
    offset: Expr = ZERO

    def numbers(self) -> tuple[Expr, ...]:
        return tuple(e for e in (self.repeat, self.step, self.offset) if e is not None)


Place = At | Along | Every


def plan(index: tuple[Expr, ...], facts: Facts, target: bool = False) -> tuple[Place, ...] | None:
    """How each axis of a tensor is cut, where plain slices can do it. A `target` is written: nothing repeats in it."""
    places: list[Place] = []
    for e in index:
        place = _place(e, facts)
        if place is None or (target and isinstance(place, Every) and place.repeat is not None):
            return None
        places.append(place)
    moving = [p.span.axis if isinstance(p, Along) else p.axis for p in places if not isinstance(p, At)]
    return tuple(places) if len(set(moving)) == len(moving) else None


def _place(e: Expr, facts: Facts) -> Place | None:
    if facts.is_number(e):
        return At(e)
    span = facts.span(e)
    if span is not None:
        return Along(span)
    lane = facts.lane(e)
    if lane is None:
        return None
    match lane:
        case Var(name):
            return Every(name)
        case Op("floordiv", (Var(name), c)) if facts.is_number(c) and name in facts.batch:
            return Every(name, repeat=c)
        case Op("add", (a, b)):
            return _strided(a, b, facts) or _strided(b, a, facts)
        case Op("mul", _):
            return _strided(lane, ZERO, facts)
    return None


def _strided(a: Expr, offset: Expr, facts: Facts) -> Every | None:
    if not facts.is_number(offset):
        return None
    match a:
        case Op("mul", (x, y)):
            for at, c in ((x, y), (y, x)):
                if isinstance(at, Var) and at.name in facts.batch and facts.is_number(c):
                    return Every(at.name, step=c, offset=offset)
    return None
