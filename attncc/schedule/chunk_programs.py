"""Host programs of a state program in chunks."""

from __future__ import annotations

import math
from dataclasses import replace

from attncc.expr.nodes import Const
from attncc.ir.nodes import Spec
from attncc.passes.mistakes import NotCompiled
from attncc.schedule import chunk_gates, chunk_maps
from attncc.schedule.bulk import bulk
from attncc.schedule.chunk import Forward, map_of
from attncc.schedule.chunk_backward import chunks_kernel, collected, start_of, starts, states_kernel
from attncc.schedule.chunk_forward import chunk_count, forward_kernel, kept_kernels, last_tensors, owns_kernel
from attncc.schedule.chunk_kept import MOST, kept_of, pair_of
from attncc.schedule.chunk_parallel import adjoints_kernel, buffers, end_of, gradients_kernels, pairs_kernel
from attncc.schedule.chunk_parallel import states_kernel as states_of_chunks
from attncc.schedule.chunk_problem import Problem, problem
from attncc.schedule.chunk_segments import counts, segmented, tensors
from attncc.schedule.chunk_values import ROLES
from attncc.schedule.given import last_of
from attncc.schedule.heads import without_groups
from attncc.schedule.programs import Pair
from attncc.schedule.reload import multiplied
from attncc.schedule.state_tensors import gradient, inputs, scalars, tensor
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.sizes import bytes_of
from attncc.tile.walks import every


def programs(spec: Spec, variant: Variant) -> Pair:
    """The programs of one variant of a state program; NotCompiled where it has none."""
    p = problem(spec, variant)
    kernel = forward_kernel(p)
    last = last_tensors(p, "f64" if variant.dtype == "f64" else "f32")
    before, early, passed = _kept(p)
    cut, pieces, first = _segments(p, kernel)
    steps = (*early, *first, t.Alloc(tensor(p, "out"), like="q"), *(t.Alloc(x) for x in last), t.Launch(kernel.name))
    outputs = ("out", *(x.name for x in (*last, *passed)))
    forward = t.Program("forward", inputs(p), (*scalars(p), *cut), (*before, *pieces, kernel), steps, outputs)
    if variant.gradients and variant.last and any(s.scale for s in p.form.states):
        span = spec.recurrence.states[0].span if spec.recurrence is not None else None
        raise NotCompiled("gradients from the final state of writes of any size: not compiled yet", span)
    backward = None
    if variant.gradients:
        backward = _backward(p) if variant.target == "torch" or not p.form.states else _parallel(p)
    if p.on_hopper:
        forward, backward = bulk(forward, _moved), None if backward is None else bulk(backward, _moved)
    if variant.grouped:
        return Pair(forward, backward)
    return Pair(without_groups(forward), None if backward is None else without_groups(backward))


def _moved(kernel: t.Kernel, s: t.Let) -> bool:
    """Whether a tile is moved in bulk: in kernels with products that take tiles as they lie. In others all pass through
    registers, which Triton would first store them for. Of a single chunk, those that leave room for its tokens'; of a
    walk, no sums: they wait for nothing."""
    walks = not any(g.axis == "i" for g in kernel.grid)
    fits = s.type.dtype != "f32" if walks else bytes_of(s.type) <= LARGEST
    return bool(multiplied(kernel.body)) and fits


LARGEST = 32 * 1024
"""Bytes of a tile."""


def _segments(p: Problem, forward: t.Kernel) -> tuple[tuple[t.Scalar, ...], tuple[t.Kernel, ...], tuple[t.Step, ...]]:
    """The sizes of segments, the kernel of what they make of nothing and its steps, or nothing."""
    if not segmented(p):
        return (), (), ()
    f = Forward(p)
    kernel = owns_kernel(p, _reserved(p))
    tiles = (-(-int(a.extent.value) // a.tile) for a in forward.grid if isinstance(a.extent, Const))
    steps: tuple[t.Step, ...] = (*(t.Alloc(x) for x in tensors(p, f.k.real)), t.Launch(kernel.name))
    return counts(chunk_count(f), math.prod(tiles)), (kernel,), steps


def _kept(p: Problem, *, again: bool = False) -> tuple[tuple[t.Kernel, ...], tuple[t.Step, ...], tuple[t.Tensor, ...]]:
    """The kernels of what is kept for all others, their steps, and what passes from the forward to the backward:
    weights, and numbers of the tokens. What lies along channels is larger, and made again."""
    maps, rows = chunk_maps.kernels(p, _reserved(p)), chunk_maps.tensors(p)
    kernels, where = kept_kernels(p, _reserved(p))
    passed: tuple[t.Tensor, ...] = ()
    if p.variant.kept and kernels:
        last = kernels[-1]
        names = {s.tensor for s in every(last.body) if isinstance(s, t.Store)}
        passed = tuple(x for x in where if x.name in names)
        if again:
            kernels, where = kernels[:-1], tuple(x for x in where if x not in passed)
    kernels = (*maps, *kernels)
    return kernels, (*(t.Alloc(x) for x in (*rows, *where)), *(t.Launch(x.name) for x in kernels)), passed


def _backward(p: Problem) -> t.Program:
    first, second = Forward(p, _reserved(p)), Forward(p, _reserved(p))
    states = states_kernel(p, first)
    chunks, shares = chunks_kernel(p, second)
    last = last_tensors(p, first.k.real)
    given = (*inputs(p), tensor(p, "out"), tensor(p, "d_out"), *(replace(x, name=f"d_{x.name}") for x in last))
    steps: list[t.Step] = [t.Alloc(x) for x in starts(p, first)]
    steps.append(t.Launch(states.name))
    steps += [t.Alloc(s.buffer, None if s.rows != "r" else 0.0) for s in shares]
    steps.append(t.Launch(chunks.name))
    for name in p.variant.gradients:
        steps += collected(p, name, shares, gradient(p, name), first.k.real)
    outputs = tuple(f"d_{n}" for n in p.variant.gradients)
    return t.Program("backward", given, scalars(p), (states, chunks), tuple(steps), outputs)


def _parallel(p: Problem) -> t.Program:
    f, reserved = Forward(p), _reserved(p)
    homes = {n: gradient(p, n) for n in p.variant.gradients}
    states, (adjoints, early) = states_of_chunks(p, reserved), adjoints_kernel(p, reserved)
    gradients, late, runs = gradients_kernels(p, reserved, homes)
    pairs, whole = pairs_kernel(p, reserved)
    last = last_tensors(p, f.k.real)
    before, steps, passed = _kept(p, again=True)
    ends = (replace(x, name=f"d_{x.name}") for x in last)
    given = (*inputs(p), tensor(p, "out"), tensor(p, "d_out"), *ends, *passed)
    steps += tuple(t.Alloc(x) for x in buffers(p, f))
    steps += (t.Launch(states.name), *(t.Alloc(s.buffer) for s in early), t.Launch(adjoints.name))
    steps += (*(t.Alloc(x) for x in (*whole, *runs)), *(t.Alloc(s.buffer) for s in late))
    steps += tuple(t.Launch(x.name) for x in (*pairs, *gradients))
    for name in p.variant.gradients:
        steps += collected(p, name, (*early, *late), homes[name], f.k.real)
    outputs = tuple(f"d_{n}" for n in p.variant.gradients)
    return t.Program("backward", given, scalars(p), (*before, states, adjoints, *pairs, *gradients), steps, outputs)


def _reserved(p: Problem) -> tuple[str, ...]:
    names = (*ROLES, "out", *(x.name for x in p.spec.params))
    kept = tuple(x for s in p.form.states for x in (start_of(s.name), end_of(s.name), f"d_{last_of(s.name)}"))
    kept = (*kept, *chunk_gates.names(len(p.form.states)))
    kept = (*kept, *(n(x) for x in range(len(p.maps)) for n in (map_of, chunk_maps.gradient_of)))
    return (*kept, *(f"d_{n}" for n in names), *(n(x) for x in range(MOST) for n in (kept_of, pair_of)))
