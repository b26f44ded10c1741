"""The backward of states walked token by token: some states are stored on the way, tokens follow from the last one on.

The states at every SEGMENT-th token are stored by a first walk. The second one goes back: the state before a token is
computed again from the last stored one, the token's statements are passed backwards, and the gradients of the states
are carried on. What a token reads leaves its share of the gradient in a buffer of its own; of what all tokens read the
shares are added up on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Var, walk
from attncc.ir.free import free
from attncc.ir.nodes import Load, Micro
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.adjoint import Adjoints
from attncc.schedule.chunk_backward import ROW, TOKEN, Share
from attncc.schedule.given import last_of
from attncc.schedule.prune import prune
from attncc.schedule.recurrent import Problem, Walk, kernel
from attncc.schedule.recurrent_values import UNIT, ZERO
from attncc.tile import nodes as t

B, H, G, M, N = (ivar(x) for x in "BHGMN")
SEGMENT = 4
"""Tokens between stored states: their memory against what is computed again."""
COUNT = op("floordiv", op("add", N, SEGMENT - 1), SEGMENT)
_KINDS = {"q": "bhmd", "k": "bgnd", "v": "bgne"}


def start_of(name: str) -> str:
    """The buffer of a state at every SEGMENT-th token."""
    return f"{name}_starts"


def refuse(w: Walk) -> None:
    """NotCompiled where a token can't be passed backwards."""
    for step in w.plan:
        if isinstance(step, Micro):
            what = "the backward of a loop within a token whose turns are counted at a call"
            raise NotCompiled(f"{what}, one token after another: not compiled yet", step.span)


def starts(p: Problem, w: Walk) -> tuple[t.Tensor, ...]:
    """The buffers of what is carried from token to token."""
    sizes = p.extents
    found = []
    for name in w.names:
        axes = w.k.axes(name)
        extents = tuple(Const(sizes[a], "int") for a in axes)
        found.append(t.Tensor(start_of(name), ("b", "h", "c", *axes), (B, H, COUNT, *extents), w.k.real))
    return tuple(found)


def starts_kernel(p: Problem, w: Walk) -> t.Kernel:
    """The states at every SEGMENT-th token."""
    k, b = w.k, w.k.b
    held = w.initial()
    with b.inner() as outer:
        carried, names = _carry(w, held, outer.depth)
        segment = b.loop_index("segment")
        for name, v in zip(w.names, names, strict=True):
            channels = tuple(ivar(a) for a in k.axes(name))
            place = (ivar("b"), ivar("h"), segment, *(k.b.bindings[c] for c in channels))
            k.store(start_of(name), place, v, k.guard([], [c.name for c in channels]), k.real)
        length = b.value(op("min", SEGMENT, op("sub", N, op("mul", segment, SEGMENT))), "length")
        left = _forward(w, names, length, segment)
        b.add(t.Yield(tuple(v.name for v in left)))
    note = "one segment after another"
    b.add(
        t.For(segment.name, t.Count(Const(0, "int"), COUNT), carried, tuple(outer.statements), order="asc", note=note)
    )
    return prune(kernel("states_kernel", p, k))


def _carry(w: Walk, start: tuple[Var, ...], depth: int) -> tuple[tuple[t.Carry, ...], tuple[Var, ...]]:
    found = [w.k.b.carry(n, v, depth) for n, v in zip(w.names, start, strict=True)]
    return tuple(c for c, _ in found), tuple(v for _, v in found)


def _forward(w: Walk, start: tuple[Var, ...], count: Expr, segment: Expr) -> tuple[Var, ...]:
    """The states behind `count` tokens of a segment."""
    b = w.k.b
    with b.inner() as scope:
        carried, names = _carry(w, start, scope.depth)
        turn = b.loop_index("turn")
        new = w.token(_token(w, segment, turn), names)
        b.add(t.Yield(tuple(v.name for v in new)))
    b.add(t.For(turn.name, t.Count(Const(0, "int"), count), carried, tuple(scope.statements), order="asc"))
    return b.leave(carried)


def _token(w: Walk, segment: Expr, turn: Expr) -> Var:
    """A token of a segment, for sure one."""
    return w.k.b.value(op("min", op("max", op("add", op("mul", segment, SEGMENT), turn), 0), op("sub", N, 1)), "token")


def tokens_kernel(p: Problem, w: Walk) -> tuple[t.Kernel, tuple[Share, ...]]:
    """The tokens from the last one on: every share of the gradients."""
    back = _Backward(p, w)
    return back.write(), tuple(back.shares)


class _Backward:
    def __init__(self, p: Problem, w: Walk) -> None:
        self.p, self.w, self.k = p, w, w.k
        self.wanted = frozenset(p.variant.gradients)
        self.shares: list[Share] = []
        self.totals: dict[Load, t.Carry] = {}

    def write(self) -> t.Kernel:
        k, b, w = self.k, self.k.b, self.w
        initial = w.initial()
        behind = tuple(self.behind(n, v) for n, v in zip(w.names, initial, strict=True))
        wanted = self.constant()
        zeros = tuple(self.zero(load) for load in wanted)
        with b.inner() as outer:
            carried, names = self.carry((*behind, *zeros), outer.depth)
            turn = b.loop_index("back")
            segment = b.value(op("sub", op("sub", COUNT, 1), turn), "segment")
            start = tuple(self.start(n, v, segment) for n, v in zip(w.names, initial, strict=True))
            length = b.value(op("min", SEGMENT, op("sub", N, op("mul", segment, SEGMENT))), "length")
            with b.inner() as middle:
                inside, held = self.carry(names, middle.depth)
                back = b.loop_index("turn")
                place = b.value(op("sub", op("sub", length, 1), back), "place")
                before = _forward(w, start, place, segment)
                with self.staying():
                    new = self.token(_token(w, segment, place), before, held, wanted)
                b.add(t.Yield(tuple(v.name for v in new)))
            b.add(t.For(back.name, t.Count(Const(0, "int"), length), inside, tuple(middle.statements), order="asc"))
            b.add(t.Yield(tuple(v.name for v in b.leave(inside))))
        note = "one segment after another, from the last"
        over = t.Count(Const(0, "int"), COUNT)
        b.add(t.For(turn.name, over, carried, tuple(outer.statements), order="asc", note=note))
        left = b.leave(carried)
        self.finish(initial, left, wanted)
        return prune(kernel("tokens_kernel", self.p, k, each=8))

    @contextmanager
    def staying(self) -> Iterator[None]:
        """What is computed inside stays in the loop: its adjoints are passed on there."""
        self.k.b.floor = self.k.b.scope.depth
        try:
            yield
        finally:
            self.k.b.floor = 0

    def carry(self, start: tuple[Var, ...], depth: int) -> tuple[tuple[t.Carry, ...], tuple[Var, ...]]:
        found = [self.k.b.carry("d", v, depth) for v in start]
        return tuple(c for c, _ in found), tuple(v for _, v in found)

    # --- what is given ----------------------------------------------------------------------------------------------

    def constant(self) -> tuple[Load, ...]:
        """The reads whose gradients all tokens share."""
        found: dict[Load, None] = {}
        for e in self.w.read():
            for n in walk(e):
                if isinstance(n, Load) and n.tensor in self.wanted and n.sort == "real":
                    if any(isinstance(x, Load) for at in n.index for x in walk(at)):
                        message = f"the gradient of `{n.tensor}`, read at a place that another tensor holds"
                        raise NotCompiled(f"{message}, one token after another: not compiled yet", n.span)
                    if not self.moves(n):
                        found[n] = None
        return tuple(found)

    def moves(self, load: Load) -> bool:
        """Whether a read is of the token's own place."""
        return any(ivar("i") in free(at) for at in load.index)

    def zero(self, load: Load) -> Var:
        names = [a for at in load.index for a in sorted(x.name for x in free(at)) if a in self.k.inside]
        return self.k.b.let("none", self.k.b.over(*(dict.fromkeys(names) or (self.unit(),))), t.Full(ZERO))

    def unit(self) -> str:
        if UNIT not in self.k.sizes:
            self.k.b.axis(UNIT, 1)
        return UNIT

    def behind(self, name: str, like: Var) -> Var:
        """The gradient of a state behind the last token."""
        type = self.k.b.type_of(like.name)
        if not self.p.variant.last or all(s.name != name for s in self.p.recurrence.states):
            return self.k.b.let("none", type, t.Full(ZERO))
        given = f"d_{last_of(name)}"
        axes = [a for a in self.k.axes(name) if a != UNIT]
        self.k.tensors[given] = None
        place = (ivar("b"), ivar("h"), *(self.k.b.bindings[ivar(a)] for a in axes))
        wide = t.Type(tuple(a for a in type.axes if a.name in axes), self.k.real)
        v = self.k.b.let(given, wide, t.Load(given, place, self.k.guard([], axes)))
        return self.k.over(v, *type.names())

    def start(self, name: str, like: Var, segment: Var) -> Var:
        """The state at the segment's start."""
        self.k.tensors[start_of(name)] = None
        axes = self.k.axes(name)
        place = (ivar("b"), ivar("h"), segment, *(self.k.b.bindings[ivar(a)] for a in axes))
        load = t.Load(start_of(name), place, self.k.guard([], list(axes)))
        return self.k.b.let(name, self.k.b.type_of(like.name), load)

    # --- a token ----------------------------------------------------------------------------------------------------

    def token(
        self, at: Var, before: tuple[Var, ...], held: tuple[Var, ...], wanted: tuple[Load, ...]
    ) -> tuple[Var, ...]:
        """What is carried on: the gradients of the states before the token, and the sums."""
        k, w = self.k, self.w
        new = w.token(at, before)
        loads = {n for n, (e, _) in k.sources.items() if e.tensor in self.wanted and e.sort == "real"}
        inside = Adjoints(k, list(k.b.scope.statements), frozenset(loads | {v.name for v in before}))
        assert w.out is not None
        count = len(w.names)
        for v, d in ((w.out, self.given(w.out)), *zip(new, held[:count], strict=True)):
            inside.moving.add(v.name)
            inside.add(v.name, d)
        inside.run()
        sums = dict(zip(wanted, held[count:], strict=True))
        for s in inside.lets:
            if s.name in inside.of and s.name in k.sources:
                load, _ = k.sources[s.name]
                if load in sums:
                    part = k.over(inside.of[s.name], *k.b.type_of(sums[load].name).names())
                    sums[load] = k.value(op("add", sums[load], part), "sum")
                else:
                    self.share(load, inside.of[s.name])
        states = tuple(inside.of.get(v.name) or k.b.let("none", k.b.type_of(v.name), t.Full(ZERO)) for v in before)
        return (*states, *sums.values())

    def given(self, out: Var) -> Var:
        """The gradient of the token's row of out."""
        k = self.k
        k.tensors["d_out"] = None
        place = (ivar("b"), ivar("h"), k.row, k.b.bindings[ivar("e")])
        load = t.Load("d_out", place, k.guard(k.row_here(), ["e"]))
        return k.cast(k.b.let("d_out", t.Type(k.b.type_of(out.name).axes, self.p.variant.dtype), load), k.real)

    def share(self, load: Load, v: Var) -> None:
        """Stores one read's share in a buffer of its own."""
        k = self.k
        kinds = kinds_of(self.p, load)
        names = [n for n in k.b.type_of(v.name).names() if n != UNIT or UNIT in k.sizes]
        if k.b.type_of(v.name).names() == (UNIT,) and not names:
            v = k.sum("a", v, UNIT)
        rows = "" if not self.moves(load) else ROW if "m" in kinds else TOKEN
        grouped = self.p.variant.grouped and ivar("g") in free(load)
        lead = ("b", "g", "x") if grouped else ("b", "h")
        sizes = (B, G, op("floordiv", H, G)) if grouped else (B, H)
        place: list[Expr] = [ivar("b"), ivar("h")]
        if grouped:
            head = k.b.bindings[ivar("g")]
            place[1:] = [head, op("sub", ivar("h"), op("mul", head, op("floordiv", H, G)))]
        if rows:
            place.append(k.row if rows == ROW else k.b.bindings[ivar("i")])
        place += [k.b.bindings[ivar(c)] for c in names]
        rest = ([M if rows == ROW else N] if rows else []) + [Const(k.sizes[c], "int") for c in names]
        buffer = t.Tensor(
            f"d_{load.tensor}_{len(self.shares)}", (*lead, *([rows] if rows else []), *names), (*sizes, *rest), k.real
        )
        self.shares.append(Share(load, buffer, rows))
        k.store(buffer.name, tuple(place), v, k.guard(k.row_here() if rows == ROW else [], names), k.real)

    def finish(self, initial: tuple[Var, ...], left: tuple[Var, ...], wanted: tuple[Load, ...]) -> None:
        """The sums, and what stands above the loop, backwards."""
        k, count = self.k, len(initial)
        for load, v in zip(wanted, left[count:], strict=True):
            self.share(load, v)
        loads = {n for n, (e, _) in k.sources.items() if e.tensor in self.wanted and e.sort == "real"}
        above = Adjoints(k, [s for s in k.b.scopes[0].statements if isinstance(s, t.Let)], frozenset(loads))
        for v, d in zip(initial, left[:count], strict=True):
            if v.name in above.moving:
                above.add(v.name, d)
        k.token(Const(0, "int"), op("lt", 0, N))
        above.run()
        for s in above.lets:
            if s.name in above.of and s.name in k.sources:
                self.share(k.sources[s.name][0], above.of[s.name])


def kinds_of(p: Problem, load: Load) -> tuple[str, ...]:
    """What the axes of a read's tensor are."""
    if load.tensor in _KINDS:
        return tuple(_KINDS[load.tensor])
    return tuple(a.index for a in next(x for x in p.spec.params if x.name == load.tensor).axes)
