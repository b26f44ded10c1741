"""A state program to schedule in chunks, and what follows from it for all kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from attncc.expr.build import ivar
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Expr, Op, Var, walk
from attncc.ir.free import free
from attncc.ir.nodes import Contract, Load, Reduce, Spec
from attncc.passes.chunk_form import OPEN, Chunked, Held, ReadOf
from attncc.passes.chunked import chunked
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.chunk_fading import ONE
from attncc.schedule.chunk_kept import read_by, sums_in
from attncc.schedule.variant import Variant

_DIVIDE = frozenset({"div", "recip", "rsqrt", "sqrt", "log", "log2", "log1p", "pow"})


@dataclass(frozen=True)
class Problem:
    """A state program to schedule, in its chunk form, for one variant."""

    spec: Spec
    form: Chunked
    variant: Variant

    @property
    def extents(self) -> dict[str, int]:
        """The channel axes and their sizes."""
        found = {"d": self.variant.D, "e": self.variant.E}
        for s in self.form.states:
            stored = (x for x in (s.key, s.value) if x is not None)
            for axis, size in (*zip(stored, s.axes.extents, strict=True), *zip(s.axes.own, s.axes.sizes, strict=True)):
                found[axis.name] = _size(size, self.spec)
        for e in (n for body in self.form.bodies for n in walk(body)):
            binders = [(e.axis, e.extent)] if isinstance(e, Contract) else []
            binders += [(x.index, x.size) for x in e.binders] if isinstance(e, Reduce) else []
            for axis, size in binders:
                if found.setdefault(axis.name, _size(size, self.spec)) != _size(size, self.spec):
                    raise NotCompiled(f"two sizes of the index {axis.name}: not compiled yet", self.spec.out.span)
        values = {s.value.name for s in self.form.states if s.value is not None}
        order = sorted(found, key=lambda n: (n in values, n))
        pairs = [(s.key.name, s.value.name) for s in self.form.states if s.key is not None and s.value is not None]
        for _ in order:  # keys before values in registers; an axis may be both
            for key, value in pairs:
                if order.index(key) > order.index(value):
                    order.remove(value)
                    order.insert(order.index(key) + 1, value)
        return {n: found[n] for n in order}

    def chained(self, e: Expr) -> bool:
        """Whether a read of a state stands in `e`."""
        return any(isinstance(n, Load) and n.tensor in {r.atom.tensor for r in self.form.reads} for n in walk(e))

    @property
    def gated(self) -> tuple[dict[str, Held], tuple[ReadOf, ...]]:
        """The states with gates along channels, by name, and their reads."""
        found = {s.name: s for s in self.form.states if s.channels}
        return found, tuple(r for r in self.form.reads if r.state in found)

    def separable(self, s: Held) -> bool:
        """Whether a gate of tokens fades what is read and written along one axis, as the inputs or sums of them."""
        if s.gate == OPEN or s.gate.linear is not ONE or s.channels or s.scale or s.scale_of or s.value is None:
            return False
        reads = [r for r in self.form.reads if r.state == s.name]
        plain = all(r.axis is not None and r.axis is s.key and not r.parts and not self.chained(r.x) for r in reads)
        return plain and not any(w.parts or self.chained(w.key) or has_product(w.key) for w in s.writes)

    @property
    def gates(self) -> bool:
        """Whether a state fades."""
        return any(s.scale or s.scale_of or s.gate != OPEN or s.beside != OPEN for s in self.form.states)

    @property
    def of_tokens(self) -> bool:
        """Whether all gates are of tokens, of states that are read and written plainly: their powers are made once."""
        if self.variant.target != "triton" or self.variant.dtype not in ("f16", "bf16") or not self.gates:
            return False
        return all(self.separable(s) and ivar("i") in free(s.gate.log) for s in self.form.states)

    @property
    def bare(self) -> bool:
        """Whether one state is all there is, written and read by inputs as they lie in memory, but for numbers."""
        return self._of_inputs()

    @property
    def large(self) -> bool:
        """Whether a state leaves no room in shared memory for 64 tokens beside it, which a program of a chunk has."""
        stored = [[self.extents[a.name] for a in (s.key, s.value) if a is not None] for s in self.form.states]
        return not self.halves and self.variant.target != "torch" and max(map(prod, stored)) > 128 * 256

    @property
    def on_hopper(self) -> bool:
        """Whether products are of 64 rows of 16-bit operands that lie in shared memory, either way round."""
        on_gpu = self.variant.target in ("triton", "gluon") and self.variant.capability >= 90
        return on_gpu and self.variant.dtype in ("f16", "bf16")

    @property
    def light(self) -> bool:
        """Whether one state of two axes is, but for numbers and factors of the tokens."""
        return self._of_inputs(self.extents) and self.form.states[0].value is not None

    def _of_inputs(self, channels: Iterable[str] = ()) -> bool:
        if len(self.form.states) != 1 or len(self.form.reads) != 1:
            return False
        (s,), (r,) = self.form.states, self.form.reads
        operands = (r.x, *(x for w in s.writes for x in (w.key, w.value)))
        made = {x for x, _ in self.maps}
        return s.key is not None and all(x in made or as_it_lies(x, channels) for x in operands)

    @property
    def near(self) -> tuple[Expr, ...]:
        """What weights under gates along channels are made of."""
        states, reads = self.gated
        return (*(r.x for r in reads), *(x for s in states.values() for x in (s.gate.log, *(w.key for w in s.writes))))

    @property
    def halves(self) -> bool:
        """Whether weights under gates along channels are products of matrices (attncc.schedule.chunk_halves)."""
        if self.variant.target != "triton" or self.variant.dtype not in ("f16", "bf16"):
            return False
        states, reads = self.gated
        plain = all(s.beside == OPEN and s.gate.linear is ONE and s.value is not None for s in states.values())
        along = all(r.axis is states[r.state].key for r in reads)
        return bool(reads) and plain and along and not any(map(self.chained, self.near))

    @cached_property
    def maps(self) -> tuple[tuple[Expr, Var], ...]:
        """What is read with and written after a long computation of inputs that nothing else reads, and its axis."""
        if self.variant.target != "triton" or self.halves or any(s.scale for s in self.form.states):
            return ()
        read = ((r.x, r.axis) for r in self.form.reads if not r.parts)
        kept = ((w.key, s.key) for s in self.form.states if s.value is not None for w in s.writes if not w.parts)
        found = {x: a for x, a in (*read, *kept) if a is not None and self._long(x, a)}
        rest = [r.x for r in self.form.reads] + [x for body in (s.bodies for s in self.form.states) for x in body]
        others = read_by(self.form.out, *(s.init for s in self.form.states), *(x for x in rest if x not in found))
        return () if read_by(*found) & others else tuple(found.items())

    def _long(self, e: Expr, axis: Var) -> bool:
        """Whether sines or cosines of every channel stand in `e`, which is over rows and the channels of `axis`."""
        channels = {ivar(n) for n in self.extents}
        turns = (n for n in walk(e) if isinstance(n, Op) and n.name in ("sin", "cos"))
        plain = not self.chained(e) and not any(isinstance(n, Contract) for n in walk(e))
        return plain and free(e) & channels == {axis} and any(free(n) & channels for n in turns)

    @property
    def sums(self) -> tuple[Contract | Reduce, ...]:
        """Sums along channels of what the tokens read, of the output and of weights; kept as weights are."""
        found = dict.fromkeys(x for e in (self.form.out, *self.near) for x in sums_in(e)) if self.halves else {}
        bare = (e for e in found if not self.chained(e) and not free(e) & {ivar(n) for n in self.extents})
        return tuple(e for e in bare if ivar("i") in free(e))

    @property
    def sums_near(self) -> frozenset[Expr]:
        """Those of weights."""
        return frozenset(x for e in self.near for x in sums_in(e))

    @property
    def divides(self) -> bool:
        """Whether something may be divided by a read, or by what is 0 in rows that do not exist."""
        inside = (n for e in self.form.bodies for n in walk(e) if isinstance(n, Op) and n.name in _DIVIDE)
        return any(
            self.chained(n) and any(isinstance(x, Load) for x in walk(n.args[0 if n.name == "pow" else -1]))
            for n in inside
        )


def _size(e: Expr, spec: Spec) -> int:
    """A literal size: constants of the header are known at a call only."""
    if any(isinstance(n, Var) for n in walk(e)):
        raise NotCompiled("an index whose size is known at a call only: not compiled yet", spec.out.span)
    return int(evaluate(e))


def problem(spec: Spec, variant: Variant) -> Problem:
    """The chunk form of a state program; NotCompiled where it has none."""
    return Problem(spec, chunked(spec, variant.D, variant.E), variant)


def as_it_lies(e: Expr, channels: Iterable[str] = ()) -> bool:
    """Whether an expression is an input, or a number times one; or what has no such channels times one."""
    match e:
        case Op("mul" | "div", (a, b)):
            lacks = (lambda x: not free(x) & {ivar(n) for n in channels}) if channels else _is_number
            factors = [x for x in (a, b) if lacks(x)]
            return len(factors) == 1 and all(as_it_lies(x, channels) for x in {a, b} - {*factors})
        case _:
            return isinstance(e, Load)


def _is_number(e: Expr) -> bool:
    return not any(isinstance(n, Load) for n in walk(e))


def has_product(e: Expr) -> bool:
    """Whether a product of matrices stands in a factor of a write: both sides have another axis than the summed one."""
    return any(isinstance(n, Contract) and len(_axes(n.a) | _axes(n.b)) > 2 for n in walk(e))


def _axes(e: Expr) -> frozenset[str]:
    return frozenset(v.name for v in free(e)) - {"b", "h", "g"} - frozenset("BHGMNDE")
