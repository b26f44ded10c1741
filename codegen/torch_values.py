"""Prints the rarer operations on values: scans, changes of axes, gathers along an axis, triangular inverses, top-k."""

from __future__ import annotations

from attncc.codegen.scalars import CALL
from attncc.codegen.torch_exprs import Text
from attncc.codegen.torch_state import Item, State
from attncc.errors import InternalError
from attncc.tile import nodes as t


def misc(state: State, s: t.Let) -> Item:
    """The value of an operation that is neither a map, a product, a reduction nor an access."""
    axes = s.type.names()
    match s.op:
        case t.Scan(which, value, axis, reverse, exclusive):
            return _scan(state.item(value), which, axis, reverse, exclusive)
        case t.Convert(value) | t.DotWait(value):
            return state.item(value)
        case t.Rename(value):
            item = state.item(value)
            return Item(item.text, axes, item.varies, item.storage, item.dense)
        case t.SplitAxis(value, axis, outer, inner):
            item = state.item(value)
            dim = item.axes.index(axis) - len(item.axes)
            return _made(f"{item.text.at(CALL)}.unflatten({dim}, ({outer.extent}, {inner.extent})).clone()", item, axes)
        case t.JoinAxis(value, outer, _):
            item = state.item(value)
            dim = item.axes.index(outer) - len(item.axes)
            return _made(f"{item.text.at(CALL)}.flatten({dim}, {dim + 1}).clone()", item, axes)
        case t.GatherAxis(value, index, axis):
            item, places = state.item(value), state.item(index, "int")
            dim = item.axes.index(axis) - len(item.axes)
            text = f"torch.take_along_dim({item.text.text}, {places.aligned(axes).text}, {dim})"
            return Item(Text(text, CALL, True, item.sort), axes, item.varies | places.varies)
        case t.TriInverse(value, row, column):
            item = state.item(value)
            if item.axes != (row, column):
                raise InternalError("a triangular inverse over permuted axes has no torch spelling")
            x = item.text.at(CALL)
            eye = f"torch.eye({x}.shape[-1], dtype={x}.dtype, device=device)"
            text = f"torch.linalg.solve_triangular({x} + {eye}, {eye}, upper=False, unitriangular=True)"
            return _made(text, item, axes)
        case t.TopK(value, axis, count):
            item = state.item(value)
            dim = item.axes.index(axis) - len(item.axes)
            order = f"torch.sort({item.text.text}, {dim}, descending=True, stable=True).indices"
            return Item(Text(f"{order}.narrow({dim}, 0, {count})", CALL, True, "int"), axes, item.varies)
        case _:
            raise InternalError(f"{type(s.op).__name__} has no torch spelling")


def _made(text: str, item: Item, axes: tuple[str, ...]) -> Item:
    return Item(Text(text, CALL, True, item.sort), axes, item.varies)


def _scan(item: Item, which: str, axis: str, reverse: bool, exclusive: bool) -> Item:
    dim = item.axes.index(axis) - len(item.axes)
    call = {"sum": f"cumsum({dim})", "mul": f"cumprod({dim})", "max": f"cummax({dim}).values"}[which]
    text = item.text.at(CALL)
    if reverse:
        text = f"{text}.flip({dim})"
    text = f"{text}.{call}"
    if exclusive:
        neutral = {"sum": "0.0", "mul": "1.0", "max": "-math.inf"}[which]
        pad = ", ".join(["0, 0"] * (-dim - 1) + ["1, -1"])
        text = f"torch.nn.functional.pad({text}, ({pad}), value={neutral})"
    if reverse:
        text = f"{text}.flip({dim})"
    return _made(text, item, item.axes)
