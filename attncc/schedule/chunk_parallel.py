"""The backward of decaying states in kernels of which the last have a program for every chunk.

    states      the states at every chunk's start, chunk after chunk
    adjoints    the gradients of the states behind every chunk, from the last chunk on, and of the first states
    pairs       of weights under gates along channels: their gradients, mirrored; of sums along channels beside them
    gradients   each chunk by itself, between the two: the gradients of everything that its tokens read
    gates       of gates of tokens: the sums, over several chunks, of what each gave to their running sums
    maps        of rows that are made once: from their gradients to those of what they are made of

What the first two kernels store is in the inputs' element type where that has 16 bits, as factors of products are: a
state of one axis, which meets its gradient in no product, is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.ir.free import free
from attncc.ir.nodes import Load
from attncc.passes.chunk_form import Gate, Held
from attncc.schedule import chunk_gates, chunk_maps
from attncc.schedule.adjoint import Adjoints
from attncc.schedule.chunk import Forward
from attncc.schedule.chunk_backward import B, Backward, H, N, Share, inside, place, start_of
from attncc.schedule.chunk_fading import Maker
from attncc.schedule.chunk_forward import BLOCK, blocks, carries, chunk_count, chunk_kernel, first_of_all, walk_kernel
from attncc.schedule.chunk_halves import mirrored
from attncc.schedule.chunk_kept import pair_of, read_by
from attncc.schedule.chunk_problem import Problem
from attncc.schedule.sink import sink
from attncc.tile import nodes as t


def end_of(s: str) -> str:
    """The buffer of a state's gradient behind every chunk."""
    return f"{s}_ends"


def stored(p: Problem, s: Held, real: t.Dtype) -> t.Dtype:
    """The element type that a state of every chunk is stored in."""
    return p.variant.dtype if s.key is not None and s.value is not None else real


def buffers(p: Problem, f: Forward) -> tuple[t.Tensor, ...]:
    """What the first two kernels store."""
    found = []
    for s in p.form.states:
        axes = [x.name for x in (s.key, s.value) if x is not None]
        extents = tuple(Const(p.extents[a], "int") for a in axes)
        for name in (start_of(s.name), end_of(s.name)):
            shape = (B, H, chunk_count(f), *extents)
            found.append(t.Tensor(name, ("b", "h", "c", *axes), shape, stored(p, s, f.k.real)))
    return tuple(found)


def keep(f: Forward, s: Held, tensor: str, v: Var, chunk: Expr) -> None:
    """Stores a state of a chunk."""
    at = place(f, v, chunk)
    guard = inside(f, v, *first_of_all(f, f.k.b.type_of(v.name).names()))
    f.k.store(tensor, at, v, guard, stored(f.p, s, f.k.real))


def states_kernel(p: Problem, reserved: tuple[str, ...]) -> t.Kernel:
    """The states at every chunk's start."""
    return blocks(p, lambda columns: _states(p, Forward(p, reserved, columns), columns))


def _states(p: Problem, f: Forward, columns: Mapping[str, int]) -> t.Kernel:
    f.kept.mode = "loads"
    k, b = f.k, f.k.b
    states = f.initial()
    with b.inner() as scope:
        carried, names = carries(f, states, scope.depth)
        index = b.loop_index("chunk")
        k.tokens(b.value(op("mul", index, f.count), "first"), f.count)
        for s, v in zip(p.form.states, names, strict=True):
            keep(f, s, start_of(s.name), v, index)
        new, _ = f.chunk(names)
        b.add(t.Yield(tuple(v.name for v in new)))
    chunks = t.Count(Const(0, "int"), chunk_count(f))
    b.add(t.For(index.name, chunks, carried, tuple(scope.statements), order="asc", note="one chunk after another"))
    return walk_kernel("states_kernel", f, columns)


def adjoints_kernel(p: Problem, reserved: tuple[str, ...]) -> tuple[t.Kernel, tuple[Share, ...]]:
    """The gradients of the states behind every chunk; the shares of what the first states read."""
    made: list[_Adjoint] = []

    def make(columns: Mapping[str, int]) -> t.Kernel:
        made.append(_Adjoint(p, Forward(p, reserved, columns)))
        return made[-1].kernel(columns)

    found = blocks(p, make)
    return found, tuple(made[-1].shares)


class _Chunks(Backward):
    """Kernels that read the states of a chunk."""

    def __init__(self, p: Problem, f: Forward) -> None:
        super().__init__(p, f)
        self.loaded: list[str] = []
        """The states as they are stored."""

    def within(self, *, states: bool, reads: bool) -> Adjoints:
        """The adjoints of all statements so far: of the states, or of what is read."""
        loads = {n for n, (e, _) in self.k.sources.items() if e.tensor in self.wanted and e.sort == "real"}
        loads |= {v.name for n, v in self.f.loaded.items() if read_by(self.p.maps[n][0]) & self.wanted}
        wanted = (set(self.loaded) if states else set()) | (loads if reads else set())
        return Adjoints(self.k, list(self.k.b.scope.statements), frozenset(wanted))

    def read(self, tensor: str, s: Held, like: Var, chunk: Expr) -> Var:
        """A state that is stored for a chunk."""
        k = self.k
        type = replace(k.b.type_of(like.name), dtype=stored(self.p, s, k.real))
        nothing = -1e30 if s.scale_of else 0  # in the padding; of an exponent the largest is asked for
        found = k.load(tensor, place(self.f, like, chunk), inside(self.f, like), type, s.name, nothing)
        self.loaded.append(found.name)
        return k.cast(found, k.real)


class _Adjoint(_Chunks):
    def kernel(self, columns: Mapping[str, int]) -> t.Kernel:
        k, b, f, held = self.k, self.k.b, self.f, self.p.form.states
        f.kept.mode = "loads"
        self.tag = "first_"
        initial = f.initial()
        behind = tuple(self.behind(s, v) for s, v in zip(held, initial, strict=True))
        with b.inner() as scope:
            carried, after = carries(f, behind, scope.depth)
            index = b.loop_index("turn")
            chunk = b.value(op("sub", op("sub", chunk_count(f), 1), index), "chunk")
            k.tokens(b.value(op("mul", chunk, f.count), "first"), f.count)
            for s, v in zip(held, after, strict=True):
                keep(f, s, end_of(s.name), v, chunk)
            states = tuple(self.read(start_of(s.name), s, v, chunk) for s, v in zip(held, initial, strict=True))
            new, out = f.chunk(states)
            self.adjoints([], set())
            within = self.within(states=True, reads=False)
            self.seed(within, new, after, out)
            within.run()
            before = tuple(within.of.get(n) or self.zero(v) for n, v in zip(self.loaded, initial, strict=True))
            b.add(t.Yield(tuple(v.name for v in before)))
        chunks = t.Count(Const(0, "int"), chunk_count(f))
        note = "one chunk after another, from the last"
        b.add(t.For(index.name, chunks, carried, tuple(scope.statements), order="asc", note=note))
        left = b.leave(carried)
        self.finish(initial, left, ())
        return walk_kernel("adjoints_kernel", f, columns)


class _Gradients(_Chunks):
    def __init__(self, p: Problem, f: Forward, homes: Mapping[str, t.Tensor], wanted: tuple[str, ...]) -> None:
        super().__init__(p, f)
        self.homes, self.wanted = homes, frozenset(wanted)
        self.runs: dict[str, t.Tensor] = {}
        """What gates get, to be summed over the chunks."""
        self.rows: dict[int, t.Tensor] = {}
        """What rows get that are made once."""

    def home(self, load: Load) -> t.Tensor | None:
        """The gradient itself, for the only share in it, which has its axes."""
        natural = (ivar("b"), load.index[1], ivar("i"), *load.index[3:])
        heads = (ivar("h"), ivar("g"))
        plain = len(load.index) in (3, 4) and load.index == natural and load.index[1] in heads
        plain = plain and all(isinstance(x, Var) and x.name in self.p.extents for x in load.index[3:])
        return self.homes.get(load.tensor) if plain and self.count[load.tensor] == 1 else None

    def kernel(self, name: str, columns: Mapping[str, int]) -> t.Kernel:
        near = (*self.p.near, *self.p.sums, *(s.gate.log for s in self.p.form.states if self.p.of_tokens))
        self.f.kept.mode = "makes" if self.wanted & read_by(*near) else "loads"
        self.tag = f"{name.removeprefix('gradients_kernel')[1:]}_"
        first, new, after, out = self.begin()
        within = self.within(states=False, reads=True)
        for n, v in enumerate(given(self.p, self.f)):
            if v.name in within.moving:
                within.of[v.name] = self.pair(n, v)
                within.given |= {v.name}
        each: tuple[chunk_gates.Run, ...] = ()
        if chunk_gates.apart(self.p) and self.wanted == set(self.p.variant.gradients) and not columns:
            each = chunk_gates.runs(self.p, self.f.m, self.f.kept.ones)
            within.ends = frozenset(v.name for x in each for v in (x.sums.upto, x.sums.last, x.one))
        self.seed(within, new, after, out)
        within.run()
        self.store(within)
        self.rows = chunk_maps.store(self.f, within.of)
        assert self.each is not None
        self.runs = chunk_gates.store(self.k, each, within.of, self.each, chunk_count(self.f))
        return sink(chunk_kernel(name, self.f, first.name, columns))

    def gates(self, runs: Mapping[str, t.Tensor]) -> t.Kernel:
        """The kernel that sums over runs of chunks what gates get."""
        k, f = self.k, self.f
        chunks, f.count = chunk_count(f), f.count * chunk_gates.RUN
        first = k.b.position("first")
        self.each = k.b.value(op("floordiv", first, f.count), "run")
        k.tokens(first, f.count)
        f.kept.mode = "alone"
        each = chunk_gates.runs(self.p, Maker(k, None, f.kept.running), f.kept.ones)
        within = self.within(states=False, reads=True)
        last = op("sub", op("mul", op("add", self.each, 1), chunk_gates.RUN), 1)
        for name, v in chunk_gates.load(k, each, runs, op("min", last, op("sub", chunks, 1))).items():
            within.add(name, v)
        within.run()
        self.tag = "gates_"
        self.store(within)
        return chunk_kernel("gates_kernel", f, first.name)

    def maps(self, rows: Mapping[int, t.Tensor]) -> t.Kernel:
        """The kernel of the gradients of what rows are made of, from theirs."""
        k, f = self.k, self.f
        first, f.count = k.b.position("first"), chunk_maps.ROWS
        self.each = k.b.value(op("floordiv", first, f.count), "chunk")
        k.tokens(first, f.count)
        made = f.rows()
        within = self.within(states=False, reads=True)
        for n in rows:
            within.add(made[n].name, chunk_maps.load(f, n, made[n]))
        within.run()
        self.tag = "maps_"
        self.store(within)
        return chunk_kernel("maps_gradients_kernel", f, first.name)

    def pairs(self) -> tuple[t.Kernel, tuple[t.Tensor, ...]]:
        """The kernel of the gradients of weights and of sums along channels, and where it stores them."""
        k, f = self.k, self.f
        f.kept.mode = "loads"
        first, new, after, out = self.begin()
        every = given(self.p, f)
        names = frozenset(v.name for v in every)
        within = Adjoints(k, list(k.b.scope.statements), names)
        within.ends = names
        self.seed(within, new, after, out)
        within.run()
        tensors = []
        for n, v in enumerate(every):
            a, axes = within.of[v.name], k.b.type_of(v.name).axes
            a = mirrored(k, a) if len(axes) > 1 else k.over(a, "i")
            shape = (B, H, N, *(Const(x.extent, "int") for x in axes[1:]))
            tensors.append(t.Tensor(pair_of(n), ("b", "h", "t", "w")[: len(shape)], shape, self.dtype(v)))
            k.store(pair_of(n), f.kept.place(v), a, f.kept.guard(v), tensors[-1].dtype)
        return chunk_kernel("pairs_kernel", f, first.name), tuple(tensors)

    def dtype(self, v: Var) -> t.Dtype:
        """The element type that the gradient of weights or of a sum is stored in."""
        return self.p.variant.dtype if len(self.k.b.type_of(v.name).axes) > 1 else self.k.real

    def pair(self, n: int, v: Var) -> Var:
        """A gradient as it is stored."""
        k, kept = self.k, self.f.kept
        type = replace(k.b.type_of(v.name), dtype=self.dtype(v))
        return k.cast(k.load(pair_of(n), kept.place(v), kept.guard(v), type, "pair"), k.real)

    def begin(self) -> tuple[Var, tuple[Var, ...], tuple[Var, ...], Var]:
        """(the first token, the states behind the chunk, their gradients, out over its rows)."""
        k, f, held = self.k, self.f, self.p.form.states
        first = k.b.position("first")
        self.each = k.b.value(op("floordiv", first, f.count), "chunk")
        likes = f.initial()
        k.tokens(first, f.count)
        states = tuple(self.read(start_of(s.name), s, v, self.each) for s, v in zip(held, likes, strict=True))
        after = tuple(self.read(end_of(s.name), s, v, self.each) for s, v in zip(held, likes, strict=True))
        new, out = f.chunk(states)
        return first, new, after, out


PART = 32
"""Channels of a program, where weights under gates along channels go back level by level: of more, registers spill."""
UNDIVIDED, UNGATED = 64, 128
"""Channels up to which one kernel computes all gradients of a chunk, and if tokens have no gates of their own, or the
state is written and read by inputs as they lie. A kernel for each axis reads most inputs once more, but keeps less in
registers."""


def of_tokens(gate: Gate) -> bool:
    """Whether a gate differs from token to token."""
    return ivar("i") in free(gate.log) | free(gate.linear)


def groups(p: Problem) -> tuple[tuple[str, ...], ...]:
    """The inputs whose gradients one kernel computes: those along one axis together, where there are many channels."""
    gated = any(s.scale or of_tokens(s.gate) or of_tokens(s.beside) for s in p.form.states)
    alone = p.bare and all(map(p.separable, p.form.states))
    most = UNGATED if (alone or not gated) and p.variant.capability >= 90 else PART if p.halves else UNDIVIDED
    if max(p.extents.values()) <= most:
        return (p.variant.gradients,)
    axes = {"q": "d", "k": "d", "v": "e"} | {x.name: x.axes[-1].index if x.axes else "" for x in p.spec.params}
    moved = [s.gate.log for s in p.form.states if p.separable(s)]
    axes |= {n: "d" for n in read_by(*moved) - {"q", "k", "v"} if axes[n] not in ("d", "e")}
    axes |= {n: "d" for e, _ in p.maps for n in read_by(e)}
    found: dict[str, list[str]] = {}
    for n in p.variant.gradients:
        found.setdefault(axes[n] if axes[n] in ("d", "e") else "", []).append(n)
    return tuple(map(tuple, found.values()))


def given(p: Problem, f: Forward) -> list[Var]:
    """Values whose gradients one kernel computes for all others, where it does."""
    return [*f.pairs, *f.ends] if p.halves and read_by(*p.near) & set(p.variant.gradients) else []


def pairs_kernel(p: Problem, reserved: tuple[str, ...]) -> tuple[tuple[t.Kernel, ...], tuple[t.Tensor, ...]]:
    """The gradients of weights under gates along channels, for all that go back through them."""
    if not p.halves or not read_by(*p.near) & set(p.variant.gradients):
        return (), ()
    kernel, tensors = _Gradients(p, Forward(p, reserved), {}, ()).pairs()
    return (kernel,), tensors


def gradients_kernels(
    p: Problem, reserved: tuple[str, ...], homes: Mapping[str, t.Tensor]
) -> tuple[tuple[t.Kernel, ...], tuple[Share, ...], tuple[t.Tensor, ...]]:
    """The gradients of what the tokens read, chunk by chunk, and what else they store; `homes` are the results that may
    be written at once."""
    kernels: list[t.Kernel] = []
    shares: list[Share] = []
    runs: list[t.Tensor] = []
    near = read_by(*p.near, *p.sums) if p.halves else frozenset()
    for n, wanted in enumerate(groups(p)):
        made: list[_Gradients] = []
        name = f"gradients_kernel_{n}" if n else "gradients_kernel"

        def make(
            columns: Mapping[str, int],
            wanted: tuple[str, ...] = wanted,
            name: str = name,
            made: list[_Gradients] = made,
        ) -> t.Kernel:
            made.append(_Gradients(p, Forward(p, reserved, columns), homes, wanted))
            return made[-1].kernel(name, columns)

        kernels.append(blocks(p, make, PART if near & set(wanted) else BLOCK))
        shares += made[-1].shares
        if made[-1].runs:
            last = _Gradients(p, Forward(p, reserved), homes, wanted)
            kernels.append(last.gates(made[-1].runs))
            shares += last.shares
            runs += made[-1].runs.values()
        if made[-1].rows:
            back = _Gradients(p, Forward(p, reserved), homes, wanted)
            kernels.append(back.maps(made[-1].rows))
            shares += back.shares
            runs += made[-1].rows.values()
    return tuple(kernels), tuple(shares), tuple(runs)
