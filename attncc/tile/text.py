"""The text form of the Tile IR: what `dump` shows, and what `text_parse` reads back.

One statement per line, bodies indented. A statement or operation that has no form of its own is written as its
node's name with its fields: those without a default in order, others as name=value where they differ from it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from attncc.expr.build import TRUE
from attncc.expr.nodes import Expr, Sort
from attncc.tile import nodes as t
from attncc.tile.text_expr import spell_expr, spell_number
from attncc.tile.text_lexer import spell_name, spell_note

_FIRST_WORD = re.compile(r"\w*")
OPERATIONS = frozenset(c.__name__ for c in t.Op.__args__)


def dump(program: t.Program) -> str:
    """The text of a whole program: inputs, scalars, kernels, steps, outputs."""
    w = Writer({s.name: s.sort for s in program.scalars})
    w.line(0, f"program {spell_name(program.name)}", program.note)
    for tensor in program.inputs:
        w.line(1, f"input {w.tensor(tensor)}")
    for s in program.scalars:
        value = "" if s.value is None else f" = {w.expr(s.value)}"
        w.line(1, f"scalar {spell_name(s.name)}: {s.sort}{value}")
    for k in program.kernels:
        w.kernel(k, 1)
    for step in program.steps:
        w.line(1, w.node(step))
    w.line(1, f"output {w.names(program.outputs)}")
    return "\n".join(w.lines) + "\n"


def dump_kernel(kernel: t.Kernel, sorts: dict[str, Sort] | None = None) -> str:
    """The text of one kernel; scalars it takes are ints where `sorts` does not say otherwise."""
    w = Writer(dict(sorts or {}))
    w.kernel(kernel, 0)
    return "\n".join(w.lines) + "\n"


def headline(s: t.Stmt, sorts: dict[str, Sort] | None = None) -> str:
    """The first line of a statement, without its note."""
    w = Writer(dict(sorts or {}))
    bare: Any = s
    w.statement(dataclasses.replace(bare, note="") if hasattr(bare, "note") else bare, 0)
    return w.lines[0]


def sort_of(dtype: t.Dtype) -> Sort:
    """The sort of an expression's Var that names a value of `dtype`."""
    if dtype == "bool":
        return "bool"
    return "int" if dtype in ("i64", "i32", "u8") else "real"


def spell_type(type: t.Type) -> str:
    """f32[i 16, j 8], or i32 of a scalar."""
    axes = ", ".join(spell_axis(a) for a in type.axes)
    return f"{type.dtype}[{axes}]" if axes else type.dtype


def spell_axis(axis: t.Axis) -> str:
    """i 16."""
    return f"{spell_name(axis.name)} {axis.extent}"


@dataclasses.dataclass
class Writer:
    """Lines so far, and the sorts of the names in scope."""

    sorts: dict[str, Sort]
    lines: list[str] = dataclasses.field(default_factory=list)

    def line(self, depth: int, text: str, note: str = "") -> None:
        """One more line."""
        self.lines.append("  " * depth + text + spell_note(note))

    def expr(self, e: Expr) -> str:
        """An expression, knowing the scope."""
        return spell_expr(e, self.sorts)

    def names(self, names: tuple[str, ...]) -> str:
        return ", ".join(spell_name(n) for n in names)

    def list(self, items: tuple[Expr, ...]) -> str:
        return f"[{', '.join(self.expr(e) for e in items)}]"

    # --- pieces -----------------------------------------------------------------------------------------------------

    def tensor(self, tensor: t.Tensor) -> str:
        """q[b: B, h: H, i: M, d: 64] bf16 strided."""
        pairs = zip(tensor.axes, tensor.extents, strict=True)
        axes = ", ".join(f"{spell_name(a)}: {self.expr(e)}" for a, e in pairs)
        flags = " strided" * tensor.strided + " scattered" * (not tensor.unit)
        flags += " unaligned" * (not tensor.aligned) + " far" * (not tensor.near)
        return f"{spell_name(tensor.name)}[{axes}] {tensor.dtype}{flags}"

    def slot(self, slot: t.Slot | t.Bar) -> str:
        """ring[n], or ring[n, i 0:64] of a part."""
        part = ""
        if isinstance(slot, t.Slot) and slot.part is not None:
            axis, start, extent = slot.part
            part = f", {spell_name(axis)} {start}:{extent}"
        return f"{spell_name(slot.name)}[{self.expr(slot.index)}{part}]"

    def ranges(self, over: t.Ranges | t.Count | t.Work) -> str:
        """Count: lo .. hi. Ranges: tiles 128 of N: pieces [full]. Work: work [from counter slots full empty] .."""
        if isinstance(over, t.Work):
            c = over.claims
            names = () if c is None else (spell_name(x) for x in (c.counter, c.slots, c.full, c.empty))
            ahead = f" ahead {over.ahead}" if over.ahead else ""
            return " ".join(("work", *(("from", *names) if c else ()))) + " taking" * over.taking + ahead
        if isinstance(over, t.Count):
            return f"{self.expr(over.lo)} .. {self.expr(over.hi)}"
        pieces = ", ".join(
            f"{self.expr(p.lo)} .. {self.expr(p.hi)}" if isinstance(p, t.Interval) else self.node(p)
            for p in over.pieces
        )
        return f"tiles {over.tile} of {self.expr(over.extent)}: [{pieces}]" + " full" * over.full

    def guard(self, guard: Expr) -> str:
        return "" if guard is TRUE else f" where {self.expr(guard)}"

    def node(self, x: Any) -> str:
        """Name(field, name=field) of any node."""
        parts = []
        for f in dataclasses.fields(x):
            value = getattr(x, f.name)
            if f.name == "note":
                continue
            if f.default is dataclasses.MISSING:
                parts.append(self.field(value))
            elif value != f.default or type(value) is not type(f.default):
                parts.append(f"{f.name}={self.field(value)}")
        return f"{type(x).__name__}({', '.join(parts)})"

    def field(self, value: Any) -> str:
        """One field of a node."""
        match value:
            case None:
                return "none"
            case bool() | int() | float():
                return spell_number(value)
            case str():
                return spell_name(value)
            case Expr():
                return self.expr(value)
            case tuple():
                return f"[{', '.join(self.field(v) for v in value)}]"
            case t.Slot() | t.Bar():
                return self.slot(value)
            case t.Type():
                return spell_type(value)
            case t.Axis():
                return spell_axis(value)
            case t.Tensor():
                return self.tensor(value)
            case _:
                return self.node(value)

    def operation(self, op: t.Op) -> str:
        """The right side of a Let: a map is its expression."""
        match op:
            case t.Map(body, False):
                text = self.expr(body)
                word = _FIRST_WORD.match(text)
                return f"Map({text})" if word is not None and word[0] in OPERATIONS else text
            case t.Load(tensor, index, guard, other, bulk):
                rest = "" if other == 0 and type(other) is int else f" else {spell_number(other)}"
                rest += " in bulk" if bulk else ""
                return f"Load {spell_name(tensor)}{self.list(index)}{self.guard(guard)}{rest}"
            case _:
                return self.node(op)

    # --- statements -------------------------------------------------------------------------------------------------

    def kernel(self, k: t.Kernel, depth: int) -> None:
        """A kernel's head, grid and body."""
        c = k.config
        head = f"kernel {spell_name(k.name)}({self.names(k.tensors)}; {self.names(k.scalars)})"
        self.line(depth, f"{head} warps {c.warps} stages {c.stages} registers {c.registers}", k.note)
        outer = dict(self.sorts)
        for a in k.grid:
            tile = f" {a.tile} of {spell_name(a.axis)}" if a.tile != 1 or a.axis else ""
            down = " descending" if a.descending else ""
            self.line(depth + 1, f"grid {spell_name(a.name)}: {self.expr(a.extent)} {a.role}{tile}{down}")
        self.sorts |= {a.name: "int" for a in k.grid}
        self.body(k.body, depth + 1)
        self.sorts = outer

    def body(self, stmts: tuple[t.Stmt, ...], depth: int) -> None:
        """Statements of one block."""
        for s in stmts:
            self.statement(s, depth)

    def _block(self, stmts: tuple[t.Stmt, ...], depth: int, names: dict[str, Sort]) -> None:
        outer = dict(self.sorts)
        self.sorts |= names
        self.body(stmts, depth)
        self.sorts = outer

    def _carried(self, carried: tuple[t.Carry, ...]) -> str:
        each = ", ".join(f"{spell_name(c.name)}: {spell_type(c.type)} = {spell_name(c.start)}" for c in carried)
        return f" carrying ({each})" if each else ""

    def statement(self, s: t.Stmt, depth: int) -> None:
        """One statement and what is inside it."""
        note = getattr(s, "note", "")
        match s:
            case t.Let(name, type, op):
                self.line(depth, f"{spell_name(name)}: {spell_type(type)} = {self.operation(op)}", note)
                self.sorts[name] = sort_of(type.dtype)
            case t.Store(tensor, index, value, guard):
                place = f"{spell_name(tensor)}{self.list(index)}"
                self.line(depth, f"store {place} = {spell_name(value)}{self.guard(guard)}", note)
            case t.ReduceAdd(tensor, index, value, how, guard):
                place = f"{spell_name(tensor)}{self.list(index)}"
                self.line(depth, f"add {place} += {spell_name(value)} {how}{self.guard(guard)}", note)
            case t.Yield(values):
                self.line(depth, f"yield {self.names(values)}".rstrip())
            case t.For():
                self._for(s, depth)
            case t.If():
                self._if(s, depth)
            case t.Partitions(parts):
                self.line(depth, "partitions")
                for p in parts:
                    head = f"partition {spell_name(p.name)} warps {p.warps} registers {p.registers}"
                    self.line(depth + 1, head)
                    self._block(p.body, depth + 2, {})
            case _:
                self.line(depth, self.node(s), note)

    def _for(self, s: t.For, depth: int) -> None:
        axis = f" along {spell_name(s.axis)}" if s.axis else ""
        how = "" if s.order == "any" else f" {s.order}"
        stages = f" stages {s.stages}" if s.stages != 1 else ""
        head = f"for {spell_name(s.index)} in {self.ranges(s.over)}{axis}{how}{stages}{self._carried(s.carried)}"
        self.line(depth, head, s.note)
        names: dict[str, Sort] = {c.name: sort_of(c.type.dtype) for c in s.carried}
        self._block(s.body, depth + 1, {s.index: "int", **names})
        self.sorts |= names

    def _if(self, s: t.If, depth: int) -> None:
        self.line(depth, f"if {self.expr(s.condition)}{self._carried(s.carried)}", s.note)
        names: dict[str, Sort] = {c.name: sort_of(c.type.dtype) for c in s.carried}
        self._block(s.then, depth + 1, names)
        if s.orelse:
            self.line(depth, "else")
            self._block(s.orelse, depth + 1, names)
        self.sorts |= names
