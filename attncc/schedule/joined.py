"""Terms by key join the inner product of queries and keys, as channels of their own.

rewrite: c * (q . k) + a * (j - j0) --> c * ([q, a / c] . [k, j - j0])
rewrite: c * (q . k) + f(j)         --> c * ([q, 1] . [k, f(j) / c])

for c > 0 that reads neither key nor query. One step more of the tensor cores' product replaces an operation a pair, and
the maximum is that of the product. What is no small whole number is a sum of three numbers of the inputs' dtype,
together with a float32's digits. Of terms that grow evenly the channels of the keys are the same for every tile: they
stand in shared memory from the kernel's start. Other terms come with the keys, from a tensor that a kernel writes
before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Op, Var, walk
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


@dataclass(frozen=True, slots=True)
class Term:
    """What joins the product."""

    value: Expr
    """In units of the product: a / c, which multiplies j - j0, where it grows `evenly`; else f(j) / c."""
    evenly: bool
    rest: Expr
    """The score in base two without it and without what queries add, which never meets the pairs."""


def joining(p: Problem) -> Term | None:
    """The terms by key, if scores of `p` are such a sum and terms by query."""
    found = separate(scale(p.attend.score, LOG2E), ivar("j0"), LANE)
    if not p.exponential or found.pair is None or found.key is None:
        return None
    c, product = (ONE, found.pair) if found.pair is p.attend.product else positive_factor(found.pair) or (ONE, ONE)
    if product is not p.attend.product:
        return None
    a = _slope(found.key)
    if a is not None:
        return Term(op("div", a, c), True, found.pair)
    if LANE in walk(found.key) or p.variant.dtype != "bf16":  # a bias of -1e9 is beyond float16
        return None
    return Term(simplify(op("div", found.key, c)), False, found.pair)


def _slope(e: Expr) -> Expr | None:
    """a, where `e` is a * real(LANE)."""
    match e:
        case Op("real", (x,)) if x is LANE:
            return ONE
        case Op("mul", (a, x)) if not any(reads(a)) and (inner := _slope(x)) is not None:
            return a if inner is ONE else op("mul", a, inner)
        case _:
            return None


class Channels:
    """What joins the product in a kernel under construction: nothing, unless a class below says so."""

    bytes: int = 0
    """Of shared memory."""
    turn_bytes: int = 0
    """That arrive with a tile of keys."""
    tensors: tuple[str, ...] = ()
    """They arrive from."""

    def memory(self) -> None:
        """Allocates buffers, and fills what is the same for all tiles."""

    def arrive(self, at: tuple[Expr, ...], slot: Expr, bar: t.Bar) -> None:
        """Begins to copy the channels of a tile of keys, if they are not there yet."""

    def begin(self, rows: t.Axis) -> None:
        """Prepares the channels of a consumer's queries, if they are not there yet."""

    def added(self, s: Var, slot: Expr) -> Var:
        """The product with what it is joined by, begun and not awaited."""
        return s


class Joined(Channels, ABC):
    """Channels whose product brings the score's terms by key."""

    def __init__(self, k: Stream, keys: int) -> None:
        self.k, self.narrow = k, k.p.variant.dtype
        self.axis = t.Axis("j", keys)
        k.joined = True

    @abstractmethod
    def operands(self, slot: Expr) -> tuple[str | t.Slot, t.Slot]:
        """The channels of a consumer's queries and of a slot's keys."""

    def added(self, s: Var, slot: Expr) -> Var:
        """The product with what it is joined by, begun and not awaited."""
        left, right = self.operands(slot)
        dot = t.Dot(left, right, MORE, s.name, asynchronous=True)
        return self.k.b.let("s", self.k.b.type_of(s.name), dot)

    def constant(self, hint: str, axis: t.Axis, values: list[Expr]) -> t.Slot:
        """A shared tile with `values` in the first channels."""
        k = self.k
        more = k.b.axis(MORE, STEP)
        name = k.b.fresh(hint)
        k.b.add(t.AllocShared(name, t.Type((axis, more), self.narrow), 1))
        wide = k.b.let(hint, t.Type((axis, more), k.p.real), t.Map(in_channels(channel(k), values)))
        tile = t.Slot(name, Const(0, "int"))
        k.b.add(t.SharedStore(tile, k.cast(wide, self.narrow).name))
        k.b.add(t.Fence())
        return tile


class Evenly(Joined):
    """Channels of a term that grows evenly: a lane's number with every key, a / c with every query."""

    scales = (EXACT, 1, 1)
    """What the parts are multiples of: float16 has no numbers beyond 65504, a factor may be larger."""

    def __init__(self, k: Stream, keys: int, factor: Expr) -> None:
        super().__init__(k, keys)
        self.factor, self.bytes = factor, 2 * STEP * keys

    def memory(self) -> None:
        """The keys' channels, for all tiles at once."""
        k = self.k
        lane = k.b.let("lane", t.Type((self.axis,), "i32"), t.Iota(Const(0, "int")), "keys of a tile")
        self.tile = self.constant("k_more", self.axis, [op("real", op("mul", lane, x)) for x in self.scales])

    def begin(self, rows: t.Axis) -> None:
        """The channels of a consumer's queries, as the first operand of a product reads them."""
        k = self.k
        values = parts(k, k.b.value(self.factor, "slope"), self.scales)
        wide = t.Type((rows, t.Axis(MORE, STEP)), k.p.real)
        self.queries = k.cast(k.b.let("q_more", wide, t.Map(in_channels(channel(k), values))), self.narrow)

    def operands(self, slot: Expr) -> tuple[str | t.Slot, t.Slot]:
        """Queries in registers, keys that are the same for every slot."""
        return self.queries.name, self.tile


def parts(k: Stream, value: Var, scales: tuple[int, ...]) -> list[Expr]:
    """Numbers of the inputs' dtype that, times `scales`, add up to a value. An infinite one is its first part."""
    rest, found = value, []
    for n, by in enumerate(scales):
        scaled = k.b.value(simplify(op("mul", rest, 1.0 / by)), "part")
        found.append(k.cast(k.cast(scaled, k.p.variant.dtype), k.p.real))
        if n < len(scales) - 1:
            held = k.b.value(simplify(op("mul", found[-1], float(by))), "held")
            beyond = op("eq", op("abs", held), math.inf)
            rest = k.b.value(op("where", beyond, ZERO, op("sub", rest, held)), "rest", "of it")
    return list(found)


def channel(k: Stream) -> Var:
    """The number of every channel that is joined."""
    return k.b.let("channel", t.Type((k.b.axis(MORE, STEP),), "i32"), t.Iota(Const(0, "int")))


def in_channels(at: Var, values: list[Expr]) -> Expr:
    """`values` in the first channels, 0 in the others."""
    found: Expr = ZERO
    for n, value in reversed(list(enumerate(values))):
        found = op("where", op("eq", at, n), value, found)
    return found
