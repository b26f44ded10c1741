"""Checks 1 and 2: every value has the axes and element type its operation makes; dots take operands as they lie."""

from __future__ import annotations

from collections.abc import Mapping

from attncc.expr.nodes import Expr, Op, Sort, Var, free_vars, walk
from attncc.tile import nodes as t
from attncc.tile.text import sort_of, spell_type
from attncc.tile.verify_faults import PermutedDotError, ScopeError
from attncc.tile.verify_scope import Checked, Place, operands, uses, yields

Types = Mapping[str, t.Type]


def names_and_types(c: Checked, kernel: t.Kernel) -> None:
    """1. Every name is defined once and before its uses; every type is what its operation makes."""
    defined: set[str] = set()
    shared: dict[str, t.Type] = {}
    for place in c.places(kernel):
        s = place.stmt
        missing = sorted(n for n in uses(s) if n not in place.types)
        if missing:
            raise place.error(ScopeError, f"{', '.join(missing)} is not in scope")
        for name in _binds(s):
            if name in defined or name in c.scalar_types(kernel):
                raise place.error(ScopeError, f"{name} is defined a second time")
            defined.add(name)
        if isinstance(s, t.AllocShared):
            shared[s.name] = s.type
        _statement(c, place, shared)


def _binds(s: t.Stmt) -> tuple[str, ...]:
    match s:
        case t.Let(name):
            return (name,)
        case t.For(index, _, carried):
            return (index, *(x.name for x in carried))
        case t.If(_, _, _, carried):
            return tuple(x.name for x in carried)
        case _:
            return ()


def _statement(c: Checked, place: Place, shared: Mapping[str, t.Type]) -> None:
    match place.stmt:
        case t.Let(name, type, op):
            wrong = mistyped(c, place, shared, type, op)
            if wrong:
                raise place.error(ScopeError, f"{name}: {spell_type(type)}: {wrong}")
        case t.Store(tensor, index, value, guard) | t.ReduceAdd(tensor, index, value, _, guard):
            _stored(c, place, tensor, index, value, guard)
        case t.For() | t.If() as s:
            _carries(place, s)
        case t.SharedStore(slot, value):
            if slot.name not in shared:
                raise place.error(ScopeError, f"{slot.name} is no shared buffer")
            want = part_type(shared[slot.name], slot)
            if place.types[value] != want:
                raise place.error(ScopeError, f"{value} is {spell_type(place.types[value])}, not {spell_type(want)}")
        case _:
            pass


def _stored(c: Checked, place: Place, name: str, index: tuple[Expr, ...], value: str, guard: Expr) -> None:
    type, types = place.types[value], place.types
    wrong = _places(c, place, name, index) or _within(type, types, *index, guard)
    if not wrong and sort_of(c.tensors[name].dtype) != sort_of(type.dtype):
        wrong = f"{type.dtype} stored to {c.tensors[name].dtype}"
    if wrong:
        raise place.error(ScopeError, wrong)


def _carries(place: Place, s: t.For | t.If) -> None:
    exprs = (s.condition,) if isinstance(s, t.If) else ()
    if any(place.types[n].axes for e in exprs for n in free_vars(e)):
        raise place.error(ScopeError, "a condition is a scalar")
    ends = yields(s)
    if s.carried and len(ends) < (1 if isinstance(s, t.For) else 2):
        raise place.error(ScopeError, "a body that carries values ends in a Yield")
    for y in ends:
        if len(y.values) != len(s.carried):
            raise place.error(ScopeError, f"{len(y.values)} values are yielded for {len(s.carried)} names")
    for x in s.carried if isinstance(s, t.For) else ():
        if place.types[x.start] != x.type:
            raise place.error(ScopeError, f"{x.name} starts as {spell_type(place.types[x.start])}")


def yields_types(c: Checked, kernel: t.Kernel) -> None:
    """1, continued. Yielded values have the carried names' types."""
    ends: dict[int, tuple[t.Carry, ...]] = {}
    for place in c.places(kernel):
        if isinstance(place.stmt, t.For | t.If):
            ends |= {id(y): place.stmt.carried for y in yields(place.stmt)}
        if isinstance(place.stmt, t.Yield):
            for x, name in zip(ends.get(id(place.stmt), ()), place.stmt.values, strict=False):
                if place.types[name] != x.type:
                    raise place.error(
                        ScopeError, f"{x.name}: {spell_type(x.type)} becomes {name}: {spell_type(place.types[name])}"
                    )


# --- what an operation makes ------------------------------------------------------------------------------------------


def part_type(type: t.Type, slot: t.Slot) -> t.Type:
    """The type of a slot, or of the part of it."""
    if slot.part is None:
        return type
    name, _, extent = slot.part
    return t.Type(tuple(t.Axis(a.name, extent) if a.name == name else a for a in type.axes), type.dtype)


def _within(type: t.Type, types: Types, *exprs: Expr) -> str:
    """What is wrong with expressions evaluated over the axes of `type`: foreign axes or a Var of another sort."""
    for e in exprs:
        for node in walk(e):
            if isinstance(node, Var):
                own = types[node.name]
                if sort_of(own.dtype) != node.sort:
                    return f"{node.name} is {own.dtype}, read as {node.sort}"
                foreign = [a.name for a in own.axes if a not in type.axes]
                if foreign:
                    return f"{node.name} has the axis {', '.join(foreign)}"
    return ""


def _places(c: Checked, place: Place, tensor: str, index: tuple[Expr, ...]) -> str:
    if tensor not in place.kernel.tensors:
        return f"{tensor} is no tensor of the kernel"
    if len(index) != len(c.tensors[tensor].axes):
        return f"{len(index)} indices for the {len(c.tensors[tensor].axes)} axes of {tensor}"
    return "" if all(e.sort == "int" for e in index) else "an index is an integer"


def _same_axes(type: t.Type, axes: tuple[t.Axis, ...], dtype: t.Dtype | None) -> str:
    if set(type.axes) != set(axes) or len(type.axes) != len(axes):
        return f"its axes are {', '.join(f'{a.name} {a.extent}' for a in axes) or 'none'}"
    return "" if dtype in (None, type.dtype) else f"its element type is {dtype}"


def _without(type: t.Type, axis: str) -> tuple[t.Axis, ...]:
    return tuple(a for a in type.axes if a.name != axis)


def _sorted(type: t.Type, sort: Sort) -> str:
    return "" if sort_of(type.dtype) == sort else f"its expression is {sort}"


def _boxed(types: Mapping[str, t.Type], type: t.Type, index: tuple[Expr, ...], other: float | int | bool) -> str:
    """What is wrong with a bulk load, or nothing: its lanes are the last of the tensor's axes, and 0 fills up."""
    axes = [types[x.name].names() if isinstance(x, Var) else () for x in index]
    lanes = [n for names in axes for n in names]
    own = axes[len(index) - len(type.axes) :]
    alike = all(len(names) == 1 for names in own) and tuple(lanes) == type.names()
    return "" if alike and other == 0 else "a bulk load reads a box of its tensor, and 0 outside"


def mistyped(c: Checked, place: Place, shared: Mapping[str, t.Type], type: t.Type, op: t.Op) -> str:
    """What is wrong with the declared type of an operation, or nothing."""
    types = place.types
    match op:
        case t.Full(e):
            return _sorted(type, e.sort) or _within(t.Type((), type.dtype), types, e)
        case t.Iota(base):
            wrong = (
                "" if len(type.axes) == 1 and sort_of(type.dtype) == "int" else "an Iota is of one axis, and integer"
            )
            return wrong or _within(t.Type((), type.dtype), types, base)
        case t.Map(body, spared):
            wrong = _sorted(type, body.sort) or _within(type, types, body)
            return wrong or (_by_rows(types, type, body) if spared else "")
        case t.Load(tensor, index, guard, other, bulk):
            wrong = _places(c, place, tensor, index) or _within(type, types, *index, guard)
            wrong = wrong or (_boxed(types, type, index, other) if bulk else "")
            names = {n for e in (*index, guard) for n in free_vars(e)}
            axes = tuple({a for n in names for a in types[n].axes})
            return wrong or _same_axes(type, axes, c.tensors[tensor].dtype)
        case t.Dot():
            return _dot(types, shared, type, op)
        case t.SharedLoad(slot):
            if slot.name not in shared:
                return f"{slot.name} is no shared buffer"
            return "" if part_type(shared[slot.name], slot) == type else "the slot has another type"
        case t.GatherAxis(value, index, axis):
            axes = tuple({*_without(types[value], axis), *types[index].axes})
            return _same_axes(type, axes, types[value].dtype)
        case t.Random(_, counter):
            return _sorted(type, "real") or _within(type, types, counter)
        case _:
            return _register(types[op.value], type, op)


def _by_rows(types: Types, type: t.Type, body: Expr) -> str:
    match body:
        case Op("mul", (Var(value), Var(factor))):
            by_rows = len(type.axes) == 2 and types[value].axes == type.axes and types[factor].axes == type.axes[:1]
        case _:
            by_rows = False
    return "" if by_rows else "only a product with a factor by rows is spared"


def _register(own: t.Type, type: t.Type, op: t.Op) -> str:
    match op:
        case t.Reduce(kind, _, axis):
            wrong = "" if axis in own.names() else f"no axis {axis}"
            if kind in ("any", "all") and own.dtype != "bool":
                return f"{kind} of {own.dtype}"
            return wrong or _same_axes(type, _without(own, axis), own.dtype)
        case t.Scan(_, _, axis) | t.TopK(_, axis) | t.Pack(_, _, axis) | t.Unpack(_, _, axis):
            if axis not in own.names():
                return f"no axis {axis}"
            resized = isinstance(op, t.TopK | t.Pack | t.Unpack)
            return "" if resized else _same_axes(type, own.axes, own.dtype)
        case t.Cast():
            return _same_axes(type, own.axes, None)
        case t.Rename():
            sizes_match = [a.extent for a in own.axes] == [a.extent for a in type.axes]
            return "" if sizes_match and own.dtype == type.dtype else "a Rename keeps extents and element type"
        case t.DotWait() | t.Convert():
            return "" if type == own else "it is of another type"
        case t.SplitAxis(_, axis, outer, inner):
            sizes = {a.name: a.extent for a in own.axes}
            wrong = "" if sizes.get(axis) == outer.extent * inner.extent else f"{axis} does not split so"
            return wrong or _same_axes(type, (*_without(own, axis), outer, inner), own.dtype)
        case t.JoinAxis(_, outer_name, inner_name, joined):
            sizes = {a.name: a.extent for a in own.axes}
            if joined.extent != sizes.get(outer_name, 0) * sizes.get(inner_name, 0):
                return f"{outer_name} and {inner_name} do not join so"
            kept = tuple(a for a in own.axes if a.name not in (outer_name, inner_name))
            return _same_axes(type, (*kept, joined), own.dtype)
        case _:
            return _same_axes(type, own.axes, None)


def _dot(types: Types, shared: Mapping[str, t.Type], type: t.Type, op: t.Dot) -> str:
    sides = []
    for x in (op.a, op.b):
        if isinstance(x, t.Slot):
            if x.name not in shared:
                return f"{x.name} is no shared buffer"
            sides.append(part_type(shared[x.name], x))
        else:
            sides.append(types[x])
    a, b = ({x.name: x.extent for x in s.axes} for s in sides)
    if op.axis not in a or op.axis not in b or a[op.axis] != b[op.axis]:
        return f"both operands need the axis {op.axis}, equally long"
    if sides[0].dtype != sides[1].dtype:
        return f"operands of {sides[0].dtype} and {sides[1].dtype}"
    clash = [n for n in a if n in b and a[n] != b[n]]
    if clash:
        return f"operands differ along {', '.join(clash)}"
    axes = tuple(t.Axis(n, e) for n, e in (a | b).items() if n != op.axis)
    if op.start is not None and not {*types[op.start].axes} <= {*type.axes}:
        return f"{op.start} has axes that the result lacks"
    return _same_axes(type, axes, None)


# --- 2 ---------------------------------------------------------------------------------------------------------------

_KEEPS = t.Map | t.Cast | t.Convert | t.DotWait
"""Operations whose result lies in registers as their operand did."""


def permuted_dots(c: Checked, kernel: t.Kernel) -> None:
    """2. No dot takes the result of a dot against its order: rows first, the axis summed over last (or mirrored)."""
    lies: dict[str, tuple[str, ...]] = {}
    for place in c.places(kernel):
        if not isinstance(place.stmt, t.Let):
            continue
        name, type, op = place.stmt.name, place.stmt.type, place.stmt.op
        if isinstance(op, t.Dot):
            for x in (op.a, op.b):
                if isinstance(x, str) and x in lies:
                    _expect_order(place, x, lies[x], type, op)
            lies[name] = type.names()
        elif isinstance(op, t.Rename) and op.value in lies:
            new = dict(zip(place.types[op.value].names(), type.names(), strict=True))
            lies[name] = tuple(new[n] for n in lies[op.value])
        elif isinstance(op, _KEEPS):
            wide = [
                n for n in sorted(operands(op)) if n in lies and len(lies[n]) > 1 and set(lies[n]) == set(type.names())
            ]
            if wide:
                lies[name] = lies[wide[0]]


def _expect_order(place: Place, x: str, order: tuple[str, ...], type: t.Type, op: t.Dot) -> None:
    """The operand's own axis and the summed one, in the order the result's rows or columns want."""
    own = [n for n in order if n != op.axis and n in type.names()]
    other = op.b if x == op.a else op.a
    batch = set(place.types[other].names()) & set(own) if isinstance(other, str) else set()
    free = [n for n in own if n not in batch]
    if len(free) != 1:
        return
    rest = [n for n in type.names() if n not in batch]
    want = (free[0], op.axis) if rest and rest[0] == free[0] else (op.axis, free[0])
    have = tuple(n for n in order if n not in batch)
    if have != want:
        raise place.error(PermutedDotError, f"{x} lies as ({', '.join(have)}), the dot wants ({', '.join(want)})")
