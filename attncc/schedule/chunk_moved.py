"""Gradients of gates from what they fade: a value that is only read times 2 to the power of running sums leaves its
product with its own gradient there, whatever it is read for. The powers themselves are held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attncc.expr.build import op
from attncc.expr.nodes import Expr, Var
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

LN2 = math.log(2.0)


def same(k: Chunk, v: Var) -> Var:
    """A value by another name, with a gradient of its own."""
    return k.b.let(v.name.split("_")[0], k.b.type_of(v.name), t.Map(v))


def fixed(k: Chunk, v: Var) -> Var:
    """A value by another name that gradients hold fixed."""
    found = same(k, v)
    k.still.add(found.name)
    return found


def faded(k: Chunk, v: Var, sums: Sequence[tuple[Var, float]]) -> Var:
    """`v`, for what is read times 2 to the power of `sums`, each with its sign."""

    def rule(a: Var) -> Sequence[Expr]:
        return (a, *(op("mul", _summed(k, k.value(op("mul", v, a), "a"), x), sign * LN2) for x, sign in sums))

    narrow = k.narrow(v)
    plain = isinstance(k.b.made.get(narrow.name), t.Load)  # in 16 bits, as products take it
    made = same(k, narrow if plain else v)
    k.known[made.name] = (narrow.name if plain else v.name, *(x.name for x, _ in sums)), rule
    return k.cast(made, k.b.type_of(v.name).dtype)


def _summed(k: Chunk, v: Var, kept: Var) -> Var:
    """`v` over the axes of `kept`."""
    for name in k.b.type_of(v.name).names():
        if name not in k.b.type_of(kept.name).names():
            v = k.sum("a", v, name)
    return v
