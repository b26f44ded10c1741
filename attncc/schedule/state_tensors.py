"""Tensors and sizes of a state program's host programs, whichever way its tokens are walked."""

from __future__ import annotations

from typing import Protocol

from attncc.expr.build import ivar
from attncc.expr.nodes import Const, Expr, substitute
from attncc.ir.nodes import Param, Spec
from attncc.schedule.chunk_values import ROLES
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t

B, H, G, M, N = (ivar(x) for x in "BHGMN")
_SHAPES: dict[str, tuple[tuple[str, ...], str]] = {
    "q": (("b", "h", "i", "d"), "HM"),
    "k": (("b", "g", "j", "d"), "GN"),
    "v": (("b", "g", "j", "e"), "GN"),
    "out": (("b", "h", "i", "e"), "HM"),
}


class Problem(Protocol):
    """A state program to schedule for one variant."""

    @property
    def spec(self) -> Spec: ...

    @property
    def variant(self) -> Variant: ...


def gradient(p: Problem, name: str) -> t.Tensor:
    """The gradient of an input, contiguous."""
    params = {x.name: x for x in p.spec.params}
    like = tensor(p, name) if name in ROLES else captured(p, params[name])
    axes = tuple(f"{a}{n}" for n, a in enumerate(like.axes))
    return t.Tensor(f"d_{name}", axes, like.extents, like.dtype)


def scalars(p: Problem) -> tuple[t.Scalar, ...]:
    """Sizes and constants."""
    return (*(t.Scalar(n, "int") for n in "BHGMN"), *(t.Scalar(c.name, c.sort) for c in p.spec.constants))


def inputs(p: Problem) -> tuple[t.Tensor, ...]:
    """q, k, v and the captured tensors."""
    return (*(tensor(p, n) for n in ("q", "k", "v")), *(captured(p, x) for x in p.spec.params))


def tensor(p: Problem, name: str) -> t.Tensor:
    """q, k, v or out."""
    axes, middle = _SHAPES[name.removeprefix("d_")]
    size: Expr = Const(p.variant.D if axes[-1] == "d" else p.variant.E, "int")
    layout = p.variant.layout(name)
    extents = (B, *(ivar(x) for x in middle), size)
    return t.Tensor(name, axes, extents, p.variant.dtype, True, layout.unit, layout.aligned, layout.near)


def captured(p: Problem, x: Param) -> t.Tensor:
    """A captured tensor."""
    sizes: dict[str, Expr] = {"b": B, "h": H, "g": G, "m": M, "n": N}
    sizes |= {"d": Const(p.variant.D, "int"), "e": Const(p.variant.E, "int")}
    axes = tuple(a.index or f"x{n}" for n, a in enumerate(x.axes))
    channels: dict[Expr, Expr] = {ivar(n): sizes[n.lower()] for n in "DE"}
    extents = tuple(sizes.get(a.index) or substitute(a.size, channels) for a in x.axes)
    layout = p.variant.layout(x.name)
    dtype: t.Dtype = dict(p.variant.captured).get(x.name, "i32")
    return t.Tensor(x.name, axes, extents, dtype, True, layout.unit, layout.aligned, layout.near)
