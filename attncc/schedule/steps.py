"""What host programs are made of: inputs, scalars, steps before the kernels, captured gradients after."""

from __future__ import annotations

from attncc.expr.build import ivar
from attncc.expr.nodes import Const, Expr, free_vars, substitute, walk
from attncc.ir.nodes import Load, Param
from attncc.passes.bounds.derived import Derived
from attncc.passes.differentiate import derivative
from attncc.schedule.captured import Capture, collect, table_extents
from attncc.schedule.config import Demand, Plan, plan
from attncc.schedule.overrides import overridden
from attncc.schedule.runs import Run, run_kernel, tensors
from attncc.schedule.stream import ZERO, B, G, H, M, N, Problem, i, j, varies
from attncc.tile import nodes as t


def plain_plan(p: Problem) -> Plan:
    """The default tiles, or what the variant changes of them."""
    return overridden(plan(p.variant, demand(p)), p.variant.tiles, "plain")


def demand(p: Problem) -> Demand:
    """What this score and mask need."""
    reads = [n for e in (p.attend.score, p.by_key.mask) for n in walk(e) if isinstance(n, Load)]
    named = [(n, frozenset(v for x in n.index for v in free_vars(x))) for n in reads if n.tensor not in ("q", "k")]
    at = [names for _, names in named]
    scored = set(walk(p.attend.score))
    return Demand(
        curved=varies(derivative(p.attend.score, p.attend.product)),
        reads_pairs=any({"i", "j"} <= names for names in at),
        reads_rows=any("i" in names and "j" not in names for names in at),
        reads_keys=any("j" in names and "i" not in names and n in scored for n, names in named),
        masks_keys=any("j" in names and "i" not in names and n not in scored for n, names in named),
        general=not p.exponential,
    )


def placed(p: Problem) -> bool:
    """Whether scores have terms by position."""
    return bool({i, j} & set(walk(substitute(p.attend.score, {p.attend.product: ZERO}))))


def reads_at_rows(p: Problem) -> bool:
    """Whether the score reads a captured tensor at an index that only rows bound."""
    return any("i" in names and "j" not in names for names in _indices(p))


def reads_at_keys(p: Problem) -> bool:
    """Whether the score reads a captured tensor at an index that moves with the keys."""
    return any("j" in names for names in _indices(p))


def _indices(p: Problem) -> list[frozenset[str]]:
    """What the indices of the score's reads of captured tensors are made of."""
    reads = [n for n in walk(p.attend.score) if isinstance(n, Load) and n.tensor not in ("q", "k")]
    return [frozenset(free_vars(x)) for n in reads for x in n.index]


def collected(p: Problem, name: str, found: tuple[Capture, ...], buffers: dict[str, t.Tensor]) -> tuple[t.Step, ...]:
    """The steps from every share of one captured tensor to its gradient."""
    sources = {x.name: x.source for x in p.attend.tables}
    mine = [c for c in found if sources.get(c.load.tensor, c.load.tensor) == name]
    param = p.params[name]
    extents = tuple(a.size for a in param.axes)
    axes = tuple(f"{a.index or 'x'}{n}" for n, a in enumerate(param.axes))
    out = t.Tensor(f"d_{name}", axes, extents, p.capture_dtype(name))
    if not mine:
        return (t.Alloc(out, 0.0),)
    if len(mine) == 1:
        return collect(mine[0], p, buffers[mine[0].buffer], out, False)
    total = t.Tensor(f"d_{name}_total", axes, extents, p.real)
    steps: list[t.Step] = [t.Alloc(total, 0.0)]
    steps += [s for c in mine for s in collect(c, p, buffers[c.buffer], total, True)]
    return (*steps, t.SumAxes(out, total.name, ()))


def prologue(p: Problem, kernels: tuple[t.Kernel, ...]) -> tuple[t.Step, ...]:
    """Tables by offset and derived arrays that the kernels read."""
    read = {name for k in kernels for name in k.tensors}
    steps: list[t.Step] = []
    for x in p.attend.tables:
        if x.name in read:
            table = t.Tensor(x.name, (*x.axes, "o"), table_extents(x), p.capture_dtype(x.name))
            steps.append(t.Gather(table, x.source, x.index))
    aux = {d.name: d for d in (*p.by_row.aux, *p.by_key.aux)}
    steps += [_derived(p, d) for name, d in aux.items() if name in read]
    return tuple(steps)


def scans_read(
    p: Problem, runs: tuple[Run, ...], kernels: tuple[t.Kernel, ...]
) -> tuple[tuple[t.Kernel, ...], tuple[t.Step, ...]]:
    """The scans whose results the kernels read, and their steps."""
    read = {name for k in kernels for name in k.tensors}
    found: list[t.Kernel] = []
    steps: list[t.Step] = []
    for whole in runs:
        if (run := whole.read(read)) is not None:
            found.append(run_kernel(run, p))
            steps += [*(t.Alloc(x) for x in tensors(run, p)), t.Launch(found[-1].name)]
    return tuple(found), tuple(steps)


def _derived(p: Problem, d: Derived) -> t.Step:
    axes = p.params[d.tensor].axes
    out = t.Tensor(d.name, tuple(a.index for a in axes), tuple(a.size for a in axes), "i32")
    return t.FirstLast(out, d.tensor, d.kind)


def scalars(p: Problem) -> tuple[t.Scalar, ...]:
    """Sizes and constants."""
    sizes = tuple(t.Scalar(n, "int") for n in "BHGMN")
    return (*sizes, *(t.Scalar(c.name, c.sort) for c in p.spec.constants))


def inputs(p: Problem) -> tuple[t.Tensor, ...]:
    """q, k, v and the captured tensors."""
    return (*(tensor(p, n, strided=True) for n in ("q", "k", "v")), *(_captured(p, x) for x in p.spec.params))


def backward_inputs(p: Problem) -> tuple[t.Tensor, ...]:
    """What a backward is called with."""
    extra = [tensor(p, "out", strided=True), *([stat(p, "lse")] if p.normalised else [])]
    extra.append(tensor(p, "d_out", strided=True))
    extra += [stat(p, "d_lse")] if p.variant.lse_gradient else []
    return (*inputs(p), *extra)


_SHAPES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "q": (("b", "h", "i", "d"), "HM", "D"),
    "k": (("b", "g", "j", "d"), "GN", "D"),
    "v": (("b", "g", "j", "e"), "GN", "E"),
    "out": (("b", "h", "i", "e"), "HM", "E"),
}


def tensor(p: Problem, name: str, *, strided: bool) -> t.Tensor:
    """q, k, v, out, or the gradient of one of them."""
    axes, middle, channel = _SHAPES[name.removeprefix("d_")]
    size: Expr = Const(p.variant.D if channel == "D" else p.variant.E, "int")
    extents = (B, *(ivar(x) for x in middle), size)
    layout = p.variant.layout(name)
    return t.Tensor(name, axes, extents, p.variant.dtype, strided, layout.unit, layout.aligned, layout.near)


def stat(p: Problem, name: str) -> t.Tensor:
    """One number per row."""
    return t.Tensor(name, ("b", "h", "i"), (B, H, M), p.real)


def _captured(p: Problem, x: Param) -> t.Tensor:
    sizes = {"b": B, "h": H, "g": G, "m": M, "n": N}
    axes = tuple(a.index or f"x{n}" for n, a in enumerate(x.axes))
    extents = tuple(sizes.get(a.index, a.size) for a in x.axes)
    layout = p.variant.layout(x.name)
    return t.Tensor(x.name, axes, extents, p.capture_dtype(x.name), True, layout.unit, layout.aligned, layout.near)
