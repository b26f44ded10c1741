"""The recurrent schedule of a state program: one program a head walks its tokens, the states stay in registers.

A token's steps are computed as the spec writes them, so every program that the reference runs has this form, however
its states change. Channels of values are cut into parts with a program each where they never meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from attncc.expr.build import conj, ivar, op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Const, Expr, Var, substitute, walk
from attncc.ir.nodes import Assign, Contract, Keep, Load, Micro, Read, Recurrence, Reduce, Scan, Spec, Step, Weights
from attncc.ir.steps import bodies, flat
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.early import ahead, early
from attncc.schedule.given import first_of, last_of
from attncc.schedule.prune import prune
from attncc.schedule.recurrent_values import UNIT, Token
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t

B, H, N = (ivar(x) for x in "BHN")
TILE = 4096
"""Elements of a state that a program of a head holds, where its values can be cut."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A state program to schedule, token by token, for one variant."""

    spec: Spec
    variant: Variant
    fresh: tuple[tuple[str, Expr], ...] = ()
    """What states start anew with, by name: a call may give what they start with, and not that."""

    @property
    def recurrence(self) -> Recurrence:
        r = self.spec.recurrence
        assert r is not None
        return r

    @property
    def sizes(self) -> dict[Expr, Expr]:
        """The channel sizes' numbers."""
        return {ivar("D"): Const(self.variant.D, "int"), ivar("E"): Const(self.variant.E, "int")}

    @property
    def extents(self) -> dict[str, int]:
        """The channel axes and their sizes, keys before values in registers."""
        found = {"d": self.variant.D, "e": self.variant.E}
        if any(not s.axes for s in self.recurrence.states):
            found[UNIT] = 1
        for name, size in self._declared():
            number = self._number(size)
            if found.setdefault(name, number) != number:
                raise NotCompiled(f"two sizes of the index {name}: not compiled yet", self.spec.out.span)
        return {n: found[n] for n in sorted(found, key=lambda n: (n == "e", n))}

    def _declared(self) -> Iterator[tuple[str, Expr]]:
        r = self.recurrence
        kept = [s for s in flat(r.steps) if isinstance(s, Keep)]
        yield from ((a.index, a.size) for axes in (*(s.axes for s in r.states), *(s.axes for s in kept)) for a in axes)
        for e in (n for body in bodies(self.spec) for n in walk(body)):
            match e:
                case Contract(_, _, axis, extent):
                    yield axis.name, extent
                case Reduce() | Weights():
                    keys = e.binders if isinstance(e, Reduce) else e.keys
                    yield from ((x.index.name, x.size) for x in keys)
                case Scan():
                    yield e.binder.index.name, e.binder.size

    def _number(self, e: Expr) -> int:
        e = substitute(e, self.sizes)
        if any(isinstance(n, Var) for n in walk(e)):
            what = "an index whose size is known at a call only"
            raise NotCompiled(f"{what}, one token after another: not compiled yet", self.spec.out.span)
        return max(0, int(evaluate(e)))


def columns_of(p: Problem) -> int:
    """How many channels e a program holds at a time; 0 for all, where they meet or are few."""
    sums = [n for body in bodies(p.spec) for n in walk(body) if isinstance(n, Contract | Reduce | Weights | Scan)]
    bound = {n.axis.name for n in sums if isinstance(n, Contract)}
    bound |= {x.index.name for n in sums if isinstance(n, Reduce) for x in n.binders}
    bound |= {x.index.name for n in sums if isinstance(n, Weights) for x in n.keys}
    bound |= {n.binder.index.name for n in sums if isinstance(n, Scan)}
    shared = [s for s in p.recurrence.states if "e" not in {a.index for a in s.axes}]
    moved = any("e" not in {v.name for v in walk(x) if isinstance(v, Var)} for x in _values_read(p))
    if p.variant.target == "torch" or "e" in bound or moved:
        return 0
    sizes = p.extents
    over = [[a.index for a in s.axes if a.index != "e"] for s in p.recurrence.states if s not in shared]
    rows = max([1, *(_product(sizes[a] for a in axes) for axes in over)])
    columns = max(16, min(64, TILE // rows))
    return columns if columns < p.variant.E else 0


def turns_of(p: Problem) -> bool:
    """Whether a program takes all parts of e in turns: where a state that they share is written over, and a program of
    its own would read what another one wrote."""
    return p.variant.in_place and any("e" not in {a.index for a in s.axes} for s in p.recurrence.states)


def _values_read(p: Problem) -> Iterator[Expr]:
    """Where states with an axis e, and v, are read along it."""
    over = {s.name: len(s.axes) and s.axes[-1].index == "e" for s in p.recurrence.states} | {"v": True}
    for n in (n for body in bodies(p.spec) for n in walk(body)):
        if isinstance(n, Load) and over.get(n.tensor):
            yield n.index[-1]


def _elements(p: Problem, columns: int) -> int:
    """Elements of the states of a program that owns so many channels e."""
    sizes = p.extents
    return sum(_product(sizes[a.index] if a.index != "e" else columns for a in s.axes) for s in p.recurrence.states)


def _product(sizes: Iterable[int]) -> int:
    return math.prod(1 << max(n - 1, 0).bit_length() for n in sizes)


class Walk:
    """The statements of a token, shared by the kernels that need them."""

    def __init__(
        self,
        p: Problem,
        reserved: tuple[str, ...] = (),
        columns: int = 0,
        *,
        turns: bool = False,
        backwards: bool = False,
    ) -> None:
        self.p = p
        self.k = Token(p.spec, p.variant, p.extents, reserved, columns, turns=turns, backwards=backwards)
        self.out: Var | None = None
        r = p.recurrence
        self.plan = _unrolled(r.steps, p.sizes) if backwards else r.steps
        """The steps of a token; without loops that can be told apart where they are passed backwards."""
        for s in r.states:
            self.k.home(s, s.vars)
        for f in r.frozen:
            self.k.home(f, self.k.homes[f.state])

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that is carried from token to token."""
        r = self.p.recurrence
        return (*(s.name for s in r.states), *(f.name for f in r.frozen))

    def initial(self) -> tuple[Var, ...]:
        """The states before the first token, and what is frozen."""
        k, r = self.k, self.p.recurrence
        k.token(Const(0, "int"), op("lt", 0, N))
        found = {s.name: k.full(k.put(s.init), s.name, k.axes(s.name)) for s in r.states}
        return (*found.values(), *(found[f.state] for f in r.frozen))

    def token(self, at: Var, held: tuple[Var, ...], row: Var | None = None) -> tuple[Var, ...]:
        """What is carried behind the token; `out` is its row of the result."""
        k = self.k
        k.token(at, row=row)
        k.now = dict(zip(self.names, held, strict=True))
        self.begin(at)
        self.steps(self.plan)
        return tuple(k.now[n] for n in self.names)

    def begin(self, at: Var) -> None:
        """States start anew where their key changes; then what is frozen is taken anew where it is time."""
        k, r = self.k, self.p.recurrence
        borders: dict[str, Expr] = {}
        for s in r.states:
            if s.per is None:
                continue
            key = k.put(s.per)
            before = k.b.value(op("max", op("sub", at, 1), 0), "before", "the token before")
            other = substitute(key, {ivar("i"): before})
            borders[s.name] = k.b.value(
                op("ne", k.b.lower(key), k.b.lower(other)), "border", "a state starts anew here"
            )
            fresh = k.full(k.put(dict(self.p.fresh)[s.name]), s.name, k.axes(s.name))
            k.now[s.name] = k.value(op("where", borders[s.name], fresh, k.now[s.name]), s.name)
        for f in r.frozen:
            every = op("max", k.b.lower(substitute(f.every, self.p.sizes)), 1)
            anew: Expr = op("eq", op("mod", at, every), 0)
            if f.state in borders:
                anew = op("or", anew, borders[f.state])
            k.now[f.name] = k.value(op("where", k.value(anew, "anew"), k.now[f.state], k.now[f.name]), f.name)

    def read(self) -> Iterator[Expr]:
        """What a token computes, with arrays put in and states as they are written."""
        k, r = self.k, self.p.recurrence
        fresh = dict(self.p.fresh)
        for s in r.states:
            yield from (k.put(x) for x in ((s.per, fresh[s.name]) if s.per is not None else ()))
        yield from (k.put(s.body) for s in flat(self.plan) if isinstance(s, Assign | Keep))
        yield k.put(self.p.spec.out.body)

    # --- steps ------------------------------------------------------------------------------------------------------

    def steps(self, steps: tuple[Step, ...]) -> None:
        """The steps of a token, in order."""
        k = self.k
        for step in steps:
            match step:
                case Assign(name, _, body):
                    k.now[name] = k.full(k.put(body), name, k.axes(name))
                case Keep(name, _, vars, body):
                    k.home(step, vars)
                    k.now[name] = k.full(k.put(body), name, tuple(v.name for v in vars))
                case Micro():
                    self.micro(step)
                case Read():
                    self.out = k.over(k.value(k.put(self.p.spec.out.body), "o"), "e")

    def micro(self, step: Micro) -> None:
        """A loop within the token: it carries the states that it changes."""
        k, b = self.k, self.k.b
        changed = sorted({s.state for s in flat(step.steps) if isinstance(s, Assign)})
        count = b.value(substitute(step.binder.size, self.p.sizes), "count")
        known, bindings = dict(k.now), dict(b.bindings)
        with b.inner() as scope:
            carried = [b.carry(name, k.now[name], scope.depth) for name in changed]
            k.now |= {name: v for name, (_, v) in zip(changed, carried, strict=True)}
            index = b.loop_index(step.binder.index.name)
            b.bindings = {n: v for n, v in bindings.items() if not self._stale(n)}
            b.bindings[step.binder.index] = index
            self.steps(step.steps)
            b.add(t.Yield(tuple(k.now[name].name for name in changed)))
        carries = tuple(c for c, _ in carried)
        loop = t.For(index.name, t.Count(Const(0, "int"), count), carries, tuple(scope.statements), order="asc")
        b.add(loop if self.p.variant.target == "torch" else ahead(b, loop, k.guard))
        k.now = known | dict(zip(changed, b.leave(carries), strict=True))
        b.bindings = bindings

    def _stale(self, e: Expr) -> bool:
        return False


def _unrolled(steps: tuple[Step, ...], sizes: dict[Expr, Expr]) -> tuple[Step, ...]:
    """Steps with the turns of their loops one by one, where their number is known."""
    found: list[Step] = []
    for step in steps:
        size = substitute(step.binder.size, sizes) if isinstance(step, Micro) else None
        if isinstance(step, Micro) and isinstance(size, Const):
            for n in range(int(size.value)):
                turn = tuple(_at(s, {step.binder.index: Const(n, "int")}) for s in step.steps)
                found += _unrolled(turn, sizes)
        else:
            found.append(step)
    return tuple(found)


def _at(step: Step, place: dict[Expr, Expr]) -> Step:
    match step:
        case Assign() | Keep():
            return replace(step, body=substitute(step.body, place))
        case Micro():
            return replace(step, steps=tuple(_at(s, place) for s in step.steps))
        case _:
            return step


def last_tensors(p: Problem, real: t.Dtype) -> tuple[t.Tensor, ...]:
    """The tensors that take the states behind the last token, where they are wanted."""
    sizes = p.extents
    found = []
    for s in p.recurrence.states if p.variant.last else ():
        axes = tuple(a.index for a in s.axes)
        extents = (Const(sizes[a], "int") for a in axes)
        found.append(t.Tensor(last_of(s.name), ("b", "h", *axes), (B, H, *extents), real))
    return tuple(found)


def store_states(w: Walk, states: tuple[Var, ...]) -> None:
    """Stores the states behind the last token; one that the parts of e share is stored once."""
    k, p = w.k, w.p
    name = first_of if p.variant.in_place else last_of
    for s, v in zip(p.recurrence.states, states, strict=False):
        axes = tuple(x.name for x in s.vars)
        guard = k.guard([], list(axes))
        if k.columns and "e" not in axes:
            guard = k.guard([k.once], list(axes)) if k.turns else conj(k.once, guard)
        value = v if axes else k.sum(s.name, v, UNIT)
        k.store(name(s.name), (ivar("b"), ivar("h"), *(k.b.bindings[x] for x in s.vars)), value, guard, k.real)


def _loops(p: Problem, k: Token) -> tuple[tuple[str, Expr], ...]:
    """(which rows are read, how many turns) of each loop over tokens: where slices are quicker than what asks at every
    token whether it has a row, tokens without one come first."""
    if p.variant.target == "torch":
        return ("none", k.shift), ("rows", ivar("M"))
    return (("some", N),)


def _clamped(k: Token, at: Expr) -> Var:
    """A token, for sure."""
    return k.b.value(op("min", op("max", at, 0), op("sub", N, 1)), "token")


def _store_out(w: Walk) -> None:
    k = w.k
    assert w.out is not None
    guard = k.guard(k.row_here(), ["e"])
    k.store("out", (ivar("b"), ivar("h"), k.row, k.b.bindings[ivar("e")]), w.out, guard, w.p.variant.dtype)


def forward_kernel(p: Problem) -> t.Kernel:
    """out, token by token."""
    columns = columns_of(p)
    names = tuple(x for s in p.recurrence.states for x in (last_of(s.name), first_of(s.name)))
    w = Walk(p, names, columns, turns=bool(columns) and turns_of(p))
    k, b = w.k, w.k.b
    if not k.turns:
        _walk_tokens(w)
    else:
        with b.inner() as scope:
            part = b.loop_index("part")
            k.part(b.value(op("mul", part, columns), "e0", f"first of the turn's {columns} positions"))
            _walk_tokens(w)
            b.add(t.Yield(()))
        over = t.Count(Const(0, "int"), Const(-(-p.variant.E // columns), "int"))
        b.add(
            t.For(
                part.name, over, (), tuple(scope.statements), order="asc", note="one part of the values after another"
            )
        )
    made = prune(kernel("forward_kernel", p, k))
    return made if p.variant.target == "torch" else early(made)


def _walk_tokens(w: Walk) -> None:
    """All tokens of a head's part, from the states before the first to those behind the last."""
    p, k, b = w.p, w.k, w.k.b
    held = w.initial()
    if p.variant.single:
        first = b.value(Const(0, "int"), "token")
        held = w.token(first, held, first)
        _store_out(w)
    for read, count in () if p.variant.single else _loops(p, k):
        with b.inner() as scope:
            pairs = [b.carry(n, v, scope.depth) for n, v in zip(w.names, held, strict=True)]
            index = b.loop_index("row" if read == "rows" else "token")
            at = index if read == "some" else _clamped(k, op("add", index, k.shift) if read == "rows" else index)
            new = w.token(at, tuple(v for _, v in pairs), index if read == "rows" else None)
            if read != "none":
                _store_out(w)
            b.add(t.Yield(tuple(v.name for v in new)))
        carried = tuple(c for c, _ in pairs)
        over = t.Count(Const(0, "int"), count)
        b.add(t.For(index.name, over, carried, tuple(scope.statements), order="asc", note="one token after another"))
        held = b.leave(carried)
    if p.variant.last or p.variant.in_place:
        store_states(w, held)


def kernel(name: str, p: Problem, k: Token, *, each: int = 32) -> t.Kernel:
    """A kernel with a program for each head and each part of its values, `each` elements of a state a thread."""
    grid: tuple[t.GridAxis, ...] = (t.GridAxis("h", H, "batch"), t.GridAxis("b", B, "batch"))
    scalars = ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants))
    if k.columns and not k.turns:
        grid = (t.GridAxis("e0", Const(p.variant.E, "int"), "tile", k.columns, "e"), *grid)
    elements = _elements(p, k.columns or p.variant.E)
    warps = 1
    while warps < 16 and warps * 32 * (each + each // 4) < elements:  # a small state beside a large one is no reason
        warps *= 2
    return t.Kernel(name, grid, tuple(k.tensors), scalars, tuple(k.b.scope.statements), t.Config(warps, 1))
