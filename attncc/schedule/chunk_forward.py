"""The kernel that writes out, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule import chunk_segments as segments
from attncc.schedule import chunk_weights as parts
from attncc.schedule.ahead import ahead
from attncc.schedule.chunk import Forward
from attncc.schedule.chunk_kept import Mode
from attncc.schedule.chunk_problem import Problem
from attncc.schedule.chunk_values import WHOLE
from attncc.schedule.early import early
from attncc.schedule.given import last_of
from attncc.schedule.late import late
from attncc.schedule.prune import prune
from attncc.schedule.sink import sink
from attncc.tile import nodes as t
from attncc.tile.sizes import bytes_of
from attncc.tile.verify_scope import operands
from attncc.tile.walks import every

B, H, M, N = (ivar(x) for x in "BHMN")


BLOCK = 64
"""Channels of a state that a program owns, where they are more."""


def meets(kernel: t.Kernel) -> set[str]:
    """The axes along which elements of a kernel's tiles meet."""
    found: set[str] = set()
    for s in every(kernel.body):
        match s:
            case t.Let(_, _, t.Dot(_, _, axis) | t.Reduce(_, _, axis) | t.Scan(_, _, axis)):
                found.add(axis)
            case t.Let(_, _, t.GatherAxis(_, _, axis)):
                found.add(axis)
            case _:
                pass
    return found


LEVELS: Mapping[str, Mapping[int, int]] = {"makes": {4: 168, 8: 128}}
"""Registers of a thread in kernels that go level by level, by their mode and warps: two or three programs share a
multiprocessor, which hide each other's steps; what does not fit is not read in the loop."""


def spans(kernel: t.Kernel) -> set[str]:
    """The axes that a kernel's tiles have."""
    return {a.name for s in every(kernel.body) if isinstance(s, t.Let) for a in s.type.axes}


def blocks(
    p: Problem, make: Callable[[Mapping[str, int]], t.Kernel], most: int = BLOCK, uncut: Collection[str] = ()
) -> t.Kernel:
    """The kernel, with programs for at most so many of the channels each where no part needs another; `uncut` axes are
    not divided."""
    whole = make(WHOLE)
    if p.variant.target == "torch":
        return whole
    sizes = {"d": p.variant.D, "e": p.variant.E}
    apart = {n: most for n, size in sizes.items() if size > most and n in spans(whole) - meets(whole) - set(uncut)}
    keys = {s.key.name for s in p.form.states if s.key is not None}
    if keys & {s.value.name for s in p.form.states if s.value is not None}:
        return whole
    return make(apart) if apart else whole


def grid_of(columns: Mapping[str, int], p: Problem) -> tuple[t.GridAxis, ...]:
    """Programs for every head, and for every part of the channels."""
    sizes = {"d": p.variant.D, "e": p.variant.E}
    parts = (t.GridAxis(f"{n}0", Const(sizes[n], "int"), "tile", columns[n], n) for n in columns)
    return (*parts, t.GridAxis("h", H, "batch"), t.GridAxis("b", B, "batch"))


def last_tensors(p: Problem, real: t.Dtype) -> tuple[t.Tensor, ...]:
    """The tensors that take the states behind the last token, where they are wanted."""
    found = []
    for s in p.form.states if p.variant.last else ():
        axes = [x.name for x in s.axes.own]
        extents = (Const(p.extents[a], "int") for a in axes)
        if s.scale_of:
            continue
        found.append(t.Tensor(last_of(s.name), ("b", "h", *axes), (B, H, *extents), real))
    return tuple(found)


def store_last(f: Forward, states: tuple[Var, ...]) -> None:
    """Stores the states behind the last token; one that the programs of a head share is stored by the first of them."""
    k = f.k
    for s, v in f.plain(states):
        names = k.b.type_of(v.name).names()
        place = tuple(k.value(x, "at") for x in s.axes.place)
        own = conj(*(k.inside[n] for n in names))
        if not place:  # a number is held over an axis of one element
            v, own, names = k.sum(s.name, op("where", own, v, 0.0), names[0]), TRUE, ()
        guard = conj(own, *first_of_all(f, names))
        k.store(last_of(s.name), (ivar("b"), ivar("h"), *place), v, guard, k.real)


def first_of_all(f: Forward, names: tuple[str, ...]) -> list[Expr]:
    """That the program is the first of those that share a value over `names`."""
    found = [op("eq", ivar(f"{n}0"), 0) for n in f.k.blocks if n not in names]
    channels = [f.k.b.bindings[ivar(n)] for n in names if ivar(n) in f.k.b.bindings]
    return [*found, *(op("le", 0, c) for c in channels[:1])] if found else []  # a mask has an element's axes


def forward_kernel(p: Problem) -> t.Kernel:
    """out, chunk by chunk."""
    return blocks(p, lambda columns: _forward_kernel(p, columns))


def _forward_kernel(p: Problem, columns: Mapping[str, int]) -> t.Kernel:
    cut = segments.segmented(p)
    names = (n(s.name) for s in p.form.states for n in (last_of, segments.own_of, segments.fade_of))
    f = Forward(p, (*names, *segments.NAMES), columns)
    f.kept.mode = "loads"
    k, b = f.k, f.k.b
    chunks, part = chunk_count(f), segments.begin(f) if cut else None
    states = f.initial()
    over = t.Count(Const(0, "int"), chunks)
    if part is not None:
        segment = b.value(op("sub", op("sub", segments.SEGS, 1), part), "segment")
        states = segments.joined(f, states, segment)
        over = segments.span(f, segment, segments.SEG, b.value(chunks, "chunks"))
    with b.inner() as scope:
        carried, now = carries(f, states, scope.depth)
        index = b.loop_index("chunk")
        k.tokens(b.value(op("mul", index, f.count), "first"), f.count)
        new, out = f.chunk(now)
        guard = conj(op("le", 0, k.row), op("lt", k.row, M), k.live, k.inside["e"])
        k.store("out", (ivar("b"), ivar("h"), k.row, b.bindings[ivar("e")]), out, guard, p.variant.dtype)
        b.add(t.Yield(tuple(v.name for v in new)))
    note = "one chunk after another"
    b.add(t.For(index.name, over, carried, tuple(scope.statements), order="asc", note=note))
    left = b.leave(carried)
    if p.variant.last:
        store_last(f, left)
    return walk_kernel("forward_kernel", f, columns, segments.SEGS if cut else None)


def owns_kernel(p: Problem, reserved: tuple[str, ...]) -> t.Kernel:
    """What every segment but the last makes of nothing, and leaves of what was before."""
    names = (n(s.name) for s in p.form.states for n in (segments.own_of, segments.fade_of))
    every = (*reserved, *names, *segments.NAMES)
    # tokens' gates scale what is written in registers: programs for parts of the keys would each do so
    keys = {s.key.name for s in p.form.states if s.key is not None} if p.of_tokens else set()
    return blocks(p, lambda columns: _owns_kernel(p, Forward(p, every, columns), columns), uncut=keys)


def _owns_kernel(p: Problem, f: Forward, columns: Mapping[str, int]) -> t.Kernel:
    f.kept.mode = "loads"
    k, b, held = f.k, f.k.b, p.form.states
    part = segments.begin(f)
    likes = f.initial()
    nothing = tuple(b.let("none", b.type_of(v.name), t.Full(Const(0.0, "real"))) for v in likes)
    ones = tuple(b.let("one", b.over(*segments.fade_axes(s)), t.Full(Const(1.0, "real"))) for s in held)
    over = segments.span(f, part, segments.SEG, b.value(chunk_count(f), "chunks"))
    with b.inner() as scope:
        carried, now = carries(f, nothing, scope.depth)
        fades = [b.carry("fade", v, scope.depth) for v in ones]
        index = b.loop_index("chunk")
        k.tokens(b.value(op("mul", index, f.count), "first"), f.count)
        new, _ = f.chunk(now)
        left = []
        for s, (_, v) in zip(held, fades, strict=True):
            factor = segments.factor(f, s)
            left.append(v if factor is None else k.value(op("mul", v, factor), "fade"))
        b.add(t.Yield(tuple(v.name for v in (*new, *left))))
    carried = (*carried, *(c for c, _ in fades))
    b.add(t.For(index.name, over, carried, tuple(scope.statements), order="asc", note="one chunk after another"))
    every = b.leave(carried)
    tensors = [n(s.name) for n in (segments.own_of, segments.fade_of) for s in held]
    for tensor, v in zip(tensors, every, strict=True):
        axes = b.type_of(v.name).names()
        guard = conj(*(k.inside[n] for n in axes), *first_of_all(f, axes))
        k.store(tensor, (ivar("b"), ivar("h"), part, *(b.bindings[ivar(n)] for n in axes)), v, guard, k.real)
    return walk_kernel("owns_kernel", f, columns, segments.OWNS)


def kept_kernels(p: Problem, reserved: tuple[str, ...]) -> tuple[tuple[t.Kernel, ...], tuple[t.Tensor, ...]]:
    """What a chunk needs no state for, then its weights, which read some of it; where all is stored."""
    if not p.halves and not p.of_tokens:
        return (), ()
    if not p.halves:
        return _sums_in_runs(p, reserved)
    made: list[Forward] = []

    def make(mode: Mode, columns: Mapping[str, int], part: str = "") -> t.Kernel:
        f = Forward(p, reserved, {part: parts.PART} if part else columns)
        f.kept.mode = mode
        first, states = f.k.b.position("first"), f.initial()
        f.k.tokens(first, f.count)
        if part:
            parts.statements(f, states, part)
        else:
            f.chunk(states)
        f.kept.products()
        made.append(f)
        name = "sums_kernel" if mode == "stores" else "weights_kernel"
        kernel = sink(chunk_kernel(name, f, first.name, columns, alone=not part))
        return early(kernel) if mode == "stores" else kernel

    axis = parts.parted(p)
    sums = make("stores", WHOLE, axis) if axis and parts.totals(p) else blocks(p, lambda x: make("stores", x))
    return (sums, make("weights", WHOLE, axis)), made[-1].kept.tensors(p.extents)


RUN = 4
"""Chunks that a program sums the gates of, one after another: each is but a vector."""


def _sums_in_runs(p: Problem, reserved: tuple[str, ...]) -> tuple[tuple[t.Kernel, ...], tuple[t.Tensor, ...]]:
    """Running sums of tokens' gates, and where they are stored."""
    f = Forward(p, reserved)
    f.kept.mode = "stores"
    b = f.k.b
    first, states = b.position("first"), f.initial()
    over = segments.span(f, op("floordiv", first, f.count * RUN), RUN, chunk_count(f))
    with b.inner() as scope:
        index = b.loop_index("chunk")
        f.k.tokens(b.value(op("mul", index, f.count), "first"), f.count)
        f.chunk(states)
        f.kept.products()
        b.add(t.Yield(()))
    b.add(t.For(index.name, over, (), tuple(scope.statements), order="asc", note="one chunk after another"))
    return (sink(chunk_kernel("sums_kernel", f, first.name, chunks=RUN)),), f.kept.tensors(p.extents)


def chunk_kernel(
    name: str, f: Forward, first: str, columns: Mapping[str, int] = WHOLE, *, alone: bool = True, chunks: int = 1
) -> t.Kernel:
    """A kernel with a program for every chunk of a head, or for so many; four warps where it is not `alone` on a
    multiprocessor."""
    p, few = f.p, 0
    *parts, h, b = grid_of(columns, p)
    grid = (*parts, t.GridAxis(first, N, "tile", f.count * chunks, "i"), h, b)
    scalars = ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants))
    large = f.count * max(p.extents.values()) > (4096 if p.halves else enough(p))
    warps = 8 if large and alone and not columns else 4
    if p.halves and max(p.extents.values()) <= 128:
        few = LEVELS.get(f.kept.mode, {}).get(warps, 0)
    found = prune(t.Kernel(name, grid, tuple(f.k.tensors), scalars, tuple(f.k.b.scope.statements)))
    if spans(found) <= {"i"}:
        warps = 1
    return late(replace(found, config=t.Config(warps, 1, few)), tiles=not p.halves and not p.large)


def carries(f: Forward, states: tuple[Var, ...], depth: int) -> tuple[tuple[t.Carry, ...], tuple[Var, ...]]:
    """The states as what a loop carries."""
    f.walks = True
    found = [f.k.b.carry(s.name, v, depth) for s, v in zip(f.p.form.states, states, strict=True)]
    return tuple(c for c, _ in found), tuple(v for _, v in found)


def chunk_count(f: Forward) -> Expr:
    """How many chunks there are."""
    tokens = op("max", M, N) if f.k.stateless else N
    return op("floordiv", op("add", tokens, f.count - 1), f.count)


ROOM = {80: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program may have; what is compiled for sm_80 also runs on sm_86 and sm_89."""


def walk_kernel(name: str, f: Forward, columns: Mapping[str, int], parts: Var | None = None) -> t.Kernel:
    """A kernel whose programs walk the chunks of a head."""
    p = f.p
    scalars = ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants))
    axes = [[a.name for a in (s.key, s.value) if a is not None] for s in p.form.states]
    large = max((math.prod(map(f.k.b.extent, names)) for names in axes), default=0)
    body = tuple(f.k.b.scope.statements)
    grid = grid_of(columns, p)
    if parts is not None:
        grid = (*grid[:-2], t.GridAxis("part", parts, "batch"), *grid[-2:])
        scalars = (*scalars, *segments.NAMES)
    made = ahead(prune(t.Kernel(name, grid, tuple(f.k.tensors), scalars, body)))
    return replace(made, config=t.Config(8 if large > enough(p) else 4, stages(made, p, few=parts == segments.OWNS)))


def enough(p: Problem) -> int:
    """Elements of a tile up to which four warps are enough: on Hopper they multiply 64 rows at once, and twice as many
    programs share a multiprocessor."""
    return 8192 if p.on_hopper and p.light else 4096


def stages(kernel: t.Kernel, p: Problem, *, few: bool = False) -> int:
    """How many turns of a walk have their loads under way at once: as many as shared memory holds, three at most, or
    four where no second program fits beside one with three, or `few` programs leave some multiprocessors with one.

    Tiles that only products read stay where they are until the products are done; others are held a turn less. Beside
    them there is room for a state, for the weights of a chunk and for what is made of those others, as operands.
    """
    if p.variant.dtype not in ("f16", "bf16"):
        return 1
    walk = [s for s in kernel.body if isinstance(s, t.For)][-1]
    lets = [x for x in walk.body if isinstance(x, t.Let)]
    types = {s.name: s.type for s in lets}
    once = {s.op.value: s.name for s in lets if isinstance(s.op, t.Rename)}
    other = {n for s in lets if isinstance(s.op, t.Map | t.Cast | t.Reduce) for n in operands(s.op)}

    tiles = [s.name for s in lets if isinstance(s.op, t.Load) and len(s.type.axes) == 2]
    turn = sum(bytes_of(types[n]) for n in tiles)
    kept = sum(bytes_of(types[n]) for n in tiles if not {n, once.get(n, n)} & other)
    room = ROOM[90 if p.variant.capability >= 90 else 80]
    beside = 16 * 1024 + turn - kept + max((bytes_of(c.type) // 2 for c in walk.carried), default=0)
    most = (4, 3, 2) if (few or 2 * (2 * turn + kept + beside) > room) and p.on_hopper else (3, 2)
    return next((n for n in most if (n - 1) * turn + kept + beside <= room), 1)
