"""Spec IR -> Spec IR and the facts derived from it, as a visible list of passes in their order."""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import conj
from attncc.ir.nodes import Spec
from attncc.passes.attend import attend
from attncc.passes.base import Pass, Unit
from attncc.passes.bounds import bounds
from attncc.passes.canonicalize import canonicalize
from attncc.passes.differentiate import gradients
from attncc.passes.stream import streamed

__all__ = ["PIPELINE", "Pass", "Unit"]


def _canonicalize(u: Unit) -> Unit:
    return replace(u, spec=canonicalize(u.spec, u.D, u.E))


def _attend(u: Unit) -> Unit:
    return replace(u, attend=attend(u.spec))


def _bounds(u: Unit) -> Unit:
    assert u.attend is not None
    axes = {p.name: p.axes for p in u.spec.params}
    mask = conj(u.attend.mask)
    by_row = bounds(mask, "j", "i", axes=axes)
    return replace(u, by_row=by_row, by_key=bounds(mask, "i", "j", axes=axes))


def _differentiate(u: Unit) -> Unit:
    """Every derivative a schedule will ask for exists; the schedules take them where they are used."""
    assert u.attend is not None
    a = u.attend
    gradients(a.score, (a.product, *a.captured))
    if a.normaliser.psi is not None:
        streamed(a.normaliser.phi)
        streamed(a.normaliser.psi)
    return u


PIPELINE: tuple[Pass, ...] = (
    Pass("canonicalize", "Fixes channel sizes.", _canonicalize),
    # attend matches the canonical shape, so it follows canonicalize
    Pass("attend", "Finds the weighted sum, simplifies it and tabulates what depends on j - i alone.", _attend),
    # differentiate refuses what has no backward before any schedule is built
    Pass("differentiate", "Takes the score's derivatives.", _differentiate),
    # bounds reads the simplified mask
    Pass("bounds", "Isolates j and i in the mask.", _bounds),
)


def initial(spec: Spec, D: int, E: int) -> Unit:
    """The state before the first pass."""
    return Unit(spec, D, E)
