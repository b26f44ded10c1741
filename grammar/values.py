"""Values: an expression of the Spec IR together with the indices it is a function of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from attncc.diagnostics import Span
from attncc.expr.nodes import Expr, Op, Sort, Var, children, with_children
from attncc.grammar.mistakes import ChannelMismatch, ExtentMismatch, NotCompiled
from attncc.ir.nodes import Binder, Contract, Reduce, Scan, Weights

CHANNELS = frozenset({"d", "e"})
Sizes = Mapping[str, Expr]


@dataclass(frozen=True)
class Value:
    """`expr` as a function of `free`; `sizes` holds the extents of channels and new indices among them."""

    expr: Expr
    free: frozenset[str] = frozenset()
    sizes: Sizes = field(default_factory=dict)

    @property
    def sort(self) -> Sort:
        """int, real or bool."""
        return self.expr.sort

    @property
    def channels(self) -> frozenset[str]:
        """The channels among the free indices."""
        return self.free & CHANNELS

    def of(self, expr: Expr) -> Value:
        """Another expression with the same indices."""
        return Value(expr, self.free, self.sizes)


def given(free: Iterable[str]) -> frozenset[str]:
    """The indices less g where h gives it."""
    free = frozenset(free)
    return free - {"g"} if "h" in free else free


def align(values: Iterable[Value], place: Span) -> Value:
    """Indices of an elementwise combination (its `expr` is the last value's); ChannelMismatch, ExtentMismatch."""
    free: frozenset[str] = frozenset()
    sizes: dict[str, Expr] = {}
    expr: Expr | None = None
    for value in values:
        left, right = free & CHANNELS, value.channels
        if left and right and not (left <= right or right <= left):
            raise _channels(left, right, place)
        merge_sizes(sizes, value.sizes, place)
        free |= value.free
        expr = value.expr
    assert expr is not None
    return Value(expr, given(free), sizes)


def merge_sizes(sizes: dict[str, Expr], more: Sizes, place: Span) -> None:
    """Adds `more`; ExtentMismatch where both know an index and differ."""
    for index, size in more.items():
        if sizes.setdefault(index, size) is not size:
            message = f"the two sides meet along `{index}` and have different sizes there"
            raise ExtentMismatch(message, place, hint="take the same slice of both")


def _channels(left: frozenset[str], right: frozenset[str], place: Span) -> ChannelMismatch:
    a, b = ", ".join(sorted(left)), ", ".join(sorted(right))
    hint = f"read one at the other's channel, as in `k[{a}]`; `outer(x, y)` makes every product; `@` sums"
    return ChannelMismatch(f"channel `{a}` meets channel `{b}`", place, hint=hint)


# --- substitution ---------------------------------------------------------------------------------------------------


def rename(e: Expr, table: Mapping[str, Expr], place: Span) -> Expr:
    """`e` with free index variables replaced; bound ones stay, and are renamed where they would capture."""
    table = {name: new for name, new in table.items() if not (isinstance(new, Var) and new.name == name)}
    return _Rename(place).run(e, table) if table else e


class _Rename:
    def __init__(self, place: Span) -> None:
        self.place = place
        self.done: dict[tuple[Expr, frozenset[tuple[str, Expr]]], Expr] = {}
        self.fresh = 0

    def run(self, e: Expr, table: Mapping[str, Expr]) -> Expr:
        if isinstance(e, Var):
            return table.get(e.name, e)
        if not table or not children(e):
            return e
        key = (e, frozenset(table.items()))
        if key not in self.done:
            self.done[key] = self.node(e, table)
        return self.done[key]

    def node(self, e: Expr, table: Mapping[str, Expr]) -> Expr:
        match e:
            case Op(name, args, sort):
                return Op(name, tuple(self.run(a, table) for a in args), sort)
            case Contract(a, b, axis, extent, sort, span):
                (new,), inner = self.bind((axis,), table)
                return Contract(self.run(a, inner), self.run(b, inner), new, self.run(extent, table), sort, span)
            case Reduce(op, body, binders, where, sort, span):
                fresh, inner = self.bind(tuple(b.index for b in binders), table)
                bound = tuple(Binder(v, self.run(b.size, table)) for v, b in zip(fresh, binders, strict=True))
                return Reduce(op, self.run(body, inner), bound, self.run(where, inner), sort, span)
            case Scan(binder=binder):
                self.steady((binder.index,), table)
            case Weights(keys=keys):
                self.steady(tuple(k.index for k in keys), table)
        return with_children(e, tuple(self.run(c, table) for c in children(e)))

    def bind(self, axes: tuple[Var, ...], table: Mapping[str, Expr]) -> tuple[tuple[Var, ...], dict[str, Expr]]:
        names = {a.name for a in axes}
        inner = {k: v for k, v in table.items() if k not in names}
        captured = {v for new in inner.values() for v in _vars(new)}
        out = []
        for axis in axes:
            if axis.name in captured:
                self.fresh += 1
                inner[axis.name] = Var(f"{axis.name}_{self.fresh}", axis.sort)
            out.append(cast(Var, inner.get(axis.name, axis)))
        return tuple(out), inner

    def steady(self, own: tuple[Var, ...], table: Mapping[str, Expr]) -> None:
        """A running sum and weights are known along their own index only; it may be replaced by another name."""
        captured = {v for new in table.values() for v in _vars(new)}
        for index in own:
            new = table.get(index.name, index)
            if not isinstance(new, Var) or (new is index and index.name in captured):
                what = f"reading weights or a running sum at another `{index.name}`"
                raise NotCompiled(f"{what} is not compiled yet", self.place, hint="give it axes with `let x[...]`")


def _vars(e: Expr) -> set[str]:
    found, stack = set(), [e]
    while stack:
        node = stack.pop()
        if isinstance(node, Var):
            found.add(node.name)
        stack.extend(children(node))
    return found
