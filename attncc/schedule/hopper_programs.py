"""The host program of a partitioned backward: row statistics, dK and dV with the sum of dQ, d_q, and captures."""

from __future__ import annotations

from attncc.schedule import steps as plain
from attncc.schedule.beyond import beyond
from attncc.schedule.captured import Capture, buffer, by_sides, captures, consumers_buffer
from attncc.schedule.config import Tiles
from attncc.schedule.diagonals import diagonals_kernel
from attncc.schedule.hopper import backward_refusal, first_refusal, queries_refusal
from attncc.schedule.hopper_backward import partitioned_keys
from attncc.schedule.hopper_backward_places import KEYS, each_head_apart
from attncc.schedule.hopper_backward_rows import (
    cast_kernel,
    cast_keys_kernel,
    key_sums,
    query_sums,
    statistics,
    statistics_kernel,
)
from attncc.schedule.hopper_config import Burden, HopperBackward, HopperQueries, backward_plan
from attncc.schedule.hopper_queries import fits, partitioned_queries
from attncc.schedule.overrides import overridden
from attncc.schedule.partitions import counter
from attncc.schedule.prune import prune
from attncc.schedule.ranges import short
from attncc.schedule.runs import Run
from attncc.schedule.stream import Problem
from attncc.schedule.stream_backward import queries_kernel
from attncc.tile import nodes as t
from attncc.tile.dialect import works


def backward_program(p: Problem, runs: tuple[Run, ...], chosen: HopperBackward | None = None) -> t.Program | str:
    """The partitioned backward, or why there is none. Captures by row or by pair get a plain kernel beside it.

    dQ has a kernel of its rows' own where every sum is added up in one order, where captures are made of it, or where
    walks are short by data: the partitioned kernels of all keys add to it as they come.
    """
    wanted = p.variant.gradients
    found = tuple(x for c in captures(p) for x in by_sides(p, c))
    inside = tuple(filter(_inside, found))
    how = chosen or _plan(p, inside)
    by_q = any(c.along is not None for c in found)
    apart = "q" in wanted and (p.variant.ordered or by_q or how.apart)
    summed = frozenset(wanted) & {"q", "k", "v"} - ({"q"} if apart else set())
    refused = backward_refusal(p)
    if refused:
        return refused
    of_z = tuple(c for c in found if c.of_z)
    beside = tuple(c for c in found if not c.of_z and not _inside(c) and c.place != "diagonal")
    tiles = plain.plain_plan(p)
    main, walked = bool(summed or inside), bool(beside or apart)
    near = tuple(c for c in found if c.place == "diagonal")
    kernels: list[t.Kernel] = []
    queries = overridden(HopperQueries(), p.variant.tiles, "partitioned.queries")
    first = apart and main and p.normalised and not (of_z or beside or near or first_refusal(p)) and fits(queries, how)
    if first:
        kernels.append(partitioned_queries(p, queries, how))
    elif p.normalised:
        kernels.append(statistics_kernel(p, how, of_z, walked or bool(near)))
    if main:
        kernels.append(partitioned_keys(p, how, summed, inside))
    if "q" in summed:
        kernels.append(cast_kernel(p))
    shared = tuple(n for n in ("k", "v") if n in summed and each_head_apart(p))
    if shared:
        kernels.append(cast_keys_kernel(p, shared))
    if walked and not first:
        kernels.append(_queries(p, tiles.queries, queries, apart, beside))
    kernels += [diagonals_kernel(p, c) for c in near]
    scans, before = plain.scans_read(p, runs, tuple(kernels))
    steps: list[t.Step] = [*plain.prologue(p, tuple(kernels)), *before]
    if p.normalised:
        steps.append(t.Alloc(statistics(p, how)))
        steps += [t.Alloc(plain.stat(p, n)) for n in map(p.own, ("delta", "log_z")) if (walked and not first) or near]
    steps += [t.Alloc(query_sums(p), 0.0)] if "q" in summed else []
    steps += [t.Alloc(key_sums(p, f"d_{n}"), 0.0) for n in shared]
    steps += [t.Alloc(plain.tensor(p, f"d_{n}", strided=True), like=n) for n in wanted if n in ("q", "k", "v")]
    buffers = {c.buffer: _buffer(c, p, how, tiles.queries.rows) for c in found}
    steps += [t.Alloc(buffers[c.buffer], 0.0 if c.place == "pair" else None) for c in found]
    if any(map(works, kernels)):
        steps.append(t.Alloc(counter(p), 0.0, kept=True))
    steps += [t.Launch(k.name) for k in kernels]
    steps += [s for n in wanted if n not in ("q", "k", "v") for s in plain.collected(p, n, found, buffers)]
    outputs = tuple(f"d_{n}" for n in wanted)
    every = tuple(map(prune, (*scans, *kernels)))
    return t.Program("backward", plain.backward_inputs(p), plain.scalars(p), every, tuple(steps), outputs)


def _queries(p: Problem, tiles: Tiles, plan: HopperQueries, wanted: bool, beside: tuple[Capture, ...]) -> t.Kernel:
    """The kernel of rows: that of dQ alone is partitioned, where it can be."""
    if beside or queries_refusal(p):
        return queries_kernel(p, tiles, wanted, beside)
    return partitioned_queries(p, plan)


def _plan(p: Problem, inside: tuple[Capture, ...]) -> HopperBackward:
    """The default beside sums for the captures `inside`, or what the variant changes of it."""
    far = beyond(p)
    most = p if far is None or inside else far.problem
    demand = plain.demand(most)
    burden = Burden(
        positions=plain.placed(most),
        sums=bool(inside) or len(p.by_key.alternatives) > 1,
        curved=not p.exponential,
        far=far is not None,
        brief=short(p.by_row, "i") and plain.demand(p).masks_keys and not first_refusal(p),
    )
    default = backward_plan(p.variant.D, p.variant.E, demand, burden)
    return overridden(default, p.variant.tiles, "partitioned.backward")


def _inside(c: Capture) -> bool:
    """Whether the kernel that owns keys sums a capture."""
    return c.place in ("key", "tile", "side") and not c.of_z and c.along is None


def _buffer(c: Capture, p: Problem, how: HopperBackward, rows: int) -> t.Tensor:
    """The tensor a capture's share is collected in: where no index is left one number per consumer and side."""
    if c.place == "tile" and _inside(c):
        return consumers_buffer(c, p, 2 * KEYS)
    return buffer(c, p, how.rows if c.of_z else 2 * KEYS if c.place == "side" else rows)
