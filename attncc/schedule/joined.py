"""A term that grows evenly with the key joins the inner product of queries and keys, as channels of its own.

rewrite: c * (q . k) + a * (j - j0) --> c * ([q, a / c] . [k, j - j0])

for c > 0, where a and c read neither key nor query. The channels of the keys are the same for every tile: they
stand in shared memory from the kernel's start. Those of the queries are a / c as a sum of three numbers of the inputs'
dtype, together with a float32's digits. One step more of the tensor cores' product replaces two operations a pair.
"""

from __future__ import annotations

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.passes.simplify import scale, simplify
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


def joined(k: Stream, keys: int) -> Joined | None:
    """What joins the product with tiles of `keys` keys, if anything does."""
    factor = joined_factor(k.p) if keys <= EXACT else None
    return None if factor is None else Joined(k, factor, keys)


def joined_factor(p: Problem) -> Expr | None:
    """a / c, if scores of `p` are such a sum and terms by query."""
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
        case _:
            return None


class Joined:
    """Those channels of a kernel under construction, whose product then has the score's terms by key."""

    def __init__(self, k: Stream, factor: Expr, keys: int) -> None:
        self.k, self.factor, self.keys = k, factor, keys
        k.joined = True

    @property
    def bytes(self) -> int:
        """Of shared memory."""
        return 2 * STEP * self.keys

    def fill(self) -> None:
        """The keys' channels, for all tiles at once."""
        k, narrow = self.k, self.k.p.variant.dtype
        axis, more = t.Axis("j", self.keys), k.b.axis(MORE, STEP)
        name = k.b.fresh("k_more")
        k.b.add(t.AllocShared(name, t.Type((axis, more), narrow), 1))
        lane = k.b.let("lane", t.Type((axis,), "i32"), t.Iota(Const(0, "int")), "keys of a tile")
        used = self._channels([op("real", op("mul", lane, high)) for high in HIGH])
        value = k.cast(k.b.let("k_lane", t.Type((axis, more), k.p.real), t.Map(used)), narrow)
        self.tile = t.Slot(name, Const(0, "int"))
        k.b.add(t.SharedStore(self.tile, value.name))
        k.b.add(t.Fence())

    def begin(self, rows: t.Axis) -> None:
        """The channels of a consumer's queries, as the first operand of a product reads them."""
        k, narrow = self.k, self.k.p.variant.dtype
        rest: Expr = k.b.value(self.factor, "slope")
        parts: list[Expr] = []
        for high in HIGH:
            scaled = k.b.value(simplify(op("mul", rest, 1.0 / high)), "part")
            parts.append(k.cast(k.cast(scaled, narrow), k.p.real))
            rest = k.b.value(op("sub", rest, simplify(op("mul", parts[-1], float(high)))), "rest", "of it")
        wide = t.Type((rows, t.Axis(MORE, STEP)), k.p.real)
        self.queries = k.cast(k.b.let("q_more", wide, t.Map(self._channels(parts))), narrow)

    def added(self, s: Var) -> Var:
        """The product with what it is joined by, begun and not awaited."""
        dot = t.Dot(self.queries.name, self.tile, MORE, s.name, asynchronous=True)
        return self.k.b.let("s", self.k.b.type_of(s.name), dot)

    def _channels(self, values: list[Expr]) -> Expr:
        """`values` in the first channels, 0 in the others."""
        found: Expr = ZERO
        at = self.k.b.let("channel", t.Type((t.Axis(MORE, STEP),), "i32"), t.Iota(Const(0, "int")))
        for n, value in reversed(list(enumerate(values))):
            found = op("where", op("eq", at, n), value, found)
        return found
