"""Prints the statements of a Gluon kernel or of one of its partitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

from attncc.codegen.gluon_layouts import BITS, Layout, Mma, Operand, Runs, project
from attncc.codegen.gluon_memory import Memory
from attncc.codegen.gluon_spelling import DTYPES
from attncc.codegen.gluon_values import Scope, shape
from attncc.codegen.scalars import PRODUCT, SUM, python_name
from attncc.errors import InternalError
from attncc.expr.interval import ALL, Interval, bounds
from attncc.expr.nodes import Var
from attncc.tile.nodes import (
    Carry,
    Cast,
    Claims,
    Convert,
    Count,
    Dot,
    DotWait,
    For,
    Full,
    GridAxis,
    If,
    Iota,
    Let,
    Load,
    Map,
    Op,
    Reduce,
    ReduceAdd,
    Rename,
    Scan,
    SharedLoad,
    Slot,
    SplitAxis,
    Stmt,
    Store,
    Type,
    Work,
    Yield,
)

REDUCE = {"sum": "gl.sum", "max": "gl.max", "min": "gl.min", "any": "gl.max", "all": "gl.min"}
SCAN = {"sum": "_plus_gl", "max": "_larger_gl", "mul": "_times_gl"}
NOTHING = {"sum": 0.0, "max": -math.inf, "mul": 1.0}

__all__ = ["Body", "Scope"]


class Body(Memory):
    """Prints one body; `used` collects the names it takes from outside, in order."""

    # --- statements

    def statements(self, body: Iterable[Stmt]) -> None:
        for same in _waits(body):
            if len(same) == 1:
                self.statement(same[0])
            else:
                self._wait_together(same)

    def statement(self, s: Stmt) -> None:
        match s:
            case Let():
                self._let(s)
            case For():
                self.loop(s)
            case If():
                self.branch(s)
            case Store() | ReduceAdd():
                self.store(s)
            case Yield():
                pass
            case _:
                self.memory(s)

    def _let(self, s: Let) -> None:
        if isinstance(s.op, DotWait) and s.op.after:
            self._wait_together([s])
            return
        text = self.operation(s.name, s.type, s.op)
        if isinstance(s.op, Dot) and s.op.asynchronous:
            self.flying.add(s.name)
        self.w.line(f"{self.bind(s.name)} = {text}", s.note)
        self.recipes[s.name] = s.op
        if not s.type.axes and isinstance(s.op, Map) and s.op.body.sort == "int":
            self.scope.known[Var(s.name, "int")] = bounds(s.op.body, self.scope.known)

    def _wait_together(self, waits: list[Stmt]) -> None:
        """One wait for several dots, behind the values that are to be computed before it."""
        lets = [s for s in waits if isinstance(s, Let)]
        ops = [s.op for s in lets if isinstance(s.op, DotWait)]
        before = [self.use(n) for n in dict.fromkeys(n for o in ops for n in o.after)]
        values = ", ".join([*(self.use(o.value) for o in ops), *before])
        names = ", ".join([*(self.bind(s.name) for s in lets), *before])
        self.w.line(f"{names} = warpgroup_mma_wait({ops[0].pending}, [{values}])", lets[0].note)

    # --- operations

    def operation(self, name: str, type_: Type, op: Op) -> str:
        layout = self.scope.table.get(name)
        match op:
            case Load():
                return self.load(type_, layout, op)
            case Map(body) if layout is None:
                return self.scalar(body)
            case Full(value) if layout is None:
                return self.scalar(value)
            case Cast(value) if layout is None:
                return self._cast(self.use(value), value, type_)
            case Reduce(how, value, axis):
                text = self._reduce(how, value, axis)
                if layout is None or layout == self._projected(value, type_):
                    return text
                return f"gl.convert_layout({text}, {self.scope.named.register(layout)})"
            case _ if layout is None:
                raise InternalError(f"{name}: {type(op).__name__} has axes")
            case _:
                return self.tensor_operation(type_, layout, op)

    def tensor_operation(self, type_: Type, layout: Layout, op: Op) -> str:
        match op:
            case Full() | Iota() | Map() | Rename():
                return self.computed(type_, layout, op)
            case Cast(value):
                return self._cast(self.value(value, layout), value, type_)
            case Convert(value):
                return self.value(value, layout)
            case SharedLoad(slot):
                return f"{self.slot(slot, type_.names())}.load({self.scope.named.register(layout)})"
            case SplitAxis(value) if isinstance(layout, Runs):
                return f"{self.value(value, layout.parent)}.reshape({shape(type_)})"
            case DotWait(value, pending):
                return f"warpgroup_mma_wait({pending}, [{self.use(value)}])"
            case Dot():
                return self.dot(type_, layout, op)
            case Scan():
                return self._scan(type_, layout, op)
            case _:
                raise InternalError(f"no Gluon spelling of {type(op).__name__}")

    def _cast(self, text: str, value: str, type_: Type) -> str:
        old = self.scope.types[value].dtype
        if type_.dtype == "bool" and old != "bool":
            return f"{text} != 0"
        return f"{text}.to({DTYPES[type_.dtype]})" if old != type_.dtype else text

    def _reduce(self, how: str, value: str, axis: str) -> str:
        if how not in REDUCE:
            raise InternalError(f"no Gluon spelling of a reduction by {how}")
        own, text = self.scope.types[value], self.use(value)
        place = own.names().index(axis)
        if own.dtype != "bool":
            return f"{REDUCE[how]}({text}, {place})"
        return f"{REDUCE[how]}({text}.to(gl.int32), {place}) != 0"

    def _projected(self, value: str, type_: Type) -> Layout:
        """How what a reduction leaves of a value lies."""
        own = self.scope.table[value]
        return own if isinstance(own, Runs) else project(own, self.scope.types[value].names(), type_.names())

    def _scan(self, type_: Type, layout: Layout, op: Scan) -> str:
        if op.exclusive and op.op != "sum":
            raise InternalError(f"no Gluon spelling of an exclusive running {op.op}")
        self.scope.helpers.add(SCAN[op.op])
        text = self.value(op.value, layout)
        back = ", reverse=True" if op.reverse else ""
        scan = f"gl.associative_scan({text}, {type_.names().index(op.axis)}, {SCAN[op.op]}{back})"
        return f"{scan} - {text}" if op.exclusive else scan

    def dot(self, type_: Type, layout: Layout, op: Dot) -> str:
        row, column = type_.names()
        left, right = (op.a, op.b) if row in self._operand_axes(op.a) else (op.b, op.a)
        if not isinstance(layout, Mma) or isinstance(right, str):
            raise InternalError("a dot needs a tensor core's layout and its second operand in shared memory")
        order = (row, op.axis)
        a = self.slot(left, order) if isinstance(left, Slot) else self._register_operand(left, order, layout)
        b = self.slot(right, (op.axis, column))
        flags = ", is_async=True" if op.asynchronous else ""
        zeros = f"gl.zeros({shape(type_)}, gl.float32, {self.scope.named.register(layout)})"
        if op.start is None:
            return f"warpgroup_mma({a}, {b}, {zeros}, use_acc=False{flags})"
        return f"warpgroup_mma({a}, {b}, {self._start(op.start, type_, layout)}{flags})"

    def _operand_axes(self, x: str | Slot) -> tuple[str, ...]:
        return self.slot_axes(x) if isinstance(x, Slot) else self.scope.types[x].names()

    def _register_operand(self, name: str, order: tuple[str, str], layout: Mma) -> str:
        if self.scope.types[name].names() != order:
            raise InternalError(f"{name} is an operand against its order in registers")
        return self.value(name, Operand(layout))

    def _start(self, name: str, type_: Type, layout: Layout) -> str:
        """An accumulator's first value; one over fewer axes is broadcast, which costs no addition."""
        own = self.scope.types[name].names()
        if not own:
            return f"gl.full({shape(type_)}, {self.use(name)}, gl.float32, {self.scope.named.register(layout)})"
        at = self.speller(type_, layout)
        return self.spread(at.spell(Var(name, "real")), type_, layout, at).text

    # --- control

    def loop(self, s: For) -> None:
        if isinstance(s.over, Work):
            self._work(s, s.over)
            return
        if not isinstance(s.over, Count):
            raise InternalError("no Gluon spelling of a loop over ranges")
        words = self._words(s.carried)
        self.start(s.carried, _flying(s), words)
        lo, hi = s.over.lo, s.over.hi
        first = bounds(lo, self.scope.known).lo
        self.scope.known[Var(s.index, "int")] = Interval(first) if first > -math.inf else ALL
        limits = f"{self.scalar(lo)}, {self.scalar(hi)}"
        with self.w.block(f"for {self.bind(s.index)} in range({limits}):", s.note):
            self._unpack(s.carried, words)
            self.statements(s.body)
            self.end(s.carried, s.body, words)
        self._unpack(s.carried, words)

    def _words(self, carried: tuple[Carry, ...]) -> dict[str, str]:
        """The names under which a loop carries its 16-bit tiles: packed in words, since it would shuffle halves."""
        found = [c for c in carried if len(c.type.axes) == 2 and BITS[c.type.dtype] == 16]
        return {c.name: self.bind(f"{c.name}_words") for c in found}

    def _unpack(self, carried: tuple[Carry, ...], words: dict[str, str]) -> None:
        for c in carried:
            if c.name in words:
                self.scope.helpers.add("_halves_gl")
                layout = self.scope.named.register(self.scope.table[c.name])
                text = f"_halves_gl({words[c.name]}, {DTYPES[c.type.dtype]}, {layout})"
                self.w.line(f"{self.bind(c.name)} = {text}")

    def _work(self, s: For, over: Work) -> None:
        """One loop over the program's places, each decoded as the grid of a plain kernel is."""
        self.start(s.carried, _flying(s))
        first, *others = self.scope.grid
        tiles = f"({self.scalar(first.extent, SUM)} + {first.tile - 1}) // {first.tile}"
        self.w.line(f"tiles = {tiles}")
        count = " * ".join(self.scalar(a.extent, PRODUCT) for a in others) or "1"
        self.w.line(f"others = {count}")
        self.scope.known[Var(s.index, "int")] = Interval(0)
        item = self.bind(s.index)
        if over.claims is None:
            mine = "gl.cdiv(tiles * others - gl.program_id(0), gl.num_programs(0))"
            header = f"for {item} in range({mine}):"
        else:
            self.w.line(f"{item} = 0")
            self.w.line("place = gl.program_id(0)")
            header = "while place < tiles * others:"
        with self.w.block(header, s.note):
            if over.claims is None:
                self.w.line(f"place = gl.program_id(0) + {item} * gl.num_programs(0)")
            self._decode(first, others, over.ahead)
            self.statements(s.body)
            self.end(s.carried, s.body)
            if over.claims is not None:
                self._next_place(over.claims, over.taking, item)

    def _decode(self, first: GridAxis, others: Sequence[GridAxis], ahead: int) -> None:
        """The place's number as positions along the grid's axes."""
        if ahead:
            self.w.line(f"last = gl.minimum(gl.cdiv({ahead} * gl.num_programs(0), tiles), others)")
            self.w.line("number = place - (others - last) * tiles")
            self.w.line("work_tile = gl.where(number < 0, place % tiles, number // last)")
            self.w.line("rest = gl.where(number < 0, place // tiles, others - last + number % last)")
        else:
            self.w.line("work_tile = place % tiles")
            self.w.line("rest = place // tiles")
        number = "(tiles - 1 - work_tile)" if first.descending else "work_tile"
        self.w.line(f"{self.bind(first.name)} = {number} * {first.tile}")
        for n, axis in enumerate(others):
            last = n == len(others) - 1
            extent = self.scalar(axis.extent, PRODUCT)
            self.w.line(f"{self.bind(axis.name)} = rest" + ("" if last else f" % {extent}"))
            if not last:
                self.w.line(f"rest = rest // {extent}")

    def _next_place(self, claims: Claims, taking: bool, item: str) -> None:
        """Taken for all partitions, or learnt from the one that takes."""
        ring = ", ".join(self.use(n) for n in (claims.slots, claims.full, claims.empty))
        if taking:
            call = f"_take_place_gl({self.use(claims.counter)}, {ring}, {item}, tiles * others)"
        else:
            call = f"_next_place_gl({ring}, {item}, {self.scope.warps})"
        self.scope.helpers.add(call.partition("(")[0])
        self.w.line(f"place = {call}")
        self.w.line(f"{item} += 1")

    def branch(self, s: If) -> None:
        self.w.comment(s.note)
        self.start(s.carried)
        for header, body in ((f"if {self.scalar(s.condition)}:", s.then), ("else:", s.orelse)):
            if header == "else:" and _keeps(s.carried, body):
                continue
            with self.w.block(header):
                self.statements(body)
                self.end(s.carried, body)

    def start(
        self,
        carried: tuple[Carry, ...],
        flying: frozenset[str] = frozenset(),
        words: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """What is carried begins; products that a turn leaves unfinished are of a type of their own from the first."""
        values = [self._as(c, c.start, words) for c in carried]
        for n, c in enumerate(carried):
            if c.name in flying and c.start not in self.flying:
                values[n] = f"warpgroup_mma_init({values[n]})"
        self.flying |= flying
        self.assign([words.get(c.name) or self.bind(c.name) for c in carried], values)

    def end(
        self, carried: tuple[Carry, ...], body: tuple[Stmt, ...], words: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        last = body[-1] if body else None
        if isinstance(last, Yield):
            values = [self._as(c, v, words) for c, v in zip(carried, last.values, strict=True)]
            self.assign([words.get(c.name) or python_name(c.name) for c in carried], values)

    def _as(self, c: Carry, value: str, words: Mapping[str, str]) -> str:
        if not c.type.axes:
            return self.use(value)
        text = self.value(value, self.scope.table[c.name])
        if c.name not in words:
            return text
        self.scope.helpers.add("_words_gl")
        return f"_words_gl({text})"

    def assign(self, names: list[str], values: list[str]) -> None:
        pairs = [(n, v) for n, v in zip(names, values, strict=True) if n != v]
        if pairs:
            self.w.line(f"{', '.join(n for n, _ in pairs)} = {', '.join(v for _, v in pairs)}")


def _flying(s: For) -> frozenset[str]:
    """What a loop carries from turn to turn without a wait: unfinished products."""
    last = s.body[-1]
    if not isinstance(last, Yield):
        return frozenset()
    begun = {x.name for x in s.body if isinstance(x, Let) and isinstance(x.op, Dot) and x.op.asynchronous}
    return frozenset(c.name for c, v in zip(s.carried, last.values, strict=True) if v in begun)


def _keeps(carried: tuple[Carry, ...], body: tuple[Stmt, ...]) -> bool:
    """Whether a branch does nothing: what it carries stays as it was."""
    return all(isinstance(x, Yield) and x.values == tuple(c.start for c in carried) for x in body)


def _waits(body: Iterable[Stmt]) -> Iterator[list[Stmt]]:
    """Statements in order, waits for dots that stand side by side and leave as many unfinished together."""

    def key(numbered: tuple[int, Stmt]) -> tuple[int, int]:
        n, s = numbered
        wait = s.op if isinstance(s, Let) and isinstance(s.op, DotWait) else None
        return (-1, wait.pending) if wait else (n, 0)

    for _, group in groupby(enumerate(body), key):
        yield [s for _, s in group]
