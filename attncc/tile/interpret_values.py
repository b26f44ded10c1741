"""Values of the interpreter: numpy arrays with named axes, rounding to element types, and scalar expressions on them.

f64 lives in float64; f32, f16 and bf16 in float32, rounded to their type; all integers in int64, checked for range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attncc.expr.nodes import Const, Expr, Op, Sort, Var, walk
from attncc.tile.interpret_faults import TypeFault
from attncc.tile.nodes import Dtype, Type

Array = npt.NDArray[Any]

_RANGE: dict[Dtype, tuple[int, int]] = {"i32": (-(2**31), 2**31 - 1), "u8": (0, 255)}


@dataclass(eq=False, slots=True)
class Ticket:
    """An asynchronous dot in flight; `done` once a DotWait covers it."""

    done: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """An array whose dimensions are named; no axes: a scalar."""

    axes: tuple[str, ...]
    data: Array
    dtype: Dtype
    ticket: Ticket | None = None

    def extents(self) -> tuple[int, ...]:
        return tuple(self.data.shape)


def sort_of(dtype: Dtype) -> Sort:
    """The sort of expressions that read elements of `dtype`."""
    if dtype == "bool":
        return "bool"
    return "real" if dtype in ("f64", "f32", "f16", "bf16") else "int"


def storage(dtype: Dtype) -> Any:
    """The numpy type that holds elements of `dtype`."""
    match sort_of(dtype):
        case "bool":
            return np.bool_
        case "int":
            return np.int64
        case "real":
            return np.float64 if dtype == "f64" else np.float32


def round_bf16(x: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    kept = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), kept.view(np.float32)).reshape(np.shape(x))


def rounded(data: Array, dtype: Dtype) -> Array:
    """`data` as elements of `dtype`, to nearest; integers must fit."""
    data = np.asarray(data)
    if dtype in _RANGE and data.size:
        low, high = _RANGE[dtype]
        if data.min() < low or data.max() > high:
            raise TypeFault(f"a value does not fit {dtype}: {int(data.min())} .. {int(data.max())}")
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.asarray(data, dtype=storage(dtype))
        if dtype == "f16":
            out = np.asarray(out.astype(np.float16), dtype=np.float32)
    return round_bf16(out) if dtype == "bf16" else out


def scalar(value: float | bool, dtype: Dtype) -> Value:
    """A Python number as a value without axes."""
    return Value((), rounded(np.asarray(value), dtype), dtype)


def aligned(value: Value, space: tuple[str, ...]) -> Array:
    """`value`'s array with one dimension per name of `space`, of extent 1 where it has no such axis."""
    if not value.axes:
        return value.data
    missing = [a for a in value.axes if a not in space]
    if missing:
        raise TypeFault(f"axis {', '.join(missing)} is not among ({', '.join(space)})")
    order = [value.axes.index(a) for a in space if a in value.axes]
    data = value.data.transpose(order)
    sizes = iter(data.shape)
    return data.reshape(tuple(next(sizes) if a in value.axes else 1 for a in space))


def shape(type: Type) -> tuple[int, ...]:
    """The array shape of a value of `type`."""
    return tuple(a.extent for a in type.axes)


# --- scalar expressions ---------------------------------------------------------------------------------------------


def _floordiv(a: Array, b: Array) -> Array:
    return np.where(b == 0, 0, np.floor_divide(a, np.where(b == 0, 1, b)))


def _mod(a: Array, b: Array) -> Array:
    return np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b)))


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), dtype=np.asarray(x).dtype)


def _sigmoid(x: Array) -> Array:
    return np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x)))


_TABLE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": _floordiv,
    "mod": _mod,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "pow": np.power,
    "square": np.square,
    "recip": np.reciprocal,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "erf": _erf,
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.logaddexp(np.zeros_like(x), x),
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x / 2 * (1 + _erf(x / np.sqrt(np.asarray(2, dtype=np.asarray(x).dtype)))),
    "floor": lambda x: np.floor(x).astype(np.int64),
    "ceil": lambda x: np.ceil(x).astype(np.int64),
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}


def evaluate(e: Expr, lookup: Callable[[Var], Array], real: Any) -> Array:
    """`e` on arrays that broadcast; `real` is the numpy type of real literals and of promoted integers."""
    done: dict[Expr, Array] = {}
    with np.errstate(all="ignore"):
        for node in walk(e):
            match node:
                case Const(value, sort):
                    kind = {"int": np.int64, "real": real, "bool": np.bool_}[sort]
                    done[node] = np.asarray(value, dtype=kind)
                case Var():
                    done[node] = lookup(node)
                case Op("real", args, _):
                    done[node] = np.asarray(done[args[0]]).astype(real)
                case Op(name, args, _):
                    done[node] = np.asarray(_TABLE[name](*(done[a] for a in args)))
                case _:
                    raise TypeFault(f"{type(node).__name__} does not belong in the Tile IR")
    return done[e]


def host_value(e: Expr, scalars: Mapping[str, float | bool]) -> Any:
    """A host expression of sizes and constants, in Python's numbers (reals in double precision)."""

    def lookup(v: Var) -> Array:
        if v.name not in scalars:
            raise TypeFault(f"{v.name} is no scalar of the program")
        kind = {"int": np.int64, "real": np.float64, "bool": np.bool_}[v.sort]
        return np.asarray(scalars[v.name], dtype=kind)

    return evaluate(e, lookup, np.float64).item()
