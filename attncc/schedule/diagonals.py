"""Sums over diagonals near the main one: what every offset j - i that a table tells apart gets of dS.

A program owns a tile of queries and walks the tiles of keys around its own place, each as wide as the tile is high and
as many as hold the offsets. A tile's rows are turned by their number, so that its diagonals become columns:

    turned[r, c] = dS[r, (r + c) mod side]    the sum of column c where r + c < side is the diagonal c,
                                              where r + c >= side the diagonal c - side

The latter belongs to the columns of the tile before, whose former part is kept until then. Every sum is stored once.

Where a row's dS adds up to 0 and all other pairs have one index, they get minus the sum of all diagonals, and nobody
walks them: that sum's error is as large as those of the diagonals together, whatever the others' weight.
"""

from __future__ import annotations

from attncc.expr.build import conj, op
from attncc.expr.nodes import Const, Var
from attncc.schedule.captured import Capture, diagonals, split_coefficient
from attncc.schedule.config import diagonal_tiles
from attncc.schedule.stream import ZERO, Guards, N, Problem, Stream, b, h, i, j
from attncc.schedule.stream_backward import pair_scores, scaled, score_gradient, share_of
from attncc.schedule.stream_forward import row_grid, row_program
from attncc.tile import nodes as t


def diagonals_kernel(p: Problem, c: Capture) -> t.Kernel:
    """The sums of one capture."""
    assert c.near is not None
    k = Stream(p, ("i", "j"))
    tiles = diagonal_tiles(p.variant)
    side = tiles.rows
    row_program(k, tiles)
    q, d_out = (k.matrix(x, e, (b, k.head()), k.row, k.guards.row) for x, e in (("q", "d"), ("d_out", "e")))
    here = k.b.value(op("add", Var(p.own("i0"), "int"), k.shift), "here", "the first row's place among the keys")
    lane = k.b.let("r_lane", t.Type(k.b.over("i").axes, "i32"), t.Iota(Const(0, "int")))
    column = k.b.let("column", t.Type(k.b.over("j").axes, "i32"), t.Iota(Const(0, "int")))
    turn = k.b.value(op("add", lane, column), "turn")
    least, width = diagonals(c.near, side)
    ends = op("le", op("add", i, c.near.first), j), op("le", j, op("add", i, c.near.last))
    near = [end for end, there in zip(ends, c.near.sides, strict=True) if there]
    number = op("floordiv", Var(p.own("i0"), "int"), side)

    def store(n: Var | Const, total: Var) -> None:
        at = k.b.value(op("add", op("mul", n, side), column), "offset")
        k.b.add(t.Store(c.buffer, (b, h, k.b.value(number, "tile"), at), total.name))

    def one(n: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
        j0 = k.b.value(op("add", here, op("add", op("mul", op("add", n, 1), side), least)), "j0")
        k.keys(j0, side)
        k.guards = Guards(k.guards.row, conj(op("le", 0, k.key), op("lt", k.key, N)))
        keys = k.matrix("k", "d", (b, k.kv_head()), k.key, k.guards.key)
        values = k.matrix("v", "e", (b, k.kv_head()), k.key, k.guards.key)
        s, dp = k.product(q, keys, "s", "d"), k.product(d_out, values, "dp", "e")
        allowed = k.allowed(conj(p.by_row.mask, *near), k.guards.key, k.guards.row)
        ds = score_gradient(k, pair_scores(k, s, allowed), dp)
        share = share_of(k, c, ds)
        if not p.exponential:  # whose weights are 0 where a pair is not allowed
            share = k.b.value(op("where", allowed, share, ZERO), "share")
        own, before = _columns(k, share, turn, side)
        store(n, scaled(k, k.b.value(op("add", state[0], before), "total"), factor, "total"))
        rest = (k.b.value(op("sub", x, op("add", own, before)), "rest") for x in state[1:])
        return (own, *rest)

    factor = split_coefficient(c.factor)[0]
    k.tensors[c.buffer] = None
    zero = k.b.let("sum", k.b.over("j"), t.Full(ZERO))
    count = width // side - 1
    turns = t.Count(Const(0, "int"), Const(count, "int"))
    start = (zero,) if c.near.rest is None else (zero, zero)
    final = k.loop(turns, "n", "", start, one, "tiles of keys around the rows' place", tiles.config.stages, "asc")
    for past, total in enumerate(final):
        store(Const(count + past, "int"), scaled(k, total, factor, "total"))
    return t.Kernel(f"{c.buffer}_kernel", row_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)


def _columns(k: Stream, share: Var, turn: Var, side: int) -> tuple[Var, Var]:
    """The sums of the diagonals from the tile's own first key on, and of those before it."""
    place = k.b.value(op("mod", turn, side), "place")
    turned = k.b.let("turned", k.b.over("i", "j"), t.GatherAxis(share.name, place.name, "j"))
    mine = op("lt", turn, side)
    parts = op("where", mine, turned, ZERO), op("where", mine, ZERO, turned)
    own, before = (k.b.let("sum", k.b.over("j"), t.Reduce("sum", k.b.value(x, "part").name, "i")) for x in parts)
    return own, before
