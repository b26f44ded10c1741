"""Prints one kernel as a blockwise function over torch tensors.

Batch axes of the grid become leading dimensions, as many positions at once as `_room` allows; tile axes and loops over
ranges become Python loops. Where a loop's bounds vary with the batch it visits every tile that some position needs, and
a tile counts as full only if it is full for all.
"""

from __future__ import annotations

from collections.abc import Sequence

from attncc.codegen.scalars import CALL, PRODUCT, SUM, TERNARY, UNARY, python_name
from attncc.codegen.signature import kernel_function
from attncc.codegen.torch_dots import dot
from attncc.codegen.torch_exprs import Text
from attncc.codegen.torch_facts import Facts, Number, Span, statements
from attncc.codegen.torch_maps import Maps
from attncc.codegen.torch_memory import Memory
from attncc.codegen.torch_state import Frame, Item, State, Storage, last_reads
from attncc.codegen.torch_values import misc
from attncc.codegen.writer import Writer
from attncc.errors import InternalError
from attncc.expr.nodes import Expr, Op, Var, free_vars, walk
from attncc.tile import nodes as t

REDUCE = {"sum": "sum", "max": "amax", "min": "amin", "any": "any", "all": "all"}

STEPS = '''\
_ROOM = 1 << 18  # elements of a tile for each thread: what its cache holds


def _steps(sizes, grains, tile):
    """How many positions of each batch axis to compute at once, the last axis first, in multiples of its grain."""
    room, steps = max(1, _ROOM * torch.get_num_threads() // tile), []
    for size, grain in zip(reversed(sizes), reversed(grains)):
        steps.append(max(grain, min(size, room) // grain * grain, 1))
        room = max(1, room // max(1, size))
    return reversed(steps)
'''


class KernelPrinter:
    """Prints one kernel; `helpers` collects the helper functions it calls."""

    def __init__(self, w: Writer, program: t.Program, kernel: t.Kernel) -> None:
        self.w = w
        self.kernel = kernel
        self.facts = Facts(program, kernel)
        self.state = State(w, self.facts)
        self.memory = Memory(self.state)
        self.helpers = self.memory.helpers

    # --- frame ------------------------------------------------------------------------------------------------------

    def function(self) -> None:
        """The whole function."""
        args = [python_name(n) for n in (*self.kernel.tensors, *self.kernel.scalars)]
        with self.w.block(f"def {kernel_function(self.kernel)}({', '.join(args)}):"):
            if self.kernel.note:
                self.w.line(f'"""{self.kernel.note}"""')
            if self.kernel.tensors:
                self.w.line(f"device = {python_name(self.kernel.tensors[0])}.device")
            self.batch(list(self.facts.batch))

    def batch(self, axes: list[str]) -> None:
        """Loops over parts of the batch, then over tiles, then the body."""
        if axes:
            grid = {a.name: a for a in self.kernel.grid}
            sizes = [self.state.number(grid[a].extent, TERNARY) for a in axes]
            grains = [self.grain(a) for a in axes]
            steps = [f"{a}_step" for a in axes]
            comma = "," if len(axes) == 1 else ""
            args = f"({', '.join(sizes)}{comma}), ({', '.join(grains)}{comma}), {self.largest()}"
            self.w.line(f"{', '.join(steps)}{comma} = _steps({args})")
            self.helpers.add("_steps")
        self.batch_loops(axes)

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

    def grain(self, axis: str) -> str:
        """What the number of positions of a batch axis at once must be a multiple of."""
        found: set[Expr] = set()
        for s in statements(self.facts.body):
            if isinstance(s, t.Let):
                for e in _expressions(s.op):
                    for node in walk(self.facts.lane(e) or e):
                        match node:
                            case Op("floordiv" | "mod", (Var(name), c)) if name == axis:
                                found.add(c)
        if not found:
            return "1"
        whole = next(self.state.number(x.extent, TERNARY) for x in self.kernel.grid if x.name == axis)
        if len(found) > 1 or not free_vars(c := next(iter(found))) <= set(self.kernel.scalars):
            return f"max(1, {whole})"
        return f"max(1, {self.safe(c)})"

    def safe(self, c: Expr) -> str:
        """A quotient of sizes that does not fail where they are 0."""
        match c:
            case Op("floordiv", (a, b)):
                return f"{self.state.number(a, PRODUCT)} // max(1, {self.state.number(b)})"
        return self.state.number(c)

    def largest(self) -> int:
        """Elements of the largest value of one program."""
        sizes = [1]
        for s in statements(self.facts.body):
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
                text = f"torch.arange({base}, {base} + {kind.extent}, device=device)"
            self.state.assign(s.name, text, False, s.note)
            return
        self.bind(s, self.value(s))

    def bind(self, s: t.Let, item: Item) -> None:
        """Gives the result of an operation its name: the variable that holds it already, or a new one."""
        if item.storage is not None:
            self.state.bind(s.name, item.storage)
            return
        view = isinstance(s.op, t.Load) and not item.text.text.endswith(".float()")
        self.state.assign(s.name, item.text.at(TERNARY), not view, s.note, item.dense and not view)

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
                item = Maps(self.state, (), base, s.name).run()
                text = f"{item.aligned(axes).at(SUM)} + torch.arange({count}, device=device)"
                return Item(Text(text, SUM, True, "int"), axes, item.varies)
            case _:
                return misc(self.state, s)

    def map(self, s: t.Let, body: Expr) -> Item:
        axes = s.type.names()
        self.state.note = s.note
        item = Maps(self.state, axes, body, s.name).run()
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
        item = Maps(self.state, (), value, s.name).run()
        shape = f"({', '.join(self.shape(s.type, varies))},)"
        if item.tensor:
            text = f"{item.aligned(axes).at(CALL)}.expand{shape.replace(',)', ')')}.clone()"
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
        name = python_name(s.index)
        if isinstance(s.over, t.Count):
            over = f"range({self.state.number(s.over.lo)}, {self.state.number(s.over.hi)})"
        else:
            over = self.positions(s.over, s.order)
            self.state.cut[s.axis] = s.index
        self.w.comment(s.note)
        with self.w.block(f"for {name} in {over}:"):
            if isinstance(s.over, t.Ranges):
                end, tile = self.state.end(s.index), s.over.tile
                limit = f"{name} + {tile}"
                extent = self.state.number(s.over.extent, TERNARY)
                self.w.line(f"{end} = {limit if s.over.full else f'min({limit}, {extent})'}")
            self.block(s.body, Frame(True, {c.name for c in s.carried}, {}), s.carried, starts)
        self.state.cut = outer

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
        storage = Storage(python_name(c.name), True, {c.name}, start.dense)
        text = start.var
        if not same:
            text = f"{text}.expand({', '.join(self.shape(c.type, self.facts.varies[c.name]))})"
        self.w.line(f"{storage.var} = {text}.clone()")
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
            elif source is None or not source.owned or source.var in taken or not source.names <= bound:
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

    def positions(self, over: t.Ranges, order: str) -> str:
        """The first positions of the tiles of `over`, as an iterable."""
        spread = any(not self.facts.is_number(e) for p in over.pieces for e in _piece_exprs(p))
        parts = [self.piece(p, over) for p in over.pieces]
        if not parts:
            return "()"
        if len(parts) == 1 and isinstance(over.pieces[0], t.Interval):
            return parts[0] if order != "desc" else f"reversed({parts[0]})"
        joined = ", ".join(f"*{p}" for p in parts)
        comma = "," if len(parts) == 1 else ""
        if spread or order != "any":
            tail = ", reverse=True" if order == "desc" else ""
            return f"sorted({{{joined}}}{tail})"
        return f"({joined}{comma})"

    def piece(self, p: t.Piece, over: t.Ranges) -> str:
        tile = over.tile
        match p:
            case t.Interval(lo, hi):
                begin = self.bound(lo, "max" if over.full else "min")
                end = self.bound(hi, "min" if over.full else "max")
                extent = self.state.number(over.extent, TERNARY)
                first = "0" if begin == "0" else f"{begin} * {tile}"
                return f"range({first}, min({end} * {tile}, {extent}), {tile})"
            case t.Strided(base, length, period, count):
                if not all(self.facts.is_number(e) for e in _piece_exprs(p)):
                    raise InternalError("strided pieces that vary with the batch have no torch spelling")
                b, n, d, c = (self.state.number(e, PRODUCT) for e in (base, length, period, count))
                inner = f"for run in range({c}) for at in range({n})"
                return f"[({b} + run * {d} + at) * {tile} {inner}]"
            case t.Listed(tensor, offset, count):
                if not all(self.facts.is_number(e) for e in _piece_exprs(p)):
                    raise InternalError("listed pieces that vary with the batch have no torch spelling")
                first, n = self.state.number(offset, SUM), self.state.number(count, SUM)
                return f"[at * {tile} for at in {python_name(tensor)}.flatten()[{first} : {first} + {n}].tolist()]"

    def bound(self, e: Expr, which: str) -> str:
        """A loop's bound: a number, or the extreme over the batch."""
        if self.facts.is_number(e):
            return self.state.number(e, UNARY)
        item = Maps(self.state, (), e, "bound").run()
        return f"int({item.text.at(CALL)}.{which}())"


def _yielded(body: tuple[t.Stmt, ...]) -> tuple[str, ...]:
    return body[-1].values if body and isinstance(body[-1], t.Yield) else ()


def _without_identities(left: list[str], right: list[str]) -> tuple[list[str], list[str]]:
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _piece_exprs(p: t.Piece) -> tuple[Expr, ...]:
    match p:
        case t.Interval(lo, hi):
            return (lo, hi)
        case t.Strided(base, length, period, count):
            return (base, length, period, count)
        case t.Listed(_, offset, count):
            return (offset, count)


def _expressions(x: t.Op) -> tuple[Expr, ...]:
    match x:
        case t.Map(body):
            return (body,)
        case t.Load(_, index, guard):
            return (*index, guard)
        case _:
            return ()
