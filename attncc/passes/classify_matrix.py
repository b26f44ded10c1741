"""What a linear map of a state is: its coefficients, as polynomials --> one of the classes, or the reason for none.

    S' = D S + b a^T S      D the same for all elements, along the rows (key), along the columns (value), or for each

The last axis of a state is its value axis and the others are key axes; a state without the channel e and with one axis
has a key axis only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from attncc.passes.classify_symbols import WIDTH, Index, Poly

Gate = Literal["identity", "constant", "scalar", "key", "value", "separable", "elementwise", "general"]
Matrix = dict[tuple[Index, Index], Poly]
"""(row, column) --> coefficient, zeros left out."""


class NoClass(Exception):
    """The map is in no class; the argument says why."""


@dataclass(frozen=True)
class Shape:
    """The class of one linear map."""

    gate: Gate
    static: bool
    """Whether D is the same for every token."""
    axis: int | None = None
    """The axis that a product b a^T mixes, None without one."""
    tied: bool = False
    """Whether b is parallel to what is written."""


@dataclass(frozen=True)
class Map:
    """S' = J S + writes; `token` tells whether a polynomial differs from token to token."""

    names: tuple[str, ...]
    matrix: Matrix
    writes: dict[Index, Poly]
    zero: Poly
    one: Poly
    token: Callable[[Poly], bool]

    @property
    def value_axis(self) -> int | None:
        """The position of the value axis."""
        if self.names == ("e",):
            return 0
        return len(self.names) - 1 if len(self.names) > 1 else None

    def at(self, row: Index, column: Index) -> Poly:
        """A coefficient."""
        return self.matrix.get((row, column), self.zero)


def shape_of(m: Map) -> Shape:
    """The class of a map; NoClass where it has none."""
    mixed = {
        tuple(n for n, (a, b) in enumerate(zip(row, column, strict=True)) if a != b)
        for row, column in m.matrix
        if row != column
    }
    places = sorted(m.writes)
    if not mixed:
        diagonal = {at: m.at(at, at) for at in places}
        return Shape(_gate(m, diagonal), not any(map(m.token, diagonal.values())))
    if len(mixed) > 1 or len(next(iter(mixed))) > 1:
        names = sorted({m.names[n] for group in mixed for n in group})
        raise NoClass(f"mixes {' and '.join(f'`{n}`' for n in names)} at once")
    ((axis,),) = mixed
    block = _one_block(m, axis, places)
    gate, static = _along(m, axis, _without_product(m, axis, block))
    return Shape(gate, static, axis, _tied(m, axis, block, places))


# --- the diagonal ---------------------------------------------------------------------------------------------------


def _gate(m: Map, diagonal: dict[Index, Poly]) -> Gate:
    """How fine a diagonal is."""
    values = list(diagonal.values())
    if all(v == values[0] for v in values):
        return "identity" if values[0] == m.one else "scalar" if m.token(values[0]) else "constant"
    along = {n for n in range(len(m.names)) if _varies(diagonal, n)}
    value = m.value_axis
    if m.names == ("e",):
        return "elementwise"
    if value is None or value not in along:
        return "key"
    if along == {value}:
        return "value"
    return "separable" if _separable(diagonal, value) else "elementwise"


def _varies(diagonal: dict[Index, Poly], axis: int) -> bool:
    return any(v != diagonal[(*at[:axis], 0, *at[axis + 1 :])] for at, v in diagonal.items())


def _separable(diagonal: dict[Index, Poly], value: int) -> bool:
    """Whether the diagonal is a product of one along the key axes and one along the value axis."""
    keys = sorted({at[:value] for at in diagonal})
    return all(
        diagonal[(*a, x)] * diagonal[(*b, y)] == diagonal[(*a, y)] * diagonal[(*b, x)]
        for a, b in itertools.combinations(keys, 2)
        for x, y in itertools.combinations(range(WIDTH), 2)
    )


# --- a diagonal and a product ---------------------------------------------------------------------------------------


Block = list[list[Poly]]


def _one_block(m: Map, axis: int, places: Iterable[Index]) -> Block:
    """The matrix along the mixed axis, the same whatever the other axes are."""

    def put(at: Index, x: int) -> Index:
        return (*at[:axis], x, *at[axis + 1 :])

    first: Block | None = None
    for at in places:
        if at[axis]:
            continue
        block = [[m.at(put(at, r), put(at, c)) for c in range(WIDTH)] for r in range(WIDTH)]
        if first is not None and block != first:
            raise NoClass(f"mixes `{m.names[axis]}` by a matrix that differs along another axis")
        first = block
    assert first is not None
    return first


def _without_product(m: Map, axis: int, a: Block) -> list[tuple[Poly, Poly]]:
    """D of A = diag(D) + b a^T as fractions; NoClass where the rest of A is no product of two vectors."""
    name = m.names[axis]
    several = NoClass(f"mixes `{name}` by more than a diagonal and one product of two vectors")
    everything = range(WIDTH)
    for r, s in itertools.combinations(everything, 2):
        c, d = (x for x in everything if x not in (r, s))
        if a[r][c] * a[s][d] != a[r][d] * a[s][c]:
            raise several
    found: list[tuple[Poly, Poly]] = []
    for i in everything:
        ways = [(j, k) for j, k in itertools.permutations(everything, 2) if i not in (j, k)]
        fractions = [(a[i][i] * a[k][j] - a[i][j] * a[k][i], a[k][j]) for j, k in ways]
        fractions = [f for f in fractions if f[1]]
        if not fractions:
            raise several
        top, bottom = fractions[0]
        if any(t * bottom != top * b for t, b in fractions[1:]):
            raise several
        found.append((top, bottom))
    return found


def _along(m: Map, axis: int, diagonal: list[tuple[Poly, Poly]]) -> tuple[Gate, bool]:
    """The class of D, and whether it is the same for every token."""
    top, bottom = diagonal[0]
    divided = [_divided(t, b) for t, b in diagonal]
    static = all(d is not None and not m.token(d) for d in divided)
    if all(t * bottom == top * b for t, b in diagonal):
        if top == bottom:
            return "identity", True
        return ("constant" if static else "scalar"), static
    return ("value" if axis == m.value_axis else "key"), static


def _divided(top: Poly, bottom: Poly) -> Poly | None:
    quotient, rest = divmod(top, bottom)
    return None if rest else quotient


def _tied(m: Map, axis: int, a: Block, places: list[Index]) -> bool:
    """Whether b, whose multiples stand in the columns, is parallel to the writes along the axis."""

    def put(at: Index, x: int) -> Index:
        return (*at[:axis], x, *at[axis + 1 :])

    some = any(m.writes.values())
    return some and all(
        m.writes[put(at, r)] * a[s][c] == m.writes[put(at, s)] * a[r][c]
        for at in places
        if at[axis] == 0
        for r, s in itertools.combinations(range(WIDTH), 2)
        for c in range(WIDTH)
        if c not in (r, s)
    )
