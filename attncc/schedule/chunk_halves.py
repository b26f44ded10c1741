"""Weights of a chunk under gates that vary with the channel, as products of matrices.

    p_ij = sum over d of x_id w_jd 2^(G_id - G_jd)      for j < i

Rows are cut into blocks of two halves, at every level half as long as at the one above: there is one level at which i
is in the upper half and j in the lower half of the same block. With n the last row of the lower half

    2^(G_i - G_j) = 2^(G_i - G_n) 2^(G_n - G_j)

and both exponents are at most 0, whatever the gates are. So each row has one factor at a level, f = 2^-|G - G_n|, and
the level's part of p is (x f) (w f)^T where the pair belongs to it: as many products as there are levels, and no
exponential of a pair. Exponents are sums of gates from n on or up to n, taken as a product with zeros and ones of the
gates, split into two 16-bit parts: there is no difference of large numbers.

Of the gradients, those of x and w go back level by level; what they leave at G_i is x_i . dx_i - w_i . dw_i, channel by
channel, times ln 2: a pair's own exponent is 0, and G_n cancels.
"""

from __future__ import annotations

import math

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

LN2 = math.log(2.0)
ONE, ZERO = Const(1.0, "real"), Const(0.0, "real")


class Halves:
    """The weights of x_i and w_j, both over rows and a channel axis, under a gate of the same axes."""

    def __init__(self, k: Chunk, x: Var, w: Var, gate: Var, after: bool) -> None:
        self.k, self.x, self.w, self.after = k, x, w, after
        rows, channels = k.b.type_of(gate.name).axes
        self.axis, self.count = channels.name, rows.extent
        self.type = t.Type((rows, channels), k.real)
        high = k.cast(gate, "f16")
        low = k.cast(k.value(op("sub", gate, k.cast(high, k.real)), "rest"), "f16")
        self.parts = {"i": (high, low), "j": tuple(k.rename(v) for v in (high, low))}
        self.at = {n: k.b.let(n, t.Type((k.b.axis(n, self.count),), "i32"), t.Iota(Const(0, "int"))) for n in "ij"}

    # --- levels -----------------------------------------------------------------------------------------------------

    def levels(self) -> t.Count:
        """One for each halving."""
        return t.Count(Const(0, "int"), Const(self.count.bit_length() - 1, "int"))

    def half(self, level: Var) -> Var:
        """The rows of half a block at a level."""
        found: Expr = Const(1, "int")
        for n in range(1, self.count.bit_length() - 1):
            found = op("where", op("le", n, level), Const(1 << n, "int"), found)
        return self.k.value(found, "half")

    def places(self, half: Var) -> tuple[dict[str, Var], dict[str, Var]]:
        """(the block of every row, whether it is in the upper half) at a level."""
        k = self.k
        number = {n: k.value(op("floordiv", v, half), "half_of") for n, v in self.at.items()}
        upper = {n: k.value(op("eq", op("mod", v, 2), 1), "upper") for n, v in number.items()}
        return {n: k.value(op("floordiv", v, 2), "block") for n, v in number.items()}, upper

    def pair(self, half: Var) -> Expr:
        """Whether a pair belongs to a level."""
        block, upper = self.places(half)
        return op("and", op("eq", block["i"], block["j"]), op("and", upper["i"], op("not", upper["j"])))

    def factor(self, half: Var, row: str = "i") -> Var:
        """Every row's factor at a level, as a product makes it: over (i, channels) or over (channels, j)."""
        k, b, summed = self.k, self.k.b, "j" if row == "i" else "i"
        block, upper = self.places(half)
        here, there = self.at[row], self.at[summed]
        past = op("and", upper[summed], op("le" if self.after or row == "j" else "lt", there, here))
        below = op("and", op("not", upper[summed]), op("lt", here, there))
        chosen = op("where", upper[row], past, below)
        ones = op("where", op("and", op("eq", block["i"], block["j"]), chosen), ONE, ZERO)
        matrix = k.cast(k.over(k.value(ones, "between"), "i", "j"), "f16")
        type = self.type if row == "i" else t.Type((self.type.axes[1], t.Axis("j", self.count)), k.real)
        total: Var | None = None
        for part in self.parts[summed]:
            dot = t.Dot(matrix.name, part.name, summed, total.name if total is not None else None)
            total = b.let("gap", type, dot)
        assert total is not None
        with k.turned():
            bounded = k.value(op("min", total, ZERO), "gap")
        return b.let("factor", type, t.Map(op("exp2", bounded)), "at most 0: gates of at most 1")

    def side(self, v: Var, factor: Var) -> Var:
        """x or w with a level's factor."""
        with self.k.turned():
            return self.k.narrow(self.k.value(op("mul", v, factor), "x"))

    # --- forward ----------------------------------------------------------------------------------------------------

    def weights(self) -> Var:
        """p over i and j."""
        k, b = self.k, self.k.b
        own: Expr = ZERO
        if self.after:
            own = k.sum("own", op("mul", self.x, self.w), self.axis)
        start = k.over(k.value(op("where", op("eq", self.at["j"], self.at["i"]), own, ZERO), "p"), "i", "j")
        with b.inner() as scope:
            carry, p = b.carry("p", start, scope.depth)
            level = b.loop_index("level")
            half = self.half(level)
            x = self.side(self.x, self.factor(half))
            w = self.side(k.rename(self.w), self.factor(half, "j"))
            part = k.dot("part", x, w, self.axis, ("i", "j"))
            b.add(t.Yield((k.value(op("where", self.pair(half), part, p), "p").name,)))
        b.add(t.For(level.name, self.levels(), (carry,), tuple(scope.statements), order="asc", note="level by level"))
        return b.leave((carry,))[0]

    # --- backward ---------------------------------------------------------------------------------------------------

    def gradients(self, a: Var) -> tuple[Var, Var, Var, Var]:
        """(of x, of w, what x and what w leave at their sums of gates) for `a`, the gradient of p."""
        k, b = self.k, self.k.b
        back = self.k.turn(a)
        none = b.let("none", self.type, t.Full(ZERO))
        with b.inner() as scope:
            (left, dx), (right, dw) = (b.carry(n, none, scope.depth) for n in ("dx", "dw"))
            level = b.loop_index("level")
            half = self.half(level)
            factor, pair = self.factor(half), self.pair(half)
            x, w = self.side(self.x, factor), k.rename(self.side(self.w, factor))
            mine = k.value(op("where", pair, a, ZERO), "mine")
            part = k.dot("part", mine, w, "j", ("i", self.axis))
            new_x = k.value(op("add", dx, op("mul", part, factor)), "dx")
            with k.ordered(("j", "i")):
                turned = k.value(op("where", pair, back, ZERO), "mine")
            given = k.dot("part", turned, x, "i", ("j", self.axis))
            on_i = b.let("part", self.type, t.Rename(given.name))
            new_w = k.value(op("add", dw, op("mul", on_i, factor)), "dw")
            b.add(t.Yield((new_x.name, new_w.name)))
        carried = (left, right)
        b.add(t.For(level.name, self.levels(), carried, tuple(scope.statements), order="asc", note="level by level"))
        dx, dw = b.leave(carried)
        at_x, at_w = (op("mul", op("mul", v, d), LN2) for v, d in ((self.x, dx), (self.w, dw)))
        at_x, at_w = k.value(at_x, "a"), k.value(op("neg", at_w), "a")
        if self.after:
            own = k.sum("own", op("where", op("eq", self.at["j"], self.at["i"]), a, ZERO), "j")
            dx = k.value(op("add", dx, op("mul", own, self.w)), "dx")
            dw = k.value(op("add", dw, op("mul", own, self.x)), "dw")
        return dx, dw, at_x, at_w
