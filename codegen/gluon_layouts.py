"""Register layouts of a kernel's values, as a side table: one pass from the shapes of dots to everything around them.

The result of a dot has the tensor cores' layout; what is computed from it element by element keeps that; a vector that
meets it is a slice of it; the first operand of a dot has the layout that dot reads. Constants and loads take the layout
of whoever uses them; what no dot touches is spread in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attncc.errors import InternalError
from attncc.expr.nodes import free_vars
from attncc.tile.nodes import (
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
    Map,
    Partitions,
    Reduce,
    Rename,
    Scan,
    Stmt,
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
class Blocked:
    """Runs of `run` elements of the last axis a thread; threads along the last axis first."""

    shape: tuple[int, ...]
    run: int
    warps: int


Layout = Mma | Operand | Slice | Blocked
Table = dict[str, Layout]


def layouts(kernel: Kernel) -> tuple[Table, dict[str, Type]]:
    """The layout of every value with axes, and every value's type."""
    types: dict[str, Type] = {}
    table: Table = {}
    for warps, body in _bodies(kernel):
        _Pass(types, table, warps).run(body)
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

    def __init__(self, types: dict[str, Type], table: Table, warps: int) -> None:
        self.types, self.table, self.warps = types, table, warps
        self.operand_bits: dict[str, int] = {}

    def run(self, body: tuple[Stmt, ...]) -> None:
        statements = list(_flat(body))
        for s in statements:
            self._declare(s)
        for s in statements:
            if isinstance(s, Let) and isinstance(s.op, Dot):
                self._dot(s, s.op)
        before = -1
        while len(self.table) != before:
            before = len(self.table)
            for s in statements:
                self._learn(s)
            if len(self.table) == before:
                self._settle_one(statements)

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
        if isinstance(dot.b, str):
            raise InternalError(f"{s.name}: the second operand of a warpgroup's dot lies in shared memory")
        bits = BITS[self.types[dot.a].dtype] if isinstance(dot.a, str) else 16
        mma = Mma(s.type.axes[1].extent, bits, self.warps)
        self._set(s.name, mma)

    def _learn(self, s: Stmt) -> None:
        match s:
            case Let(name, type_, Map(body)):
                self._map(name, type_, tuple(v for v in sorted(free_vars(body)) if v in self.types))
            case Let(name, _, Dot(a=a, start=start)):
                mma = self.table[name]
                assert isinstance(mma, Mma)
                if isinstance(a, str):
                    self._set(a, Operand(mma))
                if start is not None:
                    self._set(start, project(mma, self.types[name].names(), self.types[start].names()))
            case Let(name, _, Cast(value) | DotWait(value) | Scan(_, value) | Rename(value)):
                self._same((name, value))
            case Let(name, _, Reduce(_, value)) if value in self.table:
                self._set(name, project(self.table[value], self.types[value].names(), self.types[name].names()))
            case For(carried=carried, body=body):
                self._carry(carried, (body,))
            case If(carried=carried, then=then, orelse=orelse):
                self._carry(carried, (then, orelse))
            case _:
                pass

    def _map(self, name: str, type_: Type, operands: tuple[str, ...]) -> None:
        axes = type_.names()
        for v in operands:
            if v in self.table and self.types[v].names() == axes and not isinstance(self.table[v], Operand):
                self._set(name, self.table[v])
        if name in self.table:
            for v in operands:
                self._set(v, project(self.table[name], axes, self.types[v].names()))

    def _carry(self, carried: tuple[Carry, ...], bodies: tuple[tuple[Stmt, ...], ...]) -> None:
        for n, c in enumerate(carried):
            ends = [b[-1] for b in bodies if b]
            self._same((c.name, c.start, *(e.values[n] for e in ends if isinstance(e, Yield))))

    def _same(self, names: tuple[str, ...]) -> None:
        known = next((self.table[n] for n in names if n in self.table), None)
        if known is not None:
            for n in names:
                self._set(n, known)

    def _settle_one(self, statements: list[Stmt]) -> None:
        """The first value that no rule reaches is spread in blocks; the rules then go on from it."""
        for s in statements:
            if isinstance(s, Let) and s.type.axes and s.name not in self.table and not isinstance(s.op, Convert):
                shape = tuple(a.extent for a in s.type.axes)
                self._set(s.name, Blocked(shape, max(1, min(16 * 8 // BITS[s.type.dtype], shape[-1])), self.warps))
                return


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
