"""Expressions over torch tensors as text: which parts are tensors decides how an operation is spelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attncc.codegen.scalars import (
    AND,
    BITAND,
    BITOR,
    CALL,
    INFIX,
    PRODUCT,
    PYTHON,
    TERNARY,
    UNARY,
    Form,
    bracket,
    infix,
    literal,
)
from attncc.errors import InternalError
from attncc.expr.nodes import Const, Expr, Op, Sort, Var, walk

TORCH: Mapping[str, Form] = {
    **INFIX,
    "pow": Form("torch.pow({}, {})"),
    "abs": Form("torch.abs({})"),
    "min": Form("torch.minimum({}, {})"),
    "max": Form("torch.maximum({}, {})"),
    "square": Form("torch.square({})"),
    "recip": Form("torch.reciprocal({})"),
    "exp": Form("torch.exp({})"),
    "exp2": Form("torch.exp2({})"),
    "expm1": Form("torch.expm1({})"),
    "log": Form("torch.log({})"),
    "log2": Form("torch.log2({})"),
    "log1p": Form("torch.log1p({})"),
    "sqrt": Form("torch.sqrt({})"),
    "rsqrt": Form("torch.rsqrt({})"),
    "sin": Form("torch.sin({})"),
    "cos": Form("torch.cos({})"),
    "tanh": Form("torch.tanh({})"),
    "erf": Form("torch.erf({})"),
    "sigmoid": Form("torch.sigmoid({})"),
    "softplus": Form("torch.nn.functional.softplus({})"),
    "relu": Form("torch.relu({})"),
    "elu": Form("torch.nn.functional.elu({})"),
    "silu": Form("torch.nn.functional.silu({})"),
    "gelu": Form("torch.nn.functional.gelu({})"),
    "floor": Form("torch.floor({}).long()"),
    "ceil": Form("torch.ceil({}).long()"),
    "and": infix("&", BITAND, associative=True),
    "or": infix("|", BITOR, associative=True),
    "not": Form("~{}", UNARY, (UNARY,)),
    "where": Form("torch.where({}, {}, {})"),
}
"""Operations with at least one tensor among their arguments."""

CLAMPS = {"min": "max", "max": "min"}


@dataclass(frozen=True, slots=True)
class Text:
    """Printed text, its binding strength, and whether it is a tensor (else a Python number)."""

    text: str
    level: int
    tensor: bool
    sort: Sort

    def at(self, place: int) -> str:
        return bracket(self.text, self.level, place)


def tensor_text(e: Expr, leaf: Callable[[Var], Text], real: str) -> Text:
    """`e` as text; `leaf` says what each Var is, `real` is the torch dtype of real tensors."""
    done: dict[Expr, Text] = {}
    for node in walk(e):
        match node:
            case Const(value, sort):
                text = literal(value)
                done[node] = Text(text, UNARY if text.startswith("-") else CALL, False, sort)
            case Var():
                done[node] = leaf(node)
            case Op(name, args, sort):
                done[node] = combine(name, [done[a] for a in args], sort, real)
            case _:
                raise InternalError(f"a {type(node).__name__} is no expression of the Tile IR")
    return done[e]


def combine(name: str, args: list[Text], sort: Sort, real: str) -> Text:
    """The text of one operation on printed arguments."""
    if not any(a.tensor for a in args):
        return _formed(PYTHON, name, args, sort, False)
    if name == "real":
        return Text(f"{args[0].at(CALL)}.to({real})", CALL, True, sort)
    if name in CLAMPS and not all(a.tensor for a in args):
        tensor, number = sorted(args, key=lambda a: not a.tensor)
        return Text(f"{tensor.at(CALL)}.clamp({CLAMPS[name]}={number.at(TERNARY)})", CALL, True, sort)
    if name in ("and", "or") and not all(a.tensor for a in args):
        return _mixed_logic(name, args)
    if name == "where":
        return _where(args, sort, real)
    if name == "recip":
        return Text(f"1.0 / {args[0].at(UNARY)}", PRODUCT, True, sort)
    return _formed(TORCH, name, args, sort, True)


def _formed(forms: Mapping[str, Form], name: str, args: list[Text], sort: Sort, tensor: bool) -> Text:
    form = forms.get(name)
    if form is None:
        raise InternalError(f"no torch spelling of {name}")
    places = form.places or (TERNARY,) * len(args)
    text = form.text.format(*(a.at(p) for a, p in zip(args, places, strict=True)))
    return Text(text, form.level, tensor, sort)


def _mixed_logic(name: str, args: list[Text]) -> Text:
    """A Python truth value and a tensor: bitwise operators take both."""
    symbol, level = ("&", BITAND) if name == "and" else ("|", BITOR)
    return Text(f"{args[0].at(level)} {symbol} {args[1].at(level + 1)}", level, True, "bool")


def _where(args: list[Text], sort: Sort, real: str) -> Text:
    """Two numbers would take torch's default dtype, so the first is made a tensor of ours."""
    c, a, b = args
    if not c.tensor:
        kind = "torch.int64" if sort == "int" else "torch.bool" if sort == "bool" else real
        a, b = (x if x.tensor else _lifted(x, kind) for x in (a, b))
        return Text(f"{a.at(AND)} if {c.at(AND)} else {b.at(TERNARY)}", TERNARY, True, sort)
    first = a.at(TERNARY)
    if not a.tensor and not b.tensor:
        kind = "torch.int64" if sort == "int" else "torch.bool" if sort == "bool" else real
        first = _lifted(a, kind).text
    return Text(f"torch.where({c.at(TERNARY)}, {first}, {b.at(TERNARY)})", CALL, True, sort)


def _lifted(number: Text, kind: str) -> Text:
    """A number as a tensor without dimensions."""
    return Text(f"torch.full((), {number.at(TERNARY)}, dtype={kind}, device=device)", CALL, True, number.sort)


def dims(text: str, trailing: int) -> str:
    """A vector with `trailing` axes of length 1 behind it."""
    return text if trailing == 0 else f"{text}.view({', '.join(['-1'] + ['1'] * trailing)})"
