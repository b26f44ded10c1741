"""Spec IR -> Spec IR and the facts derived from it, as a visible list of passes in their order."""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.nodes import Expr, rewrite
from attncc.ir.nodes import Spec, Weights
from attncc.passes.attend import attend
from attncc.passes.base import Pass, Unit
from attncc.passes.bounds import bounds
from attncc.passes.canonicalize import canonicalize
from attncc.passes.differentiate import gradients
from attncc.passes.fuse import fuse
from attncc.passes.simplify import simplify
from attncc.passes.stream import streamed

__all__ = ["PIPELINE", "Pass", "Unit"]


def _canonicalize(u: Unit) -> Unit:
    return replace(u, spec=canonicalize(u.spec, u.D, u.E))


def _fuse(u: Unit) -> Unit:
    return replace(u, spec=fuse(u.spec))


def _simplify(u: Unit) -> Unit:
    """Every weight's score, mask and normaliser in normal form; indices of reads stay as written."""

    def rule(e: Expr) -> Expr | None:
        if not isinstance(e, Weights):
            return None
        n = e.normaliser
        normal = replace(
            n,
            phi=simplify(n.phi),
            psi=None if n.psi is None else simplify(n.psi),
            z=None if n.z is None else simplify(n.z),
        )
        return replace(e, score=simplify(e.score), mask=simplify(e.mask), normaliser=normal)

    return replace(u, spec=replace(u.spec, out=replace(u.spec.out, body=rewrite(u.spec.out.body, rule))))


def _attend(u: Unit) -> Unit:
    return replace(u, attend=attend(u.spec))


def _bounds(u: Unit) -> Unit:
    assert u.attend is not None
    axes = {p.name: p.axes for p in u.spec.params}
    mask = u.attend.mask
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
    # fuse leaves fewer and larger expressions for simplify
    Pass("fuse", "Contracts pointwise arrays into their readers.", _fuse),
    # simplify needs the channel sizes' numbers, so it follows canonicalize
    Pass("simplify", "Brings scores, masks and normalisers to normal form.", _simplify),
    # attend matches simplified shapes
    Pass("attend", "Finds the weighted sum and tabulates what depends on j - i alone.", _attend),
    # differentiate refuses what has no backward before any schedule is built
    Pass("differentiate", "Takes the score's derivatives.", _differentiate),
    # bounds reads the simplified mask
    Pass("bounds", "Isolates j and i in the mask.", _bounds),
)


def initial(spec: Spec, D: int, E: int) -> Unit:
    """The state before the first pass."""
    return Unit(spec, D, E)
