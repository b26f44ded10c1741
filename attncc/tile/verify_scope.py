"""What the verifier's checks share: a walk through a kernel with the names in scope, and where names come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from attncc.expr.nodes import Expr, Op, Var, free_vars, walk
from attncc.tile import nodes as t
from attncc.tile.dialect import works
from attncc.tile.text import headline, sort_of
from attncc.tile.verify_faults import ScopeError, VerifyError

SCALAR_INT = t.Type((), "i32")


@dataclass(frozen=True, slots=True)
class Place:
    """A statement, the types in scope before it, the loops and the partition around it."""

    kernel: t.Kernel
    stmt: t.Stmt
    types: Mapping[str, t.Type]
    loops: tuple[t.For, ...] = ()
    branches: int = 0
    partition: str = ""

    def error(self, cls: type[VerifyError], message: str) -> VerifyError:
        """`cls` with the kernel and statement named."""
        return cls(f"kernel {self.kernel.name}: {message}\n  in: {self.headline()}")

    def headline(self) -> str:
        """The statement's first line."""
        return headline(self.stmt, {n: sort_of(x.dtype) for n, x in self.types.items()})


@dataclass(frozen=True, slots=True)
class Open:
    """Something a check could neither prove nor refute: the interpreter sees it on every run."""

    check: str
    kernel: str
    statement: str
    what: str


@dataclass(slots=True)
class Checked:
    """One program under verification, with its tables."""

    program: t.Program
    deterministic: bool = False
    tensors: dict[str, t.Tensor] = field(default_factory=dict)
    scalars: dict[str, t.Scalar] = field(default_factory=dict)
    unproved: list[Open] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scalars = {s.name: s for s in self.program.scalars}
        self.tensors = {x.name: x for x in self.program.inputs}
        for step in self.program.steps:
            match step:
                case t.Alloc(tensor):
                    self.tensors[tensor.name] = tensor
                case t.Gather(out) | t.ScatterAdd(out) | t.SumAxes(out) | t.FirstLast(out):
                    self.tensors[out.name] = out
                case t.Launch():
                    pass

    def leave_open(self, check: str, place: Place, what: str) -> None:
        """Notes what is not proved."""
        self.unproved.append(Open(check, place.kernel.name, place.headline(), what))

    def real(self) -> t.Dtype:
        return "f64" if any(x.dtype == "f64" for x in self.program.inputs) else "f32"

    def scalar_types(self, kernel: t.Kernel) -> dict[str, t.Type]:
        """Types of the scalars a kernel declares and of its grid positions."""
        kinds: dict[str, t.Dtype] = {"int": "i32", "real": self.real(), "bool": "bool"}
        missing = [n for n in kernel.scalars if n not in self.scalars]
        missing += [n for n in kernel.tensors if n not in self.tensors]
        if missing:
            raise ScopeError(f"kernel {kernel.name}: {', '.join(missing)}: not in the program")
        types = {n: t.Type((), kinds[self.scalars[n].sort]) for n in kernel.scalars}
        return types | {a.name: SCALAR_INT for a in kernel.grid}

    def places(self, kernel: t.Kernel) -> Iterator[Place]:
        """Every statement of a kernel, outer ones first."""
        types = self.scalar_types(kernel)
        if works(kernel):  # positions are known inside the loops over work alone
            types = {n: x for n, x in types.items() if n in kernel.scalars}
        yield from _walk(kernel.body, Place(kernel, t.Fence(), types), types)


def _walk(stmts: tuple[t.Stmt, ...], around: Place, types: dict[str, t.Type]) -> Iterator[Place]:
    kernel, loops, branches, partition = around.kernel, around.loops, around.branches, around.partition
    for s in stmts:
        yield Place(kernel, s, types, loops, branches, partition)
        match s:
            case t.Let(name, type, _):
                types[name] = type
            case t.For(index, over, carried, body):
                inner = {**types, index: SCALAR_INT, **{c.name: c.type for c in carried}}
                if isinstance(over, t.Work):
                    inner |= {a.name: SCALAR_INT for a in kernel.grid}
                yield from _walk(body, Place(kernel, s, inner, (*loops, s), branches, partition), inner)
                types |= {c.name: c.type for c in carried}
            case t.If(_, then, orelse, carried):
                for branch in (then, orelse):
                    inner = dict(types)
                    yield from _walk(branch, Place(kernel, s, inner, loops, branches + 1, partition), inner)
                types |= {c.name: c.type for c in carried}
            case t.Partitions(parts):
                for p in parts:
                    inner = dict(types)
                    yield from _walk(p.body, Place(kernel, s, inner, loops, branches, p.name), inner)
            case _:
                pass


Definition = t.Let | t.GridAxis | t.Scalar | t.For | tuple[t.For | t.If, int]
"""What binds a name: a Let, a grid axis, a scalar, a loop as its index, or a loop or If as the n-th name it carries."""


@dataclass(slots=True)
class Origins:
    """Where the names of one kernel come from."""

    checked: Checked
    kernel: t.Kernel
    of: dict[str, Definition] = field(default_factory=dict)
    memo: dict[Expr, Expr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.of |= {n: self.checked.scalars[n] for n in self.kernel.scalars}
        self.of |= {a.name: a for a in self.kernel.grid}
        for place in self.checked.places(self.kernel):
            match place.stmt:
                case t.Let(name) as s:
                    self.of[name] = s
                case t.For(index, _, carried) as s:
                    self.of[index] = s
                    self.of |= {c.name: (s, n) for n, c in enumerate(carried)}
                case t.If(_, _, _, carried) as s:
                    self.of |= {c.name: (s, n) for n, c in enumerate(carried)}
                case _:
                    pass

    def op(self, name: str) -> t.Op | None:
        """The operation a name is bound to by a Let."""
        d = self.of.get(name)
        return d.op if isinstance(d, t.Let) else None

    def value(self, name: str) -> Expr | None:
        """The host expression that a scalar stands for."""
        d = self.of.get(name)
        return d.value if isinstance(d, t.Scalar) else None

    def expand(self, e: Expr) -> Expr:
        """`e` with every Var that a Let maps replaced by its body, down to loads, iotas, sizes and carried names."""
        if e in self.memo:
            return self.memo[e]
        done: dict[Expr, Expr] = {}
        for node in walk(e):
            if isinstance(node, Op):
                done[node] = Op(node.name, tuple(done[a] for a in node.args), node.sort)
            elif isinstance(node, Var) and isinstance(op := self.op(node.name), t.Map):
                done[node] = self.expand(op.body)
            elif isinstance(node, Var) and node.sort == "int" and (value := self.value(node.name)) is not None:
                done[node] = self.expand(value)
            elif isinstance(node, Var) and isinstance(op := self.op(node.name), t.Convert):
                done[node] = self.expand(Var(op.value, node.sort))
            else:
                done[node] = node
        self.memo[e] = done[e]
        return done[e]

    def reaches(self, names: frozenset[str]) -> dict[str, Definition]:
        """Every name that `names` are computed from, themselves included, and its definition."""
        found: dict[str, Definition] = {}
        todo = sorted(names)
        while todo:
            name = todo.pop()
            if name in found or name not in self.of:
                continue
            found[name] = d = self.of[name]
            if isinstance(d, t.Let):
                todo += sorted(operands(d.op))
            elif isinstance(d, t.For) and isinstance(d.over, t.Ranges | t.Count | t.Work):
                todo += sorted(range_names(d.over))
            elif isinstance(d, tuple):
                s, n = d
                todo += [s.carried[n].start, *(y.values[n] for y in yields(s) if n < len(y.values))]
        return found


def yields(s: t.For | t.If) -> tuple[t.Yield, ...]:
    """The closing statements of a loop's or If's bodies."""
    bodies = (s.body,) if isinstance(s, t.For) else (s.then, s.orelse)
    return tuple(b[-1] for b in bodies if b and isinstance(b[-1], t.Yield))


def range_names(over: t.Ranges | t.Count | t.Work) -> frozenset[str]:
    """Names that a loop's bounds read."""
    if isinstance(over, t.Work):
        return frozenset()
    if isinstance(over, t.Count):
        return free_vars(over.lo) | free_vars(over.hi)
    names = free_vars(over.extent)
    for p in over.pieces:
        names |= frozenset(n for e in piece_exprs(p) for n in free_vars(e))
    return names


def piece_exprs(p: t.Piece) -> tuple[Expr, ...]:
    """The expressions of a piece."""
    match p:
        case t.Interval(lo, hi):
            return (lo, hi)
        case t.Strided(base, length, period, count):
            return (base, length, period, count)
        case t.Listed(_, offset, count):
            return (offset, count)


def operands(op: t.Op) -> frozenset[str]:
    """Names of the values an operation reads."""
    match op:
        case t.Full(e) | t.Iota(e) | t.Map(e):
            return free_vars(e)
        case t.Load(_, index, guard):
            return frozenset(n for e in (*index, guard) for n in free_vars(e))
        case t.Dot(a, b, _, start):
            names = {start} if start is not None else set()
            return frozenset(names.union(*(slot_names(x) if isinstance(x, t.Slot) else {x} for x in (a, b))))
        case t.SharedLoad(slot):
            return slot_names(slot)
        case t.GatherAxis(value, index, _):
            return frozenset({value, index})
        case t.Random(seed, counter):
            return free_vars(counter) | {seed}
        case _:
            return frozenset({op.value})


def slot_names(slot: t.Slot | t.Bar) -> frozenset[str]:
    """Names a slot's or barrier's index reads."""
    return free_vars(slot.index)


def uses(s: t.Stmt) -> frozenset[str]:
    """Names a statement itself reads, not those of the statements inside it."""
    match s:
        case t.Let(_, _, t.DotWait(value, _, after)):
            return frozenset({value, *after})
        case t.Let(_, _, op):
            return operands(op)
        case t.Store(_, index, value, guard) | t.ReduceAdd(_, index, value, _, guard):
            return frozenset(n for e in (*index, guard) for n in free_vars(e)) | {value}
        case t.For(_, over, carried):
            return range_names(over) | {c.start for c in carried}
        case t.If(condition):
            return free_vars(condition)
        case t.Yield(values):
            return frozenset(values)
        case t.SharedStore(slot, value):
            return slot_names(slot) | {value}
        case t.BarExpect(bar) | t.BarArrive(bar):
            return slot_names(bar)
        case t.BarWait(bar, parity):
            return slot_names(bar) | free_vars(parity)
        case t.CopyIn(slot, _, index, bar):
            return slot_names(slot) | slot_names(bar) | frozenset(n for e in index for n in free_vars(e))
        case t.CopyOut(slot, _, index):
            return slot_names(slot) | frozenset(n for e in index for n in free_vars(e))
        case t.AllocShared() | t.AllocBar() | t.Fence() | t.CopyWait() | t.Partitions():
            return frozenset()
