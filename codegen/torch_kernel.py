"""Prints one kernel as a blockwise function over torch tensors.

Batch axes of the grid become leading dimensions, as many positions at once as `_room` allows; tile axes and loops over
ranges become Python loops. Where a loop's bounds vary with the batch it visits every tile that some position needs, and
a tile counts as full only if it is full for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from attncc.codegen.scalars import CALL, PRODUCT, SUM, TERNARY, UNARY, python_name
from attncc.codegen.signature import host_scalars, kernel_function
from attncc.codegen.torch_dots import BLANK, dot
from attncc.codegen.torch_exprs import Text
from attncc.codegen.torch_facts import facts
from attncc.codegen.torch_kinds import Number, Span
from attncc.codegen.torch_maps import Maps
from attncc.codegen.torch_memory import Memory
from attncc.codegen.torch_places import Every, plan
from attncc.codegen.torch_state import Frame, Item, State, Storage, last_reads
from attncc.codegen.torch_values import misc
from attncc.codegen.writer import Writer
from attncc.errors import InternalError
from attncc.expr.nodes import Expr
from attncc.tile import nodes as t
from attncc.tile.walks import every

REDUCE = {"sum": "sum", "max": "amax", "min": "amin", "any": "any", "all": "all"}


_WIDE = 1 << 17
"""Elements of a tile worth a call: loops over free ranges take as many neighbouring tiles at once."""


class KernelPrinter:
    """Prints one kernel; `helpers` collects the helper functions it calls."""

    def __init__(self, w: Writer, program: t.Program, kernel: t.Kernel) -> None:
        self.w = w
        self.facts = facts(program, kernel)
        self.kernel = self.facts.kernel
        self.state = State(w, self.facts)
        self.memory = Memory(self.state)
        self.helpers = self.memory.helpers

    # --- frame ------------------------------------------------------------------------------------------------------

    def function(self) -> None:
        """The whole function."""
        args = [python_name(n) for n in (*self.kernel.tensors, *host_scalars(self.kernel))]
        with self.w.block(f"def {kernel_function(self.kernel)}({', '.join(args)}):"):
            if self.kernel.note:
                self.w.line(f'"""{self.kernel.note}"""')
            if self.kernel.tensors:
                self.w.line(f"device = {python_name(self.kernel.tensors[0])}.device")
            self.batch(list(self.facts.batch))

    def batch(self, axes: list[str]) -> None:
        """Loops over parts of the batch, then over tiles, then the body."""
        outer = self.w
        inside = self.state.w = self.w = Writer(self.w.depth)
        self.batch_loops(axes)
        self.state.w = self.w = outer
        if axes:
            grid = {a.name: a for a in self.kernel.grid}
            sizes = [self.state.number(grid[a].extent, TERNARY) for a in axes]
            steps = [f"{a}_step" for a in axes]
            comma = "," if len(axes) == 1 else ""
            tile = max(_WIDE, self.largest(self.facts.body))
            self.w.line(f"{', '.join(steps)}{comma} = _steps(({', '.join(sizes)}{comma}), {tile})")
            self.helpers.add("_steps")
            for a, size in zip(axes, sizes, strict=True):
                if self.whole(a):
                    self.w.line(f"{a}_step = max(1, {size})")
        for (name, dim, times), each in self.state.spread.items():
            self.w.line(f"{each} = _each({name}, {dim}, {times})")
            self.helpers.add("_each")
        if self.facts.scale and axes:
            self.w.line(f"{BLANK} = torch.empty((1, 1, 1), dtype={self.state.real}, device=device)")
        for n, elements in enumerate(self.state.rooms):
            lead = " * ".join(f"{a}_step" for a in axes)
            self.w.line(f"room_{n} = torch.empty({lead} * {elements}, dtype={self.state.real}, device=device)")
            self.helpers.add("_part")
        self.w.append(inside)

    def batch_loops(self, axes: list[str]) -> None:
        if not axes:
            self.tiles([a for a in reversed(self.kernel.grid) if a.role != "batch"])
            return
        a, extent = axes[0], next(x.extent for x in self.kernel.grid if x.name == axes[0])
        size = self.state.number(extent, TERNARY)
        begin, end = self.state.begin(a), self.state.end(a)
        with self.w.block(f"for {begin} in range(0, {size}, {a}_step):"):
            self.w.line(f"{end} = min({begin} + {a}_step, {size})")
            self.w.line(f"{self.state.count(a)} = {end} - {begin}")
            if a in self.facts.needed:
                shape = ", ".join("-1" if x == a else "1" for x in self.facts.batch)
                line = f"torch.arange({begin}, {end}, device=device).view({shape})"
                self.state.assign(a, line, owned=False)
                self.facts.types[a] = t.Type((), "i64")
            self.batch_loops(axes[1:])

    def whole(self, axis: str) -> bool:
        """Whether a batch axis must be computed all at once: its positions are repeated as the kernel finds out."""
        loads = (s.op for s in every(self.facts.body) if isinstance(s, t.Let) and isinstance(s.op, t.Load))
        places = [p for load in loads for p in plan(load.index, self.facts) or () if isinstance(p, Every)]
        return any(p.axis == axis and p.repeat is not None and not self.memory.outside(p.repeat) for p in places)

    def largest(self, body: tuple[t.Stmt, ...]) -> int:
        """Elements of the largest value."""
        sizes = [1]
        for s in every(body):
            if isinstance(s, t.Let):
                n = 1
                for a in s.type.axes:
                    n *= a.extent
                sizes.append(n)
        return max(sizes)

    def tiles(self, axes: list[t.GridAxis]) -> None:
        if not axes:
            self.block(self.facts.body, Frame(True, set(), {}))
            return
        axis, name = axes[0], python_name(axes[0].name)
        extent = self.state.number(axis.extent, TERNARY)
        header = (
            f"for {name} in range(0, {extent}, {axis.tile}):" if axis.tile > 1 else f"for {name} in range({extent}):"
        )
        with self.w.block(header):
            if axis.role == "tile":
                self.w.line(f"{self.state.end(axis.name)} = min({name} + {axis.tile}, {extent})")
            self.tiles(axes[1:])

    # --- statements -------------------------------------------------------------------------------------------------

    def block(
        self,
        body: tuple[t.Stmt, ...],
        frame: Frame,
        carried: tuple[t.Carry, ...] = (),
        storages: Sequence[Storage | None] = (),
    ) -> None:
        """The statements of one block, and what it hands on at its end."""
        made = last_reads(body, tuple(frame.bound))
        made.loop = frame.loop
        self.state.frames.append(made)
        for n, s in enumerate(body):
            made.index = n
            self.statement(s)
        self.hand_on(carried, storages, _yielded(body), made.bound)
        self.state.frames.pop()
        for c, storage in zip(carried, storages, strict=True):
            if storage is not None:
                storage.names = {c.name}
                self.state.storages[c.name] = storage

    def statement(self, s: t.Stmt) -> None:
        match s:
            case t.Let():
                if s.name in self.facts.needed:
                    self.let(s)
            case t.Store():
                self.memory.store(s)
            case t.ReduceAdd():
                self.memory.reduce_add(s)
            case t.For():
                self.loop(s)
            case t.If():
                self.branch(s)
            case t.Yield():
                pass
            case _:
                raise InternalError(f"{type(s).__name__} has no torch spelling")

    def let(self, s: t.Let) -> None:
        kind = self.facts.kinds[s.name]
        if isinstance(kind, Number):
            self.w.line(f"{python_name(s.name)} = {self.scalar(s)}", s.note)
            return
        if isinstance(kind, Span):
            base = self.state.number(kind.offset, SUM)
            if kind.at:
                lead = "" if base == "0" else f"{base} + "
                text = f"torch.arange({lead}{kind.at}, {lead}{self.state.end(kind.at)}, device=device)"
            else:
                ends = str(kind.extent) if base == "0" else f"{base}, {base} + {kind.extent}"
                text = f"torch.arange({ends}, device=device)"
            self.state.assign(s.name, text, False, s.note)
            return
        self.bind(s, self.value(s))

    def bind(self, s: t.Let, item: Item) -> None:
        """Gives the result of an operation its name: the variable that holds it already, or a new one."""
        if item.storage is not None:
            self.state.bind(s.name, item.storage)
            return
        view = isinstance(s.op, t.Load) and not item.text.text.endswith(".float()")
        self.state.assign(s.name, item.text.at(TERNARY), not view, s.note, item.dense and not view, item.lent)

    def scalar(self, s: t.Let) -> str:
        """A number as Python text: an expression, or the one element of a tensor."""
        match s.op:
            case t.Map(body):
                return self.state.number(body)
            case t.Full(value):
                return self.state.number(value)
            case t.Cast(value):
                return python_name(value)
            case t.Load() as load:
                return f"{self.memory.load(s, load).text.at(CALL)}.item()"
            case t.Reduce(which, value, axis):
                item = self.state.item(value)
                return f"{self.reduced(which, item, axis).text.at(CALL)}.item()"
            case _:
                return f"{misc(self.state, s).text.at(CALL)}.item()"

    def value(self, s: t.Let) -> Item:
        axes = s.type.names()
        match s.op:
            case t.Map(body):
                return self.map(s, body)
            case t.Full(value):
                return self.full(s, value)
            case t.Load() as load:
                return self.memory.load(s, load)
            case t.Reduce(which, value, axis):
                return self.reduced(which, self.state.item(value), axis)
            case t.Dot() as d:
                return dot(self.state, s, d)
            case t.Cast(value):
                return self.cast(s, value)
            case t.Iota(base):
                count = self.state.length(s.type.axes[0])
                item = Maps(self.state, (), base).run()
                text = f"{item.aligned(axes).at(SUM)} + torch.arange({count}, device=device)"
                return Item(Text(text, SUM, True, "int"), axes, item.varies)
            case _:
                return misc(self.state, s)

    def map(self, s: t.Let, body: Expr) -> Item:
        axes = s.type.names()
        item = Maps(self.state, axes, body, s.type).run()
        if item.tensor and item.axes == axes:
            return item
        if not item.tensor:
            return self.full(s, body)
        sizes = [self.state.length(a) for a in s.type.axes]
        lead = ["-1"] * len(self.facts.batch) if item.varies else []
        text = f"{item.aligned(axes).at(CALL)}.expand({', '.join([*lead, *sizes])}).clone()"
        return Item(Text(text, CALL, True, item.sort), axes, item.varies)

    def full(self, s: t.Let, value: Expr) -> Item:
        axes = s.type.names()
        varies = self.facts.varies[s.name]
        item = Maps(self.state, (), value).run()
        sizes = self.shape(s.type, varies)
        shape = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        if item.tensor:
            text = f"{item.aligned(axes).at(CALL)}.expand({', '.join(sizes)}).clone()"
        elif s.type.dtype in ("i32", "i64", "bool", "u8"):
            text = f"torch.full({shape}, {item.text.at(TERNARY)}, device=device)"
        elif item.text.text == "0.0":
            text = f"torch.zeros({shape}, dtype={self.state.real}, device=device)"
        else:
            text = f"torch.full({shape}, {item.text.at(TERNARY)}, dtype={self.state.real}, device=device)"
        return Item(Text(text, CALL, True, value.sort), axes, varies, None, not item.tensor)

    def shape(self, type: t.Type, varies: frozenset[str]) -> list[str]:
        """Sizes of a tensor of `type` that varies with these batch axes."""
        lead = [self.state.count(a) if a in varies else "1" for a in self.facts.batch] if varies else []
        return [*lead, *(self.state.length(a) for a in type.axes)]

    def cast(self, s: t.Let, value: str) -> Item:
        """Narrow floats are kept wide, so only a change of kind shows."""
        item = self.state.item(value)
        have, want = self.facts.types[value].dtype, s.type.dtype
        floats = ("f64", "f32", "f16", "bf16")
        if have == want or (have in floats and want in floats and "f64" not in (have, want)):
            return item
        kinds = {
            "f64": "torch.float64",
            "i64": "torch.int64",
            "i32": "torch.int64",
            "bool": "torch.bool",
            "u8": "torch.uint8",
        }
        return Item(
            Text(f"{item.text.at(CALL)}.to({kinds.get(want, 'torch.float32')})", CALL, True, item.sort),
            item.axes,
            item.varies,
        )

    def reduced(self, which: str, item: Item, axis: str) -> Item:
        dim = item.axes.index(axis) - len(item.axes)
        left = tuple(a for a in item.axes if a != axis)
        return Item(Text(f"{item.text.at(CALL)}.{REDUCE[which]}({dim})", CALL, True, item.sort), left, item.varies)

    # --- control ----------------------------------------------------------------------------------------------------

    def loop(self, s: t.For) -> None:
        starts = self.take(s.carried)
        outer = dict(self.state.cut)
        match s.over:
            case t.Count(lo, hi):
                over = f"{python_name(s.index)} in range({self.state.number(lo)}, {self.state.number(hi)})"
            case t.Work():
                raise InternalError("only partitions loop over their work")
            case t.Ranges():
                over = f"{python_name(s.index)}, {self.state.end(s.index)} in {self.tiles_of(s, s.over)}"
                self.state.cut[s.axis] = s.index
                self.state.widths[s.index] = self.width(s, s.over)
        inner = not any(isinstance(x, t.For) for x in every(s.body))
        self.state.lending = 0 if inner and isinstance(s.over, t.Ranges) else None
        self.w.comment(s.note)
        with self.w.block(f"for {over}:"):
            self.block(s.body, Frame(True, {c.name for c in s.carried}, {}), s.carried, starts)
        self.state.cut = outer
        self.state.lending = None

    def take(self, carried: tuple[t.Carry, ...]) -> list[Storage | None]:
        """Variables for the carried names: the start's own where nothing else reads it, else a copy."""
        storages: list[Storage | None] = []
        for n, c in enumerate(carried):
            if isinstance(self.facts.kinds[c.name], Number):
                self.w.line(f"{python_name(c.name)} = {python_name(c.start)}")
                storages.append(None)
                continue
            start = self.state.storages[c.start]
            again = any(self.state.storages.get(x.start) is start for x in carried[n + 1 :])
            wide = self.facts.varies[c.name] == self.facts.varies[c.start]
            if not again and wide and start not in storages and self.state.free(start):
                start.names = {c.name}
                storages.append(start)
            else:
                storages.append(self.copied(c, start, wide))
            self.state.storages[c.name] = storages[-1]  # type: ignore[assignment]
        return storages

    def copied(self, c: t.Carry, start: Storage, same: bool) -> Storage:
        storage = Storage(python_name(c.name), True, {c.name}, True)
        text = start.var
        if not same:
            text = f"{text}.expand({', '.join(self.shape(c.type, self.facts.varies[c.name]))})"
        form = "" if start.dense else "memory_format=torch.contiguous_format"
        self.w.line(f"{storage.var} = {text}.clone({form})")
        return storage

    def hand_on(
        self,
        carried: tuple[t.Carry, ...],
        storages: Sequence[Storage | None],
        values: tuple[str, ...],
        bound: set[str],
    ) -> None:
        """The carried variables take the values at the end of a turn: tensors that the turn made, or copies."""
        left: list[str] = []
        right: list[str] = []
        taken: set[str] = set()
        for c, storage, value in zip(carried, storages, values, strict=True):
            if storage is None:
                left.append(python_name(c.name))
                right.append(python_name(value))
                continue
            item = self.state.item(value)
            source = item.storage
            text = item.text.at(CALL)
            if source is storage and storage.var not in taken:
                taken.add(storage.var)
                continue
            if self.facts.varies[value] != self.facts.varies[c.name]:
                text = f"{text}.expand({', '.join(self.shape(c.type, self.facts.varies[c.name]))}).clone()"
            elif source is None or not _movable(source, bound) or source.var in taken:
                text = f"{text}.clone()"
            taken.add(source.var if source is not None else text)
            left.append(storage.var)
            right.append(text)
        left, right = _without_identities(left, right)
        if left:
            self.w.line(f"{', '.join(left)} = {', '.join(right)}")

    def branch(self, s: t.If) -> None:
        storages: list[Storage | None] = []
        for c in s.carried:
            number = isinstance(self.facts.kinds[c.name], Number)
            storages.append(None if number else Storage(python_name(c.name), True, {c.name}))
        self.w.comment(s.note)
        for header, body in ((f"if {self.state.number(s.condition)}:", s.then), ("else:", s.orelse)):
            with self.w.block(header):
                self.block(body, Frame(False, set(), {}), s.carried, storages)

    def tiles_of(self, s: t.For, over: t.Ranges) -> str:
        """(begin, end) of the pieces a loop walks: runs of tiles as wide as fits where their order is free."""
        spans = [x for p in over.pieces for x in self.spans(p, over)]
        if not spans:
            return "()"
        text = f"_pieces({self.width(s, over)}, {', '.join(spans)})"
        self.helpers.add("_pieces")
        return f"reversed([*{text}])" if s.order == "desc" else text

    def width(self, s: t.For, over: t.Ranges) -> int:
        """The most positions of a loop's axis at once."""
        fixed = t.Scan | t.SplitAxis | t.JoinAxis | t.TriInverse | t.TopK | t.Pack | t.Unpack
        inside = tuple(every(s.body))
        bound = any(isinstance(x, t.For) or (isinstance(x, t.Let) and isinstance(x.op, fixed)) for x in inside)
        if s.order != "any" or bound:
            return over.tile
        return over.tile * max(1, _WIDE // self.largest(s.body))

    def spans(self, p: t.Piece, over: t.Ranges) -> list[str]:
        """Text of the (begin, end) pairs of one piece."""
        tile, extent = over.tile, self.state.number(over.extent, TERNARY)
        match p:
            case t.Interval(lo, hi):
                begin = self.bound(lo, "max" if over.full else "min")
                end = self.bound(hi, "min" if over.full else "max")
                first = "0" if begin == "0" else f"{begin} * {tile}"
                return [f"({first}, min({end} * {tile}, {extent}))"]
            case t.Strided(base, length, period, count):
                b, n, d, c = (self.state.number(e, PRODUCT) for e in (base, length, period, count))
                run = f"({b} + n * {d}) * {tile}"
                return [f"*(({run}, min({run} + {n} * {tile}, {extent})) for n in range({c}))"]
            case t.Listed(tensor, offset, count):
                first, n = self.state.number(offset, SUM), self.state.number(count, SUM)
                listed = f"{python_name(tensor)}.flatten()[{first} : {first} + {n}].tolist()"
                return [f"*((at * {tile}, min(at * {tile} + {tile}, {extent})) for at in {listed})"]

    def bound(self, e: Expr, which: str) -> str:
        """A loop's bound: a number, or the extreme over the batch."""
        if self.facts.is_number(e):
            return self.state.number(e, UNARY)
        item = Maps(self.state, (), e).run()
        return f"int({item.text.at(CALL)}.{which}())"


def _movable(source: Storage, bound: set[str]) -> bool:
    """Whether a tensor was made for good in the block that binds these names."""
    return source.owned and not source.lent and source.names <= bound


def _yielded(body: tuple[t.Stmt, ...]) -> tuple[str, ...]:
    return body[-1].values if body and isinstance(body[-1], t.Yield) else ()


def _without_identities(left: list[str], right: list[str]) -> tuple[list[str], list[str]]:
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    return [a for a, _ in pairs], [b for _, b in pairs]
