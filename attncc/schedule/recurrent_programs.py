"""Host programs of a state program whose tokens are walked one by one."""

from __future__ import annotations

from attncc.expr.build import ivar
from attncc.expr.nodes import Const, Expr, substitute
from attncc.ir.nodes import Param, Spec
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.heads import without_groups
from attncc.schedule.programs import Pair
from attncc.schedule.recurrent import Problem, forward_kernel, last_tensors
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t

B, H, G, M, N = (ivar(x) for x in "BHGMN")
_SHAPES: dict[str, tuple[tuple[str, ...], str]] = {
    "q": (("b", "h", "i", "d"), "HM"),
    "k": (("b", "g", "j", "d"), "GN"),
    "v": (("b", "g", "j", "e"), "GN"),
    "out": (("b", "h", "i", "e"), "HM"),
}


def programs(spec: Spec, variant: Variant) -> Pair:
    """The programs of one variant of a state program; NotCompiled where it has none."""
    p = Problem(spec, variant)
    if variant.gradients:
        hint = "`form='chunk'` has one for states that decay"
        span = p.recurrence.states[0].span
        raise NotCompiled("the backward of one token after another is not compiled yet", span, hint=hint)
    kernel = forward_kernel(p)
    last = last_tensors(p, "f64" if variant.dtype == "f64" else "f32")
    steps: list[t.Step] = [t.Alloc(tensor(p, "out"), like="q"), *(t.Alloc(x) for x in last), t.Launch(kernel.name)]
    outputs = ("out", *(x.name for x in last))
    forward = t.Program("forward", inputs(p), scalars(p), (kernel,), tuple(steps), outputs)
    return Pair(forward if variant.grouped else without_groups(forward), None)


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
    axes = tuple(a.index or f"x{n}" for n, a in enumerate(x.axes))
    extents = tuple(sizes.get(a.index) or substitute(a.size, p.sizes) for a in x.axes)
    layout = p.variant.layout(x.name)
    dtype: t.Dtype = dict(p.variant.captured).get(x.name, "i32")
    return t.Tensor(x.name, axes, extents, dtype, True, layout.unit, layout.aligned, layout.near)
