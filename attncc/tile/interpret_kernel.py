"""The interpreter's walk through a kernel: one program of the grid at a time, statement by statement."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attncc.expr.nodes import Expr, Var, free_vars
from attncc.tile import interpret_ops as ops
from attncc.tile.dialect import works
from attncc.tile.interpret_faults import InterpretError, NotANumberFault, TypeFault
from attncc.tile.interpret_memory import GlobalTensor
from attncc.tile.interpret_ranges import Visits, ordered, tiles
from attncc.tile.interpret_shared import Pause, SharedMemory, Thread, run_threads
from attncc.tile.interpret_values import Array, Ticket, Value, aligned, evaluate, rounded, scalar, shape, sort_of
from attncc.tile.nodes import (
    Carry,
    Cast,
    Convert,
    Count,
    Dot,
    DotWait,
    For,
    Full,
    GatherAxis,
    GridAxis,
    If,
    Iota,
    JoinAxis,
    Kernel,
    Let,
    Load,
    Map,
    Op,
    Pack,
    Partitions,
    Random,
    Ranges,
    Reduce,
    ReduceAdd,
    Rename,
    Scan,
    SharedLoad,
    Slot,
    SplitAxis,
    Stmt,
    Store,
    TopK,
    TriInverse,
    Type,
    Unpack,
    Work,
    Yield,
)

Env = dict[str, Value]
Steps = Generator[Pause, None, tuple[Value, ...]]


@dataclass(slots=True)
class Launched:
    """One launch of a kernel: what all its programs share. `scalars` are all of the host's, for the grid's extents;
    the body sees those it declares."""

    kernel: Kernel
    tensors: dict[str, GlobalTensor]
    scalars: Env
    rng: np.random.Generator
    check: bool = True
    visits: dict[str, Visits] = field(default_factory=dict)

    def real(self) -> Any:
        """The numpy type of real scalars: double where a tensor of the kernel is."""
        return np.float64 if any(t.dtype == "f64" for t in self.tensors.values()) else np.float32

    def run(self) -> None:
        """Every program of the grid, in random order."""
        for tensor in self.tensors.values():
            tensor.begin_launch()
        axes = self.kernel.grid
        counts = [self._programs(a) for a in axes]
        points = list(itertools.product(*(range(n) for n in counts)))
        steps = [a.tile if a.role == "tile" else 1 for a in axes]
        places = [{a.name: n * step for a, n, step in zip(axes, p, steps, strict=True)} for p in points]
        order = [int(n) for n in self.rng.permutation(len(points))]
        if not works(self.kernel):
            for number in order:
                Walker(self, places[number], number).run()
            return
        workers = min(len(points), int(self.rng.integers(1, 4)))
        for worker in range(workers):
            Walker(self, {}, worker, [places[n] for n in order[worker::workers]]).run()

    def number(self, e: Expr) -> int:
        """An integer expression of the host's scalars."""

        def lookup(v: Var) -> Array:
            if v.name not in self.scalars:
                raise TypeFault(f"kernel {self.kernel.name}: {v.name} is no scalar of the program")
            return self.scalars[v.name].data

        return int(evaluate(e, lookup, self.real()))

    def _programs(self, axis: GridAxis) -> int:
        extent = self.number(axis.extent)
        return -(-extent // axis.tile) if axis.role == "tile" else extent


class Walker:
    """One program of a launch."""

    def __init__(
        self, launched: Launched, point: dict[str, int], number: int, work: Sequence[dict[str, int]] = ()
    ) -> None:
        self.launched = launched
        self.work = work
        self.point = point
        self.number = number
        self.rng = launched.rng
        self.real = launched.real()
        self.shared = SharedMemory(launched.rng)

    def run(self) -> None:
        """The whole body; partitions, where there are any, in random interleaving."""
        env = {n: self.launched.scalars[n] for n in self.launched.kernel.scalars}
        env |= {n: scalar(x, "i64") for n, x in self.point.items()}
        thread = Thread("")
        try:
            run_threads([(thread, self.body(self.launched.kernel.body, env, thread))], self.shared)
            self.shared.finish()
        except InterpretError as fault:
            raise fault.at(self._place("the program")) from None

    def _place(self, what: str) -> str:
        point = ", ".join(f"{n}={x}" for n, x in self.point.items())
        return f"kernel {self.launched.kernel.name} ({point}): {what}"

    # --- statements -------------------------------------------------------------------------------------------------

    def body(self, stmts: tuple[Stmt, ...], env: Env, thread: Thread) -> Steps:
        """Runs statements in `env`, which it extends; returns what the closing Yield names."""
        for s in stmts:
            try:
                if isinstance(s, Yield):
                    return tuple(self.value(n, env) for n in s.values)
                yield from self._statement(s, env, thread)
            except InterpretError as fault:
                raise fault.at(self._place(headline(s))) from None
        return ()

    def _statement(self, s: Stmt, env: Env, thread: Thread) -> Generator[Pause, None, None]:
        match s:
            case Let(name, type, op):
                self._bind(env, name, self.operation(op, type, env, thread))
            case Store(tensor, index, value, guard) | ReduceAdd(tensor, index, value, _, guard):
                self._store(s, tensor, index, value, guard, env)
            case For():
                yield from self._for(s, env, thread)
            case If(condition, then, orelse, carried):
                inner = env | {c.name: self.value(c.start, env) for c in carried if c.start in env}
                taken = then if bool(self.scalar(condition, env)) else orelse
                self._carry(carried, (yield from self.body(taken, inner, thread)), env)
            case Partitions(parts):
                threads = [Thread(p.name, parent=thread) for p in parts]
                bodies = [self.body(p.body, dict(env), t) for p, t in zip(parts, threads, strict=True)]
                run_threads(list(zip(threads, bodies, strict=True)), self.shared)
            case Yield():
                raise TypeFault("a Yield stands last in the body of a For or If")
            case _:
                yield from self.shared.statement(s, env, thread, self)

    def _bind(self, env: Env, name: str, value: Value) -> None:
        if name in env:
            raise TypeFault(f"{name} is bound a second time")
        env[name] = value

    def _carry(self, carried: tuple[Carry, ...], values: tuple[Value, ...], env: Env) -> None:
        if len(values) != len(carried):
            raise TypeFault(f"{len(values)} values are yielded for {len(carried)} carried names")
        for c, v in zip(carried, values, strict=True):
            self._bind(env, c.name, ops.declared(v, c.type, c.name))

    def _for(self, s: For, env: Env, thread: Thread) -> Generator[Pause, None, None]:
        state = tuple(ops.declared(self.value(c.start, env), c.type, f"start of {c.name}") for c in s.carried)
        for at in self._turns(s, env, thread):
            inner = env | {c.name: v for c, v in zip(s.carried, state, strict=True)}
            if isinstance(s.over, Work):
                inner |= {n: scalar(x, "i64") for n, x in self.work[at].items()}
            self._bind(inner, s.index, scalar(at, "i64"))
            with thread.inside(s.index, at):
                state = yield from self.body(s.body, inner, thread)
            self._carry(s.carried, state, {})
        self._carry(s.carried, state, env)

    def _turns(self, s: For, env: Env, thread: Thread) -> Iterator[int]:
        def number(e: Expr) -> int:
            return int(self.scalar(e, env))

        if isinstance(s.over, Work):
            yield from range(len(self.work))
            return
        if isinstance(s.over, Count):
            yield from ordered(list(range(number(s.over.lo), number(s.over.hi))), s.order, self.rng)
            return
        see = self._sight(s, s.over, number(s.over.extent), thread)
        for t in ordered(tiles(s.over, number, self._listed), s.order, self.rng):
            see(t)
            yield t * s.over.tile

    def _listed(self, name: str, at: int) -> int:
        tensor = self.tensor(name)
        index = tuple(np.asarray(x) for x in np.unravel_index(at, tensor.data.shape))
        return int(tensor.load(index, np.asarray(True), 0, self.number))

    def _sight(self, s: For, over: Ranges, extent: int, thread: Thread) -> Callable[[int], None]:
        """Counts, for each turn, the block of pairs it sees: the program's tile against the loop's."""
        rows = next((a for a in self.launched.kernel.grid if a.role == "tile" and a.axis != s.axis), None)
        if rows is None:
            return lambda tile: None
        key = {n: x for n, x in self.point.items() if n != rows.name} | dict(thread.turns)
        at, first = tuple(key.values()), self.point[rows.name]
        pairs = self._visits(thread, (rows.axis, s.axis), tuple(key), (self.launched.number(rows.extent), extent))
        pairs.record(at, slice(0), slice(0), False)

        def see(tile: int) -> None:
            columns = slice(tile * over.tile, (tile + 1) * over.tile)
            pairs.record(at, slice(first, first + rows.tile), columns, over.full)

        return see

    def _visits(self, thread: Thread, axes: tuple[str, str], keys: tuple[str, ...], extents: tuple[int, int]) -> Visits:
        """The counter of these axes: named after the kernel and partition, then the loop's axis, then numbered."""
        table = self.launched.visits
        base = self.launched.kernel.name + (f"/{thread.name}" if thread.name else "")
        for name in itertools.chain((base, f"{base}.{axes[1]}"), (f"{base}.{axes[1]}.{n}" for n in itertools.count(2))):
            known = table.setdefault(name, Visits(axes, keys, extents))
            if (known.axes, known.keys, known.extents) == (axes, keys, extents):
                return known
        raise AssertionError

    # --- values -----------------------------------------------------------------------------------------------------

    def value(self, name: str, env: Env, unfinished: bool = False) -> Value:
        """A value in scope; the result of an asynchronous dot only after its wait."""
        if name not in env:
            raise TypeFault(f"{name} is not in scope")
        v = env[name]
        if v.ticket is not None and not v.ticket.done and not unfinished:
            raise TypeFault(f"{name} is read before the wait for its dot")
        return v

    def scalar(self, e: Expr, env: Env) -> Any:
        """An expression of scalars only."""
        return self.expression(e, (), env).item()

    def expression(self, e: Expr, space: tuple[str, ...], env: Env) -> Array:
        """`e` over named axes; it broadcasts to `space`."""

        def lookup(v: Var) -> Array:
            x = self.value(v.name, env)
            if sort_of(x.dtype) != v.sort:
                raise TypeFault(f"{v.name} is {x.dtype}, read as {v.sort}")
            return aligned(x, space)

        return evaluate(e, lookup, self.real)

    def tensor(self, name: str) -> GlobalTensor:
        """A tensor the kernel declares."""
        if name not in self.launched.kernel.tensors:
            raise TypeFault(f"tensor {name} is not declared by the kernel")
        return self.launched.tensors[name]

    def places(self, name: str, index: tuple[Expr, ...], space: tuple[str, ...], env: Env) -> list[Array]:
        """The index arrays of a load or store."""
        if len(index) != len(self.tensor(name).axes):
            raise TypeFault(f"{len(index)} indices for the {len(self.tensor(name).axes)} axes of {name}")
        return [self.expression(e, space, env) for e in index]

    def _store(self, s: Stmt, tensor: str, index: tuple[Expr, ...], name: str, guard: Expr, env: Env) -> None:
        value = self.value(name, env)
        places = self.places(tensor, index, value.axes, env)
        where = np.broadcast_to(self.expression(guard, value.axes, env), value.data.shape)
        target = self.tensor(tensor)
        if sort_of(target.dtype) != sort_of(value.dtype):
            raise TypeFault(f"{value.dtype} stored to {tensor} of {target.dtype}")
        if isinstance(s, ReduceAdd):
            target.add(places, where, value.data, self.number, shared=s.how == "atomic")
        else:
            target.store(places, where, value.data, self.number)

    def operation(self, op: Op, type: Type, env: Env, thread: Thread) -> Value:
        """The value on the right of a Let."""
        names, extents = type.names(), shape(type)
        match op:
            case Full(e):
                data = np.broadcast_to(self._real_or_int(self.expression(e, (), env), type), extents)
                return Value(names, rounded(data, type.dtype), type.dtype)
            case Iota(base):
                positions = int(self.scalar(base, env)) + np.arange(ops.axis_of(type, "Iota").extent)
                return Value(names, rounded(positions, type.dtype), type.dtype)
            case Map(body):
                return self._map(body, type, env)
            case Load(tensor, index, guard, other, bulk):
                places = self.places(tensor, index, names, env)
                where = np.broadcast_to(self.expression(guard, names, env), extents)
                if bulk:
                    self.tensor(tensor).read_whole(places, where)
                data = self.tensor(tensor).load(places, where, other, self.number)
                return ops.declared(Value(names, data, self.tensor(tensor).dtype), type, f"load of {tensor}")
            case Dot():
                return self._dot(op, type, env, thread)
            case DotWait(name, pending):
                v = self.value(name, env, unfinished=True)
                self.shared.wait_dots(thread, pending)
                if v.ticket is not None and not v.ticket.done:
                    raise TypeFault(f"waiting for all but {pending} dots does not finish {name}")
                return ops.declared(Value(v.axes, v.data, v.dtype), type, name)
            case SharedLoad(slot):
                return ops.declared(self.shared.read(slot, env, thread, self), type, f"load of {slot.name}")
            case Random(seed, counter):
                place = np.broadcast_to(self.expression(counter, names, env), extents)
                return ops.random(int(self.value(seed, env).data), place, type)
            case GatherAxis(value, index, axis):
                return ops.gather_axis(self.value(value, env), self.value(index, env), axis, type)
            case Convert(name, _):
                return ops.declared(self.value(name, env), type, name)
            case _:
                return self._register(op, self.value(op.value, env), type)

    def _register(
        self,
        op: Reduce | Scan | Cast | SplitAxis | JoinAxis | Rename | Pack | Unpack | TriInverse | TopK,
        x: Value,
        type: Type,
    ) -> Value:
        match op:
            case Reduce():
                return ops.reduce(op, x, type)
            case Scan():
                return ops.scan(op, x, type)
            case Cast(_, rounding):
                return ops.cast(x, rounding, type, self.rng)
            case SplitAxis():
                return ops.split_axis(op, x, type)
            case JoinAxis():
                return ops.join_axis(op, x, type)
            case Rename():
                return ops.declared(Value(type.names(), x.data, x.dtype), type, "Rename")
            case Pack():
                return ops.pack(op, x, type)
            case Unpack():
                return ops.unpack(op, x, type)
            case TriInverse():
                return ops.tri_inverse(op, x, type)
            case TopK():
                return ops.top_k(op, x, type)

    def _real_or_int(self, data: Array, type: Type) -> Array:
        kind = {"f": "real", "i": "int", "b": "bool"}[data.dtype.kind]
        if kind != sort_of(type.dtype):
            raise TypeFault(f"a {kind} expression declared {type.dtype}")
        return data

    def _map(self, body: Expr, type: Type, env: Env) -> Value:
        data = self._real_or_int(self.expression(body, type.names(), env), type)
        out = rounded(np.broadcast_to(data, shape(type)), type.dtype)
        if self.launched.check and sort_of(type.dtype) == "real" and np.isnan(out).any():
            self._expect_nan_operand(body, out, type, env)
        return Value(type.names(), out, type.dtype)

    def _expect_nan_operand(self, body: Expr, out: Array, type: Type, env: Env) -> None:
        made = np.isnan(out)
        for name in sorted(free_vars(body)):
            if sort_of(env[name].dtype) == "real":
                made = made & ~np.isnan(aligned(env[name], type.names()))
        if made.any():
            raise NotANumberFault(f"NaN made of numbers at {tuple(map(int, np.argwhere(made)[0]))}")

    def _dot(self, op: Dot, type: Type, env: Env, thread: Thread) -> Value:
        ticket = Ticket() if op.asynchronous else None

        def operand(x: str | Slot) -> Value:
            if isinstance(x, Slot):
                return self.shared.read(x, env, thread, self, ticket=ticket, dot=True)
            return self.value(x, env)

        start = None if op.start is None else self.value(op.start, env, unfinished=op.asynchronous)
        out = ops.dot(operand(op.a), operand(op.b), op.axis, start, type)
        if ticket is None:
            return out
        thread.dots.append(ticket)
        return Value(out.axes, out.data, out.dtype, ticket)


def headline(s: Stmt) -> str:
    """A statement in a few words."""
    match s:
        case Let(name, _, op):
            return f"{name} = {type(op).__name__}"
        case Store(tensor) | ReduceAdd(tensor):
            return f"{type(s).__name__} {tensor}"
        case For(index):
            return f"for {index}"
        case _:
            return type(s).__name__
