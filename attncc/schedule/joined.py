"""A term that grows evenly with the key joins the inner product of queries and keys, as channels of its own.

rewrite: c * (q . k) + a * (j - j0) --> c * ([q, a / c] . [k, j - j0])

for c > 0, where a and c read neither key nor query. The channels of the keys are the same for every tile: they
stand in shared memory from the kernel's start. Those of the queries are a / c as a sum of three numbers of the inputs'
dtype, together with a float32's digits. One step more of the tensor cores' product replaces two operations a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.passes.simplify import scale
from attncc.passes.stream import LOG2E
from attncc.schedule.positive import positive_factor
from attncc.schedule.separate import LANE, reads, separate
from attncc.schedule.stream import ZERO, Problem, Stream
from attncc.tile import nodes as t

MORE = "more"
"""The axis of the channels that are joined."""
STEP = 16
"""Channels of one step of a product of 16-bit numbers."""
ONE = Const(1.0, "real")
EXACT = 256
"""Whole numbers below it are bfloat16's, and times it float16's."""
HIGH = (EXACT, 1, 1)
"""What the parts are multiples of: float16 has no numbers beyond 65504, a factor may be larger."""


def joined_factor(p: Problem, keys: int) -> Expr | None:
    """a / c, if scores of `p` are such a sum and terms by query, and `keys` keys can be told apart in 16 bits."""
    if keys > EXACT:
        return None
    found = separate(scale(p.attend.score, LOG2E), ivar("j0"), LANE)
    if not p.exponential or found.pair is None or found.key is None:
        return None
    c, product = (ONE, found.pair) if found.pair is p.attend.product else positive_factor(found.pair) or (ONE, ONE)
    a = _slope(found.key)
    return op("div", a, c) if a is not None and product is p.attend.product else None


def _slope(e: Expr) -> Expr | None:
    """a, where `e` is a * real(LANE)."""
    match e:
        case Op("real", (x,)) if x is LANE:
            return ONE
        case Op("mul", (a, x)) if not any(reads(a)) and (inner := _slope(x)) is not None:
            return a if inner is ONE else op("mul", a, inner)
        case Op("neg", (x,)) if (inner := _slope(x)) is not None:
            return op("neg", inner)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Joined:
    """The keys' channels in shared memory, and the factor whose parts are the queries'."""

    k: Stream
    tile: str
    factor: Expr

    def queries(self, rows: t.Axis) -> Var:
        """The channels of a consumer's queries, as the first operand of a product reads them."""
        k, narrow = self.k, self.k.p.variant.dtype
        rest, at = k.b.value(self.factor, "slope"), _channel(k)
        parts = []
        for high in HIGH:
            part = k.b.value(rest if high == 1 else op("mul", rest, 1.0 / high), "part")
            part = k.cast(k.cast(part, narrow), k.p.real)
            parts.append(part)
            rest = k.b.value(op("sub", rest, part if high == 1 else op("mul", part, float(high))), "rest", "of it")
        value: Expr = ZERO
        for n, part in reversed(list(enumerate(parts))):
            value = op("where", op("eq", at, n), part, value)
        wide = t.Type((rows, t.Axis(MORE, STEP)), k.p.real)
        return k.cast(k.b.let("q_more", wide, t.Map(value)), narrow)

    def added(self, s: Var, queries: Var) -> Var:
        """The product with what it is joined by, begun and not awaited."""
        dot = t.Dot(queries.name, t.Slot(self.tile, Const(0, "int")), MORE, s.name, asynchronous=True)
        return self.k.b.let("s", self.k.b.type_of(s.name), dot)


def joined(k: Stream, factor: Expr, keys: int) -> Joined:
    """Fills the keys' channels, for all tiles at once."""
    k.joined = True
    axis, more, narrow = t.Axis("j", keys), k.b.axis(MORE, STEP), k.p.variant.dtype
    tile = k.b.fresh("k_more")
    k.b.add(t.AllocShared(tile, t.Type((axis, more), narrow), 1))
    lane = k.b.let("lane", t.Type((axis,), "i32"), t.Iota(Const(0, "int")), "keys of a tile")
    at = _channel(k)
    used: Expr = ZERO
    for n, high in reversed(list(enumerate(HIGH))):
        used = op("where", op("eq", at, n), op("real", op("mul", lane, high)), used)
    value = k.cast(k.b.let("k_lane", t.Type((axis, more), k.p.real), t.Map(used)), narrow)
    k.b.add(t.SharedStore(t.Slot(tile, Const(0, "int")), value.name))
    k.b.add(t.Fence())
    return Joined(k, tile, factor)


def _channel(k: Stream) -> Var:
    return k.b.let("channel", t.Type((t.Axis(MORE, STEP),), "i32"), t.Iota(Const(0, "int")))
