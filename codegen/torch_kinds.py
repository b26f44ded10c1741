"""What a name of a kernel is to the torch printer.

Names are numbers (the same for the whole program: Python ints and floats), lanes (integers that follow the batch
positions, kept as expressions so that an index by one is a slice), spans (consecutive positions along an axis, kept as
a begin and a length) or values (tensors).
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.nodes import Const, Expr

ZERO = Const(0, "int")


@dataclass(frozen=True, slots=True)
class Number:
    """A Python number."""


@dataclass(frozen=True, slots=True)
class Lane:
    """An integer that varies with the batch positions only: an expression of them and of numbers."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class Span:
    """offset + the positions of `axis`: those of the tile that begins at `at`, or 0 .. extent-1 without one."""

    axis: str
    at: str
    offset: Expr
    extent: int


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor."""


Kind = Number | Lane | Span | Value


class Uneven(Exception):
    """Control flow that differs between positions of these batch axes."""

    def __init__(self, axes: frozenset[str]) -> None:
        super().__init__(*sorted(axes))
        self.axes = axes
