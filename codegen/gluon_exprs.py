"""Expressions inside a Gluon kernel: scalars, and values whose axes broadcast by name.

Every part is printed over its own axes and widened only where it meets others, so what depends on rows alone is
computed once a row. Layouts follow: a part over fewer axes has the slice of the whole's layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attncc.codegen.scalars import (
    BITAND,
    BITOR,
    CALL,
    COMPARE,
    INFIX,
    PRODUCT,
    SUM,
    TERNARY,
    UNARY,
    Form,
    bracket,
    compared,
    infix,
)
from attncc.errors import InternalError
from attncc.expr.build import op
from attncc.expr.interval import Interval, bounds
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite, walk

LOG2E = math.log2(math.e)

GLUON: Mapping[str, Form] = {
    **{k: INFIX[k] for k in ("add", "sub", "mul", "div", "neg")},
    "lt": compared("<"),
    "le": compared("<="),
    "eq": compared("=="),
    "ne": compared("!="),
    "and": infix("&", BITAND, associative=True),
    "or": infix("|", BITOR, associative=True),
    "not": Form("{} == 0", COMPARE, (BITOR,)),
    "min": Form("gl.minimum({}, {})"),
    "max": Form("gl.maximum({}, {})"),
    "abs": Form("gl.abs({})"),
    "recip": Form("1.0 / {}", PRODUCT, (UNARY,)),
    "square": Form("{0} * {0}", PRODUCT, (UNARY,)),
    "pow": Form("gl.exp2({1} * gl.log2({0}))", CALL, (TERNARY, PRODUCT)),
    "exp": Form(f"gl.exp2({{}} * {LOG2E!r})", CALL, (PRODUCT,)),
    "exp2": Form("gl.exp2({})"),
    "expm1": Form("_expm1_gl({})"),
    "log": Form(f"gl.log2({{}}) * {1 / LOG2E!r}", PRODUCT),
    "log2": Form("gl.log2({})"),
    "log1p": Form("_log1p_gl({})"),
    "sqrt": Form("gl.sqrt({})"),
    "rsqrt": Form("gl.rsqrt({})"),
    "sin": Form("gl.sin({})"),
    "cos": Form("gl.cos({})"),
    "tanh": Form("_tanh_gl({})"),
    "erf": Form("gl.erf({})"),
    "sigmoid": Form(f"_recip_gl(1.0 + gl.exp2({{}} * {-LOG2E!r}))", CALL, (PRODUCT,)),
    "softplus": Form("gl.maximum({0}, 0.0) + _log1p_gl(gl.exp(-gl.abs({0})))", SUM),
    "relu": Form("gl.maximum({}, 0)"),
    "elu": Form("gl.where({0} > 0, {0}, _expm1_gl(gl.minimum({0}, 0.0)))", CALL, (BITOR,)),
    "silu": Form(f"{{0}} * _recip_gl(1.0 + gl.exp2({{0}} * {-LOG2E!r}))", PRODUCT, (UNARY,)),
    "gelu": Form(f"0.5 * {{0}} * (1.0 + gl.erf({{0}} * {math.sqrt(0.5)!r}))", PRODUCT, (UNARY,)),
    "floordiv": Form("_floordiv_gl({}, {})"),
    "mod": Form("_mod_gl({}, {})"),
    "floor": Form("gl.floor({}).to(gl.int32)"),
    "ceil": Form("gl.ceil({}).to(gl.int32)"),
    "real": Form("{}.to(gl.float32)", CALL, (CALL,)),
    "where": Form("gl.where({}, {}, {})"),
}
"""Spellings of float32 arithmetic on the special-function unit; names that end in `_gl` are helpers of the module."""


@dataclass(frozen=True, slots=True)
class Text:
    """Printed text, its binding strength and the axes of its value in the order of the result's."""

    text: str
    level: int
    axes: tuple[str, ...] = ()

    def at(self, place: int) -> str:
        return bracket(self.text, self.level, place)


Leaf = Callable[[Var], Text]


class Speller:
    """Prints expressions whose result has `axes`; `leaf` gives the text of a Var, `known` the ranges of integers."""

    forms: Mapping[str, Form] = GLUON

    def __init__(self, axes: tuple[str, ...], leaf: Leaf, known: Mapping[Expr, Interval]) -> None:
        self.axes, self.leaf, self.known = axes, leaf, known

    def text(self, e: Expr, place: int = TERNARY) -> str:
        """`e` over its own axes."""
        return self.spell(e).at(place)

    def spell(self, e: Expr) -> Text:
        done: dict[Expr, Text] = {}
        for node in walk(e):
            match node:
                case Const(value):
                    text = literal(value)
                    done[node] = Text(text, UNARY if text.startswith("-") else CALL)
                case Var():
                    done[node] = self.leaf(node)
                case Op("floordiv" | "mod" as name, (a, b)):
                    done[node] = self._divide(name, a, b, done)
                case Op(name, args):
                    done[node] = self._apply(self.form(name), [done[a] for a in args])
                case _:
                    raise InternalError(f"a {type(node).__name__} is no expression of the Tile IR")
        return done[e]

    def _apply(self, form: Form, args: list[Text]) -> Text:
        axes = self._union(args)
        places = form.places or (TERNARY,) * len(args)
        parts = [self.widen(t, axes).at(p) for t, p in zip(args, places, strict=True)]
        return Text(form.text.format(*parts), form.level, axes)

    def _union(self, args: list[Text]) -> tuple[str, ...]:
        have = {a for t in args for a in t.axes}
        return tuple(a for a in self.axes if a in have)

    def widen(self, t: Text, axes: tuple[str, ...]) -> Text:
        """`t` as a value over `axes`; scalars stay scalars."""
        if not t.axes or t.axes == axes:
            return t
        index = ", ".join(":" if a in t.axes else "None" for a in axes)
        return Text(f"{t.at(CALL)}[{index}]", CALL, axes)

    def _divide(self, name: str, a: Expr, b: Expr, done: dict[Expr, Text]) -> Text:
        """Floor division: shifts by powers of two, the machine's where both signs are proved, else a correction."""
        left, right = bounds(a, self.known), bounds(b, self.known)
        if isinstance(b, Const) and b.value > 0 and int(b.value).bit_count() == 1:
            shift = int(b.value).bit_length() - 1
            text = f"{{}} >> {shift}" if name == "floordiv" else f"{{}} & {int(b.value) - 1}"
            return self._apply(Form(text, BITAND, (UNARY,)), [done[a]])
        if left.lo >= 0 and right.lo >= 0:
            form = infix("//" if name == "floordiv" else "%", PRODUCT)
        elif right.lo >= 0:
            form = Form("({0} - ({0} % {1} + {1}) % {1}) // {1}", PRODUCT, (UNARY, UNARY))
            if name == "mod":
                form = Form("({0} % {1} + {1}) % {1}", PRODUCT, (UNARY, UNARY))
        else:
            form = self.form(name)
        return self._apply(form, [done[a], done[b]])

    def form(self, name: str) -> Form:
        if name not in self.forms:
            raise InternalError(f"no spelling of {name} inside a kernel")
        return self.forms[name]


def base_two(e: Expr) -> Expr:
    """rewrite: exp(c * x) --> exp2((c * log2 e) * x); exp(x) --> exp2(x * log2 e)."""

    def rule(node: Expr) -> Expr | None:
        match node:
            case Op("exp", (Op("mul", (Const(c), x)),)) | Op("exp", (Op("mul", (x, Const(c))),)):
                return op("exp2", op("mul", x, c * LOG2E))
            case Op("exp", (Op("neg", (x,)),)):
                return op("exp2", op("mul", x, -LOG2E))
            case Op("exp", (x,)):
                return op("exp2", op("mul", x, LOG2E))
            case _:
                return None

    return rewrite(e, rule)


def literal(value: int | float | bool) -> str:
    """A literal that Gluon reads back as `value`."""
    if isinstance(value, float) and math.isinf(value):
        return 'float("inf")' if value > 0 else '-float("inf")'
    return repr(value)
