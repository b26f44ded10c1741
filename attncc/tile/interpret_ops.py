"""The interpreter's operations on values alone: what each register operation computes, by axis names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attncc.tile.interpret_faults import TypeFault
from attncc.tile.interpret_values import Array, Value, aligned, rounded, shape, sort_of
from attncc.tile.nodes import Axis, JoinAxis, Pack, Reduce, Scan, SplitAxis, TopK, TriInverse, Type, Unpack
from attncc.tile.sizes import BYTES


def declared(value: Value, type: Type, what: str) -> Value:
    """`value` itself, once its axes, extents and element type are those of `type`."""
    if value.axes != type.names() or value.extents() != shape(type):
        have = ", ".join(f"{a}: {n}" for a, n in zip(value.axes, value.extents(), strict=True))
        want = ", ".join(f"{a.name}: {a.extent}" for a in type.axes)
        raise TypeFault(f"{what} is ({have}), declared ({want})")
    if value.dtype != type.dtype:
        raise TypeFault(f"{what} is {value.dtype}, declared {type.dtype}")
    return value


def _in_order(axes: tuple[str, ...], data: Array, type: Type, what: str) -> Value:
    """`data` over `axes` as a value of `type`: the axes in the type's order, elements rounded to its type."""
    if sorted(axes) != sorted(type.names()):
        raise TypeFault(f"{what} has axes ({', '.join(axes)}), declared ({', '.join(type.names())})")
    out = np.asarray(data).transpose([axes.index(a) for a in type.names()])
    return declared(Value(type.names(), rounded(out, type.dtype), type.dtype), type, what)


def dimension(value: Value, axis: str) -> int:
    """The array dimension of a named axis."""
    if axis not in value.axes:
        raise TypeFault(f"no axis {axis} among ({', '.join(value.axes)})")
    return value.axes.index(axis)


def reduce(op: Reduce, x: Value, type: Type) -> Value:
    """One axis less; of nothing: 0, -inf, inf, false, true."""
    table: dict[str, Callable[..., Any]] = {
        "sum": np.sum,
        "max": np.max,
        "min": np.min,
        "any": np.any,
        "all": np.all,
    }
    data = np.asarray(table[op.op](x.data, axis=dimension(x, op.axis)))
    return _in_order(tuple(a for a in x.axes if a != op.axis), data, type, f"{op.op} over {op.axis}")


def scan(op: Scan, x: Value, type: Type) -> Value:
    """Running `op` along an axis; exclusive shifts by one and starts from the neutral element."""
    d = dimension(x, op.axis)
    table: dict[str, Any] = {"sum": np.add, "max": np.maximum, "mul": np.multiply}
    neutral = {"sum": 0, "mul": 1, "max": -np.inf if sort_of(x.dtype) == "real" else np.iinfo(np.int64).min}[op.op]
    data = np.flip(x.data, d) if op.reverse else x.data
    out = table[op.op].accumulate(data, axis=d)
    if op.exclusive:
        first = np.full_like(np.take(out, [0], axis=d), neutral)
        out = np.concatenate([first, np.delete(out, -1, axis=d)], axis=d)
    return _in_order(x.axes, np.flip(out, d) if op.reverse else out, type, "scan")


def dot(a: Value, b: Value, axis: str, start: Value | None, type: Type) -> Value:
    """start + sum over `axis` of a * b; other shared axes are batch axes of the result."""
    names = sorted({*a.axes, *b.axes})
    if axis not in a.axes or axis not in b.axes:
        raise TypeFault(f"both operands of a dot need its axis {axis}")
    if axis in type.names() or set(names) - {axis} != set(type.names()):
        raise TypeFault(f"a dot of {a.axes} and {b.axes} over {axis} has no axes {type.names()}")
    if a.dtype != b.dtype:
        raise TypeFault(f"a dot of {a.dtype} and {b.dtype}")
    letter = {n: chr(ord("a") + k) for k, n in enumerate(names)}
    spell = ["".join(letter[n] for n in axes) for axes in (a.axes, b.axes, type.names())]
    try:
        data = np.einsum(f"{spell[0]},{spell[1]}->{spell[2]}", a.data, b.data, optimize=True)
    except ValueError as e:
        raise TypeFault(f"a dot of extents {a.extents()} and {b.extents()} over {axis}: {e}") from e
    if start is not None:
        data = data + aligned(start, type.names())
    return _in_order(type.names(), data, type, "dot")


def cast(x: Value, rounding: str, type: Type, rng: np.random.Generator) -> Value:
    """The same elements in another type; reals to integers to nearest even, or down."""
    data = x.data
    if sort_of(type.dtype) == "int" and sort_of(x.dtype) == "real":
        data = np.floor(data) if rounding == "down" else np.rint(data)
    elif rounding != "nearest" and sort_of(type.dtype) == "real":
        data = _directed(data, rounding, type, rng)
    if sort_of(type.dtype) == "bool" and sort_of(x.dtype) != "bool":
        raise TypeFault("a cast to bool; compare with zero instead")
    return _in_order(x.axes, data, type, "cast")


def _directed(data: Array, rounding: str, type: Type, rng: np.random.Generator) -> Array:
    """`data` moved to a neighbour in `type`: the lower one, or one of both by chance in proportion."""
    if type.dtype not in ("f16", "bf16"):
        return data
    near = rounded(data, type.dtype)
    step = np.spacing(near.astype(np.float16)).astype(np.float32) if type.dtype == "f16" else _bf16_step(near)
    low = np.where(near > data, rounded(near - np.abs(step), type.dtype), near)
    if rounding == "down":
        return low
    high = np.where(low < data, rounded(low + np.abs(step), type.dtype), low)
    share = np.where(high > low, (data - low) / np.where(high > low, high - low, 1), 0)
    return np.where(rng.random(data.shape) < share, high, low)


def _bf16_step(x: Array) -> Array:
    return np.spacing(np.abs(x).astype(np.float32)) * np.float32(2**16)


def split_axis(op: SplitAxis, x: Value, type: Type) -> Value:
    """index = outer * inner extent + inner."""
    d = dimension(x, op.axis)
    if x.data.shape[d] != op.outer.extent * op.inner.extent:
        raise TypeFault(f"axis {op.axis} of {x.data.shape[d]} is not {op.outer.extent} * {op.inner.extent}")
    sizes = (*x.data.shape[:d], op.outer.extent, op.inner.extent, *x.data.shape[d + 1 :])
    axes = (*x.axes[:d], op.outer.name, op.inner.name, *x.axes[d + 1 :])
    return _in_order(axes, x.data.reshape(sizes), type, "split")


def join_axis(op: JoinAxis, x: Value, type: Type) -> Value:
    """The inverse of split_axis, of neighbouring axes."""
    d = dimension(x, op.outer)
    if dimension(x, op.inner) != d + 1:
        raise TypeFault(f"axes {op.outer} and {op.inner} are not neighbours")
    sizes = (*x.data.shape[:d], op.axis.extent, *x.data.shape[d + 2 :])
    return _in_order((*x.axes[:d], op.axis.name, *x.axes[d + 2 :]), x.data.reshape(sizes), type, "join")


def gather_axis(x: Value, index: Value, axis: str, type: Type) -> Value:
    """x[index] along `axis`: at each element of the result its own index."""
    names = type.names()
    along = np.broadcast_to(aligned(index, names), shape(type))
    grid = np.indices(shape(type))
    where = tuple(along if a == axis else grid[names.index(a)] for a in x.axes)
    extent = x.data.shape[dimension(x, axis)]
    if along.size and (along.min() < 0 or along.max() >= extent):
        raise TypeFault(f"gather index outside axis {axis} of extent {extent}")
    return _in_order(names, x.data[where], type, "gather")


def pack(op: Pack, x: Value, type: Type) -> Value:
    """Groups of neighbours along `axis` in one integer each, the first in the lowest bits."""
    d = dimension(x, op.axis)
    per = 8 * BYTES[type.dtype] // op.bits
    if x.data.size and (x.data.min() < 0 or x.data.max() >= 2**op.bits):
        raise TypeFault(f"pack of values outside {op.bits} bits")
    groups = np.moveaxis(x.data, d, -1)
    groups = groups.reshape(*groups.shape[:-1], -1, per)
    out = np.sum(groups << (np.arange(per) * op.bits), axis=-1)
    if type.dtype == "i32":
        out = np.where(out >= 2**31, out - 2**32, out)
    return _in_order(x.axes, np.moveaxis(out, -1, d), type, "pack")


def unpack(op: Unpack, x: Value, type: Type) -> Value:
    """The inverse of pack: unsigned fields of `bits` bits."""
    d = dimension(x, op.axis)
    per = 8 * BYTES[x.dtype] // op.bits
    fields = (np.moveaxis(x.data, d, -1)[..., None] >> (np.arange(per) * op.bits)) & (2**op.bits - 1)
    return _in_order(x.axes, np.moveaxis(fields.reshape(*fields.shape[:-2], -1), -1, d), type, "unpack")


def random(seed: int, counter: Array, type: Type) -> Value:
    """Uniform numbers in [0, 1): the first word of Philox 4x32-10 at (counter, 0, 0, 0) under the seed's two words."""
    mask = np.uint64(0xFFFFFFFF)
    c = [np.asarray(counter, dtype=np.int64).astype(np.uint64) & mask] + [np.zeros_like(counter, np.uint64)] * 3
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64((seed >> 32) & 0xFFFFFFFF)]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ key[0], b & mask, (a >> np.uint64(32)) ^ c[3] ^ key[1], a & mask]
        key = [(key[0] + np.uint64(0x9E3779B9)) & mask, (key[1] + np.uint64(0xBB67AE85)) & mask]
    word = c[0].astype(np.uint32).view(np.int32).astype(np.int64)
    unit = np.where(word < 0, -word - 1, word) * 4.6566127342e-10
    return Value(type.names(), rounded(unit, type.dtype), type.dtype)


def tri_inverse(op: TriInverse, x: Value, type: Type) -> Value:
    """(I + L)^-1, in double precision."""
    rest = tuple(a for a in x.axes if a not in (op.row, op.column))
    order = [dimension(x, a) for a in (*rest, op.row, op.column)]
    lower = x.data.transpose(order).astype(np.float64)
    if np.triu(lower).any():
        raise TypeFault("TriInverse of a value that is not strictly lower triangular")
    data = np.linalg.inv(np.eye(lower.shape[-1]) + lower)
    return _in_order((*rest, op.row, op.column), data, type, "TriInverse")


def top_k(op: TopK, x: Value, type: Type) -> Value:
    """Positions of the largest, descending; ties to the smaller position."""
    d = dimension(x, op.axis)
    order = np.argsort(-x.data, axis=d, kind="stable").take(range(op.count), axis=d)
    return _in_order(x.axes, order, type, "TopK")


def axis_of(type: Type, what: str) -> Axis:
    """The one axis of a type."""
    if len(type.axes) != 1:
        raise TypeFault(f"{what} has one axis, not {len(type.axes)}")
    return type.axes[0]
