"""The backward kernels.

With w = phi(s)/Z, dP = dO V^T and delta = rowsum(dO * O), for every ratio normaliser

    dS = (phi'(s) dP - psi'(s) (delta - dlse)) / Z        dz = -(delta - dlse) / Z

and dS is multiplied by the score's derivative on the way to q, k and every captured tensor. `delta_kernel` prepares
delta and log2 Z per row; `keys_kernel` owns a tile of keys (dK, dV); `queries_kernel` owns a tile of queries (dQ).
Scores are laid out key by query in the first, query by key in the second, so that no product is ever transposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from attncc.expr.build import conj, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.ir.nodes import S
from attncc.passes.differentiate import derivative
from attncc.passes.simplify import simplify
from attncc.passes.stream import LOG2E
from attncc.schedule.beyond import beyond, far_turn, near_of
from attncc.schedule.captured import Capture, apart, by_product, split_coefficient
from attncc.schedule.config import Tiles
from attncc.schedule.monotone import direction
from attncc.schedule.ranges import Cut, Rows, visits
from attncc.schedule.stream import NEVER, ZERO, B, G, Guards, H, M, N, Problem, Stream, b, g, h
from attncc.schedule.stream_forward import row_grid, row_program
from attncc.tile import nodes as t


def delta_kernel(p: Problem, tiles: Tiles, of_z: tuple[Capture, ...]) -> t.Kernel:
    """delta - dlse for every row, and the gradients of what z reads."""
    k = Stream(p, ("i", "j"))
    row_program(k, Tiles(tiles.rows, 16, tiles.config))
    total, log_z = row_statistics(k)
    k.store_stat(p.own("delta"), total)
    k.store_stat(p.own("log_z"), log_z)
    gradients_of_z(k, of_z, total, log_z, tiles.rows)
    return t.Kernel("delta_kernel", row_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)


def row_statistics(k: Stream) -> tuple[Var, Var]:
    """delta - dlse and log2 Z of every row; 0 in rows outside."""
    o, d = (k.matrix(tensor, "e", (b, h), k.row, k.guards.row) for tensor in ("out", "d_out"))
    return statistics_of(k, o, d)


def statistics_of(k: Stream, o: tuple[Var, ...], d: tuple[Var, ...]) -> tuple[Var, Var]:
    """The same from a tile of out and its gradient, a value per channel piece."""
    p = k.p
    total = _row_product(k, o, d, "delta", "o_do")
    if p.variant.lse_gradient:
        total = k.b.value(op("sub", total, k.stat("d_lse", "d_lse")), "delta", "less the gradient of lse")
    lse = k.stat("lse", "lse")
    finite = op("where", op("eq", lse, NEVER), ZERO, op("mul", lse, LOG2E))
    return total, k.b.value(finite, "log_z", "log2 of Z, 0 in rows without a key")


def _row_product(k: Stream, left: tuple[Var, ...], right: tuple[Var, ...], hint: str, each: str) -> Var:
    """The inner product of two matrices' rows, row by row, over all channel pieces."""
    total: Var | None = None
    for x, y in zip(left, right, strict=True):
        both = op("mul", k.cast(x, k.p.real), k.cast(y, k.p.real))
        axis = k.b.type_of(x.name).axes[1].name
        part = k.b.let(hint, k.b.over("i"), t.Reduce("sum", k.b.value(both, each).name, axis))
        total = part if total is None else k.b.value(op("add", total, part), hint)
    assert total is not None
    return total


def gradients_of_z(k: Stream, of_z: tuple[Capture, ...], delta: Var, log_z: Var, tile: int) -> None:
    """Stores what every row adds to the captures that z reads."""
    lse = k.stat("lse", "lse")
    for c in of_z:
        f = k.weight(c.factor, delta, log_z, None, "dz")
        share = op("where", op("eq", lse, NEVER), ZERO, op("neg", op("mul", f, delta)))
        store_rows(k, c, k.b.value(share, "share"), tile)


def _queries(k: Stream, tensor: str, prefix: str) -> tuple[Var, ...]:
    """A tile of rows of q or of the output's gradient, a value per channel piece."""
    return k.matrix(tensor, prefix, (b, k.head()), k.row, k.guards.row)


@dataclass(frozen=True, slots=True)
class Scores:
    """One tile of pairs before dP is known: the weights, and what turns dP into dS."""

    w: Var
    score: Expr
    x: Var | None
    log_z: Var | None
    allowed: Expr | None


def pair_scores(k: Stream, s: Var, allowed: Expr | None, started: bool = False) -> Scores:
    """The weights from the recomputed product s; `started` says that log2 Z is already taken off it."""
    n = k.p.attend.normaliser
    score = k.scores(s)
    if not k.p.normalised:
        return Scores(k.plain(n.phi, score, allowed, "w"), score, None, None, allowed)
    x = k.log_score(score, allowed)
    if started:
        return Scores(k.b.value(op("exp2", x), "w"), score, x, None, allowed)
    beyond = math.inf if k.b.order[0] == "i" else 0.0  # where rows are the program's own, no mask ends them
    log_z = k.without_rows(k.stat(k.p.own("log_z"), "log_z", beyond))
    return Scores(k.weight(n.phi, x, log_z, allowed, "w"), score, x, log_z, allowed)


def score_gradient(k: Stream, known: Scores, dp: Var, lowered: bool = False) -> Var:
    """dS from the weights and dP; `lowered` says that delta is already taken off it."""
    n = k.p.attend.normaliser
    d_phi = derivative(n.phi, S)
    if n.psi is None:
        return k.b.value(op("mul", k.plain(d_phi, known.score, known.allowed, "slope"), dp), "ds")
    if lowered:
        assert k.p.exponential
        return k.b.value(op("mul", known.w, dp), "ds")
    assert known.x is not None and known.log_z is not None
    delta = k.stat(k.p.own("delta"), "delta")
    if k.p.exponential:
        return k.b.value(op("mul", known.w, op("sub", dp, delta)), "ds")
    phi = k.weight(d_phi, known.x, known.log_z, known.allowed, "d_phi")
    psi = k.weight(derivative(n.psi, S), known.x, known.log_z, known.allowed, "d_psi")
    return k.b.value(op("sub", op("mul", phi, dp), op("mul", psi, delta)), "ds")


def product_gradient(k: Stream, ds: Var) -> tuple[Expr | None, Var]:
    """(a factor for the sum's end, the gradient of q @ k without it)."""
    factor, rest = by_product(k.p)
    return factor, ds if rest is None else k.b.value(op("mul", ds, rest), "dqk")


def share_of(k: Stream, c: Capture, ds: Var) -> Var:
    """What the tile's pairs add to a capture, its coefficient left out."""
    _, rest = split_coefficient(c.factor)
    return ds if rest is None else k.b.value(op("mul", ds, k.terms(rest).whole()), "share")


def scaled(k: Stream, value: Var, factor: Expr | None, hint: str) -> Var:
    """`value` times the factor that its sum left out."""
    return value if factor is None else k.b.value(op("mul", value, factor), hint)


# --- dQ -------------------------------------------------------------------------------------------------------------


def queries_kernel(p: Problem, tiles: Tiles, wanted: bool, found: tuple[Capture, ...]) -> t.Kernel:
    """dQ (where wanted) and the captures that lack j or have both indices.

    Where some are `along` q, dQ is that of dS k until the end: what a row's scores multiply the product by is left out.
    """
    k = Stream(p, ("i", "j"))
    rows = row_program(k, tiles)
    q, d_out = _queries(k, "q", "d"), _queries(k, "d_out", "e")
    distant = beyond(p)
    seen = visits(k.b, p.by_row, rows, Cut(tiles.keys, N, Const(0, "int")), near_of(distant))
    along = tuple((c, c.along) for c in found if c.along is not None)
    summed = tuple(c for c in found if c.place in ("tile", "row") and c.along is None)
    dq = k.zeros("dq", "i", "d") if wanted else ()
    sums = tuple(k.b.let("sum", k.b.over("i"), t.Full(ZERO), f"for {c.load.tensor}") for c in summed)

    def turn(masked: bool, j0: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
        k.keys(j0, tiles.keys)
        inside = op("lt", k.key, N)
        k.guards = Guards(k.guards.row, inside if masked else Guards().key)
        keys = k.matrix("k", "d", (b, k.kv_head()), k.key, k.guards.key)
        values = k.matrix("v", "e", (b, k.kv_head()), k.key, k.guards.key)
        s, dp = k.product(q, keys, "s", "d"), k.product(d_out, values, "dp", "e")
        known = pair_scores(k, s, k.allowed(p.by_row.mask, k.guards.key) if masked else None)
        ds = score_gradient(k, known, dp)
        new: tuple[Var, ...] = ()
        if wanted:
            whole = ds if along else product_gradient(k, ds)[1]
            new = k.accumulate(state[: len(dq)], whole, keys, "j", "dq")
        for c, total in zip(summed, state[len(dq) :], strict=True):
            part = k.b.let("part", k.b.over("i"), t.Reduce("sum", share_of(k, c, ds).name, "j"))
            new += (k.b.value(op("add", total, part), "sum"),)
        for c in found:
            if c.place == "pair":
                _add_pairs(k, c, ds)
        return new

    far = far_turn(k, distant, partial(turn, False), lambda j0: (rows.first, j0))
    final = k.walk(seen, "j0", "j", (*dq, *sums), turn, "keys", tiles.config.stages, far)
    k.guards = Guards(row=k.guards.row)
    if wanted:
        done = final[: len(dq)]
        factor, rest = by_product(p)
        if along:
            total = _row_product(k, q, done, "part", "along")
            for c, times in along:
                store_rows(k, c, k.b.value(op("mul", total, times), "share"), tiles.rows)
            done = tuple(scaled(k, v, rest, "dq") for v in done)
        k.store_matrix("d_q", "d", (b, h), k.row, k.guards.row, tuple(scaled(k, v, factor, "dq") for v in done))
    for c, total in zip(summed, final[len(dq) :], strict=True):
        store_rows(k, c, scaled(k, total, split_coefficient(c.factor)[0], "sum"), tiles.rows)
    return t.Kernel("queries_kernel", row_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)


def store_rows(k: Stream, c: Capture, per_row: Var, tile: int) -> None:
    """Stores a capture's row sums, or their sum over the tile's valid rows."""
    k.tensors[c.buffer] = None
    if c.place == "row":
        k.b.add(t.Store(c.buffer, (b, h, k.row), per_row.name, k.guards.row))
        return
    valid = k.b.value(op("where", k.guards.row, per_row, ZERO), "share")
    total = k.b.let("total", t.Type((), k.p.real), t.Reduce("sum", valid.name, "i"))
    number = op("floordiv", Var(k.p.own("i0"), "int"), tile)
    k.b.add(t.Store(c.buffer, (b, h, k.b.value(number, "tile")), total.name))


def _add_pairs(k: Stream, c: Capture, ds: Var) -> None:
    """Adds a tile's gradient where the read's own index points."""
    k.tensors[c.buffer] = None
    factor, _ = split_coefficient(c.factor)
    share = scaled(k, share_of(k, c, ds), factor, "share")
    index = []
    for n, at in enumerate(c.load.index):
        param = k.p.params.get(c.load.tensor)
        at_row = param is not None and param.axes[n].index == "m"
        index.append(k.row if at_row else k.b.value(at, "at"))
    guard = k.b.lower(conj(k.guards.row, k.guards.key))
    if apart(c, k.p):
        k.b.add(t.Store(c.buffer, (b, k.head(), k.row, k.key), share.name, guard))
        return
    k.b.add(t.ReduceAdd(c.buffer, tuple(index), share.name, "atomic", guard))


# --- dK, dV ---------------------------------------------------------------------------------------------------------


def keys_kernel(p: Problem, tiles: Tiles, wanted: frozenset[str], found: tuple[Capture, ...]) -> t.Kernel:
    """dK, dV (summed over the heads that share them) and dQ, where wanted, and the captures of j alone.

    Registers are full: loops of their own for tiles where tables have one value would spill.
    """
    k = Stream(p, ("j", "i"))
    j0 = Var(p.own("j0"), "int")
    k.start(j0.name, "g", "b")
    k.keys(j0, tiles.keys)
    k.b.axis("i", tiles.rows)
    own = op("lt", k.key, N)
    k.guards = Guards(key=own)
    keys = k.matrix("k", "d", (b, g), k.key, own)
    values = k.matrix("v", "e", (b, g), k.key, own)
    dk = k.zeros("dk", "j", "d") if "k" in wanted else ()
    dv = k.zeros("dv", "j", "e") if "v" in wanted else ()
    last = op("sub", op("min", op("add", j0, tiles.keys), N), 1)
    rows = Rows("j", j0, last, own, "j", p.rising)

    def head(number: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
        if p.variant.grouped:
            k.b.bindings[h] = k.b.value(op("add", op("mul", g, op("floordiv", H, G)), number), "h")
        else:
            k.b.bindings[h] = g
        sums = tuple(k.b.let("sum", k.b.over("j"), t.Full(ZERO), f"for {c.load.tensor}") for c in found)
        seen = visits(k.b, p.by_key, rows, Cut(tiles.rows, M, k.shift))
        final = k.walk(seen, "i0", "i", (*state, *sums), turn, "queries", tiles.config.stages)
        for c, total in zip(found, final[len(state) :], strict=True):
            k.tensors[c.buffer] = None
            done = scaled(k, total, split_coefficient(c.factor)[0], "sum")
            k.b.add(t.Store(c.buffer, (b, k.head(), k.key), done.name, own))
        return final[: len(state)]

    def turn(masked: bool, i0: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
        k.rows(i0, tiles.rows)
        inside = op("lt", k.row, M)
        k.guards = Guards(inside if masked else Guards().row, own)
        q = _queries(k, "q", "d")
        s = k.product(keys, q, "s", "d")
        known = pair_scores(k, s, k.allowed(p.by_key.mask, inside) if masked else None)
        d_out = _queries(k, "d_out", "e")
        new_dv = k.accumulate(state[len(dk) : len(dk) + len(dv)], known.w, d_out, "i", "dv") if dv else ()
        ds = score_gradient(k, known, k.product(values, d_out, "dp", "e"))
        new_dk = k.accumulate(state[: len(dk)], product_gradient(k, ds)[1], q, "i", "dk") if dk else ()
        if "q" in wanted:
            _add_queries(k, ds, keys)
        new = (*new_dk, *new_dv)
        for c, total in zip(found, state[len(dk) + len(dv) :], strict=True):
            part = k.b.let("part", k.b.over("j"), t.Reduce("sum", share_of(k, c, ds).name, "i"))
            new += (k.b.value(op("add", total, part), "sum"),)
        return new

    final = (*dk, *dv)
    if p.variant.grouped:
        heads = t.Count(Const(0, "int"), k.b.value(simplify(op("floordiv", H, G)), "group"))
        final = k.loop(heads, "n", "", final, head, "heads that share the keys")
    else:
        final = head(Var("g", "int"), final)
    if dk:
        factor = by_product(p)[0]
        k.store_matrix("d_k", "d", (b, g), k.key, own, tuple(scaled(k, v, factor, "dk") for v in final[: len(dk)]))
    if dv:
        k.store_matrix("d_v", "e", (b, g), k.key, own, final[len(dk) :])
    return t.Kernel("keys_kernel", key_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)


def _add_queries(k: Stream, ds: Var, keys: tuple[Var, ...]) -> None:
    """Adds what a tile of keys gives dQ, laid out channel by query: scores stay key by query."""
    k.tensors["d_q"] = None
    factor, dqk = product_gradient(k, ds)
    narrow = k.cast(dqk, k.p.variant.dtype)
    row = k.b.axis("i", k.b.extent("i"))
    for (c, real, axis), y in zip(k.pieces("d"), keys, strict=True):
        type = t.Type((axis, row), k.p.real)
        part = k.b.let("dq", type, t.Dot(y.name, narrow.name, "j", None, k.p.variant.precision))
        if factor is not None:
            part = k.b.let("dq", type, t.Map(k.b.lower(op("mul", part, factor))))
        k.b.add(t.ReduceAdd("d_q", (b, k.head(), k.row, c), part.name, "atomic", conj(k.guards.row, real)))


def key_grid(p: Problem, tiles: Tiles, heads: Literal["g", "h"] = "g") -> tuple[t.GridAxis, ...]:
    """Tiles of keys, then kv heads or all heads, then batches; the last tile first where most queries see it."""
    ends = p.by_key.alternatives
    heavy = bool(ends) and all(direction(a.upper, "j") == 1 and direction(a.lower, "j") == 0 for a in ends)
    return (
        t.GridAxis(p.own("j0"), N, "tile", tiles.keys, "j", descending=heavy),
        t.GridAxis(heads, G if heads == "g" else H, "batch"),
        t.GridAxis("b", B, "batch"),
    )
