"""What loops run over: tiles of an axis, numbers, the places of a grid. They are nodes of the Tile IR."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.nodes import Expr


@dataclass(frozen=True, slots=True)
class Interval:
    """Tiles lo .. hi-1 (tile numbers, scalar expressions); empty where hi <= lo."""

    lo: Expr
    hi: Expr


@dataclass(frozen=True, slots=True)
class Strided:
    """`count` runs of `length` tiles, `period` apart, from tile `base`."""

    base: Expr
    length: Expr
    period: Expr
    count: Expr


@dataclass(frozen=True, slots=True)
class Listed:
    """`count` tile numbers from `tensor` at flat position `offset`."""

    tensor: str
    offset: Expr
    count: Expr


Piece = Interval | Strided | Listed


@dataclass(frozen=True, slots=True)
class Ranges:
    """Disjoint pieces of an axis of length `extent` cut into tiles; a loop over it visits each tile once.

    `full` promises that every tile lies inside the extent and needs no predicate.
    """

    tile: int
    extent: Expr
    pieces: tuple[Piece, ...]
    full: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """Plain integers lo .. hi-1."""

    lo: Expr
    hi: Expr


@dataclass(frozen=True, slots=True)
class Claims:
    """How the programs of a launch share its places, and the partitions of a program the places that it took.

    `counter` is a tensor of one integer, 0 before and after a launch; `slots` a ring of single integers in shared
    memory with barriers `full` and `empty`, the latter counting the warps of all that receive.
    """

    counter: str
    slots: str
    full: str
    empty: str


@dataclass(frozen=True, slots=True)
class Work:
    """The places in the grid that a program works at, one after another: a kernel whose partitions loop over its work
    is launched with as many programs as there are processors, at most one for each place.

    The names of the grid's axes are bound inside such a loop alone; the first axis varies fastest. Without `claims`
    a program's places are as far apart as there are programs. With them it takes the next place that no program has:
    the one partition that is `taking` does so at the end of each turn, and passes the place on to the others.

    With `ahead`, the last elements of the other axes, which have at least so many places for every program, are taken
    together: there the first axis varies slowest, so that its first tiles, the heavy ones, come first for all.
    """

    claims: Claims | None = None
    taking: bool = False
    ahead: int = 0
