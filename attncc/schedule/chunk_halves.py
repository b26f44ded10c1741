"""Weights of a chunk under gates that vary with the channel, as products of matrices.

    p_ij = sum over d of x_id w_jd 2^(G_id - G_jd)      for j < i

Rows are cut into blocks of two halves, at every level half as long as at the one above: there is one level at which i
is in the upper half and j in the lower half of the same block. With n the last row of the lower half

    2^(G_i - G_j) = 2^(G_i - G_n) 2^(G_n - G_j)

and both exponents are at most 0, whatever the gates are. So each row has one factor at a level, f = 2^-|G - G_n|, and
one role: with z = x f in upper and w f in lower halves, the level's part of p is z z^T where the pair belongs to it. As
many products as there are levels, and no exponential of a pair. The sums of a block's row n are read where an earlier
kernel stored them.

Where every channel's gates leave at least 2^-REACH over the whole chunk, as gates near 1 do, no levels are needed. A
chunk keeps x 2^G and w 2^(G_last - G) for its walk; with 2^(-G_last / 2) in both, which is all that they may grow by,
16 bits still hold them, and one product has all pairs:

    2^(G_i - G_j) = 2^(G_i - G_last / 2) 2^(G_last - G_j - G_last / 2)

Of the gradients, those of x and w go back level by level, by one product with z, as each row is one of both; what they
leave at G_i is x_i . dx_i - w_i . dw_i, channel by channel, times ln 2: a pair's own exponent is 0, and G_n cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.chunk_fading import Sums
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

ONE, ZERO = Const(1.0, "real"), Const(0.0, "real")
REACH: Mapping[str, float] = {"bf16": 64.0, "f16": 4.0}
"""So that what a chunk keeps of inputs from 2^-62 (float16: 2^-10) on is not rounded as numbers next to 0 are."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level's rows: every row's factor, x or w with it, whether a row is in its block's upper half, and the number
    of the block's other half, as it is for a pair of rows."""

    factor: Var
    z: Var
    upper: Var
    other: Var
    number: Var


Turn = Callable[[Level, tuple[Var, ...]], Sequence[Var]]
"""From a level and what is carried to what is carried on."""


class Halves:
    """The weights of x_i and w_j, both over rows and a channel axis, under a gate of the same axes."""

    def __init__(
        self, k: Chunk, x: Var, w: Var, sums: Sums, after: bool, row: Callable[[Var], Var], end: Callable[[], Var]
    ) -> None:
        """What reads the running sums of rows, and of the last row in all channels there are."""
        self.k, self.x, self.w, self.after, self.row, self.end = k, x, w, after, row, end
        rows, channels = k.b.type_of(x.name).axes
        self.axis, self.count = channels.name, rows.extent
        self.type = t.Type((rows, channels), k.real)
        self.at_x, self.at_w = sums.of(after), sums.upto
        self.at = {
            n: k.b.let(n, t.Type((k.b.axis(n, self.count),), "i32"), t.Iota(Const(0, "int")), depth=0) for n in "ij"
        }

    def wide(self, e: Expr, hint: str) -> Var:
        """A value over i and j."""
        with self.k.ordered(("i", "j")):
            return self.k.value(e, hint)

    # --- one product -----------------------------------------------------------------------------------------------

    def near(self) -> Var:
        """Whether gates leave enough of everything over the whole chunk."""
        k, end = self.k, self.end()
        least = k.b.let("least", t.Type((), k.real), t.Reduce("min", end.name, "every"), depth=k.b.depth(end))
        return k.value(op("le", -REACH[k.variant.dtype], least), "near")

    def rise(self, last: Var) -> Var:
        """2^-m, of sums at the chunk's end."""
        most = REACH[self.k.variant.dtype] / 2
        half = self.k.value(op("min", op("mul", last, -0.5), most), "half")
        return self.k.b.noted(op("exp2", half), "rise", f"at most {most:g}: cut there")

    def product(self, x: Var, w: Var) -> Var:
        """p over i and j of x from the chunk's start and w to its end, over all channels there are."""
        k, rise = self.k, self.rise(self.end())
        x, w = (k.narrow(k.value(op("mul", k.cast(v, k.real), rise), "z")) for v in (x, w))
        p = k.dot("p", x, k.rename(w), "every", ("i", "j"))
        behind = op("le" if self.after else "lt", self.at["j"], self.at["i"])
        return self.wide(op("where", behind, p, ZERO), "p")

    # --- levels -----------------------------------------------------------------------------------------------------

    def levels(self, carried: tuple[tuple[str, Var], ...], turn: Turn) -> tuple[Var, ...]:
        """What a loop over all levels, from blocks of two rows on, leaves of `carried`; `turn` makes a level's."""
        k, b = self.k, self.k.b
        with b.inner() as scope:
            numbers = [b.carry("number", self.at[n], scope.depth) for n in "ij"]
            values = [b.carry(hint, v, scope.depth) for hint, v in carried]
            index = b.loop_index("level")
            new = turn(self.level(index, *(v for _, v in numbers)), tuple(v for _, v in values))
            wider = [k.value(op("floordiv", v, 2), "number") for _, v in numbers]
            b.add(t.Yield(tuple(v.name for v in (*wider, *new))))
        every = tuple(c for c, _ in (*numbers, *values))
        over = t.Count(Const(0, "int"), Const(self.count.bit_length() - 1, "int"))
        b.add(t.For(index.name, over, every, tuple(scope.statements), order="asc", note="level by level"))
        return b.leave(every)[2:]

    def half(self, level: Var) -> Var:
        """The rows of half a block at a level."""
        found: Expr = Const(1, "int")
        for n in range(1, self.count.bit_length() - 1):
            found = op("where", op("le", n, level), Const(1 << n, "int"), found)
        return self.k.value(found, "half")

    def level(self, index: Var, i: Var, j: Var) -> Level:
        """A level, of the numbers of the halves that rows lie in."""
        k, b = self.k, self.k.b
        half = self.half(index)
        upper = k.value(op("eq", op("mod", i, 2), 1), "upper")
        blocks = op("add", op("mul", op("floordiv", i, 2), 2), 1)
        between = self.row(k.value(op("sub", op("mul", blocks, half), 1), "between"))
        here = self.here(upper)
        gap = k.value(op("neg", op("abs", op("sub", here, between))), "gap")
        factor = b.let("factor", self.type, t.Map(op("exp2", gap)), "at most 0: gates of at most 1")
        z = k.narrow(k.value(op("mul", self.either(upper), factor), "z"))
        other = k.value(op("where", upper, op("sub", i, 1), op("add", i, 1)), "other")
        return Level(factor, z, upper, other, j)

    def either(self, upper: Var) -> Var:
        """x in upper rows, w in others: chosen in 16 bits where both were loaded so."""
        k = self.k
        pair = (k.narrow(self.x), k.narrow(self.w))
        if all(isinstance(k.b.made.get(v.name), t.Load) for v in pair):
            type = k.b.type_of(pair[0].name)
            return k.cast(k.b.let("one", type, t.Map(op("where", upper, *pair))), k.real)
        return k.value(op("where", upper, self.x, self.w), "one")

    def here(self, upper: Var) -> Var:
        """The running sums that rows have in their roles: where roles differ, read again instead of held throughout."""
        if self.at_x == self.at_w:
            return self.at_w
        at = op("max", op("sub", self.at["i"], op("where", upper, 1, 0)), 0)
        return self.row(self.k.value(at, "at"))

    # --- forward ----------------------------------------------------------------------------------------------------

    def weights(self) -> Var:
        """p over i and j."""
        k, b = self.k, self.k.b
        square = t.Type((t.Axis("i", self.count), t.Axis("j", self.count)), k.real)

        def turn(level: Level, carried: tuple[Var, ...]) -> Sequence[Var]:
            part = k.dot("part", level.z, k.rename(level.z), self.axis, ("i", "j"))
            return (self.wide(op("where", op("eq", level.other, level.number), part, carried[0]), "p"),)

        (p,) = self.levels((("p", b.let("none", square, t.Full(ZERO))),), turn)
        own: Expr = ZERO
        if self.after:
            own = k.sum("own", op("mul", self.x, self.w), self.axis)
        here = op("where", op("eq", self.at["j"], self.at["i"]), own, ZERO)
        return self.wide(op("where", op("lt", self.at["j"], self.at["i"]), p, here), "p")

    # --- backward ---------------------------------------------------------------------------------------------------

    def gradients(self, both: Var) -> tuple[Var, Var]:
        """(of x, of w) for the gradient of p, mirrored; what they leave at the gates is theirs, times x and w."""
        k, b = self.k, self.k.b
        starts, narrow = [b.let("none", self.type, t.Full(ZERO))] * 2, k.narrow(both)
        if self.after:  # at a row's own pair, what x and w leave at G_i cancels
            own = k.sum("own", op("where", op("eq", self.at["j"], self.at["i"]), both, ZERO), "j")
            starts = [k.value(op("mul", own, v), "own") for v in (self.w, self.x)]

        def turn(level: Level, carried: tuple[Var, ...]) -> Sequence[Var]:
            same = op("eq", level.other, level.number)
            mine = b.let("mine", b.type_of(narrow.name), t.Map(op("where", same, narrow, ZERO)))
            product = k.dot("part", mine, k.rename(level.z), "j", ("i", self.axis))
            part = k.value(op("mul", product, level.factor), "part")
            shares = (k.value(op("where", level.upper, *x), "share") for x in ((ONE, ZERO), (ZERO, ONE)))
            found = (op("add", v, op("mul", part, x)) for v, x in zip(carried, shares, strict=True))
            return [k.value(e, hint) for e, hint in zip(found, ("dx", "dw"), strict=True)]

        dx, dw = self.levels(tuple(zip(("dx", "dw"), starts, strict=True)), turn)
        return dx, dw


def mirrored(k: Chunk, a: Var) -> Var:
    """The gradient of p as it is on and below the diagonal, and above it as it is below."""
    axes = tuple(k.b.axis(n, k.b.extent(n)) for n in "ij")
    i, j = (k.b.let(x.name, t.Type((x,), "i32"), t.Iota(Const(0, "int"))) for x in axes)
    back = k.b.let("back", t.Type(axes, k.b.type_of(a.name).dtype), t.Rename(k.turn(a).name))
    with k.ordered(("i", "j")):
        return k.value(op("where", op("le", j, i), a, back), "both")
