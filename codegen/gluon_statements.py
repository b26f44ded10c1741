"""Prints the statements of a Gluon kernel or of one of its partitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from attncc.codegen.gluon_exprs import GLUON, Speller, Text
from attncc.codegen.gluon_layouts import Layout, Mma, Operand, project
from attncc.codegen.gluon_spelling import DTYPES, Layouts, bulk
from attncc.codegen.scalars import CALL, PRODUCT, SUM, python_name
from attncc.codegen.signature import strides
from attncc.codegen.writer import Writer
from attncc.errors import InternalError
from attncc.expr.build import TRUE
from attncc.expr.interval import ALL, Interval, bounds
from attncc.expr.nodes import Const, Expr, Var, walk
from attncc.expr.nodes import Op as Apply
from attncc.tile.nodes import (
    AllocBar,
    AllocShared,
    Bar,
    BarArrive,
    BarExpect,
    BarWait,
    Carry,
    Cast,
    Convert,
    CopyIn,
    CopyOut,
    CopyWait,
    Count,
    Dot,
    DotWait,
    Fence,
    For,
    Full,
    If,
    Iota,
    Let,
    Load,
    Map,
    Op,
    Reduce,
    Rename,
    SharedLoad,
    SharedStore,
    Slot,
    Stmt,
    Store,
    Tensor,
    Type,
    Yield,
)

REDUCE = {"sum": "gl.sum", "max": "gl.max", "min": "gl.min"}


class Scope:
    """What a kernel and its partitions know: types, layouts, tensors, the version they are printed for."""

    def __init__(
        self,
        types: Mapping[str, Type],
        table: Mapping[str, Layout],
        tensors: Mapping[str, Tensor],
        named: Layouts,
        triton: tuple[int, int],
    ) -> None:
        self.types, self.table, self.tensors, self.named, self.triton = types, table, tensors, named, triton
        self.buffers: dict[str, AllocShared] = {}
        self.known: dict[Expr, Interval] = {}
        self.helpers: set[str] = set()


class Body:
    """Prints one body; `used` collects the names it takes from outside, in order."""

    def __init__(self, w: Writer, scope: Scope) -> None:
        self.w, self.scope = w, scope
        self.used: dict[str, None] = {}
        self.bound: set[str] = set()

    # --- names and expressions

    def use(self, name: str) -> str:
        if name not in self.bound:
            self.used.setdefault(name)
        return python_name(name)

    def bind(self, name: str) -> str:
        self.bound.add(name)
        return python_name(name)

    def speller(self, type_: Type, layout: Layout | None) -> Speller:
        axes = type_.names()

        def leaf(v: Var) -> Text:
            own = self.scope.types.get(v.name)
            if own is None or not own.axes:
                return Text(self.use(v.name), CALL)
            if layout is None:
                raise InternalError(f"{v.name} has axes where a scalar is wanted")
            return Text(self.value(v.name, project(layout, axes, own.names())), CALL, own.names())

        return Speller(axes, leaf, self.scope.known)

    def value(self, name: str, layout: Layout) -> str:
        """A value in the layout its user wants."""
        text = self.use(name)
        if self.scope.table[name] == layout:
            return text
        return f"gl.convert_layout({text}, {self.scope.named.register(layout)})"

    def scalar(self, e: Expr, place: int = 0) -> str:
        self._note(e)
        return self.speller(Type((), "i32"), None).text(e, place)

    def _note(self, e: Expr) -> None:
        if any(isinstance(n, Apply) and n.name in GLUON and "_tanh(" in GLUON[n.name].text for n in walk(e)):
            self.scope.helpers.add("_tanh")

    # --- statements

    def statements(self, body: Iterable[Stmt]) -> None:
        for s in body:
            self.statement(s)

    def statement(self, s: Stmt) -> None:
        match s:
            case Let(name, type_, op, note):
                text = self.operation(name, type_, op)
                self.w.line(f"{self.bind(name)} = {text}", note)
                if not type_.axes and isinstance(op, Map) and op.body.sort == "int":
                    self.scope.known[Var(name, "int")] = bounds(op.body, self.scope.known)
            case For():
                self.loop(s)
            case If():
                self.branch(s)
            case Store(tensor, index, value, guard, note):
                self.store(tensor, index, value, guard, note)
            case Yield():
                pass
            case _:
                self.memory(s)

    def memory(self, s: Stmt) -> None:
        match s:
            case SharedStore(slot, value):
                self.w.line(f"{self.slot(slot)}.store({self.use(value)})")
            case Fence():
                self.w.line("fence_async_shared()")
            case BarExpect(bar, size):
                self.w.line(f"mbarrier.expect({self.bar(bar)}, {size})")
            case BarWait(bar, parity):
                self.w.line(f"mbarrier.wait({self.bar(bar)}, {self.scalar(parity)})")
            case BarArrive(bar):
                self.w.line(f"mbarrier.arrive({self.bar(bar)})")
            case CopyIn(slot, tensor, index, bar):
                box = self.box(slot, tensor)
                call = bulk("copy_in", self.scope.triton)
                self.w.call(call, [self.use(f"{tensor}_desc"), self.corner(index), self.bar(bar), box])
            case CopyOut(slot, tensor, index, add):
                if add:
                    raise InternalError("no Gluon spelling of a bulk addition yet")
                box, call = self.box(slot, tensor), bulk("copy_out", self.scope.triton)
                self.w.call(call, [self.use(f"{tensor}_desc"), self.corner(index), box])
            case CopyWait(pending):
                self.w.line(f"tma.store_wait({pending})")
            case AllocShared(name, type_, depth):
                shape = [depth, *(a.extent for a in type_.axes)]
                layout = self.scope.named.shared(type_, len(type_.axes))
                self.w.line(f"{self.bind(name)} = gl.allocate_shared_memory({DTYPES[type_.dtype]}, {shape}, {layout})")
            case AllocBar(name, depth, count):
                text = self.bind(name)
                self.w.line(f"{text} = gl.allocate_shared_memory(gl.int64, [{depth}, 1], mbarrier.MBarrierLayout())")
                with self.w.block(f"for _ in gl.static_range({depth}):"):
                    self.w.line(f"mbarrier.init({text}.index(_), count={count})")
            case _:
                raise InternalError(f"no Gluon spelling of {type(s).__name__}")

    # --- shared memory

    def slot(self, slot: Slot, order: tuple[str, ...] = ()) -> str:
        """A buffer, its axes in `order` where that is given."""
        axes = self.scope.buffers[slot.name].type.names()
        text = f"{self.use(slot.name)}.index({self.scalar(slot.index)})"
        if slot.part:
            axis, start, extent = slot.part
            text += f".slice({start}, {extent}, {axes.index(axis)})"
        if order and order != axes:
            text += f".permute(({', '.join(str(axes.index(a)) for a in order)}))"
        return text

    def box(self, slot: Slot, tensor: str) -> str:
        """A buffer with as many axes as the tensor it is copied from or to."""
        type_ = self.scope.buffers[slot.name].type
        rank = len(self.scope.tensors[tensor].axes)
        shape = [1] * (rank - len(type_.axes)) + [a.extent for a in type_.axes]
        if rank == len(type_.axes):
            return self.slot(slot)
        return f"{self.slot(slot)}.reshape({shape})"

    def corner(self, index: tuple[Expr, ...]) -> str:
        return f"[{', '.join(self.scalar(e) for e in index)}]"

    def bar(self, bar: Bar) -> str:
        return f"{self.use(bar.name)}.index({self.scalar(bar.index)})"

    # --- global memory

    def offset(self, tensor: Tensor, index: tuple[Expr, ...], at: Speller) -> Text:
        """The element offset of `index`, in 64 bits: by strides, or by the extents of a contiguous tensor."""
        parts = [at.spell(e) for e in index]
        if tensor.strided:
            names = [self.use(s) for s in strides(tensor)]
            terms = [self._times(t, s, at) for t, s in zip(parts, names, strict=False)] + parts[len(names) :]
        else:
            terms = self._contiguous(tensor, parts, at)
        axes = tuple(a for a in at.axes if any(a in t.axes for t in terms))
        return Text(" + ".join(at.widen(t, axes).at(SUM) for t in terms), SUM, axes)

    def _times(self, t: Text, stride: str, at: Speller) -> Text:
        return Text(f"{t.at(PRODUCT)} * {stride}", PRODUCT, t.axes)

    def _contiguous(self, tensor: Tensor, parts: list[Text], at: Speller) -> list[Text]:
        """Each index times the extents behind it, in 64 bits where there are any."""
        terms: list[Text] = []
        for n, part in enumerate(parts):
            behind = tensor.extents[n + 1 :]
            text = f"{part.at(CALL)}.to(gl.int64)" if behind and not part.text.isdigit() else part.at(PRODUCT)
            for extent in behind:
                text += f" * {self.scalar(extent, PRODUCT + 1)}"
            if part.text != "0":
                terms.append(Text(text, PRODUCT, part.axes))
        return terms or [Text("0", CALL)]

    def load(self, type_: Type, layout: Layout | None, op: Load) -> str:
        at = self.speller(type_, layout)
        address = f"{self.use(op.tensor)} + {self.offset(self.scope.tensors[op.tensor], op.index, at).text}"
        if op.guard is TRUE:
            return f"gl.load({address})"
        guard = at.widen(at.spell(op.guard), type_.names()).at(0)
        other = 'float("-inf")' if op.other == -math.inf else repr(op.other)
        return f"gl.load({address}, mask={guard}, other={other})"

    def store(self, tensor: str, index: tuple[Expr, ...], value: str, guard: Expr, note: str) -> None:
        type_ = self.scope.types[value]
        at = self.speller(type_, self.scope.table.get(value))
        address = f"{self.use(tensor)} + {self.offset(self.scope.tensors[tensor], index, at).text}"
        args = [address, self.use(value)]
        if guard is not TRUE:
            args.append(f"mask={at.widen(at.spell(guard), type_.names()).at(0)}")
        self.w.comment(note)
        self.w.call("gl.store", args)

    # --- operations

    def operation(self, name: str, type_: Type, op: Op) -> str:
        layout = self.scope.table.get(name)
        match op:
            case Map(body):
                self._note(body)
                return self.speller(type_, layout).text(body)
            case Load():
                return self.load(type_, layout, op)
            case _ if layout is None:
                raise InternalError(f"{name}: {type(op).__name__} has axes")
            case _:
                return self.tensor_operation(type_, layout, op)

    def tensor_operation(self, type_: Type, layout: Layout, op: Op) -> str:
        into = self.scope.named.register(layout)
        shape = [a.extent for a in type_.axes]
        match op:
            case Full(value):
                return f"gl.full({shape}, {self.scalar(value)}, {DTYPES[type_.dtype]}, {into})"
            case Iota(base):
                steps = f"gl.arange(0, {shape[0]}, {into})"
                return steps if base is Const(0, "int") else f"{self.scalar(base, SUM)} + {steps}"
            case Reduce(how, value, axis) if how in REDUCE:
                return f"{REDUCE[how]}({self.use(value)}, {self.scope.types[value].names().index(axis)})"
            case Cast(value):
                return f"{self.value(value, layout)}.to({DTYPES[type_.dtype]})"
            case Convert(value) | Rename(value):
                return self.value(value, layout)
            case SharedLoad(slot):
                return f"{self.slot(slot, type_.names())}.load({into})"
            case DotWait(value, pending):
                return f"warpgroup_mma_wait({pending}, [{self.use(value)}])"
            case Dot():
                return self.dot(type_, layout, op)
            case _:
                raise InternalError(f"no Gluon spelling of {type(op).__name__}")

    def dot(self, type_: Type, layout: Layout, op: Dot) -> str:
        if not isinstance(layout, Mma) or isinstance(op.b, str):
            raise InternalError("a dot needs a tensor core's layout and its second operand in shared memory")
        row, column = type_.names()
        a = self.value(op.a, Operand(layout)) if isinstance(op.a, str) else self.slot(op.a, (row, op.axis))
        b = self.slot(op.b, (op.axis, column))
        flags = ", is_async=True" if op.asynchronous else ""
        shape = [x.extent for x in type_.axes]
        zeros = f"gl.zeros({shape}, gl.float32, {self.scope.named.register(layout)})"
        if op.start is None:
            return f"warpgroup_mma({a}, {b}, {zeros}, use_acc=False{flags})"
        own = self.scope.types[op.start].names()
        start = self.value(op.start, project(layout, type_.names(), own))
        if len(own) == 1:
            start = f"gl.broadcast({start}[{'None, :' if own[0] == column else ':, None'}], {zeros})[0]"
        return f"warpgroup_mma({a}, {b}, {start}{flags})"

    # --- control

    def loop(self, s: For) -> None:
        if not isinstance(s.over, Count):
            raise InternalError("no Gluon spelling of a loop over ranges yet")
        self.start(s.carried)
        lo, hi = s.over.lo, s.over.hi
        first = bounds(lo, self.scope.known).lo
        self.scope.known[Var(s.index, "int")] = Interval(first) if first > -math.inf else ALL
        header = f"for {self.bind(s.index)} in range({self.scalar(lo)}, {self.scalar(hi)}):"
        with self.w.block(header, s.note):
            self.statements(s.body)
            self.end(s.carried, s.body)

    def branch(self, s: If) -> None:
        self.w.comment(s.note)
        self.start(s.carried)
        for header, body in ((f"if {self.scalar(s.condition)}:", s.then), ("else:", s.orelse)):
            if header == "else:" and all(isinstance(x, Yield) and not x.values for x in body):
                continue
            with self.w.block(header):
                self.statements(body)
                self.end(s.carried, body)

    def start(self, carried: tuple[Carry, ...]) -> None:
        values = [self.value(c.start, self.scope.table[c.name]) if c.type.axes else self.use(c.start) for c in carried]
        self.assign([self.bind(c.name) for c in carried], values)

    def end(self, carried: tuple[Carry, ...], body: tuple[Stmt, ...]) -> None:
        last = body[-1] if body else None
        if not isinstance(last, Yield):
            return
        values = [
            self.value(v, self.scope.table[c.name]) if c.type.axes else self.use(v)
            for c, v in zip(carried, last.values, strict=True)
        ]
        self.assign([python_name(c.name) for c in carried], values)

    def assign(self, names: list[str], values: list[str]) -> None:
        pairs = [(n, v) for n, v in zip(names, values, strict=True) if n != v]
        if pairs:
            self.w.line(f"{', '.join(n for n, _ in pairs)} = {', '.join(v for _, v in pairs)}")
