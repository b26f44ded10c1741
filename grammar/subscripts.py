"""Reading tensors: bare names, subscripts, slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncc.diagnostics import Span
from attncc.expr.build import lift, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.grammar import tree as ast
from attncc.grammar.mistakes import (
    AxisMismatch,
    MissingSubscript,
    NotAValue,
    OutOfRange,
    QueryRow,
    TooManySubscripts,
)
from attncc.grammar.names import SIZE_OF, Named, Row, Tensor
from attncc.grammar.values import CHANNELS, Value, given, merge_sizes, rename
from attncc.ir.nodes import Axis, Load

if TYPE_CHECKING:
    from attncc.grammar.expressions import Elaborator

POSITIONS = {"i", "j", "n"}
SHARED = {"b", "h", "g", "i", "j", "n"}  # indices with one size in the whole spec


def bare_row(name: str, row: Row, place: Span) -> Value:
    """q, k or v at the current indices."""
    load = Load(name, tuple(Var(a, "int") for a in row.axes), "real", place)
    channel = row.axes[-1]
    return Value(load, given(row.axes), {channel: row.channels})


def bare_tensor(name: str, tensor: Tensor, place: Span) -> Value:
    """A tensor at the indices it was declared with."""
    if tensor.offsets:
        hint = f"`segment({name}, i)` is the document of a position"
        raise NotAValue(f"`{name}` holds the ends of packed rows and is no value", place, hint=hint)
    return _load(name, tensor, [], place)


def subscripted(self: Elaborator, node: ast.Subscripted) -> Value:
    """base[...]."""
    base = node.base
    if not isinstance(base, ast.Name):
        raise TooManySubscripts("only a name has subscripts", base.span, hint="give the value a name and axes by `let`")
    if self.frame is not None and base.id in self.frame:
        hint = "pass the value at its indices, `f(x[b, j])`"
        message = f"`{base.id}` stands for a value here, and a value has no subscripts"
        raise TooManySubscripts(message, node.span, hint=hint)
    match self.scope.meanings.get(base.id):
        case Row() as row:
            return _row(self, base.id, row, node)
        case Tensor(offsets=False) as tensor:
            if len(node.subscripts) > len(tensor.axes):
                raise _too_many(base.id, tensor.axes, node)
            parts = [_subscript(self, x, a, base.id) for x, a in zip(node.subscripts, tensor.axes, strict=False)]
            return _load(base.id, tensor, parts, node.span)
        case Named() as named:
            return _named(self, base.id, named, node)
        case _:
            self.name(base)  # raises for unknown names, functions, offsets
            raise TooManySubscripts(f"`{base.id}` has no axes", node.span)


def _too_many(name: str, axes: tuple[Axis, ...], node: ast.Subscripted) -> TooManySubscripts:
    shown = f"{len(axes)} ax{'i' if len(axes) == 1 else 'e'}s"
    return TooManySubscripts(f"`{name}` has {shown}, and is given {len(node.subscripts)} subscripts", node.span)


def _load(name: str, tensor: Tensor, parts: list[Value], place: Span) -> Value:
    free: set[str] = set()
    sizes: dict[str, Expr] = {}
    index: list[Expr] = []
    for value in parts:
        index.append(value.expr)
        free |= value.free
        merge_sizes(sizes, value.sizes, place)
    rest = tensor.axes[len(parts) :]
    for number, axis in enumerate(rest, len(parts) + 1):
        if axis.index in ("", "m"):
            what = "query rows" if axis.index == "m" else "no index of its own"
            inner = ", ".join(("i" if a.index in ("m", "n") else a.index) or "0" for a in tensor.axes)
            hint = f"write its subscripts: `{name}[{inner}]`"
            raise MissingSubscript(f"axis {number} of `{name}` has {what}", place, hint=hint)
        index.append(Var(axis.index, "int"))
        free.add(axis.index)
        if axis.index not in SHARED:
            merge_sizes(sizes, {axis.index: axis.size}, place)
    return Value(Load(name, tuple(index), tensor.sort, place), given(free), sizes)


def _subscript(self: Elaborator, node: ast.Expr | ast.Slice, axis: Axis, name: str) -> Value:
    """One subscript at one axis."""
    if isinstance(node, ast.Slice):
        return _slice(self, node, axis.index, axis.size)
    if axis.index in ("m", "i") and not (isinstance(node, ast.Name) and node.id == "i"):
        raise QueryRow(f"this axis of `{name}` holds query rows", node.span, hint="it is read at a bare `i`")
    value = self.integer(node, "a subscript")
    if isinstance(node, ast.Name) and node.id in SIZE_OF and value.expr is Var(node.id, "int"):
        _same_kind(node, axis.index, name)
    if value.expr is Var(axis.index, "int") and axis.index not in SHARED:
        return Value(value.expr, value.free, {axis.index: axis.size})
    if isinstance(value.expr, Const) and isinstance(axis.size, Const) and axis.index not in ("n", "m"):
        at, size = value.expr.value, axis.size.value
        if not 0 <= at < size:
            raise OutOfRange(f"{at} is out of range: this axis of `{name}` has 0 to {size - 1}", node.span)
    return value


def _same_kind(node: ast.Name, axis: str, name: str) -> None:
    kinds = {"m": {"i"}, "n": POSITIONS, "j": POSITIONS, "d": CHANNELS, "e": CHANNELS}
    allowed = kinds.get(axis, {axis})
    if axis in {*SIZE_OF, "m"} and node.id not in allowed:
        right = "i` or `j" if axis == "n" else axis
        message = f"this axis of `{name}` is `{axis}`, not `{node.id}`"
        raise AxisMismatch(message, node.span, hint=f"read it at `{right}`")


def _slice(self: Elaborator, node: ast.Slice, index: str, size: Expr) -> Value:
    """low:high of an axis: the same index, running over fewer values."""
    if index in ("", "b", "h", "g", "m", "n", "i", "j"):
        hint = "channels and indices declared in the spec have slices"
        raise AxisMismatch("this axis has no slices", node.span, hint=hint)
    low = Value(lift(0)) if node.low is None else self.integer(node.low, "an end of a slice")
    high = Value(size) if node.high is None else self.integer(node.high, "an end of a slice")
    for end in (low, high):
        if end.free:
            raise AxisMismatch("the ends of a slice depend on no index", node.span)
        if isinstance(end.expr, Const) and end.expr.value < 0:
            raise OutOfRange("the ends of a slice count from the start", node.span, hint="the last four are `[D - 4:]`")
    own = Var(index, "int")
    if low.expr is lift(0):
        return Value(own, frozenset({index}), {index: high.expr})
    return Value(op("add", own, low.expr), frozenset({index}), {index: op("sub", high.expr, low.expr)})


def _row(self: Elaborator, name: str, row: Row, node: ast.Subscripted) -> Value:
    """q, k, v with one subscript (the channel) or with all."""
    position = "n" if name != "q" else "i"  # in a state program k and v stand at i
    kinds = (position if a == "i" else a for a in row.axes)
    axes = tuple(Axis(a, row.channels if a in CHANNELS else self.scope.indices[a]) for a in kinds)
    if len(node.subscripts) == 1:
        parts = [Value(Var(a, "int"), frozenset({a})) for a in row.axes[:-1]]
        parts.append(_subscript(self, node.subscripts[0], axes[-1], name))
    elif len(node.subscripts) in (len(axes), len(axes) - 1):
        parts = [_subscript(self, x, a, name) for x, a in zip(node.subscripts, axes, strict=False)]
    else:
        hint = f"`{name}[e]` is its channel, `{name}[{', '.join(row.axes)}]` names all axes"
        raise TooManySubscripts(f"`{name}` takes one subscript, or all", node.span, hint=hint)
    return _load(name, Tensor("real", axes), parts, node.span)


def _named(self: Elaborator, name: str, named: Named, node: ast.Subscripted) -> Value:
    """A `let` that stands for its value, at other indices."""
    if named.axes is None:
        hint = f"name its axes where it is made: `let {name}[b, h, i] = ...`"
        raise TooManySubscripts(f"`{name}` has no axes in an order", node.span, hint=hint)
    axes = tuple(Axis(a, named.value.sizes.get(a) or self.scope.indices[a]) for a in named.axes)
    if len(node.subscripts) > len(axes):
        raise _too_many(name, axes, node)
    parts = [_subscript(self, x, a, name) for x, a in zip(node.subscripts, axes, strict=False)]
    table = {a: p.expr for a, p in zip(named.axes, parts, strict=False)}
    free = set(named.axes[len(parts) :])
    sizes = {a: s for a, s in named.value.sizes.items() if a in free}
    for part in parts:
        free |= part.free
        merge_sizes(sizes, part.sizes, node.span)
    return Value(rename(named.value.expr, table, node.span), given(free), sizes)
