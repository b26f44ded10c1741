"""The syntax tree of a spec: frozen dataclasses, a Span on every node."""

from __future__ import annotations

from dataclasses import dataclass, field

from attncc.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Node:
    """Base of the tree; `span` is where the node stands, and is not compared."""

    span: Span = field(compare=False)


# --- expressions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Name(Node):
    """A name in an expression."""

    id: str


@dataclass(frozen=True, slots=True)
class Number(Node):
    """A literal: int without fraction and exponent, else float."""

    value: int | float


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """`op` is one of `-`, `+`, `not`."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """`op` is one of + - * / // % ** and, or, and the comparisons in ASCII."""

    op: str
    left: Expr
    right: Expr
    place: Span = field(compare=False)
    """Of the operator."""


@dataclass(frozen=True, slots=True)
class Contract(Node):
    """`left @ right`."""

    left: Expr
    right: Expr
    place: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class Choice(Node):
    """`then if condition else other`."""

    then: Expr
    condition: Expr
    other: Expr


@dataclass(frozen=True, slots=True)
class Member(Node):
    """`item in group`, or `item not in group`."""

    item: Expr
    group: Expr
    negated: bool


@dataclass(frozen=True, slots=True)
class SetOf(Node):
    """`{a, b, ...}`."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Slice(Node):
    """`low:high` in a subscript; either may be missing."""

    low: Expr | None
    high: Expr | None


@dataclass(frozen=True, slots=True)
class Subscripted(Node):
    """`base[a, b, ...]`."""

    base: Expr
    subscripts: tuple[Expr | Slice, ...]


@dataclass(frozen=True, slots=True)
class Coordinate(Node):
    """`base.name`: one coordinate of an index that `axes` has split."""

    base: Expr
    name: str


@dataclass(frozen=True, slots=True)
class Option(Node):
    """`name = value` at the end of a call."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Node):
    """`function(arguments over names where condition, options)`; `place` is the function's name."""

    function: str
    arguments: tuple[Expr, ...]
    over: tuple[Name, ...]
    where: Expr | None
    options: tuple[Option, ...]
    place: Span = field(compare=False)


@dataclass(frozen=True, slots=True)
class Selection(Node):
    """`rule of index by key where condition including forced plus extra`."""

    rule: Name | Call
    index: Name
    by: Expr
    where: Expr | None
    including: Expr | None
    plus: Expr | None


Expr = Name | Number | Unary | Binary | Contract | Choice | Member | SetOf | Subscripted | Coordinate | Call | Selection


# --- declarations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AxisDecl(Node):
    """An axis in brackets: `size` alone (an index in scope, or a number), or `name: size`, a new index."""

    name: str | None
    size: Expr


@dataclass(frozen=True, slots=True)
class ConstantDecl(Node):
    """`name = default` in a header."""

    name: Name
    default: Expr


@dataclass(frozen=True, slots=True)
class TensorDecl(Node):
    """`name: type[axes] in [low, high]` in a header."""

    name: Name
    type: Name
    axes: tuple[AxisDecl, ...]
    bounds: tuple[Expr, Expr] | None


@dataclass(frozen=True, slots=True)
class Def(Node):
    """`def name(parameters) = body`."""

    name: Name
    parameters: tuple[Name, ...]
    body: Expr


# --- statements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assign(Node):
    """`name = value`."""

    name: Name
    value: Expr


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let name[axes] = value`, or `emit`; `axes` is None without brackets."""

    name: Name
    axes: tuple[AxisDecl, ...] | None
    value: Expr
    emitted: bool


@dataclass(frozen=True, slots=True)
class Select(Node):
    """`select name[axes] = selection`."""

    name: Name
    axes: tuple[AxisDecl, ...] | None
    value: Selection


@dataclass(frozen=True, slots=True)
class Carried(Node):
    """One `name[axes]: set of index = initial` of a `state` statement."""

    name: Name
    axes: tuple[AxisDecl, ...]
    set_of: Name | None
    initial: Expr | None


@dataclass(frozen=True, slots=True)
class State(Node):
    """`state a, b per key`."""

    parts: tuple[Carried, ...]
    per: Expr | None = None


@dataclass(frozen=True, slots=True)
class Frozen(Node):
    """`frozen name = state every count`."""

    name: Name
    state: Name
    every: Expr


@dataclass(frozen=True, slots=True)
class Coordinates(Node):
    """`axes i, j = (y: ny, x: nx)`."""

    indices: tuple[Name, ...]
    axes: tuple[AxisDecl, ...]


@dataclass(frozen=True, slots=True)
class Word(Node):
    """One word of a `quantize` or `cache` clause: `int8`, `scale 448`, `per block 64`."""

    name: str
    amount: Expr | None
    per: bool


@dataclass(frozen=True, slots=True)
class Quantize(Node):
    """`quantize name: words`."""

    name: Name
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Cache(Node):
    """`cache name: words`."""

    name: Name
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class For(Node):
    """`for name in count: body`."""

    name: Name
    count: Expr
    body: tuple[Statement, ...]


Statement = Assign | Let | Select | State | Frozen | Coordinates | Quantize | Cache | For | Def


@dataclass(frozen=True, slots=True)
class Attention(Node):
    """`attention name(parameters): body`."""

    name: Name
    parameters: tuple[ConstantDecl | TensorDecl, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class File(Node):
    """A whole text, in order."""

    parts: tuple[Def | Attention, ...]

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The attentions of the text, in order."""
        return tuple(p for p in self.parts if isinstance(p, Attention))
