"""What a call needs to know of a spec: its name, constants, captured tensors, and whether it has an lse.

It goes into the disk cache as plain data, so that a warm start neither reads nor checks the spec again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from attncc.expr.nodes import Expr
    from attncc.ir.nodes import Axis, Spec

Sort = Literal["int", "real", "bool"]
Number = int | float | bool
Size = int | str | tuple[Any, ...]
"""An axis' size: a number, a name, or (operation, arguments, sort)."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of the header and its default."""

    name: str
    value: Number
    sort: Sort


@dataclass(frozen=True, slots=True)
class Extent:
    """An axis of a captured tensor: its index, "" for a plain number, and its size."""

    index: str
    size: Size


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured tensor. `offsets` holds any number of cumulative ends."""

    name: str
    sort: Sort
    axes: tuple[Extent, ...]
    offsets: bool = False

    def __str__(self) -> str:
        """As the header declares it: `real[h]`."""
        axes = ", ".join(a.index or (str(a.size) if isinstance(a.size, int | str) else "...") for a in self.axes)
        return "offsets" if self.offsets else f"{self.sort}[{axes}]" if axes else self.sort


@dataclass(frozen=True, slots=True)
class Interface:
    """The face of a spec."""

    name: str
    constants: tuple[Constant, ...]
    params: tuple[Captured, ...]
    lse: bool
    reads: tuple[tuple[Any, ...], ...] = ()
    """The fields of every attncc.runtime.reads.Read that a call must be checked for."""
    states: tuple[Captured, ...] = ()
    """Of a state program: its states over b, h and their axes."""
    scaled: bool = False
    """Some states may be too large for their type on the way, and chunks carry them scaled."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all tensors, in the order in which compiled programs take them."""
        return ("q", "k", "v", *(p.name for p in self.params))

    @property
    def real(self) -> tuple[str, ...]:
        """The names of the tensors that have a gradient, in the same order."""
        return ("q", "k", "v", *(p.name for p in self.params if p.sort == "real"))


def interface_of(spec: Spec) -> Interface:
    """The interface of `spec`. It has an lse where exactly one normaliser is a ratio, over the keys, and no states."""
    from attncc.expr.nodes import walk
    from attncc.ir.nodes import Weights
    from attncc.runtime.reads import fields, reads_of

    roots = [*(s.body for s in spec.statements), spec.out.body]
    ratios = {n for root in roots for n in walk(root) if isinstance(n, Weights) and n.normaliser.kind == "ratio"}
    params = tuple(Captured(p.name, p.sort, _extents(p.axes), p.offsets) for p in spec.params)
    over = (Extent("b", "B"), Extent("h", "H"))
    held = spec.recurrence.states if spec.recurrence is not None else ()
    states = tuple(Captured(s.name, "real", (*over, *_extents(s.axes))) for s in held)
    lse = len(ratios) == 1 and not states and all([x.index.name for x in w.keys] == ["j"] for w in ratios)
    reads = tuple(fields(r) for r in reads_of(spec))
    scaled = bool(states) and import_module("attncc.driver").scaled(spec)
    constants = tuple(Constant(c.name, c.value, c.sort) for c in spec.constants)
    return Interface(spec.name, constants, params, lse, reads, states, scaled)


def _extents(axes: tuple[Axis, ...]) -> tuple[Extent, ...]:
    return tuple(Extent(a.index, _size(a.size)) for a in axes)


def size(s: Size, known: Mapping[str, Number]) -> int | None:
    """The value of a size, at least 0; None where it uses a name that is not known."""
    if isinstance(s, int):
        return max(0, s)
    if isinstance(s, str):
        return known.get(s)  # type: ignore[return-value]
    from attncc.expr.evaluate import evaluate
    from attncc.expr.nodes import Var, walk

    e = _expr(s)
    leaves = [n for n in walk(e) if isinstance(n, Var)]
    if any(v.name not in known for v in leaves):
        return None
    return max(0, int(evaluate(e, {v: known[v.name] for v in leaves})))


def _size(e: Expr) -> Size:
    from attncc.expr.nodes import Const, Op, Var

    match e:
        case Const(int(value), "int"):
            return value
        case Const(value, sort):
            return ("const", value, sort)
        case Var(name, "int"):
            return name
        case Var(name, sort):
            return ("var", name, sort)
        case Op(name, args, sort):
            return ("op", name, tuple(_size(a) for a in args), sort)
        case _:
            raise TypeError(f"an axis can't have the size {e!r}")


def _expr(s: Size) -> Expr:
    from attncc.expr.nodes import Const, Op, Var

    match s:
        case int():
            return Const(s, "int")
        case str():
            return Var(s, "int")
        case ("const", value, sort):
            return Const(value, sort)
        case ("var", name, sort):
            return Var(name, sort)
        case (_, name, args, sort):
            return Op(name, tuple(_expr(a) for a in args), sort)
        case _:
            raise ValueError(f"no size: {s!r}")


def to_data(face: Interface) -> dict[str, Any]:
    """`face` as lists, strings and numbers."""
    return {
        "name": face.name,
        "constants": [[c.name, c.value, c.sort] for c in face.constants],
        "params": [_to_data(p) for p in face.params],
        "lse": face.lse,
        "reads": face.reads,
        "states": [_to_data(s) for s in face.states],
        "scaled": face.scaled,
    }


def from_data(data: dict[str, Any]) -> Interface:
    """The inverse of `to_data`, of what JSON made of it."""
    params, states = (tuple(_from_data(*x) for x in data[part]) for part in ("params", "states"))
    constants = tuple(Constant(*c) for c in data["constants"])
    return Interface(data["name"], constants, params, data["lse"], _tuples(data["reads"]), states, data["scaled"])


def _to_data(c: Captured) -> list[Any]:
    return [c.name, c.sort, [[a.index, a.size] for a in c.axes], c.offsets]


def _from_data(name: str, sort: Sort, axes: list[Any], offsets: bool) -> Captured:
    return Captured(name, sort, tuple(Extent(index, _tuples(size)) for index, size in axes), offsets)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
