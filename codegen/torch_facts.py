"""What the torch printer knows of a kernel before it prints: what each name is, what it varies with, who reads it.

Names are numbers (the same for the whole program: Python ints and floats), lanes (integers that follow the batch
positions, kept as expressions so that an index by one is a slice), spans (consecutive positions along an axis, kept as
a begin and a length) or values (tensors). Tiles are cut at the extent of their axis, so a comparison of a span with
that extent is true, and is folded away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from attncc.codegen.signature import host_scalars, tensors
from attncc.errors import InternalError
from attncc.expr.build import FALSE, TRUE, op
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars, rewrite, substitute, walk
from attncc.tile import nodes as t

ZERO = Const(0, "int")


@dataclass(frozen=True, slots=True)
class Number:
    """A Python number."""


@dataclass(frozen=True, slots=True)
class Lane:
    """An integer that varies with the batch positions only: an expression of them and of numbers."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class Span:
    """offset + the positions of `axis`: those of the tile that begins at `at`, or 0 .. extent-1 without one."""

    axis: str
    at: str
    offset: Expr
    extent: int


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor."""


Kind = Number | Lane | Span | Value


class Uneven(Exception):
    """Control flow that differs between positions of these batch axes."""

    def __init__(self, axes: frozenset[str]) -> None:
        super().__init__(*sorted(axes))
        self.axes = axes


def facts(program: t.Program, kernel: t.Kernel) -> Facts:
    """The facts of `kernel`; batch axes whose positions take different turns are walked one by one, like a split."""
    while True:
        try:
            return Facts(program, kernel)
        except Uneven as e:
            grid = tuple(replace(a, role="split") if a.name in e.axes else a for a in kernel.grid)
            kernel = replace(kernel, grid=grid)


class Facts:
    """The facts of one kernel; `body` is its statements with the folds applied."""

    def __init__(self, program: t.Program, kernel: t.Kernel) -> None:
        self.kernel = kernel
        self.tensors = {n: x for n, x in tensors(program).items() if n in kernel.tensors}
        self.kinds: dict[str, Kind] = {n: Number() for n in host_scalars(kernel)}
        self.types: dict[str, t.Type] = {}
        self.varies: dict[str, frozenset[str]] = {}
        self.extents: dict[str, Expr] = {}
        """Of the axis that a tile position moves along."""
        self.cut: dict[str, str] = {}
        """The tile position in force on each axis."""
        self.constants: dict[str, Expr] = {}
        """Truth values that folding has decided."""
        self.order: dict[str, int] = {n: 0 for n in host_scalars(kernel)}
        """When each Let was met: a number known before a product may scale it."""
        self.filled: set[str] = set()
        """Names of constant tensors: they are made in the shape that the loop which carries them needs."""
        self.scale: dict[str, Expr] = {}
        """Numbers that products are multiplied by where they are made."""
        self.batch = tuple(a.name for a in reversed(kernel.grid) if a.role == "batch")
        for axis in kernel.grid:
            self._grid(axis)
        body = self._block(kernel.body)
        self.body = _scaled_products(body, self)
        self.needed = needed(self.body, self)
        self.flat = _only_multiplied(self.body, self)
        """Loaded matrices that only products read: held as [batch, row, column]."""

    def _grid(self, axis: t.GridAxis) -> None:
        if axis.role == "batch":
            self.kinds[axis.name] = Lane(Var(axis.name, "int"))
            self.varies[axis.name] = frozenset({axis.name})
            return
        self.kinds[axis.name] = Number()
        if axis.role == "tile":
            self.extents[axis.name] = axis.extent
            self.cut[axis.axis] = axis.name

    # --- questions --------------------------------------------------------------------------------------------------

    def deps(self, e: Expr) -> frozenset[str]:
        """The batch axes that `e` varies with."""
        return frozenset(a for n in free_vars(e) for a in self.varies.get(n, ()))

    def is_number(self, e: Expr) -> bool:
        return all(isinstance(self.kinds[n], Number) for n in free_vars(e))

    def known(self, e: Expr, before: str) -> bool:
        """Whether everything in `e` has its value before the Let of that name."""
        return all(self.order.get(n, len(self.order)) < self.order[before] for n in free_vars(e))

    def lane(self, e: Expr) -> Expr | None:
        """`e` over batch positions and numbers, where it is that."""
        table: dict[Expr, Expr] = {}
        for v in (n for n in walk(e) if isinstance(n, Var)):
            match self.kinds[v.name]:
                case Lane(expr):
                    table[v] = expr
                case Number():
                    pass
                case _:
                    return None
        return substitute(e, table) if table else None

    def span(self, e: Expr) -> Span | None:
        """`e` as consecutive positions, where it is a span plus or minus a number."""
        match e:
            case Var(name):
                kind = self.kinds[name]
                return kind if isinstance(kind, Span) else None
            case Op("add", (a, b)):
                a, b = (b, a) if self.is_number(a) else (a, b)
                s = self.span(a) if self.is_number(b) else None
                return None if s is None else replace(s, offset=_plus(s.offset, b))
            case Op("sub", (a, b)) if self.is_number(b):
                s = self.span(a)
                return None if s is None else replace(s, offset=_plus(s.offset, op("neg", b)))
            case _:
                return None

    def inside(self, s: Span, extent: Expr) -> bool:
        """Whether every position of `s` is proved to be below `extent`."""
        if s.at:
            return s.offset is ZERO and self.extents[s.at] is extent
        match s.offset, extent:
            case Const(int(begin)), Const(int(end)):
                return begin + s.extent <= end
        return False

    # --- statements -------------------------------------------------------------------------------------------------

    def fold(self, e: Expr) -> Expr:
        """rewrite: `position < extent` of its own axis --> true, and what follows from it."""
        return rewrite(e, self._fold)

    def _fold(self, e: Expr) -> Expr | None:
        match e:
            case Var(name):
                return self.constants.get(name)
            case Op("lt", (a, b)) if (s := self.span(a)) is not None and self.inside(s, b):
                return TRUE
            case Op("lt", (Const(a), Const(b))):
                return TRUE if a < b else FALSE
            case Op("le", (Const(0), a)) if (s := self.span(a)) is not None and s.offset is ZERO:
                return TRUE
            case Op("and" | "or" as name, (a, b)):
                neutral, final = (TRUE, FALSE) if name == "and" else (FALSE, TRUE)
                if a is final or b is final:
                    return final
                return b if a is neutral else a if b is neutral else None
            case Op("not", (a,)) if a is TRUE or a is FALSE:
                return FALSE if a is TRUE else TRUE
            case Op("where", (c, a, b)) if c is TRUE or c is FALSE:
                return a if c is TRUE else b
        return None

    def _block(self, body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
        return tuple(self._statement(s) for s in body)

    def _statement(self, s: t.Stmt) -> t.Stmt:
        match s:
            case t.Let():
                return self._let(s)
            case t.For():
                return self._loop(s)
            case t.If():
                return self._branch(s)
            case t.Store() | t.ReduceAdd() | t.Yield():
                folded: t.Stmt = _mapped(s, self.fold)
                return folded
            case _:
                raise InternalError(f"{type(s).__name__} has no torch spelling")

    def _let(self, s: t.Let) -> t.Let:
        s = replace(s, op=_mapped(s.op, self.fold))
        self.types[s.name] = s.type
        self.order[s.name] = len(self.order)
        if isinstance(s.op, t.Map) and s.op.body in (TRUE, FALSE):
            self.constants[s.name] = s.op.body
        deps = frozenset(a for n in operands(s.op) for a in self.varies.get(n, ()))
        self.varies[s.name] = deps
        self.kinds[s.name] = self._kind(s, deps)
        if isinstance(s.op, t.Full) and s.type.axes:
            self.filled.add(s.name)
        return s

    def _kind(self, s: t.Let, deps: frozenset[str]) -> Kind:
        if not s.type.axes:
            if not deps:
                return Number()
            if isinstance(s.op, t.Map) and s.op.body.sort == "int" and (e := self.lane(s.op.body)) is not None:
                return Lane(e)
            return Value()
        match s.op:
            case t.Iota(base) if self.is_number(base):
                axis = s.type.axes[0]
                at = self.cut.get(axis.name, "")
                if at and base is Var(at, "int"):
                    return Span(axis.name, at, ZERO, axis.extent)
                return Span(axis.name, at, _plus(base, op("neg", Var(at, "int"))) if at else base, axis.extent)
            case t.Map(body) if (span := self.span(body)) is not None:
                return span
        return Value()

    def _loop(self, s: t.For) -> t.For:
        self.kinds[s.index] = Number()
        self._even(s.over)
        outer = dict(self.cut)
        if isinstance(s.over, t.Ranges):
            s = replace(s, over=_mapped(s.over, self.fold))
            self.extents[s.index] = s.over.extent if isinstance(s.over, t.Ranges) else ZERO
            self.cut[s.axis] = s.index
        for c in s.carried:
            self._carry(c, self.varies.get(c.start, frozenset()))
        while True:
            body = self._block(s.body)
            if not self._widen(s.carried, (body,)):
                break
        self.cut = outer
        for c in s.carried:
            if c.start in self.filled:
                self.varies[c.start] |= self.varies[c.name]
        return replace(s, body=body)

    def _even(self, over: t.Ranges | t.Count) -> None:
        """Intervals are widened to what all positions of the batch need; nothing else may vary with it."""
        pieces = [over] if isinstance(over, t.Count) else [p for p in over.pieces if not isinstance(p, t.Interval)]
        for p in pieces:
            bounds = [e for f in fields(p) if isinstance(e := getattr(p, f.name), Expr)]
            if not all(self.is_number(e) for e in bounds):
                raise Uneven(frozenset(a for e in bounds for a in self.deps(e)))

    def _branch(self, s: t.If) -> t.If:
        s = replace(s, condition=self.fold(s.condition))
        if not self.is_number(s.condition):
            raise Uneven(self.deps(s.condition))
        then, orelse = self._block(s.then), self._block(s.orelse)
        for c in s.carried:
            self._carry(c, self.varies.get(c.start, frozenset()))
        self._widen(s.carried, (then, orelse))
        return replace(s, then=then, orelse=orelse)

    def _carry(self, c: t.Carry, deps: frozenset[str]) -> None:
        self.types[c.name] = c.type
        self.varies[c.name] = deps
        self.kinds[c.name] = Value() if c.type.axes or deps else Number()

    def _widen(self, carried: tuple[t.Carry, ...], bodies: tuple[tuple[t.Stmt, ...], ...]) -> bool:
        """Carried names vary with what they are given at the end of a body, too; whether that is new."""
        changed = False
        for body in bodies:
            end = body[-1] if body and isinstance(body[-1], t.Yield) else t.Yield(())
            for c, name in zip(carried, end.values, strict=True):
                new = self.varies[c.name] | self.varies.get(name, frozenset())
                if new != self.varies[c.name]:
                    self._carry(c, new)
                    changed = True
        return changed


def _plus(a: Expr, b: Expr) -> Expr:
    if a is ZERO:
        return b
    match b:
        case Op("neg", (c,)):
            return op("sub", a, c)
        case Const(0):
            return a
    return op("add", a, b)


def _mapped(node: Any, rule: Any) -> Any:
    """`node` with `rule` applied to every expression in its fields."""

    def put(v: Any) -> Any:
        if isinstance(v, Expr):
            return rule(v)
        if isinstance(v, tuple):
            return tuple(put(x) for x in v)
        if is_dataclass(v) and not isinstance(v, type) and not isinstance(v, t.Type):
            return _mapped(v, rule)
        return v

    return replace(node, **{f.name: put(getattr(node, f.name)) for f in fields(node)})


# --- readers --------------------------------------------------------------------------------------------------------


def operands(x: Any) -> Iterator[str]:
    """The names an operation, a range or a statement reads, with repetition; nested bodies included."""
    match x:
        case Expr():
            yield from sorted(free_vars(x))
        case t.Full(value):
            yield from operands(value)
        case t.Iota(base):
            yield from operands(base)
        case t.Map(body):
            yield from operands(body)
        case t.Load(_, index, guard):
            for e in (*index, guard):
                yield from operands(e)
        case t.Reduce(_, value) | t.Scan(_, value) | t.Cast(value) | t.TopK(value) | t.TriInverse(value):
            yield value
        case t.SplitAxis(value) | t.JoinAxis(value) | t.Rename(value) | t.Convert(value) | t.DotWait(value):
            yield value
        case t.GatherAxis(value, index):
            yield value
            yield index
        case t.Dot(a, b, _, start):
            if not (isinstance(a, str) and isinstance(b, str)):
                raise InternalError("a product of shared buffers has no torch spelling")
            yield a
            yield b
            if start is not None:
                yield start
        case t.Ranges(_, extent, pieces):
            yield from operands(extent)
            for p in pieces:
                for f in fields(p):
                    yield from operands(getattr(p, f.name)) if isinstance(getattr(p, f.name), Expr) else ()
        case t.Count(lo, hi):
            yield from operands(lo)
            yield from operands(hi)
        case t.Let(_, _, operation):
            yield from operands(operation)
        case t.Store(_, index, value, guard) | t.ReduceAdd(_, index, value, _, guard):
            for e in (*index, guard):
                yield from operands(e)
            yield value
        case t.Yield(values):
            yield from values
        case t.For(_, over, carried, body):
            yield from operands(over)
            yield from (c.start for c in carried)
            for s in body:
                yield from operands(s)
        case t.If(condition, then, orelse):
            yield from operands(condition)
            for s in (*then, *orelse):
                yield from operands(s)
        case _:
            raise InternalError(f"{type(x).__name__} has no torch spelling")


def needed(body: tuple[t.Stmt, ...], facts: Facts) -> frozenset[str]:
    """Names that something printed reads as a Python object; spans and lanes that only steer slices are not."""
    found: set[str] = set()
    for s in reversed(body):
        _need(s, found, facts)
    return frozenset(found)


def _need(s: t.Stmt, found: set[str], facts: Facts) -> None:
    match s:
        case t.Let(name):
            kind = facts.kinds[name]
            if name in found:
                found.update(operands(kind.offset) if isinstance(kind, Span) else reads(s.op, facts))
                found.update(free_vars(facts.scale[name]) if name in facts.scale else ())
        case t.For(_, over, carried, body):
            for inner in reversed(body):
                _need(inner, found, facts)
            for inner in reversed(body):  # what a turn reads of the turn before
                _need(inner, found, facts)
            found.update(reads(over, facts))
            found.update(c.start for c in carried)
        case t.If(condition, then, orelse):
            for inner in (*reversed(then), *reversed(orelse)):
                _need(inner, found, facts)
            found.update(operands(condition))
        case _:
            found.update(reads(s, facts))


def reads(x: Any, facts: Facts) -> Iterator[str]:
    """The names the printed form of `x` reads."""
    match x:
        case t.Load(_, index, guard) if guard is TRUE and plan(index, facts) is not None:
            yield from _steered(index, facts)
        case t.Store(_, index, value, guard) | t.ReduceAdd(_, index, value, _, guard) if (
            guard is TRUE and plan(index, facts, target=True) is not None
        ):
            yield value
            yield from _steered(index, facts)
        case t.Map() if isinstance(x.body, Var):
            yield x.body.name
        case _:
            yield from operands(x)


def _steered(index: tuple[Expr, ...], facts: Facts) -> Iterator[str]:
    for place in plan(index, facts) or ():
        for e in place.numbers():
            yield from sorted(n for n in free_vars(e) if n not in facts.batch)


# --- places ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class At:
    """One position: a number."""

    index: Expr

    def numbers(self) -> tuple[Expr, ...]:
        return (self.index,)


@dataclass(frozen=True, slots=True)
class Along:
    """Consecutive positions of a value's axis."""

    span: Span

    def numbers(self) -> tuple[Expr, ...]:
        return (self.span.offset,)


@dataclass(frozen=True, slots=True)
class Every:
    """The batch positions themselves, each `repeat` times, or one in `step` from `offset` on."""

    axis: str
    repeat: Expr | None = None
    step: Expr | None = None
    offset: Expr = ZERO

    def numbers(self) -> tuple[Expr, ...]:
        return tuple(e for e in (self.repeat, self.step, self.offset) if e is not None)


Place = At | Along | Every


def plan(index: tuple[Expr, ...], facts: Facts, target: bool = False) -> tuple[Place, ...] | None:
    """How each axis of a tensor is cut, where plain slices can do it. A `target` is written: nothing repeats in it."""
    places: list[Place] = []
    for e in index:
        place = _place(e, facts)
        if place is None or (target and isinstance(place, Every) and place.repeat is not None):
            return None
        places.append(place)
    moving = [p.span.axis if isinstance(p, Along) else p.axis for p in places if not isinstance(p, At)]
    return tuple(places) if len(set(moving)) == len(moving) else None


def _place(e: Expr, facts: Facts) -> Place | None:
    if facts.is_number(e):
        return At(e)
    span = facts.span(e)
    if span is not None:
        return Along(span)
    lane = facts.lane(e)
    if lane is None:
        return None
    match lane:
        case Var(name):
            return Every(name)
        case Op("floordiv", (Var(name), c)) if facts.is_number(c) and name in facts.batch:
            return Every(name, repeat=c)
        case Op("add", (a, b)):
            return _strided(a, b, facts) or _strided(b, a, facts)
        case Op("mul", _):
            return _strided(lane, ZERO, facts)
    return None


def _strided(a: Expr, offset: Expr, facts: Facts) -> Every | None:
    if not facts.is_number(offset):
        return None
    match a:
        case Op("mul", (x, y)):
            for at, c in ((x, y), (y, x)):
                if isinstance(at, Var) and at.name in facts.batch and facts.is_number(c):
                    return Every(at.name, step=c, offset=offset)
    return None


# --- products -------------------------------------------------------------------------------------------------------


def _scaled_products(body: tuple[t.Stmt, ...], facts: Facts) -> tuple[t.Stmt, ...]:
    """rewrite: s = a @ b; ... s * number ... --> s = (a @ b) * number, where s is read in no other way."""
    uses: dict[str, int] = {}
    factors: dict[str, set[Expr]] = {}
    dots: set[str] = set()
    for s in statements(body):
        if isinstance(s, t.Let) and isinstance(s.op, t.Dot) and s.op.start is None:
            dots.add(s.name)
    for s in statements(body):
        match s:
            case t.Let(_, _, t.Map(e)):
                for name, factor in _factors(e, dots, facts):
                    factors.setdefault(name, set()).add(factor)
            case t.For(_, over, carried):
                for n in (*operands(over), *(c.start for c in carried)):
                    uses[n] = uses.get(n, 0) + 1
            case t.If():
                pass
            case _:
                for n in operands(s):
                    uses[n] = uses.get(n, 0) + 1
    one = Const(1.0, "real")
    for name in dots:
        found = factors.get(name, set())
        if name not in uses and len(found) == 1 and one not in found:
            facts.scale[name] = next(iter(found))
    return _substituted(body, facts)


def _only_multiplied(body: tuple[t.Stmt, ...], facts: Facts) -> frozenset[str]:
    loads = {s.name for s in statements(body) if isinstance(s, t.Let) and isinstance(s.op, t.Load)}
    loads = {n for n in loads if len(facts.types[n].axes) == 2 and len(facts.varies[n]) == len(facts.batch) > 1}
    for s in statements(body):
        match s:
            case t.Let(name, type, t.Dot(a, b, _, start)) if len(type.axes) == 2:
                flat = all(isinstance(x, str) and len(facts.types[x].axes) == 2 for x in (a, b))
                loads -= {start} if flat and facts.varies[name] else {a, b, start}
            case t.For(_, over, carried):
                loads -= {*operands(over), *(c.start for c in carried)}
            case t.If(condition):
                loads -= set(operands(condition))
            case _:
                loads -= set(operands(s))
    return frozenset(loads)


def _factors(e: Expr, dots: set[str], facts: Facts) -> Iterator[tuple[str, Expr]]:
    """Each appearance of a product in `e` with the number it is multiplied by, 1 where there is none."""
    inside: set[Expr] = set()
    for node in walk(e):
        pair = _times(node, dots, facts)
        if pair is not None:
            yield pair[0].name, pair[1]
            inside.add(node)
    for node in walk(e):
        if node not in inside and isinstance(node, Op):
            for a in node.args:
                if isinstance(a, Var) and a.name in dots:
                    yield a.name, Const(1.0, "real")
    if isinstance(e, Var) and e.name in dots:
        yield e.name, Const(1.0, "real")


def _times(node: Expr, dots: set[str], facts: Facts) -> tuple[Var, Expr] | None:
    match node:
        case Op("mul", (x, y)):
            for v, c in ((x, y), (y, x)):
                if isinstance(v, Var) and v.name in dots and facts.is_number(c) and facts.known(c, v.name):
                    return v, c
    return None


def _substituted(body: tuple[t.Stmt, ...], facts: Facts) -> tuple[t.Stmt, ...]:
    names = set(facts.scale)

    def rule(node: Expr) -> Expr | None:
        pair = _times(node, names, facts)
        return pair[0] if pair is not None and facts.scale[pair[0].name] is pair[1] else None

    return tuple(_mapped(s, lambda e: rewrite(e, rule)) for s in body)


def statements(body: tuple[t.Stmt, ...]) -> Iterator[t.Stmt]:
    """Every statement, outer ones first."""
    for s in body:
        yield s
        match s:
            case t.For(_, _, _, inner):
                yield from statements(inner)
            case t.If(_, then, orelse):
                yield from statements((*then, *orelse))
