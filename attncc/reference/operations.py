"""The reference's own table of operations: the name of each scalar operation and what torch computes for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    quotient = torch.div(a, torch.where(b == 0, 1, b), rounding_mode="floor")
    return torch.where(b == 0, 0, quotient)


def _modulo(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0, torch.remainder(a, torch.where(b == 0, 1, b)))


TABLE: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": _floor_divide,
    "mod": _modulo,
    "neg": torch.neg,
    "abs": torch.abs,
    "min": torch.minimum,
    "max": torch.maximum,
    "pow": torch.pow,
    "square": torch.square,
    "recip": torch.reciprocal,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: -functional.logsigmoid(-x),
    "relu": torch.relu,
    "elu": functional.elu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "floor": lambda x: torch.floor(x).to(torch.int64),
    "ceil": lambda x: torch.ceil(x).to(torch.int64),
    "lt": torch.lt,
    "le": torch.le,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
}
"""`where` and `real` are missing here: they need more than their operands' values."""

COMPARISONS = frozenset({"lt", "le", "eq", "ne"})

DELICATE: dict[str, int] = {
    "div": 1,
    "recip": 0,
    "pow": 0,
    "exp": 0,
    "exp2": 0,
    "expm1": 0,
    "log": 0,
    "log2": 0,
    "log1p": 0,
    "sqrt": 0,
    "rsqrt": 0,
}
"""Operations that can give inf or NaN, and the operand that is replaced by 1 where the result is not used."""
