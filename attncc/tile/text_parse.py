"""Reads the text form of the Tile IR back: parse(dump(p)) == p."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from attncc.expr.build import TRUE
from attncc.expr.nodes import Expr, Sort
from attncc.tile import nodes as t
from attncc.tile.text import OPERATIONS, sort_of
from attncc.tile.text_expr import read_expr, read_number
from attncc.tile.text_lexer import Cursor, TextError, lines

_STATEMENTS = {c.__name__: c for c in t.Stmt.__args__}
_STEPS = {c.__name__: c for c in t.Step.__args__}
_OPS = {c.__name__: c for c in t.Op.__args__}
_PIECES = {c.__name__: c for c in t.Piece.__args__}


def parse(text: str) -> t.Program:
    """The program that `dump` wrote."""
    return _Reader(text, {}).program()


def parse_kernel(text: str, sorts: dict[str, Sort] | None = None) -> t.Kernel:
    """The kernel that `dump_kernel` wrote with the same `sorts`."""
    reader = _Reader(text, dict(sorts or {}))
    kernel = reader.kernel(0)
    if reader.at < len(reader.lines):
        raise TextError(f"line {reader.lines[reader.at].number}: nothing may follow the kernel")
    return kernel


class _Reader:
    """The lines still to come, and the sorts of the names in scope."""

    def __init__(self, text: str, sorts: dict[str, Sort]) -> None:
        self.lines = lines(text)
        self.at = 0
        self.sorts = sorts

    # --- lines ------------------------------------------------------------------------------------------------------

    def peek(self, depth: int) -> str:
        """The first word of the next line, if it stands at this depth."""
        if self.at < len(self.lines) and self.lines[self.at].depth == depth:
            return self.lines[self.at].tokens[0].text if self.lines[self.at].tokens else ""
        return ""

    def take(self, depth: int) -> Cursor:
        """The next line."""
        if self.at >= len(self.lines):
            raise TextError("the text ends too early")
        line = self.lines[self.at]
        if line.depth != depth or not line.tokens:
            raise TextError(f"line {line.number}: wrong indentation")
        self.at += 1
        return Cursor(line)

    def deeper(self, depth: int) -> bool:
        """Whether the next line stands at this depth."""
        return self.at < len(self.lines) and self.lines[self.at].depth == depth

    # --- pieces -----------------------------------------------------------------------------------------------------

    def expr(self, c: Cursor) -> Expr:
        return read_expr(c, self.sorts)

    def many(self, c: Cursor, item: Callable[[Cursor], Any], close: str) -> tuple[Any, ...]:
        """Items with commas between them, up to `close`."""
        found: list[Any] = []
        while not c.accept(close):
            if found:
                c.expect(",")
            found.append(item(c))
        return tuple(found)

    def names(self, c: Cursor) -> tuple[str, ...]:
        """Names with commas between them, to the end of the line."""
        found: list[str] = []
        while c.peek().kind != "end":
            if found:
                c.expect(",")
            found.append(c.name())
        return tuple(found)

    def index(self, c: Cursor) -> tuple[Expr, ...]:
        c.expect("[")
        return self.many(c, self.expr, "]")

    def guard(self, c: Cursor) -> Expr:
        return self.expr(c) if c.accept("where") else TRUE

    def axis(self, c: Cursor) -> t.Axis:
        return t.Axis(c.name(), c.integer())

    def type(self, c: Cursor) -> t.Type:
        dtype: Any = c.name()
        return t.Type(self.many(c, self.axis, "]") if c.accept("[") else (), dtype)

    def tensor(self, c: Cursor) -> t.Tensor:
        name = c.name()

        def axis(c: Cursor) -> tuple[str, Expr]:
            axis = c.name()
            c.expect(":")
            return axis, self.expr(c)

        c.expect("[")
        pairs = self.many(c, axis, "]")
        dtype: Any = c.name()
        axes, extents = tuple(a for a, _ in pairs), tuple(e for _, e in pairs)
        strided, scattered = c.accept("strided"), c.accept("scattered")
        unaligned, far = c.accept("unaligned"), c.accept("far")
        return t.Tensor(name, axes, extents, dtype, strided, not scattered, not unaligned, not far)

    def slot(self, c: Cursor) -> t.Slot:
        name, part = c.name(), None
        c.expect("[")
        index = self.expr(c)
        if c.accept(","):
            axis, start = c.name(), c.integer()
            c.expect(":")
            part = (axis, start, c.integer())
        c.expect("]")
        return t.Slot(name, index, part)

    def bar(self, c: Cursor) -> t.Bar:
        slot = self.slot(c)
        return t.Bar(slot.name, slot.index)

    def node(self, c: Cursor, classes: dict[str, Any]) -> Any:
        """Name(field, name=field)."""
        name = c.name()
        if name not in classes:
            raise TextError(f"line {c.line.number}: {name} is no node that may stand here")
        c.expect("(")
        fields = [f for f in dataclasses.fields(classes[name]) if f.name != "note"]
        values: dict[str, Any] = {}
        for f in fields:
            if f.default is dataclasses.MISSING:
                if values:
                    c.expect(",")
                values[f.name] = self.field(c, str(f.type))
            elif c.accept(*([","] if values else []), f.name, "="):
                values[f.name] = self.field(c, str(f.type))
        c.expect(")")
        return classes[name](**values)

    def field(self, c: Cursor, annotation: str) -> Any:
        """A field by its annotation in nodes.py."""
        if annotation.endswith("| None"):
            if c.accept("none"):
                return None
            annotation = annotation.removesuffix("| None").strip()
        if annotation == "str | Slot":
            annotation = "Slot" if c.peek(1).text == "[" else "str"
        if annotation.startswith("tuple["):
            c.expect("[")
            inner = annotation.removeprefix("tuple[").removesuffix(", ...]")
            return self.many(c, lambda c: self.field(c, inner), "]")
        table: dict[str, Callable[[Cursor], Any]] = {
            "Expr": self.expr, "Slot": self.slot, "Bar": self.bar, "Type": self.type, "Axis": self.axis,
            "Tensor": self.tensor, "int": Cursor.integer, "float": read_number, "bool": read_number,
            "float | int | bool": read_number,
        }  # fmt: skip
        return table.get(annotation, Cursor.name)(c)

    def operation(self, c: Cursor) -> t.Op:
        """The right side of a Let."""
        if c.peek().text not in OPERATIONS or c.peek().kind != "name":
            return t.Map(self.expr(c))
        if c.accept("Load"):
            tensor, index, guard = c.name(), self.index(c), self.guard(c)
            other = read_number(c) if c.accept("else") else 0
            bulk = c.accept("in")
            if bulk:
                c.expect("bulk")
            return t.Load(tensor, index, guard, other, bulk)
        op: t.Op = self.node(c, _OPS)
        return op

    def ranges(self, c: Cursor) -> t.Ranges | t.Count | t.Work:
        if c.accept("work"):
            claims = t.Claims(c.name(), c.name(), c.name(), c.name()) if c.accept("from") else None
            taking = c.accept("taking")
            return t.Work(claims, taking, c.integer() if c.accept("ahead") else 0)
        if not (c.peek().text == "tiles" and c.peek(1).kind == "number"):
            lo = self.expr(c)
            c.expect("..")
            return t.Count(lo, self.expr(c))
        c.expect("tiles")
        tile = c.integer()
        c.expect("of")
        extent = self.expr(c)
        c.expect(":")
        c.expect("[")
        pieces = self.many(c, self.piece, "]")
        return t.Ranges(tile, extent, pieces, c.accept("full"))

    def piece(self, c: Cursor) -> t.Piece:
        if c.peek().text in _PIECES and c.peek(1).text == "(":
            piece: t.Piece = self.node(c, _PIECES)
            return piece
        lo = self.expr(c)
        c.expect("..")
        return t.Interval(lo, self.expr(c))

    # --- statements -------------------------------------------------------------------------------------------------

    def program(self) -> t.Program:
        c = self.take(0)
        c.expect("program")
        name, note = c.name(), c.line.note
        c.end()
        self._scalar_sorts()
        inputs, scalars, kernels, steps = [], [], [], []
        while self.peek(1) != "output":
            match self.peek(1):
                case "kernel":
                    kernels.append(self.kernel(1))
                    continue
                case "input":
                    c = self.take(1)
                    c.expect("input")
                    inputs.append(self.tensor(c))
                case "scalar":
                    c = self.take(1)
                    scalars.append(self.scalar(c))
                case _:
                    c = self.take(1)
                    steps.append(self.node(c, _STEPS))
            c.end()
        c = self.take(1)
        c.expect("output")
        parts = (tuple(inputs), tuple(scalars), tuple(kernels), tuple(steps))
        return t.Program(name, *parts, self.names(c), note)

    def _scalar_sorts(self) -> None:
        """Sorts of all scalars, before the first expression is read."""
        for line in self.lines:
            if line.depth == 1 and line.tokens and line.tokens[0].text == "scalar":
                c = Cursor(line)
                c.expect("scalar")
                name = c.name()
                c.expect(":")
                sort: Any = c.name()
                self.sorts[name] = sort

    def scalar(self, c: Cursor) -> t.Scalar:
        c.expect("scalar")
        name = c.name()
        c.expect(":")
        sort: Any = c.name()
        return t.Scalar(name, sort, self.expr(c) if c.accept("=") else None)

    def kernel(self, depth: int) -> t.Kernel:
        c = self.take(depth)
        c.expect("kernel")
        name = c.name()
        c.expect("(")
        tensors = self.many(c, Cursor.name, ";")
        scalars = self.many(c, Cursor.name, ")")
        numbers = []
        for word in ("warps", "stages", "registers"):
            c.expect(word)
            numbers.append(c.integer())
        c.end()
        outer = dict(self.sorts)
        grid: list[t.GridAxis] = []
        while self.peek(depth + 1) == "grid":
            grid.append(self.grid_axis(self.take(depth + 1)))
        self.sorts |= {a.name: "int" for a in grid}
        body = self.body(depth + 1)
        self.sorts = outer
        return t.Kernel(name, tuple(grid), tensors, scalars, body, t.Config(*numbers), c.line.note)

    def grid_axis(self, c: Cursor) -> t.GridAxis:
        c.expect("grid")
        name = c.name()
        c.expect(":")
        extent = self.expr(c)
        role: Any = c.name()
        tile, axis = 1, ""
        if c.peek().kind == "number":
            tile = c.integer()
            c.expect("of")
            axis = c.name()
        descending = c.accept("descending")
        c.end()
        return t.GridAxis(name, extent, role, tile, axis, descending)

    def body(self, depth: int) -> tuple[t.Stmt, ...]:
        """The statements at this depth."""
        found = []
        while self.deeper(depth) and self.peek(depth) != "else":
            found.append(self.statement(self.take(depth), depth))
        return tuple(found)

    def block(self, depth: int, names: dict[str, Sort]) -> tuple[t.Stmt, ...]:
        outer = dict(self.sorts)
        self.sorts |= names
        body = self.body(depth)
        self.sorts = outer
        return body

    def statement(self, c: Cursor, depth: int) -> t.Stmt:
        """One statement and what is inside it."""
        word, after = c.peek(), c.peek(1)
        if after.text == ":" and word.kind in ("name", "string"):
            s = self.let(c)
        elif word.text in ("for", "if", "partitions") and word.kind == "name":
            readers = {"for": self.loop, "if": self.branch, "partitions": self.partitions}
            return readers[word.text](c, depth)
        elif word.text in ("store", "add", "yield") and word.kind == "name":
            s = self.store(c)
        else:
            s = self.node(c, _STATEMENTS)
        c.end()
        return s

    def let(self, c: Cursor) -> t.Stmt:
        name = c.name()
        c.expect(":")
        type = self.type(c)
        c.expect("=")
        op = self.operation(c)
        self.sorts[name] = sort_of(type.dtype)
        return t.Let(name, type, op, c.line.note)

    def store(self, c: Cursor) -> t.Stmt:
        if c.accept("yield"):
            return t.Yield(self.names(c))
        if c.accept("store"):
            tensor, index = c.name(), self.index(c)
            c.expect("=")
            return t.Store(tensor, index, c.name(), self.guard(c), c.line.note)
        c.expect("add")
        tensor, index = c.name(), self.index(c)
        c.expect("+=")
        value, how = c.name(), c.name()
        checked: Any = how
        return t.ReduceAdd(tensor, index, value, checked, self.guard(c), c.line.note)

    def carried(self, c: Cursor) -> tuple[t.Carry, ...]:
        def one(c: Cursor) -> t.Carry:
            name = c.name()
            c.expect(":")
            type = self.type(c)
            c.expect("=")
            return t.Carry(name, type, c.name())

        if not c.accept("carrying"):
            return ()
        c.expect("(")
        return self.many(c, one, ")")

    def loop(self, c: Cursor, depth: int) -> t.Stmt:
        c.expect("for")
        index = c.name()
        c.expect("in")
        over = self.ranges(c)
        axis = c.name() if c.accept("along") else ""
        order: Any = next((o for o in ("asc", "desc") if c.accept(o)), "any")
        stages = c.integer() if c.accept("stages") else 1
        carried = self.carried(c)
        c.end()
        names: dict[str, Sort] = {x.name: sort_of(x.type.dtype) for x in carried}
        body = self.block(depth + 1, {index: "int", **names})
        self.sorts |= names
        return t.For(index, over, carried, body, axis, order, stages, c.line.note)

    def branch(self, c: Cursor, depth: int) -> t.Stmt:
        c.expect("if")
        condition = self.expr(c)
        carried = self.carried(c)
        c.end()
        names: dict[str, Sort] = {x.name: sort_of(x.type.dtype) for x in carried}
        then: tuple[t.Stmt, ...] = self.block(depth + 1, names)
        orelse: tuple[t.Stmt, ...] = ()
        if self.peek(depth) == "else":
            self.take(depth)
            orelse = self.block(depth + 1, names)
        self.sorts |= names
        return t.If(condition, then, orelse, carried, c.line.note)

    def partitions(self, c: Cursor, depth: int) -> t.Stmt:
        c.expect("partitions")
        c.end()
        parts = []
        while self.peek(depth + 1) == "partition":
            c = self.take(depth + 1)
            c.expect("partition")
            name = c.name()
            c.expect("warps")
            warps = c.integer()
            c.expect("registers")
            registers = c.integer()
            c.end()
            parts.append(t.Partition(name, warps, registers, self.block(depth + 2, {})))
        return t.Partitions(tuple(parts))
