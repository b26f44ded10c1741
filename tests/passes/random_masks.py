"""Random masks: positions, windows, blocks, loads under and, or, not and where; and worlds to evaluate them in."""

from __future__ import annotations

import random

import numpy as np

from attncc.expr.build import conj, disj, ivar, lift, op
from attncc.expr.nodes import Expr, free_vars
from attncc.ir.nodes import Load, Segment
from tests.passes.mask_tiles import World

b, h, i, j, w, seg = map(ivar, ("b", "h", "i", "j", "w", "seg"))
DISTANCE = op("sub", i, j)
POSITIVE = frozenset({"seg"})


def mask(r: random.Random) -> Expr:
    """A mask that mentions both i and j."""
    while True:
        e = predicate(r, 3)
        if {"i", "j"} <= free_vars(e):
            return e


def predicate(r: random.Random, depth: int) -> Expr:
    k = r.random()
    if depth == 0 or k < 0.35:
        return literal(r)
    if k < 0.65:
        return conj(predicate(r, depth - 1), predicate(r, depth - 1))
    if k < 0.87:
        return disj(predicate(r, depth - 1), predicate(r, depth - 1))
    if k < 0.97:
        return op("not", predicate(r, depth - 1))
    return op("where", literal(r), predicate(r, depth - 1), predicate(r, depth - 1))


def literal(r: random.Random) -> Expr:
    kind = r.choices(("causal", "window", "block", "load", "arithmetic"), (25, 20, 15, 20, 20))[0]
    match kind:
        case "causal":
            return op(r.choice(("le", "lt")), j, i)
        case "window":
            x = r.choice((DISTANCE, op("abs", DISTANCE), op("max", DISTANCE, op("neg", i))))
            return op(r.choice(("le", "lt")), x, r.choice((lift(3), lift(40), lift(128), w, op("floordiv", w, 2))))
        case "block":
            c = r.choice((lift(8), lift(48), lift(64), seg))
            return op(r.choice(("eq", "le", "ne")), op("floordiv", j, c), op("floordiv", i, c))
        case "load":
            return reading(r)
        case _:
            left, right = integer(r, 2), r.choice((lift(r.randint(-20, 150)), integer(r, 1)))
            return op(r.choice(("le", "lt", "eq", "ne")), left, right)


def reading(r: random.Random) -> Expr:
    """A literal that reads a tensor."""
    at_i, at_j = (r.choice((x, x, x, op("sub", x, 3), op("floordiv", x, 2))) for x in (i, j))
    doc = op(r.choice(("eq", "eq", "eq", "ne")), Load("doc", (b, at_i), "int"), Load("doc", (b, at_j), "int"))
    segments = op(r.choice(("eq", "le", "lt", "ne")), Segment("cu", i), Segment("cu", j))
    prefix = op("lt", r.choice((i, j)), Load("prefix", (b,), "int"))
    width = op("lt", op("abs", DISTANCE), Load("width", (h,), "int"))
    keep = Load("keep", (b, r.choice((i, j))), "bool")
    start = op("le", Load("start", (b, i), "int"), j)
    flags = op(r.choice(("eq", "ne")), keep, Load("keep", (b, at_i), "bool"))
    before = op("where", op("le", 3, i), Load("doc", (b, op("sub", i, 3)), "int"), Load("doc", (b, i), "int"))
    chosen = op("eq", before, Load("doc", (b, j), "int"))
    return r.choice((doc, doc, segments, segments, prefix, width, width, keep, start, flags, chosen))


def integer(r: random.Random, depth: int) -> Expr:
    k = r.random()
    if depth == 0 or k < 0.25:
        return r.choice((i, j, j, DISTANCE))
    x = integer(r, depth - 1)
    if k < 0.42:
        return op("floordiv", x, r.choice((2, 3, 8, 32, 64, 100, -5)))
    if k < 0.5:
        return op("mod", x, r.choice((2, 3, 8, 64, 300)))
    if k < 0.62:
        return op(r.choice(("add", "sub")), x, r.choice((lift(r.randint(-90, 90)), integer(r, depth - 1))))
    if k < 0.7:
        return op("mul", x, r.choice((2, 3, -1)))
    if k < 0.82:
        return op(r.choice(("min", "max")), x, r.choice((lift(r.randint(0, 200)), integer(r, depth - 1))))
    if k < 0.86:
        return op("where", op("lt", integer(r, 0), r.randint(0, 200)), x, integer(r, depth - 1))
    return op(r.choice(("abs", "abs", "square")), r.choice((x, DISTANCE)))


def world(r: random.Random) -> World:
    """N and M around 200, either one the longer; documents in order or not."""
    n = r.choice((256, 256, 230, 128, 100))
    m = n if r.random() < 0.5 else r.choice((64, 100, 256, 290))
    g = np.random.default_rng(r.getrandbits(32))
    doc = g.integers(0, 4, (2, n))
    arrays = {
        "doc": np.sort(doc, 1) if r.random() < 0.7 else doc,
        "cu": np.array([0, *np.sort(g.integers(0, n + 1, 3)), n]),
        "prefix": g.integers(0, n, 2),
        "width": np.array([0, 5, 33, 300]),
        "keep": g.random((2, n)) < 0.02,
        "start": np.maximum(0, np.arange(n)[None] - g.integers(0, 20, (2, n))),
    }
    scalars = {"b": 1, "h": r.randrange(4), "w": r.choice((0, 20, 70)), "seg": r.choice((1, 24, 64))}
    return World(n, m, scalars, arrays)
