"""Tiles beyond the offsets j - i that tables tell apart: there each table's value is one number of a side.

rewrite: s + x_by_offset[h, j - i + (N - 1)] --> s + (x[15, h] if the tile's keys lie before its rows else x[31, h])

so that far tiles, most of them, cost what they would without the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Expr, Var, substitute, walk
from attncc.ir.nodes import Load
from attncc.passes.attend import Table
from attncc.schedule.nearby import Nearby, index_at, nearby
from attncc.schedule.stream import Problem, Stream, Turn

FIRST_ROW, FIRST_KEY = ivar("first row of the tile"), ivar("first key of the tile")
"""A tile's first pair, as positions among the keys."""


@dataclass(frozen=True, slots=True)
class Beyond:
    """The first and last offset that are told apart, and the problem as tiles before or behind them all have it."""

    near: tuple[int, int]
    problem: Problem


def beyond(p: Problem) -> Beyond | None:
    """What tables tell apart, all together; None where there are none, or where a tile may need any of their values.

    Blocks of the torch target are so large that few lie beyond.
    """
    if p.variant.target == "torch":
        return None
    found = {x.name: nearby(x, p.by_row, False) for x in p.attend.tables}
    known = {name: x for name, x in found.items() if x is not None and any(x.sides)}
    if not found or len(known) < len(found):
        return None
    moved: dict[Expr, Expr] = {}
    for load in (n for n in walk(p.attend.score) if isinstance(n, Load) and n.tensor in known):
        table = next(x for x in p.attend.tables if x.name == load.tensor)
        moved[load] = _value(load, table, known[load.tensor])
    attend = replace(p.attend, score=substitute(p.attend.score, moved), tables=())
    near = min(x.first for x in known.values()), max(x.last for x in known.values())
    return Beyond(near, replace(p, attend=attend))


def near_of(found: Beyond | None) -> tuple[int, int] | None:
    """The offsets that are told apart, where tiles beyond them have loops of their own."""
    return None if found is None else found.near


def _value(load: Load, table: Table, near: Nearby) -> Expr:
    """What a table has for the tile's side."""
    before, behind = (
        Load(table.source, index_at(table, offset), load.sort, load.span) if there else None
        for offset, there in zip((near.first - 1, near.last + 1), near.sides, strict=True)
    )
    if before is None or behind is None or before == behind:
        found = before or behind
        assert found is not None
        return found
    return op("where", lies_before(near), before, behind)


def lies_before(near: Nearby) -> Expr:
    """Of a tile all of whose offsets are beyond those told apart: whether they come before them."""
    return op("lt", FIRST_KEY, op("add", FIRST_ROW, near.first))


def far_turn(k: Stream, found: Beyond | None, turn: Turn, place: Callable[[Var], tuple[Expr, Expr]]) -> Turn | None:
    """`turn` as it is in tiles beyond; `place` gives the first row and the first key of the tile at a base."""
    if found is None:
        return None

    def far(base: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
        p, k.p = k.p, found.problem
        k.b.bindings |= dict(zip((FIRST_ROW, FIRST_KEY), place(base), strict=True))
        state = turn(base, state)
        k.p = p
        return state

    return far
