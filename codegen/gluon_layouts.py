"""Register layouts of a kernel's values, as a side table: one pass from the shapes of dots to everything around them.

The result of a dot has the tensor cores' layout; what is computed from it element by element keeps that; a vector that
meets it is a slice of it. Constants, positions, loads and conversions have none of their own and take that of their
first user; an operand of a dot counts last, since it may be converted there. What no dot touches is spread in blocks.
Where users differ, the printer converts at the use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from attncc.errors import InternalError
from attncc.expr.nodes import Expr, free_vars
from attncc.tile.nodes import (
    AllocShared,
    Carry,
    Cast,
    Convert,
    Dot,
    DotWait,
    Dtype,
    For,
    If,
    Kernel,
    Let,
    Load,
    Map,
    Partitions,
    Reduce,
    ReduceAdd,
    Rename,
    Scan,
    SplitAxis,
    Stmt,
    Store,
    Type,
    Yield,
)

BITS: dict[Dtype, int] = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "u8": 8, "bool": 8}


@dataclass(frozen=True, slots=True)
class Mma:
    """A warpgroup's accumulator of `columns` columns; `bits` are those of the operands."""

    columns: int
    bits: int
    warps: int


@dataclass(frozen=True, slots=True)
class Operand:
    """The first operand of a dot that accumulates in `parent`, in registers."""

    parent: Mma


@dataclass(frozen=True, slots=True)
class Slice:
    """A vector along the other axis of `parent`, `dim` being the one it lacks."""

    dim: int
    parent: Layout


@dataclass(frozen=True, slots=True)
class Runs:
    """`parent` with its columns in runs that each thread holds some of: what follows adds up the runs."""

    parent: Mma


@dataclass(frozen=True, slots=True)
class Blocked:
    """Runs of `run` elements of the last axis a thread; threads along the last axis first."""

    shape: tuple[int, ...]
    run: int
    warps: int


Layout = Mma | Operand | Slice | Runs | Blocked
Table = dict[str, Layout]


def layouts(kernel: Kernel) -> tuple[Table, dict[str, Type]]:
    """The layout of every value with axes, and every value's type."""
    types: dict[str, Type] = {}
    table: Table = {}
    bodies = list(_bodies(kernel))
    buffers = {s.name: s for _, body in bodies for s in _flat(body) if isinstance(s, AllocShared)}
    for warps, body in bodies:
        _Pass(types, table, buffers, warps).run(body)
    return table, types


def _bodies(kernel: Kernel) -> Iterator[tuple[int, tuple[Stmt, ...]]]:
    yield kernel.config.warps, kernel.body
    for s in kernel.body:
        if isinstance(s, Partitions):
            yield from ((p.warps, p.body) for p in s.parts)


def project(layout: Layout, axes: tuple[str, ...], part: tuple[str, ...]) -> Layout:
    """The layout of a value over `part` that broadcasts against one over `axes` in `layout`."""
    for dim in reversed(range(len(axes))):
        if axes[dim] not in part:
            layout = Slice(dim, layout)
    return layout


class _Pass:
    """Runs the rules over one body until nothing new is learnt."""

    def __init__(self, types: dict[str, Type], table: Table, buffers: dict[str, AllocShared], warps: int) -> None:
        self.types, self.table, self.buffers, self.warps = types, table, buffers, warps

    def run(self, body: tuple[Stmt, ...]) -> None:
        statements = list(_flat(body))
        for s in statements:
            self._declare(s)
        for s in statements:
            if isinstance(s, Let) and isinstance(s.op, Dot):
                self._dot(s, s.op)
        while self._grew(self._follow, statements) or self._asked(statements) or self._settled(statements):
            pass

    def _grew(self, rule: Callable[[Stmt], None], statements: list[Stmt]) -> bool:
        """Whether applying a rule to every statement told something."""
        before = len(self.table)
        for s in statements:
            rule(s)
        return len(self.table) > before

    def _declare(self, s: Stmt) -> None:
        match s:
            case Let(name, type_):
                self.types[name] = type_
            case For(index=index, carried=carried):
                self.types[index] = Type((), "i32")
                self.types.update((c.name, c.type) for c in carried)
            case If(carried=carried):
                self.types.update((c.name, c.type) for c in carried)
            case _:
                pass

    def _set(self, name: str, layout: Layout) -> None:
        if self.types[name].axes:
            self.table.setdefault(name, layout)

    def _dot(self, s: Let, dot: Dot) -> None:
        if len(s.type.axes) != 2:
            raise InternalError(f"{s.name}: a warpgroup's dot has two axes")
        if isinstance(dot.a, str) and isinstance(dot.b, str):
            raise InternalError(f"{s.name}: one operand of a warpgroup's dot lies in shared memory")
        own = self.types[dot.a] if isinstance(dot.a, str) else self.buffers[dot.a.name].type
        self._set(s.name, Mma(s.type.axes[1].extent, BITS[own.dtype], self.warps))

    # --- from operands to results

    def _follow(self, s: Stmt) -> None:
        """The result lies as its operands do."""
        match s:
            case Let(name, type_, Map(body)):
                for v in self._values(body):
                    if v in self.table and self.types[v].names() == type_.names():
                        self._set(name, self.table[v])
            case Let(name, _, Cast(value) | DotWait(value) | Scan(_, value) | Rename(value)) if value in self.table:
                self._set(name, self.table[value])
            case Let(name, _, SplitAxis(value)) if isinstance(own := self.table.get(value), Mma):
                self._set(name, Runs(own))
            case Let(name, type_, Reduce(_, value)) if isinstance(own := self.table.get(value), Runs):
                self._set(name, Mma(type_.axes[1].extent, own.parent.bits, own.parent.warps))
            case Let(name, _, Reduce(_, value)) if value in self.table:
                self._set(name, project(self.table[value], self.types[value].names(), self.types[name].names()))
            case For(carried=carried, body=body):
                self._carry(carried, (body,))
            case If(carried=carried, then=then, orelse=orelse):
                self._carry(carried, (then, orelse))
            case _:
                pass

    def _values(self, *exprs: Expr) -> list[str]:
        """The values with axes in expressions."""
        names = sorted({v for e in exprs for v in free_vars(e)})
        return [v for v in names if v in self.types and self.types[v].axes]

    def _carry(self, carried: tuple[Carry, ...], bodies: tuple[tuple[Stmt, ...], ...]) -> None:
        for c, names in _updates(carried, bodies):
            for n in names:
                if n in self.table:
                    self._set(c.name, self.table[n])

    # --- from users to what has no layout of its own

    def _asked(self, statements: list[Stmt]) -> bool:
        """Gives values that are still without a layout those of their users; operands of dots last."""
        return self._grew(self._ask, statements) or self._grew(self._ask_operand, statements)

    def _ask_operand(self, s: Stmt) -> None:
        match s:
            case Let(name, _, Dot(a, b)):
                mma = self.table[name]
                assert isinstance(mma, Mma)
                for x in (a, b):
                    if isinstance(x, str):
                        self._set(x, Operand(mma))
            case _:
                self._ask(s, operands=True)

    def _ask(self, s: Stmt, operands: bool = False) -> None:
        match s:
            case Let(name, type_, Map(body)):
                self._wanted(name, type_, self._values(body), operands)
            case Let(name, type_, Load(_, index, guard)):
                self._wanted(name, type_, self._values(*index, guard), operands)
            case Store(_, index, value, guard) | ReduceAdd(_, index, value, _, guard):
                self._wanted(value, self.types[value], self._values(*index, guard), operands)
            case Let(name, type_, Dot(start=str(start))):
                self._wanted(name, type_, [start], operands)
            case Let(name, _, Cast(value) | DotWait(value) | Scan(_, value) | Rename(value)):
                self._same(name, value, operands)
            case For(carried=carried, body=body):
                self._ask_carried(carried, (body,), operands)
            case If(carried=carried, then=then, orelse=orelse):
                self._ask_carried(carried, (then, orelse), operands)
            case _:
                pass

    def _wanted(self, name: str, type_: Type, operands: list[str], also_operands: bool) -> None:
        """Operands broadcast against a known result."""
        layout = self.table.get(name)
        if layout is None or (isinstance(layout, Operand) and not also_operands):
            return
        for v in operands:
            self._set(v, project(layout, type_.names(), self.types[v].names()))

    def _same(self, name: str, value: str, operands: bool) -> None:
        layout = self.table.get(name)
        if layout is not None and (operands or not isinstance(layout, Operand)):
            self._set(value, layout)

    def _ask_carried(self, carried: tuple[Carry, ...], bodies: tuple[tuple[Stmt, ...], ...], operands: bool) -> None:
        for c, names in _updates(carried, bodies):
            for n in names:
                self._same(c.name, n, operands)

    # --- what is left

    def _settled(self, statements: list[Stmt]) -> bool:
        """One value that no rule reaches: it lies as the tile of a slice it meets, or is spread in blocks."""
        left = [s for s in statements if isinstance(s, Let) and s.type.axes and s.name not in self.table]
        for s in left:
            if (layout := self._met(s)) is not None:
                self._set(s.name, layout)
                return True
        for s in left:
            if not isinstance(s.op, Convert):
                self._set(s.name, self._blocks(s.type))
                return True
            if s.op.value in self.table:
                self._set(s.name, self.table[s.op.value])
                return True
        return False

    def _met(self, s: Let) -> Layout | None:
        exprs = (s.op.body,) if isinstance(s.op, Map) else (*s.op.index, s.op.guard) if isinstance(s.op, Load) else ()
        for v in self._values(*exprs):
            layout = self.table.get(v)
            while isinstance(layout, Slice):
                layout = layout.parent
                if layout == self._fits(layout, s.type, self.types[v]) and self._slices(layout, s.type, v):
                    return layout
        return None

    def _slices(self, layout: Layout, type_: Type, operand: str) -> bool:
        return project(layout, type_.names(), self.types[operand].names()) == self.table[operand]

    def _fits(self, layout: Layout, type_: Type, operand: Type) -> Layout | None:
        """`layout` where it may be one of `type_`."""
        match layout:
            case Mma(columns):
                return layout if len(type_.axes) == 2 and type_.axes[1].extent == columns else None
            case Blocked(shape):
                return layout if shape == tuple(a.extent for a in type_.axes) else None
            case _:
                return None

    def _blocks(self, type_: Type) -> Layout:
        shape = tuple(a.extent for a in type_.axes)
        return Blocked(shape, max(1, min(16 * 8 // BITS[type_.dtype], shape[-1])), self.warps)


def _updates(
    carried: tuple[Carry, ...], bodies: tuple[tuple[Stmt, ...], ...]
) -> Iterator[tuple[Carry, tuple[str, ...]]]:
    """What each carried name is bound to: its start and what bodies yield."""
    ends = [b[-1] for b in bodies if b and isinstance(b[-1], Yield)]
    for n, c in enumerate(carried):
        yield c, (c.start, *(e.values[n] for e in ends if isinstance(e, Yield)))


def _flat(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """The statements of a body and of the loops and branches in it; not those of partitions."""
    for s in body:
        yield s
        match s:
            case For(body=inner):
                yield from _flat(inner)
            case If(then=then, orelse=orelse):
                yield from _flat(then)
                yield from _flat(orelse)
            case _:
                pass
