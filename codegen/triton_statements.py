"""Prints the statements of a Triton kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import assert_never

from attncc.codegen.boxes import boxes, loaded_box
from attncc.codegen.gluon_exprs import Text, literal
from attncc.codegen.gluon_spelling import descriptor_name
from attncc.codegen.scalars import CALL, PRODUCT, SUM, python_name
from attncc.codegen.signature import strides, tensors
from attncc.codegen.triton_exprs import DIVIDES, TritonSpeller, helpers_of
from attncc.codegen.writer import Writer
from attncc.errors import InternalError
from attncc.expr.build import TRUE, conj, conjuncts, op
from attncc.expr.interval import ALL, Interval, bounds
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars
from attncc.tile import nodes as t

DTYPES: dict[t.Dtype, str] = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "f16": "tl.float16",
    "bf16": "tl.bfloat16",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "u8": "tl.uint8",
    "bool": "tl.int1",
}

COUNTS = frozenset({"B", "H", "G", "M", "N"})


class KernelBody:
    """Prints one kernel's body."""

    def __init__(self, w: Writer, program: t.Program, kernel: t.Kernel) -> None:
        self.w = w
        self.tensors = tensors(program)
        self.boxes = boxes(kernel, self.tensors)
        self.types: dict[str, t.Type] = {}
        self.iotas: dict[str, Expr] = {}
        self.lanes: dict[Var, Text] = {}
        self.helpers: set[str] = set()
        self.known: dict[Expr, Interval] = {}
        for name in kernel.scalars:
            if name in COUNTS:
                self.known[Var(name, "int")] = Interval(1 if name in "HG" else 0, ALL.hi)
        for axis in kernel.grid:
            self.known[Var(axis.name, "int")] = Interval(0, ALL.hi)
            if isinstance(axis.extent, Var) and axis.role != "tile":
                self.known[axis.extent] = Interval(1, ALL.hi)  # a program runs, so there is one

    @contextmanager
    def indented(self) -> Iterator[None]:
        """The writer one level deeper."""
        self.w.deeper()
        yield
        self.w.shallower()

    # --- expressions ------------------------------------------------------------------------------------------------

    def text(self, e: Expr, axes: tuple[str, ...] = ()) -> Text:
        """`e` over its own axes, in the order of `axes`."""
        self.helpers |= helpers_of(e)

        def leaf(v: Var) -> Text:
            if v in self.lanes:
                return self.lanes[v]
            own = self.types.get(v.name)
            return Text(python_name(v.name), CALL, own.names() if own is not None else ())

        found = TritonSpeller(axes, leaf, self.known).spell(e)
        self.helpers |= {h for name in ("floordiv", "mod") if f"_{name}(" in found.text for h in DIVIDES[name]}
        return found

    def scalar(self, e: Expr, place: int = 0) -> str:
        return self.text(e).at(place)

    def widened(self, e: Expr, axes: tuple[str, ...], place: int = 0) -> str:
        """`e` as a value that broadcasts to all of `axes`."""
        text = self.text(e, axes)
        return TritonSpeller(axes, lambda v: text, {}).widen(text, axes).at(place)

    # --- addresses --------------------------------------------------------------------------------------------------

    def address(self, tensor: str, index: tuple[Expr, ...], axes: tuple[str, ...], at_name: str) -> str:
        """Pointers to tensor[index] over `axes`: a line that names their scalar part, and what has axes beside it."""
        decl = self.tensors[tensor]
        names = strides(decl)
        if not decl.strided:
            return self._contiguous(decl, index, axes, at_name)
        scalars, vectors = [python_name(tensor)], []
        for n, at in enumerate(index):
            stride = names[n] if n < len(names) else ""
            base, local = self._parts(at, axes)
            if base:
                scalars.append(f"{base} * {stride}" if stride else base)
            if local:
                narrow = ".to(tl.int32)" if decl.near and self._small(at) else ""
                vectors.append(f"{local} * {stride}{narrow}" if stride else local)
        return " + ".join([self._based(scalars, at_name), *vectors])

    def _based(self, scalars: list[str], at_name: str) -> str:
        """A name for the sum of scalars, or the only one."""
        if len(scalars) == 1:
            return scalars[0]
        name = f"{python_name(at_name)}_at"
        text = f"{name} = {scalars[0]}"
        for part in scalars[1:]:
            if len(text) + len(part) + 3 > self.w.room():
                self.w.line(text)
                text = f"{name} += {part}"
            else:
                text += f" + {part}"
        self.w.line(text)
        return name

    def _parts(self, at: Expr, axes: tuple[str, ...]) -> tuple[str, str]:
        """(a 64-bit scalar, an offset with axes) that add up to an index; an empty text is 0."""
        if isinstance(at, Var) and at.name in self.iotas:
            base, extent = self.iotas[at.name], self.types[at.name].axes[0]
            local = Text(f"tl.arange(0, {extent.extent})", CALL, (extent.name,))
            return self._wide(base), TritonSpeller(axes, lambda v: local, {}).widen(local, axes).at(PRODUCT)
        if isinstance(at, Var) and self._axes(at):
            return "", f"{self.widened(at, axes, CALL)}.to(tl.int64)"
        return self._wide(at), ""

    def _small(self, at: Expr) -> bool:
        """Whether what has axes in an index is a position in a tile: times a near stride it fits 32 bits."""
        return isinstance(at, Var) and at.name in self.iotas and self.types[at.name].axes[0].extent <= 256

    def _wide(self, e: Expr) -> str:
        if isinstance(e, Const):
            return "" if e.value == 0 else repr(e.value)
        return f"tl.cast({self.scalar(e)}, tl.int64)"

    def _is_scalar(self, e: Expr) -> bool:
        return not any(self.types[v].axes for v in free_vars(e) if v in self.types)

    def _axes(self, v: Var) -> tuple[str, ...]:
        own = self.types.get(v.name)
        return own.names() if own is not None else ()

    def _contiguous(self, decl: t.Tensor, index: tuple[Expr, ...], axes: tuple[str, ...], at_name: str) -> str:
        """Row-major: the leading scalars by Horner's rule in 64 bits, then what has axes."""
        offset = ""
        vectors: list[str] = []
        for n, at in enumerate(index):
            if n:
                extent = self.scalar(decl.extents[n], PRODUCT + 1)
                offset = f"({offset}) * {extent}" if " + " in offset else f"{offset} * {extent}" if offset else ""
                vectors = [f"{v} * {extent}" for v in vectors]
            base, local = self._parts(at, axes)
            if base:
                offset = f"{offset} + {base}" if offset else base
            if len(offset) > 64 and n < len(index) - 1:
                self.w.line(f"{python_name(at_name)}_row = {offset}")
                offset = f"{python_name(at_name)}_row"
            if local:
                last = n == len(index) - 1 or not self._small(at)
                vectors.append(local if last else f"{local}.to(tl.int64)")
        scalars = [python_name(decl.name), *([offset] if offset else [])]
        return " + ".join([self._based(scalars, at_name), *vectors])

    # --- statements -------------------------------------------------------------------------------------------------

    def statements(self, body: Iterable[t.Stmt]) -> None:
        for s in body:
            self.statement(s)

    def statement(self, s: t.Stmt) -> None:
        match s:
            case t.Let(name, type, op_, note):
                text = self.operation(name, type, op_)
                self.types[name] = type
                if isinstance(op_, t.Iota):
                    self.iotas[name] = op_.base
                if not type.axes and isinstance(op_, t.Map) and op_.body.sort == "int":
                    self.known[Var(name, "int")] = bounds(op_.body, self.known)
                self.w.line(f"{python_name(name)} = {text}", note)
            case t.Store(tensor, index, value, guard, note):
                axes = self.types[value].names()
                self.w.comment(note)
                where = self.address(tensor, index, axes, f"{tensor}_{value}")
                args = [where, python_name(value), *self._mask(guard, axes)]
                self.w.call("tl.store", args)
            case t.ReduceAdd(tensor, index, value, _, guard, note):
                axes = self.types[value].names()
                self.w.comment(note)
                where = self.address(tensor, index, axes, f"{tensor}_{value}")
                args = [where, python_name(value), *self._mask(guard, axes)]
                self.w.call("tl.atomic_add", [*args, 'sem="relaxed"'])
            case t.For():
                self._loop(s)
            case t.If():
                self._branch(s)
            case _:
                raise InternalError(f"the triton printer has no {type_name(s)}")

    def _mask(self, guard: Expr, axes: tuple[str, ...]) -> list[str]:
        if guard is TRUE:
            return []
        parts = list(conjuncts(guard))
        lanes = {v.name for v in self.lanes}
        when = [e for e in parts if self._is_scalar(e) and not free_vars(e) & lanes]
        text = self.text(conj(*(e for e in parts if e not in when)), axes)
        if when and len(when) < len(parts):  # the interpreter's `and` of a number and a tile is no mask
            text = Text(f"tl.where({self.scalar(conj(*when))}, {text.at(0)}, False)", CALL, text.axes)
        elif when:
            text = self.text(guard, axes)
        return [f"mask={TritonSpeller(axes, lambda v: text, {}).widen(text, axes).at(0)}"]

    def _by_lane(self, guard: Expr) -> Expr:
        """rewrite: base + lane < end --> lane < end - base.

        A load is issued some turns of its loop ahead. Positions that its guard shared with the rest of the turn would
        be carried until then, in registers; what is left to share so is one scalar.
        """
        match guard:
            case Op("and", args):
                return op("and", *(self._by_lane(a) for a in args))
            case Op("lt", (Var(name), end)) if name in self.iotas and self._is_scalar(end):
                base, axis = self.iotas[name], self.types[name].axes[0]
                if isinstance(base, Const):
                    return guard
                lane = Var(f"{axis.name} lane", "int")
                self.lanes[lane] = Text(f"tl.arange(0, {axis.extent})", CALL, (axis.name,))
                return op("lt", lane, op("sub", end, base))
            case _:
                return guard

    def _assign(self, carried: tuple[t.Carry, ...], values: Iterable[str]) -> None:
        for c, value in zip(carried, values, strict=True):
            if c.name != value:
                self.w.line(f"{python_name(c.name)} = {python_name(value)}")

    def _loop(self, s: t.For) -> None:
        self.w.comment(s.note)
        for c in s.carried:
            self.types[c.name] = c.type
        self._assign(s.carried, (c.start for c in s.carried))
        self.types[s.index] = t.Type((), "i32")
        self.known[Var(s.index, "int")] = Interval(0, ALL.hi)
        header, number = self._header(s)
        with self.w.block(header):
            if number:
                self.w.line(f"{python_name(s.index)} = {number}")
            self.statements(x for x in s.body if not isinstance(x, t.Yield))
            for last in s.body:
                if isinstance(last, t.Yield):
                    self._assign(s.carried, last.values)

    def _header(self, s: t.For) -> tuple[str, str]:
        """(the loop's header, the text of its index or nothing)."""
        match s.over:
            case t.Count(lo, hi):
                return f"for {python_name(s.index)} in range({self.scalar(lo)}, {self.scalar(hi)}):", ""
            case t.Ranges(tile, _, pieces) if all(isinstance(p, t.Interval) for p in pieces):
                return self._intervals(s, tile, [p for p in pieces if isinstance(p, t.Interval)])
            case t.Ranges():
                raise InternalError("the triton printer walks intervals only")
            case t.Work():
                raise InternalError("only partitions loop over their work")
            case _:
                assert_never(s.over)

    def _intervals(self, s: t.For, tile: int, pieces: list[t.Interval]) -> tuple[str, str]:
        turn = f"{python_name(s.index)}_tile"
        if len(pieces) == 1:
            lo, hi = self.scalar(pieces[0].lo), self.scalar(pieces[0].hi)
            return f"for {turn} in range({lo}, {hi}):", f"{turn} * {tile}"
        total, place = "", ""
        for n, p in enumerate(pieces):
            reached = f"{python_name(s.index)}_to{n}"
            size = f"tl.maximum({self.scalar(op('sub', p.hi, p.lo))}, 0)"
            self.w.line(f"{reached} = {total} + {size}" if total else f"{reached} = {size}")
            own = f"{turn} + {self.scalar(p.lo, SUM)}" + (f" - {total}" if total else "")
            place = f"tl.where({turn} < {total}, {place}, {own})" if total else own
            total = reached
        return f"for {turn} in range(0, {total}):", f"({place}) * {tile}"

    def _branch(self, s: t.If) -> None:
        self.w.comment(s.note)
        for c in s.carried:
            self.types[c.name] = c.type
        self._assign(s.carried, (c.start for c in s.carried))
        for header, body in ((f"if {self.scalar(s.condition)}:", s.then), ("else:", s.orelse)):
            if not body or body == (t.Yield(()),):
                continue
            with self.w.block(header):
                self.statements(x for x in body if not isinstance(x, t.Yield))
                for last in body:
                    if isinstance(last, t.Yield):
                        self._assign(s.carried, last.values)

    # --- operations -------------------------------------------------------------------------------------------------

    def operation(self, name: str, type: t.Type, o: t.Op) -> str:
        axes = type.names()
        match o:
            case t.Full(value):
                if not axes:
                    return self.scalar(value)
                return f"tl.full({self._shape(type)}, {self.scalar(value)}, {DTYPES[type.dtype]})"
            case t.Iota(base):
                local = f"tl.arange(0, {type.axes[0].extent})"
                return local if base is Const(0, "int") else f"{self.scalar(base, SUM)} + {local}"
            case t.Map(body):
                text = self.text(body, axes)
                if text.axes == axes:
                    return text.text
                return f"tl.broadcast_to({self.widened(body, axes)}, {self._shape(type)})"
            case t.Load(tensor, index, bulk=True):
                return self._in_bulk(tensor, index, type)
            case t.Load(tensor, index, guard, other):
                args = [self.address(tensor, index, axes, name), *self._mask(self._by_lane(guard), axes)]
                fill = [f"other={literal(other)}"] if len(args) > 1 else []
                return f"tl.load({', '.join([*args, *fill])})"
            case t.Reduce(kind, value, axis):
                place = self.types[value].names().index(axis)
                return f"tl.{kind}({python_name(value)}, axis={place})"
            case t.Scan(kind, value, axis, reverse, exclusive):
                return self._scan(kind, value, axis, reverse, exclusive)
            case t.Dot():
                return self._dot(type, o)
            case t.Rename(value):
                return python_name(value)
            case t.GatherAxis(value, index, axis):
                lies = self.types[value].names()
                whole = f"tl.broadcast_to({self.widened(Var(index, 'int'), lies)}, {self._shape(self.types[value])})"
                return f"tl.gather({python_name(value)}, {whole}, {lies.index(axis)})"
            case t.Cast(value):
                return f"{python_name(value)}.to({DTYPES[type.dtype]})"
            case _:
                raise InternalError(f"the triton printer has no {type_name(o)}")

    def _in_bulk(self, tensor: str, index: tuple[Expr, ...], type: t.Type) -> str:
        """A box of a tensor, without the axes along which it has one element."""
        box = loaded_box(type, index)
        shapes = {b.shape for b in self.boxes[tensor].values()}
        place = [self.scalar(self.iotas[x.name] if isinstance(x, Var) and x.name in self.iotas else x) for x in index]
        found = f"{python_name(descriptor_name(tensor, box, shapes))}.load([{', '.join(place)}])"
        return found if len(box) == len(type.axes) else f"{found}.reshape({self._shape(type)[1:-1]})"

    def _shape(self, type: t.Type) -> str:
        return f"[{', '.join(str(a.extent) for a in type.axes)}]"

    def _scan(self, kind: str, value: str, axis: str, reverse: bool, exclusive: bool) -> str:
        place = self.types[value].names().index(axis)
        name = python_name(value)
        order = f"axis={place}{', reverse=True' if reverse else ''}"
        if kind == "sum":
            return f"tl.cumsum({name}, {order}) - {name}" if exclusive else f"tl.cumsum({name}, {order})"
        if kind != "max" or exclusive:
            raise InternalError(f"the triton printer has no running {kind}")
        self.helpers.add("larger")
        return f"tl.associative_scan({name}, {place}, _larger{', reverse=True' if reverse else ''})"

    def _dot(self, type: t.Type, o: t.Dot) -> str:
        if isinstance(o.a, t.Slot) or isinstance(o.b, t.Slot):
            raise InternalError("the triton printer has no shared operands")
        row = type.names()[0]
        left, right = (o.a, o.b) if row in self.types[o.a].names() else (o.b, o.a)
        args = [self._operand(left, o.axis, 1), self._operand(right, o.axis, 0)]
        if o.start is not None:
            args.append(python_name(o.start))
        if self.types[o.a].dtype == "f32":
            args.append(f'input_precision="{o.precision}"')
        return f"tl.dot({', '.join(args)})"

    def _operand(self, name: str, axis: str, place: int) -> str:
        """A factor with the contracted axis at `place`."""
        text = python_name(name)
        return text if self.types[name].names()[place] == axis else f"tl.trans({text})"


def type_name(x: object) -> str:
    """The node's class, for messages."""
    return type(x).__name__
