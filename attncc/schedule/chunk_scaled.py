"""States whose gates, or the exponents of whose writes, may be of any size: all is relative to the largest so far.

Such a state is carried as e^-m times itself, and with it m. With G the running sum of the gates' natural logarithms and
u_j the exponent of what j writes, the most that is seen from i is

    n_i = max(m, a_j for j <= i)   with a_j = u_j - G_j      weights e^(a_j - n_i), the state's own e^(m - n_i)

and a read is e^(G_i + n_i) times what comes out; at the chunk's end m is G_last + n_last. Reads before the change have
E, the sum without the token's own gate, and j < i. m and n are whole numbers, rounded up; G and u are split into whole
numbers and what is left of them, so that large ones cancel exactly: only what is left has gradients.
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.chunk_fading import LOG2E, NEVER, ZERO, Maker, Sums
from attncc.tile import nodes as t

LOW, HIGH = Const(-1e7, "real"), Const(1e6, "real")
"""The logarithm of nothing, and of the most that is written: whole numbers that f32 holds."""
LEAST = Const(-1e5, "real")
"""Of a gate: the sum over a chunk stays among such numbers."""


class Scaled:
    """A gate and writes of any size."""

    def __init__(self, m: Maker, log_gate: Expr, log: Expr, scale: Var) -> None:
        """`log` is the exponent of the writes, `scale` the state's m, over one axis."""
        self.m, self.k, k = m, m.k, m.k
        self.known: dict[tuple[object, ...], Var] = {}
        self.scale = m.fixed(m.number(scale))
        whole, part = self.split(_between(log, LOW, HIGH), "u")
        self.whole: Sums | None = None
        self.part: Sums | None = None
        if log_gate is not ZERO:
            gate = k.over(k.value(op("where", k.live, _between(log_gate, LEAST, HIGH), ZERO), "gate"), "i")
            self.whole, self.part = m.in_parts(gate)
            whole, part = op("sub", whole, self.whole.upto), op("sub", part, self.part.upto)
        self.a = m.fixed(k.over(k.value(op("where", k.live, whole, LOW), "a"), "i"))
        self.rest_of_a = k.over(k.value(op("where", k.live, part, ZERO), "a"), "i")
        self.top = self.once("tops", op("add", self.a, _up(self.rest_of_a)), ("i",))

    def split(self, e: Expr, hint: str) -> tuple[Expr, Expr]:
        """The whole number next to `e`, and what is left of it."""
        whole = self.m.fixed(self.k.over(self.k.value(op("real", op("floor", op("add", e, 0.5))), hint), "i"))
        return whole, op("sub", e, whole)

    def once(self, hint: str, made: Expr | t.Op, axes: tuple[str, ...]) -> Var:
        """A value that gradients hold fixed, made once."""
        if (hint, axes) not in self.known:
            body = t.Map(made) if isinstance(made, Expr) else made
            self.known[hint, axes] = self.m.fixed(self.k.b.let(hint.split()[0], self.k.b.over(*axes), body))
        return self.known[hint, axes]

    def largest(self, after: bool) -> Var:
        """n_i."""
        if after:
            best = self.once("best after", t.Scan("max", self.top.name, "i"), ("i",))
            return self.once("n after", op("max", best, self.scale), ("i",))
        pairs = self.once("pairs", op("where", self.m.seen(False), self.m.as_j(self.top), LOW), ("i", "j"))
        best = self.once("best before", t.Reduce("max", pairs.name, "j"), ("i",))
        return self.once("n before", op("max", best, self.scale), ("i",))

    def row(self, after: bool) -> Var:
        """What is left of G_i, rounded up to whole numbers, in rows: above -1, at most 0."""
        if self.part is None:
            return self.k.value(ZERO, "row")
        part = self.part.of(after)
        up = self.once(f"up {after}", _up(part), ("i",))
        return self.k.value(op("sub", part, up), "row")

    def exponent(self, after: bool) -> Var:
        """The natural logarithm of what the rows of a read are to be multiplied with: a whole number."""
        n = self.largest(after)
        if self.part is None or self.whole is None:
            return n
        total = op("add", op("add", self.whole.of(after), _up(self.part.of(after))), n)
        return self.once(f"scale {after}", total, ("i",))

    def end(self) -> Var:
        """n_last."""
        best = self.once("best", t.Reduce("max", self.top.name, "i"), ())
        return self.once("n", op("max", best, self.scale), ())

    def last_row(self) -> Expr:
        """What is left of G_last, as in `row`."""
        if self.part is None:
            return ZERO
        return op("sub", self.part.last, self.once("up", _up(self.part.last), ()))

    def after(self, like: Var) -> Var:
        """m behind the chunk, as it is carried."""
        names = self.k.b.type_of(like.name).names()
        total: Expr = self.end()
        if self.part is not None and self.whole is not None:
            total = op("add", op("add", self.whole.last, _up(self.part.last)), total)
        zeros = self.k.b.let("zeros", self.k.b.over(*names), t.Full(ZERO))
        return self.once("m", op("add", _between(total, LOW, op("neg", LOW)), zeros), names)

    def power(self, exponent: Expr, why: str) -> Var:
        """e^exponent."""
        return self.m.power(op("mul", exponent, LOG2E), why)

    def pair(self, after: bool) -> Expr:
        """Of what row j wrote, where row i reads; 0 where it does not."""
        gap = op("sub", self.m.as_j(self.a), self.largest(after))
        gap = op("add", gap, op("add", self.m.as_j(self.rest_of_a), self.row(after)))
        return self.power(op("where", self.m.seen(after), gap, NEVER), "less the largest of the rows that i reads")

    def start(self, after: bool) -> Var | None:
        """Of the state at the chunk's start, where row i reads."""
        gap = op("add", op("sub", self.scale, self.largest(after)), self.row(after))
        return self.power(gap, "less the largest so far, which is no less than m")

    def rest(self) -> Var | None:
        """Of what row i wrote, at the chunk's end."""
        gap = op("add", op("sub", self.a, self.end()), op("add", self.rest_of_a, self.last_row()))
        return self.power(gap, "less the largest of all rows")

    def total(self) -> Var | None:
        """Of the state at the chunk's start, at its end."""
        gap = op("add", op("sub", self.scale, self.end()), self.last_row())
        return self.power(gap, "less the largest of all, which is no less than m")


def _between(e: Expr, low: Expr, high: Expr) -> Expr:
    return op("where", op("lt", e, low), low, op("where", op("lt", high, e), high, e))


def _up(e: Expr) -> Expr:
    return op("real", op("ceil", e))
