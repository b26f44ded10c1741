"""A small builder for hand-written kernels: fresh names, inferred types, statements in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from attncc.expr.build import ivar, rvar
from attncc.expr.nodes import Const, Expr, Sort, Var, free_vars
from attncc.tile.nodes import (
    Axis,
    Carry,
    Cast,
    Convert,
    Count,
    Dot,
    DotWait,
    Dtype,
    For,
    Full,
    If,
    Iota,
    Let,
    Load,
    Map,
    Op,
    Ranges,
    Reduce,
    Rename,
    Scan,
    Slot,
    Stmt,
    TriInverse,
    Type,
    Yield,
)

SORT: dict[Dtype, Sort] = {"bool": "bool", "i32": "int", "i64": "int", "u8": "int"}


@dataclass
class Builder:
    """Collects the statements of one kernel; `here` is the body being written."""

    types: dict[str, Type] = field(default_factory=dict)
    here: list[Stmt] = field(default_factory=list)

    def fresh(self, name: str) -> str:
        """`name`, with a number behind it where it is taken."""
        if name not in self.types:
            return name
        return next(f"{name}{n}" for n in range(1, 10_000) if f"{name}{n}" not in self.types)

    def add(self, *statements: Stmt) -> None:
        """Statements without a result."""
        self.here.extend(statements)

    def let(self, name: str, type_: Type, op: Op, note: str = "") -> Var:
        """Binds a fresh name; the result stands for the value in expressions."""
        name = self.fresh(name)
        self.types[name] = type_
        self.here.append(Let(name, type_, op, note))
        return Var(name, SORT.get(type_.dtype, "real"))

    def int_(self, name: str, body: Expr, note: str = "") -> Var:
        """A scalar integer."""
        return self.let(name, Type((), "i32"), Map(body), note)

    def full(self, name: str, axes: tuple[Axis, ...], value: float, dtype: Dtype = "f32") -> Var:
        constant = Const(value, "real") if SORT.get(dtype, "real") == "real" else Const(int(value), "int")
        return self.let(name, Type(axes, dtype), Full(constant))

    def iota(self, name: str, axis: Axis, base: Expr, note: str = "") -> Var:
        return self.let(name, Type((axis,), "i32"), Iota(base), note)

    def map(self, name: str, body: Expr, dtype: Dtype | None = None, note: str = "") -> Var:
        """Axes: the widest operand's, then those it lacks."""
        operands = [self.types[v] for v in sorted(free_vars(body)) if v in self.types]
        axes: list[Axis] = []
        for t in sorted(operands, key=lambda t: -len(t.axes)):
            axes += [a for a in t.axes if a not in axes]
        dtypes: dict[Sort, Dtype] = {"bool": "bool", "int": "i32", "real": "f32"}
        return self.let(name, Type(tuple(axes), dtype or dtypes[body.sort]), Map(body), note)

    def load(
        self,
        name: str,
        type_: Type,
        tensor: str,
        index: tuple[Expr, ...],
        guard: Expr | None = None,
        other: float | int | bool = 0,
        note: str = "",
    ) -> Var:
        op = Load(tensor, index) if guard is None else Load(tensor, index, guard, other)
        return self.let(name, type_, op, note)

    def reduce(self, name: str, op: str, value: Var, axis: str) -> Var:
        t = self.types[value.name]
        kept = tuple(a for a in t.axes if a.name != axis)
        return self.let(name, Type(kept, t.dtype), Reduce(op, value.name, axis))  # type: ignore[arg-type]

    def scan(self, name: str, op: str, value: Var, axis: str, *, exclusive: bool = False) -> Var:
        scan = Scan(op, value.name, axis, exclusive=exclusive)  # type: ignore[arg-type]
        return self.let(name, self.types[value.name], scan)

    def dot(
        self,
        name: str,
        axes: tuple[Axis, Axis],
        a: Var | Slot,
        b: Var | Slot,
        axis: str,
        start: Var | None = None,
        *,
        asynchronous: bool = False,
        note: str = "",
    ) -> Var:
        left, right = (x.name if isinstance(x, Var) else x for x in (a, b))
        op = Dot(left, right, axis, start.name if start else None, asynchronous=asynchronous)
        return self.let(name, Type(axes, "f32"), op, note)

    def wait(self, name: str, value: Var, pending: int) -> Var:
        return self.let(name, self.types[value.name], DotWait(value.name, pending))

    def cast(self, name: str, value: Var, dtype: Dtype) -> Var:
        return self.let(name, Type(self.types[value.name].axes, dtype), Cast(value.name))

    def convert(self, name: str, value: Var, layout: str) -> Var:
        return self.let(name, self.types[value.name], Convert(value.name, layout))

    def rename(self, name: str, value: Var, *axes: str) -> Var:
        """`value` with its axes named `axes`."""
        old = self.types[value.name]
        new = tuple(Axis(a, o.extent) for a, o in zip(axes, old.axes, strict=True))
        return self.let(name, Type(new, old.dtype), Rename(value.name))

    def inverse(self, name: str, value: Var, row: str, column: str) -> Var:
        return self.let(name, self.types[value.name], TriInverse(value.name, row, column))

    @contextmanager
    def body(self) -> Iterator[list[Stmt]]:
        """Statements added inside go to the list it gives."""
        outer, self.here = self.here, []
        try:
            yield self.here
        finally:
            self.here = outer

    @contextmanager
    def loop(
        self, index: str, over: Count | Ranges, carried: dict[str, Var], note: str = "", **how: object
    ) -> Iterator[Loop]:
        """A For; `carried` names what it updates and their starts. End its body with `Loop.next`."""
        index = self.fresh(index)
        self.types[index] = Type((), "i32")
        carries = []
        for name, start in carried.items():
            type_ = self.types[start.name]
            carries.append(Carry(self.fresh(name), type_, start.name))
            self.types[carries[-1].name] = type_
        variables = [Var(c.name, SORT.get(c.type.dtype, "real")) for c in carries]
        loop = Loop(ivar(index), dict(zip(carried, variables, strict=True)), self)
        with self.body() as inside:
            yield loop
        self.here.append(For(index, over, tuple(carries), tuple(inside), note=note, **how))  # type: ignore[arg-type]

    def choose(self, name: str, condition: Expr, value: Var, instead: Callable[[], Var], note: str = "") -> Var:
        """`instead()` where the uniform `condition` holds, else `value`."""
        carry = Carry(self.fresh(name), self.types[value.name], value.name)
        self.types[carry.name] = carry.type
        with self.body() as then:
            then.append(Yield((instead().name,)))
        self.here.append(If(condition, tuple(then), (Yield((value.name,)),), (carry,), note))
        return Var(carry.name, value.sort)


@dataclass
class Loop:
    """A loop being written: its index and its carried values, readable after it too."""

    index: Var
    carried: dict[str, Var]
    builder: Builder

    def __getitem__(self, name: str) -> Var:
        return self.carried[name]

    def next(self, **values: Var) -> None:
        """What the carried values become."""
        self.builder.add(Yield(tuple(values[n].name for n in self.carried)))


__all__ = ["Builder", "Loop", "ivar", "rvar"]
