"""How much of what a token wrote is left at another: the gates of a state, summed up over a chunk.

With G the running sum of the logarithms of the gates in base two, what j wrote has the weight 2^(G_i - G_j) at i.
Gates are at most 1, so every exponent is at most 0. A gate of the token is summed up in two parts, whole numbers and
what is left of them: the first are exact however much is forgotten on the way, and cancel. What is stored for kernels
that compute in 16 bits is the sum of both, rounded once: at most 64 a token, it is off by 2^-13 at most, and the powers
by less than the 2^-12 that they are rounded by as operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.chunk_form import OPEN, Gate
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

LOG2E = math.log2(math.e)
N = ivar("N")
NEVER = Const(float("-inf"), "real")
ZERO, ONE = Const(0.0, "real"), Const(1.0, "real")


@dataclass(frozen=True, slots=True)
class Sums:
    """Running sums over the rows of a chunk: with each row's own, without, and of all."""

    upto: Var
    before: Var
    last: Var
    each: Var | None = None
    """What every token adds, where all add the same."""

    def of(self, after: bool) -> Var:
        """The sum that a read has."""
        return self.upto if after else self.before


@dataclass(frozen=True, slots=True)
class Zeros:
    """The tokens of a chunk whose gate is nothing, or next to it: how many up to a row, and the last one's gate.

    They are left out of the running sums. Past one of them its own gate is left of what was before, which is 0 and has
    a derivative; past two nothing is.
    """

    count: Sums
    gate: Var
    gate_before: Var
    gate_last: Var

    def gate_of(self, after: bool) -> Var:
        """The gate that a read has."""
        return self.gate if after else self.gate_before


@dataclass(frozen=True, slots=True)
class Gates:
    """The running sums of one gate in a chunk; `axis` is the channel that it is along, or ""."""

    parts: tuple[Sums, ...]
    """They add up to it."""
    axis: str
    zeros: Zeros | None = None

    def upto(self, after: bool) -> Expr:
        """From the chunk's start to the row of a read."""
        return _sum([p.of(after) for p in self.parts])

    def last(self) -> Expr:
        """Of the whole chunk."""
        return _sum([p.last for p in self.parts])


def _sum(parts: Sequence[Expr]) -> Expr:
    total = parts[0]
    for x in parts[1:]:
        total = op("add", total, x)
    return total


class Fading(Protocol):
    """The factors of the token, without channels, at places of a chunk; None is 1."""

    def pair(self, after: bool) -> Expr:
        """Of what row j wrote, where row i reads; 0 where it does not."""

    def start(self, after: bool) -> Var | None:
        """Of the state at the chunk's start, where row i reads."""

    def rest(self) -> Var | None:
        """Of what row i wrote, at the chunk's end."""

    def total(self) -> Var | None:
        """Of the state at the chunk's start, at its end."""


class Maker:
    """Gates and powers of one chunk; equal ones are made once."""

    def __init__(
        self, k: Chunk, along: Callable[[Var], Sums] | None = None, running: Callable[..., Sums] | None = None
    ) -> None:
        """What makes running sums of gates along a channel, and of the token's two parts, where it is not done here."""
        self.k, self.along, self.running = k, along, running
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
        level = () if along else self.level(log)
        parts = ((self.along or self.sums)(one),) if along else level or self.in_parts(one)
        zeros = None
        if nothing is not None:
            here = k.over(k.value(op("where", k.live, op("where", nothing, ONE, ZERO), ZERO), "nothing"), *names)
            rest = ONE if gate.log is ZERO else self.power(self.floor(gate.log), "a gate of at most 1")
            zeros = self.zeros(here, op("mul", gate.linear, rest), names, op("where", nothing, ONE, ZERO))
        found = Gates(parts, along, zeros)
        self.made["gates", gate, along] = found
        return found

    def sums(self, one: Var) -> Sums:
        """The running sums of a value over the rows."""
        b = self.k.b
        type = b.type_of(one.name)
        kept = tuple(a for a in type.axes if a.name != "i")
        upto = b.let("upto", type, t.Scan("sum", one.name, "i"), "running sums")
        before = b.let("before", type, t.Scan("sum", one.name, "i", exclusive=True))
        return Sums(upto, before, b.let("last", t.Type(kept, type.dtype), t.Reduce("sum", one.name, "i")))

    def in_parts(self, one: Var) -> tuple[Sums, ...]:
        """The running sums of the whole numbers next to a value's elements, and of what is left of them; or of both,
        as they are stored."""
        whole = self.fixed(self.k.value(op("real", op("floor", op("add", one, 0.5))), "whole"))
        part = self.k.value(op("sub", one, whole), "part")
        return (self.sums(whole), self.sums(part)) if self.running is None else (self.running(one, whole, part),)

    def level(self, log: Expr) -> tuple[Sums, ...]:
        """The running sums of a value that all tokens share, in the same parts: nothing where they do not."""
        one = self.k.value(log, "gate")
        if self.k.b.type_of(one.name).names() or self.k.stateless:
            return ()
        whole = self.fixed(self.k.value(op("real", op("floor", op("add", one, 0.5))), "whole"))
        return self.times(whole), self.times(self.k.value(op("sub", one, whole), "part"))

    def times(self, one: Var) -> Sums:
        """The running sums of a number that every token of the chunk has."""
        k = self.k
        there = op("sub", N, k.first)
        i = k.b.let("i", t.Type((k.b.axis("i", k.b.extent("i")),), "i32"), t.Iota(Const(0, "int")))
        after, before = (op("min", op("add", i, n), there) if n else op("min", i, there) for n in (1, 0))
        counts = zip((after, before, op("min", k.b.extent("i"), there)), ("upto", "before", "last"), strict=True)
        upto, earlier, last = (k.value(op("mul", one, op("real", n)), hint) for n, hint in counts)
        return Sums(upto, earlier, last, one)

    def fixed(self, v: Var) -> Var:
        """A value that gradients hold fixed."""
        self.k.still.add(v.name)
        return v

    def zeros(self, here: Var, gate: Expr, names: tuple[str, ...], nothing: Expr) -> Zeros:
        """Where gates are nothing."""
        k = self.k
        every, each = k.value(gate, "own"), k.value(nothing, "nothing")
        if not k.b.type_of(each.name).names() and not k.stateless:
            return Zeros(self.times(each), every, every, every)
        count = self.sums(here)
        if "i" not in k.b.type_of(every.name).names():
            return Zeros(count, every, every, every)
        own = k.over(k.value(op("where", op("lt", 0.0, here), gate, ZERO), "own"), *names)
        behind = self.as_j(count.upto)

        def latest(counts: Var, at: Var, values: Var, axis: str) -> Var:
            return k.sum("own", op("where", op("eq", counts, at), values, ZERO), axis)

        after, earlier = (latest(x, behind, self.as_j(own), "j") for x in (count.upto, count.before))
        return Zeros(count, after, earlier, latest(count.last, count.upto, own, "i"))

    def floor(self, log_gate: Expr) -> Expr:
        """A gate's logarithm in base two, not lower than where nothing is left."""
        lowest = Const(-1100.0 if self.k.real == "f64" else -64.0, "real")
        log = op("mul", log_gate, LOG2E)
        return op("where", op("lt", log, lowest), lowest, log)

    def power(self, exponent: Expr, why: str) -> Var:
        """2^exponent, for an exponent of which `why` tells that it is at most 0."""
        of = self.k.value(exponent, "gap")
        return self.k.b.noted(op("exp2", of), "power", f"at most 0: {why}")

    def natural(self, exponent: Expr, why: str) -> Var:
        """e^exponent, likewise."""
        return self.power(op("mul", exponent, LOG2E), why)

    @property
    def least(self) -> float:
        """Half the logarithm of what is as good as nothing."""
        return -350.0 if self.k.real == "f64" else -80.0

    def number(self, v: Var) -> Var:
        """A number carried over one axis, in every place of it."""
        (axis,) = self.k.b.type_of(v.name).names()
        return self.k.b.let("m", t.Type((), self.k.real), t.Reduce("max", v.name, axis))

    def seen(self, after: bool) -> Expr:
        """Whether row i reads what row j wrote: by their numbers, which are those of every chunk."""
        at = self.numbers()
        return op("le" if after else "lt", at["j"], at["i"])

    def numbers(self) -> dict[str, Var]:
        """The rows of any chunk."""
        k = self.k
        for n in "ij":
            if ("number", n) not in self.known:
                type = t.Type((t.Axis(n, k.b.extent("i")),), "i32")
                self.known["number", n] = k.b.let(n, type, t.Iota(Const(0, "int")), depth=0)
        return {n: self.known["number", n] for n in "ij"}

    def gap(self, p: Sums, after: bool) -> Expr:
        """G_i - G_j of one part."""
        if p.each is None:
            return op("sub", p.of(after), self.as_j(p.upto))
        at = self.numbers()
        steps = op("sub", at["i"], at["j"] if after else op("add", at["j"], 1))
        return op("mul", p.each, op("real", steps))

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
        gap = _sum([self.gap(p, after) for p in gates.parts])
        found = self.power(op("where", self.seen(after), gap, NEVER), "gates of at most 1, from j to i")
        z = gates.zeros
        return found if z is None else self.past(found, self.gap(z.count, after), z.gate_of(after))

    def grown(self, gates: Gates, after: bool) -> Var:
        """2^G_i."""
        found = self.power(gates.upto(after), "gates of at most 1, from the chunk's start to i")
        z = gates.zeros
        return found if z is None else self.past(found, z.count.of(after), z.gate_of(after))

    def left(self, gates: Gates) -> Var:
        """2^(G_last - G_i)."""
        gap = _sum([op("sub", p.last, p.upto) for p in gates.parts])
        found = self.power(gap, "gates of at most 1, from i to the chunk's end")
        z = gates.zeros
        return found if z is None else self.past(found, op("sub", z.count.last, z.count.upto), z.gate_last)

    def total(self, gates: Gates) -> Var:
        """2^G_last."""
        found = self.power(gates.last(), "gates of at most 1, of the whole chunk")
        z = gates.zeros
        return found if z is None else self.past(found, z.count.last, z.gate_last)

    def past(self, left: Var, count: Expr, gate: Var) -> Var:
        """What is left past `count` gates of nothing, the last of which is `gate`."""
        one = op("where", op("lt", count, 1.5), op("mul", left, gate), ZERO)
        return self.k.value(op("where", op("lt", count, 0.5), left, one), "left")


@dataclass(frozen=True, slots=True)
class Bounded:
    """A gate of at most 1."""

    m: Maker
    gates: Gates | None
    keep: Callable[[Var], Var] | None = None
    """Takes its powers, and gives what they are read from."""

    def kept(self, v: Var) -> Var:
        return v if self.keep is None else self.keep(v)

    def pair(self, after: bool) -> Expr:
        if self.gates is None:
            return op("where", self.m.seen(after), 1.0, 0.0)
        return self.m.between(self.gates, after)

    def start(self, after: bool) -> Var | None:
        return None if self.gates is None else self.m.grown(self.gates, after)

    def rest(self) -> Var | None:
        return None if self.gates is None else self.kept(self.m.left(self.gates))

    def total(self) -> Var | None:
        return None if self.gates is None else self.kept(self.m.total(self.gates))
