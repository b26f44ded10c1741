"""The backward of decaying states: the states at every chunk's start, then the chunks from the last one on.

Each chunk is computed again from the state at its start; its statements are passed backwards, with the gradient of the
output's rows and that of the state behind the chunk to begin with. Every read of an input leaves its share of the
gradient in a buffer of its own, which the host sums over the axes that the input lacks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Const, Expr, Var, free_vars, substitute
from attncc.ir.free import free
from attncc.ir.nodes import Load
from attncc.passes.chunk_form import Held
from attncc.schedule.adjoint import Adjoints
from attncc.schedule.chunk import Forward
from attncc.schedule.chunk_forward import carries, chunk_count, first_of_all
from attncc.schedule.chunk_problem import Problem
from attncc.schedule.chunk_values import ROLES
from attncc.schedule.given import last_of
from attncc.schedule.prune import prune
from attncc.tile import nodes as t

B, H, G, M, N = (ivar(x) for x in "BHGMN")
ZERO = Const(0.0, "real")
ROW, TOKEN = "row_", "token_"
"""Axes of shares; no index of a spec is called so."""
_KINDS = {"q": "bhmd", "k": "bgnd", "v": "bgne"}


@dataclass(frozen=True, slots=True)
class Share:
    """One read's share of a gradient, collected in `buffer`; its rows are tokens, query rows, or there are none."""

    load: Load
    buffer: t.Tensor
    rows: str
    whole: bool = False
    """It is the gradient."""


def start_of(s: str) -> str:
    """The buffer of a state at every chunk's start."""
    return f"{s}_starts"


def states_kernel(p: Problem, f: Forward) -> t.Kernel:
    """The states at every chunk's start."""
    k, b = f.k, f.k.b
    states = f.initial()
    with b.inner() as scope:
        carried, names = carries(f, states, scope.depth)
        index = b.loop_index("chunk")
        k.tokens(b.value(op("mul", index, f.count), "first"), f.count)
        for s, v in zip(p.form.states, names, strict=True):
            k.store(start_of(s.name), place(f, v, index), v, inside(f, v), k.real)
        new, _ = f.chunk(names)
        b.add(t.Yield(tuple(v.name for v in new)))
    chunks = t.Count(Const(0, "int"), chunk_count(f))
    b.add(t.For(index.name, chunks, carried, tuple(scope.statements), order="asc", note="one chunk after another"))
    return kernel("states_kernel", p, f)


def place(f: Forward, v: Var, chunk: Expr) -> tuple[Expr, ...]:
    """Where a chunk's state is stored."""
    channels = tuple(f.k.b.bindings[ivar(a)] for a in f.k.b.type_of(v.name).names())
    return (ivar("b"), ivar("h"), chunk, *channels)


def inside(f: Forward, v: Var, *more: Expr) -> Expr:
    """That a state's channels are no padding, and more."""
    return conj(*more, *(f.k.inside[a] for a in f.k.b.type_of(v.name).names()))


def starts(p: Problem, f: Forward) -> tuple[t.Tensor, ...]:
    """The buffers of the states at every chunk's start."""
    found = []
    for s in p.form.states:
        axes = [x.name for x in (s.key, s.value) if x is not None]
        extents = tuple(Const(p.extents[a], "int") for a in axes)
        found.append(t.Tensor(start_of(s.name), ("b", "h", "c", *axes), (B, H, chunk_count(f), *extents), f.k.real))
    return tuple(found)


def kernel(name: str, p: Problem, f: Forward) -> t.Kernel:
    """A kernel with one program a head."""
    grid = (t.GridAxis("h", H, "batch"), t.GridAxis("b", B, "batch"))
    scalars = ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants))
    body = tuple(f.k.b.scope.statements)
    return prune(t.Kernel(name, grid, tuple(f.k.tensors), scalars, body, t.Config(4, 1)))


def chunks_kernel(p: Problem, f: Forward) -> tuple[t.Kernel, tuple[Share, ...]]:
    """The chunks from the last one on: every share of the gradients."""
    walk = Backward(p, f)
    return walk.write(), tuple(walk.shares)


class Backward:
    """The kernel of chunks from the last one on, and what other kernels of gradients share with it."""

    def __init__(self, p: Problem, f: Forward) -> None:
        self.p, self.f, self.k = p, f, f.k
        self.wanted = frozenset(p.variant.gradients)
        self.shares: list[Share] = []
        self.tag = ""
        """In the names of its buffers."""
        self.each: Expr | None = None
        """The chunk of a program that has one only."""

    def home(self, load: Load) -> t.Tensor | None:
        """The gradient itself, for the only share in it."""
        return None

    def write(self) -> t.Kernel:
        k, b, f = self.k, self.k.b, self.f
        initial = f.initial()
        zeros = tuple(self.behind(s, v) for s, v in zip(self.p.form.states, initial, strict=True))
        with b.inner() as scope:
            carried, after = carries(f, zeros, scope.depth)
            index = b.loop_index("turn")
            chunk = b.value(op("sub", op("sub", chunk_count(f), 1), index), "chunk")
            k.tokens(b.value(op("mul", chunk, f.count), "first"), f.count)
            named = zip((s.name for s in self.p.form.states), initial, strict=True)
            states = tuple(self.start(name, v, chunk) for name, v in named)
            new, out = f.chunk(states)
            inside = self.adjoints(scope.statements, {v.name for v in states})
            self.seed(inside, new, after, out)
            inside.run()
            self.store(inside)
            before = tuple(inside.of.get(v.name) or self.zero(v) for v in states)
            sums = self.sums(inside, scope.depth)
            b.add(t.Yield((*(v.name for v in before), *(v.name for _, v in sums.values()))))
        carried = (*carried, *(c for c, _ in sums.values()))
        chunks = t.Count(Const(0, "int"), chunk_count(f))
        note = "one chunk after another, from the last"
        b.add(t.For(index.name, chunks, carried, tuple(scope.statements), order="asc", note=note))
        left = b.leave(carried)
        self.finish(initial, left, tuple(sums))
        return kernel("chunks_kernel", self.p, f)

    def behind(self, s: Held, like: Var) -> Var:
        """The gradient of the state behind the last token."""
        if not self.p.variant.last:
            return self.zero(like)
        k, given = self.k, f"d_{last_of(s.name)}"
        at = tuple(k.value(x, "at") for x in s.axes.place)
        type = k.b.type_of(like.name) if at else t.Type((), k.real)
        load = k.load(given, (ivar("b"), ivar("h"), *at), inside(self.f, like) if at else TRUE, type, given)
        found = k.over(load, *k.b.type_of(like.name).names())
        return found if at else k.value(op("where", inside(self.f, like), found, 0.0), given)

    def start(self, name: str, like: Var, chunk: Var) -> Var:
        """The state at the chunk's start."""
        k, f = self.k, self.f
        return k.load(start_of(name), place(f, like, chunk), inside(f, like), k.b.type_of(like.name), name)

    def zero(self, like: Var) -> Var:
        return self.k.b.let("none", self.k.b.type_of(like.name), t.Full(ZERO))

    def adjoints(self, statements: list[t.Stmt], states: set[str]) -> Adjoints:
        """Over the statements so far; those before the loop only tell what moves."""
        loads = {n for n, (e, _) in self.k.sources.items() if e.tensor in self.wanted and e.sort == "real"}
        self.above = Adjoints(
            self.k, [s for s in self.k.b.scopes[0].statements if isinstance(s, t.Let)], frozenset(loads)
        )
        return Adjoints(self.k, list(statements), frozenset(loads | states | self.above.moving))

    def seed(self, a: Adjoints, new: tuple[Var, ...], after: tuple[Var, ...], out: Var) -> None:
        """The gradients that are given: of out's rows, and of the states behind the chunk."""
        k = self.k
        e = k.b.bindings[ivar("e")]
        guard = conj(op("le", 0, k.row), op("lt", k.row, M), k.live, k.inside["e"])
        type = replace(k.b.type_of(out.name), dtype=self.p.variant.dtype)
        given = k.load("d_out", (ivar("b"), ivar("h"), k.row, e), guard, type, "d_out")
        a.moving.add(out.name)
        a.add(out.name, k.cast(given, k.real))
        for v, d in zip(new, after, strict=True):
            a.moving.add(v.name)
            a.add(v.name, d)

    def store(self, a: Adjoints) -> None:
        """The shares of what its statements read."""
        total: dict[Load, Var] = {}
        for s in a.lets:
            if s.name in a.of and s.name in self.k.sources:
                load, axis = self.k.sources[s.name]
                total[load] = self.joined(total.get(load), a.of[s.name], axis)
        found = self.at_home(total)
        self.count = Counter(load.tensor for load in found)
        for load, v in found.items():
            self.share(load, v)

    def at_home(self, total: dict[Load, Var]) -> dict[Load, Var]:
        """rewrite: a share of x[f(d)], f its own inverse  -->  a share of x[d]"""
        found: dict[Load, Var] = {}
        for load, v in total.items():
            home = self.unpermuted(load)
            if home is not None:
                load, channel, index = home
                type = self.k.b.type_of(v.name)
                v = self.k.b.let("a", type, t.GatherAxis(v.name, index.name, channel))
            found[load] = v if load not in found else self.k.value(op("add", found[load], v), "a")
        return found

    def unpermuted(self, load: Load) -> tuple[Load, str, Var] | None:
        """(the read with its last index a channel, that channel, the index as a value) of a read through a swap."""
        at, channels = load.index[-1], [v for v in free_vars(load.index[-1]) if v in self.p.extents]
        if self.p.variant.target == "torch" or isinstance(at, Var) or len(channels) != 1:
            return None
        (name,) = channels
        size, d = self.p.extents[name], ivar(name)
        if free_vars(at) != {name} or self.k.blocks or self.k.inside[name] is not TRUE:
            return None
        f = [int(evaluate(at, {d: n})) for n in range(size)]
        if not all(0 <= x < size and f[x] == n for n, x in enumerate(f)):
            return None
        return replace(load, index=(*load.index[:-1], d)), name, self.k.value(at, "at")

    def joined(self, known: Var | None, v: Var, axis: str) -> Var:
        """A share with its tokens on i, added to what there is."""
        if axis == "j":
            axes = tuple(t.Axis("i", x.extent) if x.name == "j" else x for x in self.k.b.type_of(v.name).axes)
            v = self.k.b.let("a", t.Type(axes, self.k.real), t.Rename(v.name))
        return v if known is None else self.k.value(op("add", known, v), "a")

    def share(self, load: Load, v: Var) -> None:
        """Stores one read's share in a buffer of its own."""
        k = self.k
        kinds = _kinds(self.p, load)
        names = self.k.b.type_of(v.name).names()
        channels = [n for n in names if n != "i"]
        rows = "" if "i" not in names else ROW if "m" in kinds else TOKEN
        grouped = self.p.variant.grouped and ivar("g") in free(load)
        lead = ("b", "g", "x") if grouped else ("b", "h")
        sizes = (B, G, op("floordiv", H, G)) if grouped else (B, H)
        at: list[Expr] = [ivar("b"), ivar("h")]
        if grouped:
            head = k.b.bindings[ivar("g")]
            at[1:] = [head, op("sub", ivar("h"), op("mul", head, op("floordiv", H, G)))]
        guards = [*(k.inside[c] for c in channels), *first_of_all(self.f, names)]
        if rows:
            at.append(k.row if rows == ROW else k.at["i"])
            guards += [k.live, op("le", 0, k.row), op("lt", k.row, M)] if rows == ROW else [k.live]
            if k.stateless and rows == TOKEN:
                guards += [op("le", 0, k.at["i"]), op("lt", k.at["i"], N)]
        at += [k.b.bindings[ivar(c)] for c in channels]
        guard = conj(*guards)
        home = self.home(load) if rows and not grouped else None
        if home is not None:
            self.shares.append(Share(load, home, rows, True))
            k.store(home.name, tuple(at), k.over(v, "i", *channels), guard, home.dtype)
            return
        if not rows and self.each:
            lead, sizes = (*lead, "c"), (*sizes, chunk_count(self.f))
            at.insert(len(lead) - 1, self.each)
        extents = (
            *sizes,
            *([M if rows == ROW else N] if rows else []),
            *(Const(self.p.extents[c], "int") for c in channels),
        )
        name = f"d_{load.tensor}_{self.tag}{len(self.shares)}"
        axes = (*lead, *([rows] if rows else []), *channels)
        buffer = t.Tensor(name, axes, extents, k.real)
        self.shares.append(Share(load, buffer, rows))
        order = ("i", *channels) if rows else tuple(channels)
        k.store(name, tuple(at), k.over(v, *order), guard, k.real)

    def sums(self, a: Adjoints, depth: int) -> dict[str, tuple[t.Carry, Var]]:
        """What the loop adds to the adjoints of values from above it: a carried sum each."""
        known = {s.name for s in self.k.b.scopes[0].statements if isinstance(s, t.Let)}
        found: dict[str, tuple[t.Carry, Var]] = {}
        for name in [n for n in a.of if n in known and n in self.above.moving]:
            axes = self.k.b.type_of(name).axes or (self.k.b.axis("one", 1),)  # printers carry no bare numbers
            start = self.k.b.let("none", t.Type(axes, self.k.real), t.Full(ZERO), depth=0)
            carry, total = self.k.b.carry("sum", start, depth)
            found[name] = carry, self.k.value(op("add", total, a.of[name]), "sum")
        return found

    def finish(self, initial: tuple[Var, ...], left: tuple[Var, ...], sums: tuple[str, ...]) -> None:
        """What stands above the loop, backwards; its reads' shares."""
        above = self.above
        for v, d in zip(initial, left, strict=False):
            if v.name in above.moving:
                above.add(v.name, d)
        for name, d in zip(sums, left[len(initial) :], strict=True):
            above.add(name, d if self.k.b.type_of(name).axes else self.k.sum("sum", d, "one"))
        above.run()
        self.store(above)


def _kinds(p: Problem, load: Load) -> tuple[str, ...]:
    if load.tensor in ROLES:
        return tuple(_KINDS[load.tensor])
    return tuple(a.index for a in next(x for x in p.spec.params if x.name == load.tensor).axes)


def collected(p: Problem, name: str, shares: tuple[Share, ...], out: t.Tensor, real: t.Dtype) -> tuple[t.Step, ...]:
    """The steps from the shares of one input to its gradient."""
    mine = [s for s in shares if s.load.tensor == name]
    if mine and mine[0].whole:
        return ()
    if not mine:
        return (t.Alloc(out, 0.0),)
    if len(mine) == 1:
        index = _index(p, mine[0])
        plain = tuple(x.name for x in index if isinstance(x, Var))
        if len(plain) == len(index) == len(set(plain)) and set(plain) <= set(mine[0].buffer.axes):
            lost = tuple(a for a in mine[0].buffer.axes if a not in plain)
            return (t.SumAxes(t.Tensor(out.name, plain, out.extents, out.dtype), mine[0].buffer.name, lost),)
    total = t.Tensor(f"{out.name}_total", out.axes, out.extents, real)
    steps: list[t.Step] = [t.Alloc(total, 0.0)]
    for s in mine:
        index = _index(p, s)
        used = {v for x in index for v in free_vars(x)}
        lost = tuple(a for a in s.buffer.axes if a not in used)
        source = s.buffer.name
        if lost:
            kept = [(a, x) for a, x in zip(s.buffer.axes, s.buffer.extents, strict=True) if a in used]
            source = f"{source}_sum"
            less = t.Tensor(source, tuple(a for a, _ in kept), tuple(x for _, x in kept), real)
            steps.append(t.SumAxes(less, s.buffer.name, lost))
        steps.append(t.ScatterAdd(total, source, index, True))
    return (*steps, t.SumAxes(out, total.name, ()))


def _kept(at: Expr, kind: str) -> Expr:
    """A position of keys; what is read outside of them has no share, and goes to the nearest."""
    return at if kind != "n" or isinstance(at, Var) else op("min", op("max", at, 0), op("sub", N, 1))


def _index(p: Problem, s: Share) -> tuple[Expr, ...]:
    """The read's index in the buffer's own axes."""
    token: Expr = op("add", ivar(ROW), op("sub", N, M)) if s.rows == ROW else ivar(TOKEN)
    places: dict[Expr, Expr] = {ivar("i"): token}
    if "g" in s.buffer.axes:
        places[ivar("h")] = op("add", op("mul", ivar("g"), op("floordiv", H, G)), ivar("x"))
    else:
        head = op("floordiv", ivar("h"), op("floordiv", H, G)) if p.variant.grouped else ivar("h")
        places[ivar("g")] = head
    kinds = _kinds(p, s.load)
    return tuple(
        ivar(ROW) if kind == "m" and at is ivar("i") else _kept(substitute(at, places), kind)
        for kind, at in zip(kinds, s.load.index, strict=True)
    )
