"""Scalar expressions as Python text, with the fewest parentheses: host values and loop bounds.

A dialect is a table of templates: `Form(text, level, places)` where text has one `{}` per argument, level is the
binding strength of what it prints and places the least strength each argument may have without parentheses.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attncc.errors import InternalError
from attncc.expr.nodes import Const, Expr, Op, Var, walk

TERNARY, OR, AND, NOT, COMPARE, BITOR, BITAND, SUM, PRODUCT, UNARY, POWER, CALL = range(12)
"""Python's binding strengths, weakest first."""

RESERVED = frozenset(
    """
    torch math inf device _launch _descriptor print min max abs range len rest tiles pid
    tl triton gl gluon tma mbarrier fence_async_shared warpgroup_mma warpgroup_mma_init warpgroup_mma_wait
    TensorDescriptor builtin ir
    """.split()
)
"""Names that printed modules use for themselves."""

_LAYOUT = re.compile(r"(MMA|A|ROWS|COLS|BLOCKED|SHARED)(_BLOCKED|_[BWRx\d]+)+")
"""The names of layouts."""


@dataclass(frozen=True, slots=True)
class Form:
    """How one operation is spelled."""

    text: str
    level: int = CALL
    places: tuple[int, ...] = ()


def infix(symbol: str, level: int, *, associative: bool = False) -> Form:
    """A left-associative binary operator."""
    return Form(f"{{}} {symbol} {{}}", level, (level, level if associative else level + 1))


def compared(symbol: str) -> Form:
    """A comparison; Python would chain it, so neither side may be one."""
    return Form(f"{{}} {symbol} {{}}", COMPARE, (BITOR, BITOR))


INFIX: Mapping[str, Form] = {
    "add": infix("+", SUM),
    "sub": infix("-", SUM),
    "mul": infix("*", PRODUCT),
    "div": infix("/", PRODUCT),
    "floordiv": infix("//", PRODUCT),
    "mod": infix("%", PRODUCT),
    "neg": Form("-{}", UNARY, (UNARY,)),
    "lt": compared("<"),
    "le": compared("<="),
    "eq": compared("=="),
    "ne": compared("!="),
}
"""Spellings that Python numbers and torch tensors share."""

PYTHON: Mapping[str, Form] = {
    **INFIX,
    "pow": Form("{} ** {}", POWER, (CALL, UNARY)),
    "abs": Form("abs({})"),
    "min": Form("min({}, {})"),
    "max": Form("max({}, {})"),
    "square": Form("{} ** 2", POWER, (CALL,)),
    "recip": Form("1.0 / {}", PRODUCT, (UNARY,)),
    "exp": Form("math.exp({})"),
    "exp2": Form("2.0 ** {}", POWER, (UNARY,)),
    "expm1": Form("math.expm1({})"),
    "log": Form("math.log({})"),
    "log2": Form("math.log2({})"),
    "log1p": Form("math.log1p({})"),
    "sqrt": Form("math.sqrt({})"),
    "rsqrt": Form("1.0 / math.sqrt({})", PRODUCT),
    "sin": Form("math.sin({})"),
    "cos": Form("math.cos({})"),
    "tanh": Form("math.tanh({})"),
    "erf": Form("math.erf({})"),
    "sigmoid": Form("0.5 + 0.5 * math.tanh(0.5 * {})", SUM, (PRODUCT,)),
    "relu": Form("max({}, 0)"),
    "floor": Form("math.floor({})"),
    "ceil": Form("math.ceil({})"),
    "real": Form("float({})"),
    "and": infix("and", AND, associative=True),
    "or": infix("or", OR, associative=True),
    "not": Form("not {}", NOT, (NOT,)),
    "where": Form("{1} if {0} else {2}", TERNARY, (OR, OR, TERNARY)),
}
"""Python's own numbers. Activations without a row are not scalars of a host program."""


def python_name(name: str) -> str:
    """`name` as an identifier of the printed module: words of Python and of ours get a trailing underscore."""
    taken = keyword.iskeyword(name) or name in RESERVED or _LAYOUT.fullmatch(name)
    return f"{name}_" if taken else name


def literal(value: int | float | bool) -> str:
    """A Python literal that reads back as exactly `value`."""
    if isinstance(value, float) and math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return repr(value)


def spell(
    e: Expr,
    forms: Mapping[str, Form] = PYTHON,
    name: Callable[[Var], str] = lambda v: python_name(v.name),
    place: int = TERNARY,
) -> str:
    """`e` as text that may stand where binding strength `place` is wanted."""
    done: dict[Expr, tuple[str, int]] = {}
    for node in walk(e):
        match node:
            case Const(value):
                text = literal(value)
                done[node] = (text, UNARY if text.startswith("-") else CALL)
            case Var():
                done[node] = (name(node), CALL)
            case Op(op, args):
                done[node] = _apply(op, forms, [done[a] for a in args])
            case _:
                raise InternalError(f"a {type(node).__name__} is no scalar expression of the Tile IR")
    return bracket(*done[e], place)


def bracket(text: str, level: int, place: int) -> str:
    """`text` of strength `level`, in parentheses where `place` wants more."""
    return text if level >= place else f"({text})"


def _apply(op: str, forms: Mapping[str, Form], args: list[tuple[str, int]]) -> tuple[str, int]:
    form = forms.get(op)
    if form is None:
        raise InternalError(f"no spelling of {op} as a scalar of the host")
    places = form.places or (TERNARY,) * len(args)
    return form.text.format(*(bracket(t, lv, p) for (t, lv), p in zip(args, places, strict=True))), form.level
