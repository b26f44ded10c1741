"""How much of what a token wrote is left at another: the gates of a state, summed up over a chunk.

With G the running sum of the logarithms of the gates in base two, what j wrote has the weight 2^(G_i - G_j) at i.
Gates are at most 1, so every exponent is at most 0. Where that is not proved, or where what is written has an exponent
u_j of its own, a state is carried as 2^-m times itself, and with it m:

    n_i = max(m, a_j for j <= i) with a_j = u_j - G_j      weights 2^(a_j - n_i), the state's own 2^(m - n_i)

and a read is 2^(G_i + n_i) times what comes out; at the chunk's end m is G_last + n_last. Reads before the change
have E, the sum without the token's own gate, and j < i. m is held fixed in gradients: nothing depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from attncc.expr.build import conj, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.chunk_form import OPEN, Gate
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

LOG2E = math.log2(math.e)
NEVER = Const(float("-inf"), "real")
ZERO, ONE = Const(0.0, "real"), Const(1.0, "real")
LOW = Const(-1e30, "real")
"""The logarithm of nothing; finite, so that differences are."""


@dataclass(frozen=True, slots=True)
class Zeros:
    """The tokens of a chunk whose gate is nothing, or next to it: how many up to a row, and the last one's gate.

    They are left out of the running sums. Past one of them its own gate is left of what was before, which is 0 and has
    a derivative; past two nothing is.
    """

    upto: Var
    before: Var
    last: Var
    gate: Var
    gate_before: Var
    gate_last: Var

    def of(self, after: bool) -> Var:
        """The count that a read has."""
        return self.upto if after else self.before

    def gate_of(self, after: bool) -> Var:
        """The gate that a read has."""
        return self.gate if after else self.gate_before


@dataclass(frozen=True, slots=True)
class Gates:
    """The running sums of one gate in a chunk: inclusive, exclusive, and the last; `axis` is the channel, or ""."""

    upto: Var
    before: Var
    last: Var
    axis: str
    zeros: Zeros | None = None

    def of(self, after: bool) -> Var:
        """The sum that a read has."""
        return self.upto if after else self.before


class Fading(Protocol):
    """The factors of the token, without channels, at places of a chunk; None is 1."""

    def pair(self, after: bool) -> Expr:
        """Of what row j wrote, where row i reads; 0 where it does not."""

    def start(self, after: bool) -> Var | None:
        """Of the state at the chunk's start, where row i reads."""

    def rest(self) -> Var | None:
        """Of what row i wrote, at the chunk's end."""

    def whole(self) -> Var | None:
        """Of the state at the chunk's start, at its end."""


class Maker:
    """Gates and powers of one chunk; equal ones are made once."""

    def __init__(self, k: Chunk) -> None:
        self.k = k
        self.known: dict[tuple[object, ...], Var] = {}
        self.made: dict[tuple[str, Gate, str], Gates] = {}

    def gates(self, gate: Gate, axis: Var | None) -> Gates | None:
        """The running sums of a gate, along an axis if it varies with it; None for a gate of 1."""
        if gate == OPEN:
            return None
        k = self.k
        along = axis.name if axis is not None and gate.along(axis) else ""
        names = ("i", along) if along else ("i",)
        if ("gates", gate, along) in self.made:
            return self.made["gates", gate, along]
        log, nothing = self.floor(gate.log), None
        if gate.linear is not ONE:
            least = Const(1e-30 if k.real == "f64" else 1e-12, "real")
            nothing = op("lt", gate.linear, least)
            log = op("add", log, op("log2", op("where", nothing, ONE, gate.linear)))
        one = k.over(k.value(op("where", k.live, log, ZERO), "gate"), *names)
        upto, before, last = self.sums(one)
        zeros = None
        if nothing is not None:
            here = k.over(k.value(op("where", conj(k.live, nothing), ONE, ZERO), "nothing"), *names)
            zeros = self.zeros(here, op("mul", gate.linear, op("exp2", self.floor(gate.log))), names)
        found = Gates(upto, before, last, along, zeros)
        self.made["gates", gate, along] = found
        return found

    def sums(self, one: Var) -> tuple[Var, Var, Var]:
        """The running sums of a value over the rows: with each row's own, without, and of all."""
        b = self.k.b
        type = b.type_of(one.name)
        kept = tuple(a for a in type.axes if a.name != "i")
        upto = b.let("upto", type, t.Scan("sum", one.name, "i"), "running sums, of gates in base two")
        before = b.let("before", type, t.Scan("sum", one.name, "i", exclusive=True))
        return upto, before, b.let("last", t.Type(kept, type.dtype), t.Reduce("sum", one.name, "i"))

    def zeros(self, here: Var, gate: Expr, names: tuple[str, ...]) -> Zeros:
        """Where gates are nothing."""
        k = self.k
        upto, before, last = self.sums(here)
        every = k.value(gate, "own")
        if "i" not in k.b.type_of(every.name).names():
            return Zeros(upto, before, last, every, every, every)
        own = k.over(k.value(op("where", op("lt", 0.0, here), gate, ZERO), "own"), *names)
        behind = self.as_j(upto)

        def latest(count: Var, at: Var, values: Var, axis: str) -> Var:
            return k.sum("own", op("where", op("eq", count, at), values, ZERO), axis)

        after, earlier = (latest(x, behind, self.as_j(own), "j") for x in (upto, before))
        return Zeros(upto, before, last, after, earlier, latest(last, upto, own, "i"))

    def floor(self, log_gate: Expr) -> Expr:
        """A gate's logarithm in base two, not lower than where nothing is left."""
        lowest = Const(-1100.0 if self.k.real == "f64" else -160.0, "real")
        log = op("mul", log_gate, LOG2E)
        return op("where", op("lt", log, lowest), lowest, log)

    def power(self, exponent: Expr, why: str) -> Var:
        """2^exponent, for an exponent of which `why` tells that it is at most 0."""
        k = self.k
        of = k.value(exponent, "gap")
        if ("power", of) not in self.known:
            type = t.Type(k.b.type_of(of.name).axes, k.real)
            note = f"at most 0: {why}"
            self.known["power", of] = k.b.let("power", type, t.Map(op("exp2", of)), note, k.b.depth(of))
        return self.known["power", of]

    def number(self, v: Var) -> Var:
        """A number carried over one axis, in every place of it."""
        (axis,) = self.k.b.type_of(v.name).names()
        return self.k.b.let("m", t.Type((), self.k.real), t.Reduce("max", v.name, axis))

    def seen(self, after: bool) -> Expr:
        """Whether row i reads what row j wrote."""
        return op("le" if after else "lt", self.k.at["j"], self.k.at["i"])

    def as_j(self, v: Var) -> Var:
        """A value of the tokens on the axis j."""
        names = [a.name for a in self.k.b.type_of(v.name).axes]
        if "i" not in names:
            v = self.k.over(v, "i", *names)
        key = ("as j", v)
        if key not in self.known:
            self.known[key] = self.k.rename(v)
        return self.known[key]

    def between(self, gates: Gates, after: bool) -> Var:
        """2^(G_i - G_j) where row i reads row j, else 0."""
        gap = op("sub", gates.of(after), self.as_j(gates.upto))
        found = self.power(op("where", self.seen(after), gap, NEVER), "gates of at most 1, from j to i")
        z = gates.zeros
        return found if z is None else self.past(found, op("sub", z.of(after), self.as_j(z.upto)), z.gate_of(after))

    def grown(self, gates: Gates, after: bool) -> Var:
        """2^G_i."""
        found = self.power(gates.of(after), "gates of at most 1, from the chunk's start to i")
        z = gates.zeros
        return found if z is None else self.past(found, z.of(after), z.gate_of(after))

    def left(self, gates: Gates) -> Var:
        """2^(G_last - G_i)."""
        found = self.power(op("sub", gates.last, gates.upto), "gates of at most 1, from i to the chunk's end")
        z = gates.zeros
        return found if z is None else self.past(found, op("sub", z.last, z.upto), z.gate_last)

    def total(self, gates: Gates) -> Var:
        """2^G_last."""
        found = self.power(gates.last, "gates of at most 1, of the whole chunk")
        z = gates.zeros
        return found if z is None else self.past(found, z.last, z.gate_last)

    def past(self, left: Var, count: Expr, gate: Var) -> Var:
        """What is left past `count` gates of nothing, the last of which is `gate`."""
        one = op("where", op("lt", count, 1.5), op("mul", left, gate), ZERO)
        return self.k.value(op("where", op("lt", count, 0.5), left, one), "left")


@dataclass(frozen=True, slots=True)
class Bounded:
    """A gate of at most 1."""

    m: Maker
    gates: Gates | None

    def pair(self, after: bool) -> Expr:
        if self.gates is None:
            return op("where", self.m.seen(after), 1.0, 0.0)
        return self.m.between(self.gates, after)

    def start(self, after: bool) -> Var | None:
        return None if self.gates is None else self.m.grown(self.gates, after)

    def rest(self) -> Var | None:
        return None if self.gates is None else self.m.left(self.gates)

    def whole(self) -> Var | None:
        return None if self.gates is None else self.m.total(self.gates)


class Scaled:
    """A gate and writes of any size: everything is relative to the largest so far."""

    def __init__(self, m: Maker, gates: Gates | None, log: Expr, scale: Var) -> None:
        """`log` is the exponent of the writes, natural; `scale` the state's m, over one axis."""
        self.m, self.gates, k = m, gates, m.k
        self.scale = self.held(m.number(scale))
        own = op("mul", log, LOG2E)
        own = op("where", op("lt", own, LOW), LOW, own)
        a = own if gates is None else op("sub", own, gates.upto)
        self.a = k.over(k.value(op("where", k.live, a, LOW), "a"), "i")

    def held(self, v: Var) -> Var:
        """A value that gradients hold fixed."""
        self.m.k.still.add(v.name)
        return v

    def _once(self, key: tuple[object, ...], make: Expr | t.Op, hint: str, axes: tuple[str, ...]) -> Var:
        """A value of its own that gradients hold fixed."""
        k = self.m.k
        full = (*key, self.a, self.scale)
        if full not in self.m.known:
            body = t.Map(make) if isinstance(make, Expr) else make
            self.m.known[full] = self.held(k.b.let(hint, k.b.over(*axes), body))
        return self.m.known[full]

    def largest(self, after: bool) -> Var:
        """n_i."""
        if after:
            best = self._once(("running",), t.Scan("max", self.a.name, "i"), "top", ("i",))
        else:
            rows = op("where", self.m.seen(False), self.m.as_j(self.a), LOW)
            pairs = self._once(("pairs",), rows, "pairs", ("i", "j"))
            best = self._once(("earlier",), t.Reduce("max", pairs.name, "j"), "top", ("i",))
        return self._once(("n", after), op("max", best, self.scale), "n", ("i",))

    def moved(self, g: Var | None, hint: str) -> tuple[Expr, Expr]:
        """(0 with the derivative of a sum of gates, the sum held fixed)."""
        if g is None:
            return ZERO, ZERO
        axes = self.m.k.b.type_of(g.name).names()
        fixed = self._once(("fixed", g), g, hint, axes)
        return op("sub", g, fixed), fixed

    def row(self, after: bool) -> Var:
        """-n_i, with the derivative of G_i."""
        move, _ = self.moved(None if self.gates is None else self.gates.of(after), "fixed")
        return self.m.k.value(op("sub", move, self.largest(after)), "row")

    def exponent(self, after: bool) -> Expr:
        """The logarithm in base two of what the rows of a read are to be multiplied with."""
        _, fixed = self.moved(None if self.gates is None else self.gates.of(after), "fixed")
        return self._once(("scale", after), op("add", fixed, self.largest(after)), "scale", ("i",))

    def end(self) -> Var:
        """n_last."""
        best = self._once(("last",), t.Reduce("max", self.a.name, "i"), "top", ())
        return self._once(("n last",), op("max", best, self.scale), "n", ())

    def last_row(self) -> Expr:
        move, _ = self.moved(None if self.gates is None else self.gates.last, "fixed")
        return op("sub", move, self.end())

    def after(self, like: Var) -> Var:
        """m behind the chunk, as it is carried."""
        _, fixed = self.moved(None if self.gates is None else self.gates.last, "fixed")
        names = self.m.k.b.type_of(like.name).names()
        zeros = self.m.k.b.let("zeros", self.m.k.b.over(*names), t.Full(ZERO))
        return self._once(("behind",), op("add", op("add", fixed, self.end()), zeros), "m", names)

    def pair(self, after: bool) -> Expr:
        gap = op("add", self.row(after), self.m.as_j(self.a))
        return self.m.power(op("where", self.m.seen(after), gap, NEVER), "less the largest of the rows that i reads")

    def start(self, after: bool) -> Var | None:
        return self.m.power(op("add", self.row(after), self.scale), "less the largest so far, which is no less than m")

    def rest(self) -> Var | None:
        return self.m.power(op("add", self.last_row(), self.a), "less the largest of all rows")

    def whole(self) -> Var | None:
        return self.m.power(op("add", self.last_row(), self.scale), "less the largest of all, which is no less than m")
