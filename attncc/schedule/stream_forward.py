"""The forward kernel: a tile of queries against the keys its mask allows.

Weights are kept relative to a running maximum m of the scores, in base two; l sums psi, acc sums phi(s) v. A
constant term z joins the sum after the last key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Op, Var, substitute
from attncc.passes.simplify import scale
from attncc.passes.stream import LN2, LOG2E, SHIFT, streamed
from attncc.schedule.beyond import beyond, far_turn, near_of
from attncc.schedule.config import Tiles
from attncc.schedule.monotone import direction
from attncc.schedule.positive import positive_factor
from attncc.schedule.ranges import Cut, Rows, visits
from attncc.schedule.steps import reads_at_keys, reads_at_rows
from attncc.schedule.stream import NEVER, ZERO, B, Guards, H, M, N, Problem, Stream, b, h
from attncc.tile import nodes as t


def row_grid(p: Problem, tiles: Tiles) -> tuple[t.GridAxis, ...]:
    """Tiles of queries, then heads, then batches; the last tile first where it sees the most keys."""
    ends = p.by_row.alternatives
    heavy = bool(ends) and all(direction(a.upper, "i") == 1 and direction(a.lower, "i") == 0 for a in ends)
    return (
        t.GridAxis(p.own("i0"), M, "tile", tiles.rows, "i", descending=heavy),
        t.GridAxis("h", H, "batch"),
        t.GridAxis("b", B, "batch"),
    )


def row_program(k: Stream, tiles: Tiles) -> Rows:
    """Starts a program that owns a tile of queries; what the bounds need to know of its rows."""
    i0 = Var(k.p.own("i0"), "int")
    k.start(i0.name, "h", "b")
    k.rows(i0, tiles.rows)
    k.b.axis("j", tiles.keys)
    k.guards = Guards(row=op("lt", k.row, M))
    last = op("sub", op("min", op("add", i0, tiles.rows), M), 1)
    return Rows("i", op("add", i0, k.shift), op("add", last, k.shift), k.guards.row, "i", k.p.rising)


def forward_kernel(p: Problem, tiles: Tiles) -> t.Kernel:
    """out and, for normalised weights, lse."""
    k = Stream(p, ("i", "j"))
    rows = row_program(k, tiles)
    q = k.matrix("q", "d", (b, h), k.row, k.guards.row)
    found = beyond(p)
    seen = visits(k.b, p.by_row, rows, Cut(tiles.keys, N, Const(0, "int")), near_of(found))
    acc = k.zeros("acc", "i", "e")
    state = (*initial_statistics(k), *acc) if p.normalised else acc

    def turn(masked: bool, j0: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
        k.keys(j0, tiles.keys)
        k.guards = Guards(k.guards.row, op("lt", k.key, N) if masked else Guards().key)
        keys = k.matrix("k", "d", (b, k.kv_head()), k.key, k.guards.key)
        score = k.scores(k.product(q, keys, "s", "d"))
        allowed = k.allowed(p.by_row.mask, k.guards.key) if masked else None
        statistics: tuple[Var, ...] = ()
        if p.normalised:
            m, l, *acc = state
            new = online(k, score, allowed, m)
            added = k.b.let("added", k.b.over("i"), t.Reduce("sum", new.psi.name, "j"))
            w, statistics = new.w, (new.m, k.b.value(op("add", op("mul", l, new.alpha), added), "l"))
            rescaled = tuple(k.b.value(op("mul", a, new.alpha), a.name.split("_")[0]) for a in acc)
        else:
            w, rescaled = k.plain(p.attend.normaliser.phi, score, allowed, "w"), state
        values = k.matrix("v", "e", (b, k.kv_head()), k.key, k.guards.key)
        return (*statistics, *k.accumulate(rescaled, w, values, "j", "acc"))

    far = far_turn(k, found, partial(turn, False), lambda j0: (rows.first, j0))
    final = k.walk(seen, "j0", "j", state, turn, "keys", tiles.config.stages, far)
    k.guards = Guards(row=k.guards.row)
    if p.normalised:
        final = finish(k, final[0], final[1], final[2:])
    k.store_matrix("out", "e", (b, h), k.row, k.guards.row, final)
    return t.Kernel("forward_kernel", row_grid(p, tiles), tuple(k.tensors), k.scalars(), k.body(), tiles.config)


def initial_statistics(k: Stream, sums: t.Type | None = None) -> tuple[Var, Var]:
    """m and l before the first key, l one number a row or of the type `sums`."""
    m = k.b.let("m", k.b.over("i"), t.Full(NEVER), "running maximum")
    return m, k.b.let("l", sums or k.b.over("i"), t.Full(ZERO), "running sum")


def _sink(p: Problem) -> Expr | None:
    """u where z = exp(u), a positive constant included."""
    match p.attend.normaliser.z:
        case Op("exp", (u,)):
            return u
        case Const(c) if c > 0:
            return Const(math.log(c), "real")
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Online:
    """One tile's weights of both sums, the new maximum, and what sums of earlier tiles are worth now."""

    w: Var
    psi: Var
    m: Var
    alpha: Var


SLACK = 8.0
"""By how much, in base two, scores may exceed a running maximum that moves rarely: weights stay below 2**8."""


def online(
    k: Stream,
    score: Expr,
    allowed: Expr | None,
    m: Var,
    between: Callable[[Var], None] = lambda m: None,
    slack: float = 0.0,
) -> Online:
    """The weights of one tile, relative to the running maximum `m` and the tile's own.

    `between` adds statements between the new maximum and the weights. With `slack` the maximum moves only to what
    exceeds it by more, so that in most tiles sums of earlier ones are worth what they were.
    """
    n = k.p.attend.normaliser
    assert n.psi is not None
    x, top = _log_scores(k, score, allowed)
    if not k.p.exponential:  # its constants are exponentials of 0, and may not overflow beside small scores
        top = k.b.value(op("where", op("eq", top, NEVER), NEVER, op("max", top, ZERO)), "top")
    greater = op("where", op("lt", op("add", m, slack), top), top, m) if slack else op("max", m, top)
    m_new = k.b.value(greater, "m")
    between(m_new)
    anchor = m_new
    if allowed is not None or not k.p.exponential or reads_at_rows(k.p) or reads_at_keys(k.p):
        # a row may have no key: none is allowed, or all have scores of -inf, as biases give
        anchor = k.b.value(op("where", op("eq", m_new, NEVER), ZERO, m_new), "anchor", "finite in rows without a key")
    shift = k.without_rows(anchor)
    w = k.weight(n.phi, x, shift, allowed, "w")
    psi = w if n.psi is n.phi else k.weight(n.psi, x, shift, allowed, "psi")
    return Online(
        w, psi, m_new, k.b.value(op("exp2", op("sub", m, anchor)), "alpha", "what the old sums are worth now")
    )


def _log_scores(k: Stream, score: Expr, allowed: Expr | None) -> tuple[Expr, Expr]:
    """The scores in base two without their terms by row, and each row's greatest with them.

    rewrite: max(c * s + r) --> c * max(s) + r for c > 0, so that the multiplication is part of the exponential's
    argument and terms r by row never meet the pairs
    """
    found = k.terms(scale(score, LOG2E))
    plain = found.key is None and (found.query is None or k.p.exponential)
    parted = positive_factor(found.pair) if plain and found.pair is not None else None
    x: Expr
    if parted is None:
        x = k.log_score(score, allowed)
        top = k.b.let("top", k.b.over("i"), t.Reduce("max", x.name, "j"))
    else:
        c, rest = parted
        k.apart = found.query
        s = k.b.value(rest, "s")
        if allowed is not None:
            s = k.b.value(op("where", allowed, s, NEVER), "s")
        top = k.b.let("top", k.b.over("i"), t.Reduce("max", s.name, "j"))
        x, top = op("mul", s, c), k.b.value(op("mul", top, c), "top")
    return x, top if k.apart is None else k.b.value(op("add", top, k.apart), "top")


def finish(k: Stream, m: Var, l: Var, acc: tuple[Var, ...]) -> tuple[Var, ...]:
    """acc / Z, and lse stored; a row without keys gives 0 and -inf."""
    empty = k.b.value(op("eq", m, NEVER), "empty", "rows without a key")
    top, total, kept = _with_constant(k, m, l, empty)
    inverse = k.b.value(op("where", empty, ZERO, op("div", kept, total)), "inverse")
    lse = op("mul", op("add", top, op("log2", total)), LN2)
    k.store_stat("lse", k.b.value(op("where", empty, NEVER, lse), "lse"))
    return tuple(k.b.value(op("mul", a, inverse), "o") for a in acc)


def _with_constant(k: Stream, m: Var, l: Var, empty: Expr) -> tuple[Expr, Expr, Expr]:
    """(maximum, sum, weight of what was accumulated) after z has joined the sum."""
    z, u = k.p.attend.normaliser.z, _sink(k.p)
    if z is None:
        return m, l, Const(1.0, "real")
    if u is not None:
        own = k.b.value(op("mul", u, LOG2E), "own", "the constant term in base two")
        top = k.b.value(op("max", m, own), "top")
        kept = k.b.value(op("exp2", op("sub", m, top)), "kept")
        return top, k.b.value(op("add", op("mul", l, kept), op("exp2", op("sub", own, top))), "l"), kept
    finite = k.b.value(op("where", empty, ZERO, m), "top")
    total = k.b.value(op("add", l, substitute(streamed(z), {SHIFT: finite})), "l", "with the constant term")
    return finite, total, Const(1.0, "real")
