"""Host programs of a streamed attention: forward, and backward for the gradients a variant asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attncc.schedule.beyond import beyond
from attncc.schedule.captured import buffer, captures
from attncc.schedule.diagonals import diagonals_kernel
from attncc.schedule.heads import without_groups
from attncc.schedule.hopper import forward_refusal
from attncc.schedule.hopper_config import Walk, forward_plan
from attncc.schedule.hopper_forward import partitioned_forward
from attncc.schedule.hopper_programs import backward_program as hopper_backward
from attncc.schedule.joined import joining
from attncc.schedule.key_terms import terms_kernel, terms_tensor
from attncc.schedule.overrides import overridden
from attncc.schedule.partitions import counter
from attncc.schedule.prune import prune
from attncc.schedule.ranges import short, uneven
from attncc.schedule.runs import Run, with_runs
from attncc.schedule.steps import (
    backward_inputs,
    collected,
    demand,
    inputs,
    placed,
    plain_plan,
    prologue,
    scalars,
    scans_read,
    stat,
    tensor,
)
from attncc.schedule.stream import Problem
from attncc.schedule.stream_backward import delta_kernel, keys_kernel, queries_kernel
from attncc.schedule.stream_forward import forward_kernel
from attncc.tile import nodes as t
from attncc.tile.dialect import works


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


def _forward(p: Problem, runs: tuple[Run, ...]) -> t.Program:
    kernel, note = _forward_kernel(p)
    out = t.Alloc(tensor(p, "out", strided=True), like="q")
    results = ("out", "lse") if p.normalised else ("out",)
    ahead, first = _ahead(p, kernel)
    scans, before = scans_read(p, runs, (*ahead, kernel))
    steps: list[t.Step] = [*prologue(p, (*ahead, kernel)), *before, *first, out]
    if p.normalised:
        steps.append(t.Alloc(stat(p, "lse")))
    if works(kernel):
        steps.append(t.Alloc(counter(p), 0.0, kept=True))
    steps.append(t.Launch("forward_kernel"))
    kernels = tuple(map(prune, (*scans, *ahead, kernel)))
    return t.Program("forward", inputs(p), scalars(p), kernels, tuple(steps), results, note)


def _ahead(p: Problem, kernel: t.Kernel) -> tuple[tuple[t.Kernel, ...], tuple[t.Step, ...]]:
    """What `kernel` reads that another one computes, and its steps: terms by key."""
    terms = terms_tensor(p)
    term = joining(p) if terms.name in kernel.tensors else None
    if term is None:
        return (), ()
    return (terms_kernel(p, term),), (t.Alloc(terms), t.Launch("key_terms_kernel"))


def _forward_kernel(p: Problem) -> tuple[t.Kernel, str]:
    """The kernel, and why it is not partitioned where that was asked for."""
    if p.variant.target != "gluon":
        return forward_kernel(p, plain_plan(p).forward), ""
    widest, far = max(p.variant.D, p.variant.E), beyond(p)
    most = p if far is None or widest <= 64 else far.problem  # three consumers have no room for near tiles
    brief = short(p.by_row, "i")
    even, ended = not brief and not uneven(p.by_row, "i"), p.attend.normaliser.z is not None
    term = joining(p) if far is None and widest <= 128 else None
    if term is not None:
        most = replace(p, attend=replace(p.attend, score=term.rest))
    walk = Walk(brief, even, ended, placed(p) and term is None, term is not None)
    default = forward_plan(widest, demand(most), walk)
    plan = overridden(default, p.variant.tiles, "partitioned.forward")
    reason = forward_refusal(p, plan)
    if reason:
        return forward_kernel(p, plain_plan(p).forward), f"not partitioned: {reason}"
    return partitioned_forward(p, plan), ""


def _backward(p: Problem, runs: tuple[Run, ...]) -> t.Program:
    """Partitioned where that is asked for and possible."""
    if p.variant.target != "gluon":
        return _plain_backward(p, runs)
    found = hopper_backward(p, runs)
    if isinstance(found, t.Program):
        return found
    return replace(_plain_backward(p, runs), note=f"not partitioned: {found}")


def _plain_backward(p: Problem, runs: tuple[Run, ...]) -> t.Program:
    wanted = p.variant.gradients
    found = captures(p)
    tiles = plain_plan(p)
    of_z = tuple(c for c in found if c.of_z)
    by_key = tuple(c for c in found if c.place == "key" and not c.of_z)
    by_row = tuple(c for c in found if c.place not in ("key", "diagonal") and not c.of_z)
    fused = tiles.fused and "q" in wanted and bool({"k", "v"} & set(wanted)) and all(c.along is None for c in found)
    kernels: list[t.Kernel] = []
    if p.normalised:
        kernels.append(delta_kernel(p, tiles.delta, of_z))
    if {"k", "v"} & set(wanted) or by_key:
        kernels.append(keys_kernel(p, tiles.keys, frozenset(wanted) - (frozenset() if fused else {"q"}), by_key))
    if ("q" in wanted and not fused) or by_row:
        kernels.append(queries_kernel(p, tiles.queries, "q" in wanted and not fused, by_row))
    kernels += [diagonals_kernel(p, c) for c in found if c.place == "diagonal"]
    scans, before = scans_read(p, runs, tuple(kernels))
    steps: list[t.Step] = [*prologue(p, tuple(kernels)), *before]
    steps += [t.Alloc(stat(p, name)) for name in map(p.own, ("delta", "log_z"))] if p.normalised else []
    for name in wanted:
        if name in ("q", "k", "v"):
            fill = 0.0 if fused and name == "q" else None
            steps.append(t.Alloc(tensor(p, f"d_{name}", strided=True), fill, like=name))
    buffers = {c.buffer: buffer(c, p, (tiles.delta if c.of_z else tiles.queries).rows) for c in found}
    for c in found:
        steps.append(t.Alloc(buffers[c.buffer], 0.0 if c.place == "pair" else None))
    steps += [t.Launch(k.name) for k in kernels]
    steps += [s for name in wanted if name not in ("q", "k", "v") for s in collected(p, name, found, buffers)]
    outputs = tuple(f"d_{n}" for n in wanted)
    every = tuple(map(prune, (*scans, *kernels)))
    return t.Program("backward", backward_inputs(p), scalars(p), every, tuple(steps), outputs)
