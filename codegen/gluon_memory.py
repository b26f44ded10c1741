"""Memory inside a Gluon kernel: addresses, loads and stores, shared buffers, barriers and bulk copies."""

from __future__ import annotations

from attncc.codegen.gluon_exprs import Speller, Text, literal
from attncc.codegen.gluon_layouts import Layout, project
from attncc.codegen.gluon_spelling import DTYPES, box_shape, bulk, descriptor_name
from attncc.codegen.gluon_values import Values
from attncc.codegen.scalars import CALL, PRODUCT, SUM
from attncc.codegen.signature import strides
from attncc.errors import InternalError
from attncc.expr.build import TRUE, op
from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.tile.nodes import (
    AllocBar,
    AllocShared,
    Bar,
    BarArrive,
    BarExpect,
    BarWait,
    CopyIn,
    CopyOut,
    CopyWait,
    Fence,
    Iota,
    Load,
    Map,
    ReduceAdd,
    SharedStore,
    Slot,
    Stmt,
    Store,
    Tensor,
    Type,
)

SINGLE = "gl.SwizzledSharedLayout(1, 1, 1, [0])"
"""Of single numbers that partitions pass each other."""
NEAR = 256
"""Positions in a tile of so many, times a near stride, fit 32 bits."""


class Memory(Values):
    """Prints what touches memory."""

    # --- addresses

    def address(self, name: str, index: tuple[Expr, ...], type_: Type, layout: Layout | None) -> Text:
        """Pointers to tensor[index]: the tensor, a scalar offset in 64 bits, and what has axes beside it."""
        tensor, at = self.scope.tensors[name], self.speller(type_, layout)
        place = self._strided if tensor.strided else self._contiguous
        scalars, lanes = place(tensor, index, at, type_, layout)
        axes = tuple(a for a in type_.names() if any(a in t.axes for t in lanes))
        parts = [self.use(name), *scalars, *(at.widen(t, axes).at(SUM) for t in lanes)]
        return Text(" + ".join(parts), SUM if len(parts) > 1 else CALL, axes)

    def _strided(
        self, tensor: Tensor, index: tuple[Expr, ...], at: Speller, type_: Type, layout: Layout | None
    ) -> tuple[list[str], list[Text]]:
        names = [self.use(s) for s in strides(tensor)]
        scalars: list[str] = []
        lanes: list[Text] = []
        for n, e in enumerate(index):
            stride = f" * {names[n]}" if n < len(names) else ""
            base, lane = self._parts(e, at, type_, layout)
            if base is not None and base is not Const(0, "int"):
                scalars.append(self.scalar(base, PRODUCT if stride else SUM) + stride)
            if lane is not None:
                near = tensor.near and self._near(e)
                text = lane.at(PRODUCT) if near else f"{lane.at(CALL)}.to(gl.int64)"
                if stride:
                    text += stride + (".to(gl.int32)" if near else "")
                lanes.append(Text(text, PRODUCT, lane.axes) if stride else lane)
        return scalars, lanes

    def _contiguous(
        self, tensor: Tensor, index: tuple[Expr, ...], at: Speller, type_: Type, layout: Layout | None
    ) -> tuple[list[str], list[Text]]:
        """Row-major: the scalars by Horner's rule."""
        offset = ""
        lanes: list[Text] = []
        for n, e in enumerate(index):
            if n:
                extent = f" * {self.scalar(tensor.extents[n], PRODUCT + 1)}"
                offset = f"({offset}){extent}" if " + " in offset else offset and offset + extent
                lanes = [Text(t.text + extent, PRODUCT, t.axes) for t in lanes]
            last = n == len(index) - 1
            base, lane = self._parts(e, at, type_, layout)
            if base is not None and base is not Const(0, "int"):
                text = self.scalar(base, SUM) if last or offset else f"gl.cast({self.scalar(base)}, gl.int64)"
                offset = f"{offset} + {text}" if offset else text
            if lane is not None:
                lanes.append(lane if last else Text(f"{lane.at(CALL)}.to(gl.int64)", CALL, lane.axes))
        return [offset] if offset else [], lanes

    def _parts(self, e: Expr, at: Speller, type_: Type, layout: Layout | None) -> tuple[Expr | None, Text | None]:
        """(a scalar, an offset with axes) that add up to an index."""
        if not self.axes(e):
            return e, None
        apart = self._apart(e)
        if apart is None or layout is None:
            return None, at.spell(e)
        base, name = apart
        axis = self.scope.types[name].axes[0]
        into = self.scope.named.register(project(layout, type_.names(), (axis.name,)))
        return base, Text(f"gl.arange(0, {axis.extent}, {into})", CALL, (axis.name,))

    def _apart(self, e: Expr) -> tuple[Expr, str] | None:
        """rewrite: scalar + position --> (scalar + the position's base, position), through names."""
        match e:
            case Var(name):
                match self.recipes.get(name):
                    case Iota(base):
                        return base, name
                    case Map(body):
                        return self._apart(body)
                    case _:
                        return None
            case Op("add", (a, b)) if not self.axes(a):
                return _beside("add", self._apart(b), a)
            case Op("add" | "sub" as name, (a, b)) if not self.axes(b):
                return _beside(name, self._apart(a), b)
            case _:
                return None

    def _near(self, e: Expr) -> bool:
        apart = self._apart(e)
        return apart is not None and self.scope.types[apart[1]].axes[0].extent <= NEAR

    # --- global memory

    def load(self, type_: Type, layout: Layout | None, op_: Load) -> str:
        args = [self._pointers(op_.tensor, op_.index, type_, layout), *self._mask(op_.guard, type_, layout)]
        fill = [f"other={literal(op_.other)}"] if len(args) > 1 else []
        return f"gl.load({', '.join([*args, *fill])})"

    def _pointers(self, tensor: str, index: tuple[Expr, ...], type_: Type, layout: Layout | None) -> str:
        text = self.address(tensor, index, type_, layout)
        if layout is None or text.axes == type_.names():
            return text.text
        if not text.axes:
            raise InternalError(f"one element of {tensor} where {type_.names()} are wanted")
        return self.spread(text, type_, layout, self.speller(type_, layout)).text

    def _mask(self, guard: Expr, type_: Type, layout: Layout | None) -> list[str]:
        if guard is TRUE:
            return []
        at = self.speller(type_, layout)
        return [f"mask={at.widen(at.spell(guard), type_.names()).at(0)}"]

    def store(self, s: Store | ReduceAdd) -> None:
        type_, layout = self.scope.types[s.value], self.scope.table.get(s.value)
        args = [self._pointers(s.tensor, s.index, type_, layout), self.use(s.value)]
        args += self._mask(s.guard, type_, layout)
        self.w.comment(s.note)
        if isinstance(s, ReduceAdd):
            self.w.call("gl.atomic_add", [*args, 'sem="relaxed"'])
        else:
            self.w.call("gl.store", args)

    # --- shared memory

    def slot(self, slot: Slot, order: tuple[str, ...] = ()) -> str:
        """A buffer or its part, its axes in `order` where that is given."""
        axes = self.scope.buffers[slot.name].type.names()
        text = f"{self.use(slot.name)}.index({self.scalar(slot.index)})"
        if slot.part:
            axis, start, extent = slot.part
            text += f".slice({start}, {extent}, {axes.index(axis)})"
        if order and order != axes:
            text += f".permute(({', '.join(str(axes.index(a)) for a in order)}))"
        return text

    def slot_axes(self, slot: Slot) -> tuple[str, ...]:
        return self.scope.buffers[slot.name].type.names()

    def bar(self, bar: Bar) -> str:
        return f"{self.use(bar.name)}.index({self.scalar(bar.index)})"

    def memory(self, s: Stmt) -> None:
        match s:
            case SharedStore(slot, value):
                self.w.line(f"{self.slot(slot, self.scope.types[value].names())}.store({self.use(value)})")
            case Fence():
                self.w.line("fence_async_shared()")
            case BarExpect(bar, size):
                self.w.line(f"mbarrier.expect({self.bar(bar)}, {size})")
            case BarWait(bar, parity):
                self.w.line(f"mbarrier.wait({self.bar(bar)}, {self.scalar(parity)})")
            case BarArrive(bar, count):
                self.w.line(f"mbarrier.arrive({self.bar(bar)}{f', count={count}' if count > 1 else ''})")
            case CopyIn() | CopyOut():
                self._copy(s)
            case CopyWait(pending):
                self.w.line(f"tma.store_wait({pending})")
            case AllocShared(name, type_, depth):
                extents = [depth, *(a.extent for a in type_.axes)]
                single = extents[1:] == [1]
                layout = SINGLE if single else self.scope.named.shared(type_, len(type_.axes))
                call = f"gl.allocate_shared_memory({DTYPES[type_.dtype]}, {extents}, {layout})"
                self.w.line(f"{self.bind(name)} = {call}")
            case AllocBar(name, depth, count):
                text = self.bind(name)
                self.w.line(f"{text} = gl.allocate_shared_memory(gl.int64, [{depth}, 1], mbarrier.MBarrierLayout())")
                with self.w.block(f"for _ in gl.static_range({depth}):"):
                    self.w.line(f"mbarrier.init({text}.index(_), count={count})")
            case _:
                raise InternalError(f"no Gluon spelling of {type(s).__name__}")

    def _copy(self, s: CopyIn | CopyOut) -> None:
        """A bulk copy; the buffer is seen with as many axes as the tensor."""
        type_ = self.scope.buffers[s.slot.name].type
        rank = len(self.scope.tensors[s.tensor].axes)
        box = box_shape(s.slot, type_, rank)
        text = self.slot(s.slot)
        if rank > len(type_.axes):
            text += f".reshape({list(box)})"
        corner = f"[{', '.join(self.scalar(e) for e in s.index)}]"
        descriptor = self.use(self._descriptor(s.tensor, box))
        if isinstance(s, CopyIn):
            self.w.call(bulk("copy_in", self.scope.triton), [descriptor, corner, self.bar(s.bar), text])
            return
        call = bulk("copy_add" if s.add else "copy_out", self.scope.triton)
        if call.startswith("_"):
            self.scope.helpers.add(call)
        self.w.call(call, [descriptor, corner, text])

    def _descriptor(self, tensor: str, box: tuple[int, ...]) -> str:
        for name, known in self.scope.copied.get(tensor, {}).items():
            if known.shape == box:
                return name
        return descriptor_name(tensor, box, (box,))


def _beside(name: str, apart: tuple[Expr, str] | None, scalar: Expr) -> tuple[Expr, str] | None:
    if apart is None:
        return None
    base, position = apart
    if base is Const(0, "int"):
        return (scalar if name == "add" else op("neg", scalar)), position
    return op(name, base, scalar), position
