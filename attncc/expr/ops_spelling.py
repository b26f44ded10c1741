"""The op table's columns of spellings, one per printer, and what is written with other operations instead.

A template takes the arguments as {0}, {1}, {2} and the printer's types as {int} and {real}. `level` is how tightly
the result binds (Python's precedence), `inner` how tightly each argument must bind to stand without parentheses.
Names with a leading underscore are helpers whose source the printer carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from attncc.expr.build import op
from attncc.expr.nodes import Expr

CHOICE, OR, AND, NOT, COMPARE, BIT_OR, BIT_AND, SUM, TERM, SIGN, POWER, ATOM = range(12)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a printer writes one operation."""

    template: str
    level: int = ATOM
    inner: tuple[int, ...] = (CHOICE, CHOICE, CHOICE)


def _infix(sign: str, level: int, left: int | None = None) -> Spelling:
    return Spelling(f"{{0}} {sign} {{1}}", level, (level if left is None else left, level + 1))


def _calls(**templates: str) -> dict[str, Spelling]:
    return {f"{name.rstrip('_')}": Spelling(template) for name, template in templates.items()}


_ARITHMETIC: dict[str, Spelling] = {
    "add": _infix("+", SUM),
    "sub": _infix("-", SUM),
    "mul": _infix("*", TERM),
    "div": _infix("/", TERM),
    "neg": Spelling("-{0}", SIGN, (SIGN,)),
    "recip": Spelling("1.0 / {0}", TERM, (SIGN,)),
    "lt": _infix("<", COMPARE, COMPARE + 1),
    "le": _infix("<=", COMPARE, COMPARE + 1),
    "eq": _infix("==", COMPARE, COMPARE + 1),
    "ne": _infix("!=", COMPARE, COMPARE + 1),
}

_BITWISE: dict[str, Spelling] = {
    "and": _infix("&", BIT_AND),
    "or": _infix("|", BIT_OR),
    "not": Spelling("~{0}", SIGN, (SIGN,)),
}

_TRITON = {
    **_ARITHMETIC,
    **_BITWISE,
    **_calls(
        abs="tl.abs({0})",
        min="tl.minimum({0}, {1})",
        max="tl.maximum({0}, {1})",
        where="tl.where({0}, {1}, {2})",
        exp="tl.exp({0})",
        exp2="tl.exp2({0})",
        log="tl.log({0})",
        log2="tl.log2({0})",
        sqrt="tl.sqrt({0})",
        rsqrt="tl.rsqrt({0})",
        sin="tl.sin({0})",
        cos="tl.cos({0})",
        erf="tl.erf({0})",
        sigmoid="tl.sigmoid({0})",
        floor="tl.floor({0}).to({int})",
        ceil="tl.ceil({0}).to({int})",
        tanh="_tanh({0})",
        expm1="_expm1({0})",
        log1p="_log1p({0})",
        pow="_pow({0}, {1})",
        floordiv="_floordiv({0}, {1})",
        mod="_floormod({0}, {1})",
    ),
    "real": Spelling("{0}.to({real})", ATOM, (ATOM,)),
}

_TORCH = {
    **_ARITHMETIC,
    **_BITWISE,
    **_calls(
        abs="torch.abs({0})",
        min="torch.minimum({0}, {1})",
        max="torch.maximum({0}, {1})",
        where="torch.where({0}, {1}, {2})",
        exp="torch.exp({0})",
        exp2="torch.exp2({0})",
        expm1="torch.expm1({0})",
        log="torch.log({0})",
        log2="torch.log2({0})",
        log1p="torch.log1p({0})",
        sqrt="torch.sqrt({0})",
        rsqrt="torch.rsqrt({0})",
        sin="torch.sin({0})",
        cos="torch.cos({0})",
        tanh="torch.tanh({0})",
        erf="torch.erf({0})",
        sigmoid="torch.sigmoid({0})",
        pow="torch.pow({0}, {1})",
        square="torch.square({0})",
        relu="torch.relu({0})",
        floor="torch.floor({0}).to({int})",
        ceil="torch.ceil({0}).to({int})",
    ),
    "recip": Spelling("torch.reciprocal({0})"),
    "real": Spelling("{0}.to({real})", ATOM, (ATOM,)),
    "floordiv": _infix("//", TERM),
    "mod": _infix("%", TERM),
}

_PYTHON = {
    **_ARITHMETIC,
    **_calls(
        abs="abs({0})",
        min="min({0}, {1})",
        max="max({0}, {1})",
        exp="math.exp({0})",
        exp2="math.exp2({0})",
        expm1="math.expm1({0})",
        log="math.log({0})",
        log2="math.log2({0})",
        log1p="math.log1p({0})",
        sqrt="math.sqrt({0})",
        sin="math.sin({0})",
        cos="math.cos({0})",
        tanh="math.tanh({0})",
        erf="math.erf({0})",
        pow="math.pow({0}, {1})",
        floor="math.floor({0})",
        ceil="math.ceil({0})",
        real="float({0})",
    ),
    "rsqrt": Spelling("1.0 / math.sqrt({0})", TERM),
    "floordiv": _infix("//", TERM),
    "mod": _infix("%", TERM),
    "and": _infix("and", AND),
    "or": _infix("or", OR),
    "not": Spelling("not {0}", NOT, (NOT,)),
    "where": Spelling("{1} if {0} else {2}", CHOICE, (OR, OR, CHOICE)),
}

SPELLINGS: dict[str, dict[str, Spelling]] = {
    "triton": _TRITON,
    "triton_nonneg": {"floordiv": _infix("//", TERM), "mod": _infix("%", TERM)},
    "torch": _TORCH,
    "python": _PYTHON,
}
"""Printer -> operation -> spelling. `triton_nonneg` holds where all arguments are proved to be >= 0."""


def _silu(x: Expr) -> Expr:
    return op("mul", x, op("sigmoid", x))


def _gelu(x: Expr) -> Expr:
    return op("mul", op("mul", 0.5, x), op("add", 1.0, op("erf", op("mul", math.sqrt(0.5), x))))


def _softplus(x: Expr) -> Expr:
    return op("add", op("max", x, 0.0), op("log1p", op("exp", op("neg", op("abs", x)))))


def _sigmoid(x: Expr) -> Expr:
    return op("recip", op("add", 1.0, op("exp", op("neg", x))))


def _zero(x: Expr) -> int | float:
    return 0 if x.sort == "int" else 0.0


EXPANSIONS: dict[str, Callable[..., Expr]] = {
    "square": lambda x: op("mul", x, x),
    "relu": lambda x: op("max", x, _zero(x)),
    "silu": _silu,
    "gelu": _gelu,
    "softplus": _softplus,
    "sigmoid": _sigmoid,
    "elu": lambda x: op("where", op("lt", 0.0, x), x, op("expm1", op("min", x, 0.0))),
}
"""Operations in terms of others, for printers that have no spelling for them."""
