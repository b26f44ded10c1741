"""Prints products: one batched matrix product over the flattened batch, accumulating in place where it can."""

from __future__ import annotations

from attncc.codegen.scalars import CALL, TERNARY
from attncc.codegen.torch_exprs import Text
from attncc.codegen.torch_state import Item, State, align
from attncc.errors import InternalError
from attncc.tile import nodes as t

BLANK = "blank"
"""A tensor that is never read, for products without an addend."""


def dot(state: State, s: t.Let, d: t.Dot) -> Item:
    """start + a @ b over d.axis, times the number it was found to be multiplied by."""
    assert isinstance(d.a, str) and isinstance(d.b, str)
    a, b = state.item(d.a), state.item(d.b)
    axes = s.type.names()
    if len(axes) != 2 or len(a.axes) != 2 or len(b.axes) != 2:
        return einsum(state, s, d, a, b)
    if set(a.axes) != {axes[0], d.axis}:
        a, b = b, a
    if set(a.axes) != {axes[0], d.axis} or set(b.axes) != {axes[1], d.axis}:
        raise InternalError(f"the axes of product {s.name} don't fit its operands")
    varies = a.varies | b.varies
    left, right = operand(state, a, (axes[0], d.axis), varies), operand(state, b, (d.axis, axes[1]), varies)
    shape = [state.length(x) for x in s.type.axes]
    scale = state.facts.scale.get(s.name)
    if d.start is not None:
        return accumulated(state, s, d.start, left, right, varies, shape)
    room = state.borrow(s.type, varies)
    out = f", out={room}" if room else ""
    if scale is None:
        text = f"torch.bmm({left}, {right}{out})" if varies else f"{left} @ {right}"
    else:
        alpha = state.number(scale, TERNARY)
        if varies:
            text = f"torch.baddbmm({BLANK}, {left}, {right}, beta=0, alpha={alpha}{out})"
        else:
            text = f"({left} @ {right}) * {alpha}"
    if varies and len(state.facts.batch) > 1:
        text = f"{text}.unflatten(0, ({', '.join(state.leading(varies))}))"
    return Item(Text(text, CALL, True, "real"), axes, varies, None, True, bool(room))


def operand(state: State, x: Item, axes: tuple[str, ...], varies: frozenset[str]) -> str:
    """An operand as [batch, row, column]."""
    text = align(x.text.at(CALL), x.axes, axes, bool(x.varies))
    if not varies:
        return text
    batch = state.facts.batch
    if x.varies != varies:
        text = f"{text}.expand({', '.join([*state.leading(varies), '-1', '-1'])})"
    flat = len(batch) == 1 or (x.storage is not None and x.storage.names <= state.facts.flat)
    return text if flat else f"{text}.flatten(0, {len(batch) - 1})"


def accumulated(
    state: State, s: t.Let, start: str, left: str, right: str, varies: frozenset[str], shape: list[str]
) -> Item:
    """start + left @ right, into start's own tensor where nothing else reads it."""
    x = state.item(start)
    axes = s.type.names()
    several = len(state.facts.batch) > 1
    if not varies:
        return Item(Text(f"torch.addmm({x.aligned(axes).at(TERNARY)}, {left}, {right})", CALL, True, "real"), axes)
    if x.axes == axes and x.varies == varies and x.storage is not None and x.dense and state.free(x.storage):
        target = f"{x.storage.var}.flatten(0, {len(state.facts.batch) - 1})" if several else x.storage.var
        state.w.line(f"{target}.baddbmm_({left}, {right})", s.note)
        return x
    sizes = ", ".join([*state.leading(varies), *shape])
    first = x.aligned(axes).at(CALL)
    if several:
        first = f"{first}.expand({sizes}).flatten(0, {len(state.facts.batch) - 1})"
    text = f"torch.baddbmm({first}, {left}, {right})" + (f".view({sizes})" if several else "")
    return Item(Text(text, CALL, True, "real"), axes, varies | x.varies, None, True)


def einsum(state: State, s: t.Let, d: t.Dot, a: Item, b: Item) -> Item:
    """Products of vectors, or with more axes."""
    letters = {n: chr(ord("a") + k) for k, n in enumerate(dict.fromkeys((*a.axes, *b.axes)))}
    axes = s.type.names()
    terms = ",".join("..." + "".join(letters[n] for n in x.axes) for x in (a, b))
    text = f'torch.einsum("{terms}->...{"".join(letters[n] for n in axes)}", {a.text.text}, {b.text.text})'
    scale = state.facts.scale.get(s.name)
    if scale is not None:
        text = f"{text}.mul_({state.number(scale)})"
    item = Item(Text(text, CALL, True, "real"), axes, a.varies | b.varies)
    if d.start is None:
        return item
    x = state.item(d.start)
    return Item(Text(f"{text}.add_({x.aligned(axes).at(TERNARY)})", CALL, True, "real"), axes, item.varies | x.varies)
