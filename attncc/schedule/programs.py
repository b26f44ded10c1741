"""Host programs of a streamed attention: forward, and backward for the gradients a variant asks for."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.build import ivar
from attncc.expr.nodes import Const, Expr, free_vars, walk
from attncc.ir.nodes import Load, Param
from attncc.passes.bounds.derived import Derived
from attncc.passes.differentiate import derivative
from attncc.schedule.captured import Capture, buffer, captures, collect, table_extents
from attncc.schedule.config import Demand, Plan, plan
from attncc.schedule.heads import without_groups
from attncc.schedule.hopper import forward_refusal
from attncc.schedule.hopper_config import forward_plan
from attncc.schedule.hopper_forward import partitioned_forward
from attncc.schedule.prune import prune
from attncc.schedule.runs import Run, run_kernel, tensors, with_runs
from attncc.schedule.stream import B, G, H, M, N, Problem, varies
from attncc.schedule.stream_backward import delta_kernel, keys_kernel, queries_kernel
from attncc.schedule.stream_forward import forward_kernel
from attncc.tile import nodes as t


@dataclass(frozen=True, slots=True)
class Pair:
    """A forward program and, where a gradient is wanted, its backward."""

    forward: t.Program
    backward: t.Program | None


def stream(p: Problem) -> Pair:
    """The programs of one attention."""
    runs: tuple[Run, ...] = ()
    if p.variant.target != "torch":
        p, runs = with_runs(p)
    forward, backward = _forward(p, runs), _backward(p, runs) if p.variant.gradients else None
    if p.variant.grouped:
        return Pair(forward, backward)
    return Pair(without_groups(forward), None if backward is None else without_groups(backward))


def _plan(p: Problem) -> Plan:
    """The default tiles."""
    return plan(p.variant, demand(p))


def demand(p: Problem) -> Demand:
    """What this score and mask need."""
    reads = [n for e in (p.attend.score, p.by_key.mask) for n in walk(e) if isinstance(n, Load)]
    at = [frozenset(v for x in n.index for v in free_vars(x)) for n in reads if n.tensor not in ("q", "k")]
    return Demand(
        curved=varies(derivative(p.attend.score, p.attend.product)),
        reads_pairs=any({"i", "j"} <= names for names in at),
        reads_rows=any("i" in names and "j" not in names for names in at),
    )


def _forward(p: Problem, runs: tuple[Run, ...]) -> t.Program:
    kernel, note = _forward_kernel(p)
    out = t.Alloc(_tensor(p, "out", strided=True), like="q")
    results = ("out", "lse") if p.normalised else ("out",)
    scans, before = _scans(p, runs, (kernel,))
    steps: list[t.Step] = [*_prologue(p, (kernel,)), *before, out]
    if p.normalised:
        steps.append(t.Alloc(_stat(p, "lse")))
    steps.append(t.Launch("forward_kernel"))
    kernels = tuple(map(prune, (*scans, kernel)))
    return t.Program("forward", _inputs(p), _scalars(p), kernels, tuple(steps), results, note)


def _forward_kernel(p: Problem) -> tuple[t.Kernel, str]:
    """The kernel, and why it is not partitioned where that was asked for."""
    if p.variant.target != "gluon":
        return forward_kernel(p, _plan(p).forward), ""
    plan = forward_plan(max(p.variant.D, p.variant.E), demand(p))
    reason = forward_refusal(p, plan)
    if reason:
        return forward_kernel(p, _plan(p).forward), f"not partitioned: {reason}"
    return partitioned_forward(p, plan), ""


def _backward(p: Problem, runs: tuple[Run, ...]) -> t.Program:
    wanted = p.variant.gradients
    found = captures(p)
    tiles = _plan(p)
    of_z = tuple(c for c in found if c.of_z)
    by_key = tuple(c for c in found if c.place == "key" and not c.of_z)
    by_row = tuple(c for c in found if c.place != "key" and not c.of_z)
    fused = tiles.fused and "q" in wanted and bool({"k", "v"} & set(wanted))
    kernels: list[t.Kernel] = []
    if p.normalised:
        kernels.append(delta_kernel(p, tiles.delta, of_z))
    if {"k", "v"} & set(wanted) or by_key:
        kernels.append(keys_kernel(p, tiles.keys, frozenset(wanted) - (frozenset() if fused else {"q"}), by_key))
    if ("q" in wanted and not fused) or by_row:
        kernels.append(queries_kernel(p, tiles.queries, "q" in wanted and not fused, by_row))
    scans, before = _scans(p, runs, tuple(kernels))
    steps: list[t.Step] = [*_prologue(p, tuple(kernels)), *before]
    steps += [t.Alloc(_stat(p, name)) for name in map(p.own, ("delta", "log_z"))] if p.normalised else []
    for name in wanted:
        if name in ("q", "k", "v"):
            fill = 0.0 if fused and name == "q" else None
            steps.append(t.Alloc(_tensor(p, f"d_{name}", strided=True), fill, like=name))
    buffers = {c.buffer: buffer(c, p, (tiles.delta if c.of_z else tiles.queries).rows) for c in found}
    for c in found:
        steps.append(t.Alloc(buffers[c.buffer], 0.0 if c.place == "pair" else None))
    steps += [t.Launch(k.name) for k in kernels]
    steps += [s for name in wanted if name not in ("q", "k", "v") for s in _collect(p, name, found, buffers)]
    extra = [_tensor(p, "out", strided=True), *([_stat(p, "lse")] if p.normalised else [])]
    extra.append(_tensor(p, "d_out", strided=True))
    extra += [_stat(p, "d_lse")] if p.variant.lse_gradient else []
    inputs = (*_inputs(p), *extra)
    outputs = tuple(f"d_{n}" for n in wanted)
    return t.Program("backward", inputs, _scalars(p), tuple(map(prune, (*scans, *kernels))), tuple(steps), outputs)


def _collect(p: Problem, name: str, found: tuple[Capture, ...], buffers: dict[str, t.Tensor]) -> tuple[t.Step, ...]:
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
        return (collect(mine[0], p, buffers[mine[0].buffer], out, False),)
    total = t.Tensor(f"d_{name}_total", axes, extents, p.real)
    steps: list[t.Step] = [t.Alloc(total, 0.0)]
    steps += [collect(c, p, buffers[c.buffer], total, True) for c in mine]
    return (*steps, t.SumAxes(out, total.name, ()))


def _prologue(p: Problem, kernels: tuple[t.Kernel, ...]) -> tuple[t.Step, ...]:
    """Tables by offset and derived arrays that the kernels read."""
    read = {name for k in kernels for name in k.tensors}
    steps: list[t.Step] = []
    for x in p.attend.tables:
        if x.name in read:
            tensor = t.Tensor(x.name, (*x.axes, "o"), table_extents(x), p.capture_dtype(x.name))
            steps.append(t.Gather(tensor, x.source, x.index))
    aux = {d.name: d for d in (*p.by_row.aux, *p.by_key.aux)}
    steps += [_derived(p, d) for name, d in aux.items() if name in read]
    return tuple(steps)


def _scans(
    p: Problem, runs: tuple[Run, ...], kernels: tuple[t.Kernel, ...]
) -> tuple[tuple[t.Kernel, ...], tuple[t.Step, ...]]:
    """The scans whose results the kernels read, and their steps."""
    read = {name for k in kernels for name in k.tensors}
    found: list[t.Kernel] = []
    steps: list[t.Step] = []
    for run in runs:
        written = tensors(run, p)
        if read & {x.name for x in written}:
            found.append(run_kernel(run, p))
            steps += [*(t.Alloc(x) for x in written), t.Launch(found[-1].name)]
    return tuple(found), tuple(steps)


def _derived(p: Problem, d: Derived) -> t.Step:
    axes = p.params[d.tensor].axes
    out = t.Tensor(d.name, tuple(a.index for a in axes), tuple(a.size for a in axes), "i32")
    return t.FirstLast(out, d.tensor, d.kind)


def _scalars(p: Problem) -> tuple[t.Scalar, ...]:
    sizes = tuple(t.Scalar(n, "int") for n in "BHGMN")
    return (*sizes, *(t.Scalar(c.name, c.sort) for c in p.spec.constants))


def _inputs(p: Problem) -> tuple[t.Tensor, ...]:
    return (*(_tensor(p, n, strided=True) for n in ("q", "k", "v")), *(_captured(p, x) for x in p.spec.params))


_SHAPES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "q": (("b", "h", "i", "d"), "HM", "D"),
    "k": (("b", "g", "j", "d"), "GN", "D"),
    "v": (("b", "g", "j", "e"), "GN", "E"),
    "out": (("b", "h", "i", "e"), "HM", "E"),
}


def _tensor(p: Problem, name: str, *, strided: bool) -> t.Tensor:
    """q, k, v, out, or the gradient of one of them."""
    axes, middle, channel = _SHAPES[name.removeprefix("d_")]
    size: Expr = Const(p.variant.D if channel == "D" else p.variant.E, "int")
    extents = (B, *(ivar(x) for x in middle), size)
    layout = p.variant.layout(name)
    return t.Tensor(name, axes, extents, p.variant.dtype, strided, layout.unit, layout.aligned, layout.near)


def _stat(p: Problem, name: str) -> t.Tensor:
    return t.Tensor(name, ("b", "h", "i"), (B, H, M), p.real)


def _captured(p: Problem, x: Param) -> t.Tensor:
    sizes = {"b": B, "h": H, "g": G, "m": M, "n": N}
    axes = tuple(a.index or f"x{n}" for n, a in enumerate(x.axes))
    extents = tuple(sizes.get(a.index, a.size) for a in x.axes)
    layout = p.variant.layout(x.name)
    return t.Tensor(x.name, axes, extents, p.capture_dtype(x.name), True, layout.unit, layout.aligned, layout.near)
