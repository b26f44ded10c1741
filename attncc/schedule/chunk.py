"""The chunkwise schedule of decaying states: one program a head walks the chunks of its tokens and carries the states.

Within a chunk, with G the running sum of the logarithms of the gates in base two (E without the token's own),

    read   r_i = 2^(G_i) x_i S  +  sum over j <= i of (x_i . w_j 2^(G_i - G_j)) y_j     after the change
           r_i = 2^(E_i) x_i S  +  sum over j <  i of (x_i . w_j 2^(E_i - G_j)) y_j     before it
    state  S   = 2^(G_last) S   +  sum over j of (2^(G_last - G_j) w_j) y_j

Gates are at most 1, so every exponent is at most 0; what lies outside j <= i is masked before its exponential.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

from attncc.expr.build import ivar, op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Const, Expr, Var, walk
from attncc.ir.free import free
from attncc.ir.nodes import Contract, Reduce, Spec
from attncc.passes.chunked import ONE, Chunked, Held, ReadOf, chunked
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.chunk_values import Chunk
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t

B, H, G, M, N = (ivar(x) for x in "BHGMN")
LOG2E = math.log2(math.e)
NEVER = Const(float("-inf"), "real")
ZERO = Const(0.0, "real")
_SIZES = frozenset("BHGMNDE")


@dataclass(frozen=True, slots=True)
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
            for axis, size in zip((x for x in (s.key, s.value) if x is not None), s.extents, strict=True):
                found[axis.name] = _size(size, self.spec)
        bodies = [self.form.out, *(r.x for r in self.form.reads)]
        bodies += [x for s in self.form.states for w in s.writes for x in (w.key, w.value)]
        for e in (n for body in bodies for n in walk(body)):
            binders = [(e.axis, e.extent)] if isinstance(e, Contract) else []
            binders += [(x.index, x.size) for x in e.binders] if isinstance(e, Reduce) else []
            for axis, size in binders:
                if found.setdefault(axis.name, _size(size, self.spec)) != _size(size, self.spec):
                    raise NotCompiled(f"two sizes of the index {axis.name}: not compiled yet", self.spec.out.span)
        values = {s.value.name for s in self.form.states if s.value is not None}
        return {n: found[n] for n in sorted(found, key=lambda n: (n in values, n))}  # keys before values in registers


def _size(e: Expr, spec: Spec) -> int:
    known = {Var(c.name, c.sort): c.value for c in spec.constants}
    if any(isinstance(n, Var) and n not in known for n in walk(e)):
        raise NotCompiled("an index whose size is known at a call only: not compiled yet", spec.out.span)
    return int(evaluate(e, known))  # type: ignore[arg-type]


def problem(spec: Spec, variant: Variant) -> Problem:
    """The chunk form of a state program; NotCompiled where it has none."""
    return Problem(spec, chunked(spec, variant.D, variant.E), variant)


@dataclass(frozen=True, slots=True)
class Gates:
    """The running sums of one gate in a chunk: inclusive, exclusive, and the last; None for a gate of 1."""

    upto: Var
    before: Var
    last: Var
    channels: bool


class Forward:
    """The statements of a chunk, shared by the kernels that need them."""

    def __init__(self, p: Problem, reserved: tuple[str, ...] = (), columns: int = 0) -> None:
        self.p = p
        self.k = Chunk(p.spec, p.variant, p.extents, reserved, columns)
        wide = {s.name for s in p.form.states if s.key is not None and s.key in free(s.log_gate)}
        self.count = 16 if wide else 32 if p.variant.dtype in ("f32", "f64") else 64
        self.known: dict[tuple[object, ...], Var] = {}

    def initial(self) -> tuple[Var, ...]:
        """The states before the first token."""
        k, found = self.k, []
        k.live = op("lt", 0, N)
        for s in self.p.form.states:
            names = [x.name for x in (s.key, s.value) if x is not None]
            found.append(k.over(k.clean(s.init, s.name), *names))
        return tuple(found)

    def chunk(self, states: tuple[Var, ...]) -> tuple[tuple[Var, ...], Var]:
        """(the states behind the chunk, out over its rows)."""
        self.known.clear()
        by_name = dict(zip((s.name for s in self.p.form.states), states, strict=True))
        gates = {s.name: self.gates(s) for s in self.p.form.states}
        held = {s.name: s for s in self.p.form.states}
        for r in self.p.form.reads:
            self.k.b.bindings[r.atom] = self.read(r, held[r.state], by_name[r.state], gates[r.state])
        out = self.k.over(self.k.value(self.p.form.out, "o"), "i", "e")
        new = tuple(self.step(s, by_name[s.name], gates[s.name]) for s in self.p.form.states)
        return new, out

    # --- gates ------------------------------------------------------------------------------------------------------

    def gates(self, s: Held) -> Gates | None:
        """The running sums of a state's gate."""
        if s.log_gate == ZERO:
            return None
        lowest = Const(-1100.0 if self.k.real == "f64" else -160.0, "real")
        log = op("mul", s.log_gate, LOG2E)
        floor = op("where", op("lt", log, lowest), lowest, log)
        alive = op("where", self.k.live, floor, ZERO)
        channels = s.key is not None and s.key in free(s.log_gate)
        names = ("i", s.key.name) if channels and s.key is not None else ("i",)
        key = ("gates", alive, names)
        if key not in self.known:
            one = self.k.over(self.k.value(alive, "gate"), *names)
            type = self.k.b.type_of(one.name)
            upto = self.k.b.let("upto", type, t.Scan("sum", one.name, "i"), "running sums of the gates, base two")
            before = self.k.b.let("before", type, t.Scan("sum", one.name, "i", exclusive=True))
            kept = tuple(a for a in type.axes if a.name != "i")
            last = self.k.b.let("last", t.Type(kept, type.dtype), t.Reduce("sum", one.name, "i"))
            self.known |= {key: upto, (*key, "before"): before, (*key, "last"): last}
        return Gates(self.known[key], self.known[*key, "before"], self.known[*key, "last"], channels)

    def seen(self, after: bool) -> Expr:
        """Whether row i reads what row j wrote."""
        return op("le" if after else "lt", self.k.at["j"], self.k.at["i"])

    def fading(self, gates: Gates, after: bool) -> Expr:
        """2^(G_i - G_j) where row i reads row j, else 0."""
        key = ("renamed", gates.upto)
        if key not in self.known:
            self.known[key] = self.k.rename(gates.upto)
        gap = op("sub", gates.upto if after else gates.before, self.known[key])
        return op("exp2", op("where", self.seen(after), gap, NEVER))

    # --- reads and writes -------------------------------------------------------------------------------------------

    def read(self, r: ReadOf, s: Held, state: Var, gates: Gates | None) -> Var:
        """x @ S for every row of the chunk."""
        k = self.k
        grown = None if gates is None else op("exp2", gates.upto if r.after else gates.before)
        x = k.clean(r.x, "x")
        seen = x if grown is None else k.value(op("mul", x, grown), "x")
        total = self.far(s, seen, state)
        for w in s.writes:
            weights = self.weights(r, s, w.key, gates)
            y = self.as_j(k.clean(w.value, "y", rows=True))
            if s.value is None:
                total = k.value(op("add", total, k.sum("z", op("mul", weights, y), "j")), "r")
            else:
                y = k.over(y, "j", s.value.name)
                total = k.dot("r", weights, y, "j", ("i", s.value.name), total)
        return total

    def far(self, s: Held, x: Var, state: Var) -> Var:
        """What earlier chunks add to a read."""
        k = self.k
        if s.key is None:
            return k.over(k.value(op("mul", x, state), "r"), "i", *([s.value.name] if s.value is not None else []))
        x = k.over(x, "i", s.key.name)
        if s.value is None:
            return k.sum("r", op("mul", x, state), s.key.name)
        return k.dot("r", x, state, s.key.name, ("i", s.value.name))

    def weights(self, r: ReadOf, s: Held, key: Expr, gates: Gates | None) -> Var:
        """(x_i . w_j) faded, over i and j; 0 where row i does not read row j."""
        known = ("weights", r.x, key, gates and gates.upto, r.after)
        if known in self.known:
            return self.known[known]
        k = self.k
        w = k.clean(key, "w", rows=True)
        if s.key is None:
            faded = op("mul", op("mul", k.clean(r.x, "x"), self.as_j(w)), self.mask(gates, r.after))
            found = k.over(k.value(faded, "p"), "i", "j")
        elif gates is not None and gates.channels:
            x, wide = (k.over(v, "i", s.key.name) for v in (k.clean(r.x, "x"), w))
            found = k.sum("p", op("mul", op("mul", x, self.as_j(wide)), self.fading(gates, r.after)), s.key.name)
        else:
            x = k.over(k.clean(r.x, "x"), "i", s.key.name)
            p = k.dot("p", x, self.key_j(key, s.key.name), s.key.name, ("i", "j"))
            found = k.value(op("mul", p, self.mask(gates, r.after)), "p")
        self.known[known] = found
        return found

    def mask(self, gates: Gates | None, after: bool) -> Expr:
        """The fading of a gate without channels, or 1 and 0."""
        return op("where", self.seen(after), 1.0, 0.0) if gates is None else self.fading(gates, after)

    def key_j(self, key: Expr, axis: str) -> Var:
        """What is written along the key axis, 0 behind the last token, with its tokens on the axis j.

        The result of a product of matrices is made anew with its tokens behind, as a product wants it.
        """
        known = ("key", key, axis)
        if known not in self.known:
            if _has_product(key):
                self.known[known] = self.k.on_j(key, "w")
            else:
                self.known[known] = self.as_j(self.k.over(self.k.clean(key, "w", rows=True), "i", axis))
        return self.known[known]

    def as_j(self, v: Var) -> Var:
        """A value of the tokens on the axis j."""
        if "i" not in {a.name for a in self.k.b.type_of(v.name).axes}:
            v = self.k.over(v, "i", *(a.name for a in self.k.b.type_of(v.name).axes))
        key = ("as j", v)
        if key not in self.known:
            self.known[key] = self.k.rename(v)
        return self.known[key]

    def step(self, s: Held, state: Var, gates: Gates | None) -> Var:
        """The state behind the chunk."""
        k = self.k
        left: Expr = ONE
        total = state
        if gates is not None:
            total = k.value(op("mul", state, op("exp2", gates.last)), s.name)
            left = op("exp2", op("sub", gates.last, gates.upto))
        for w in s.writes:
            value = k.clean(w.value, "y", rows=True)
            if s.key is not None and s.value is not None:
                fade = left if gates is None else self.as_j(k.value(left, "fade"))
                with k.turned() if _has_product(w.key) else nullcontext():
                    key = k.value(op("mul", self.key_j(w.key, s.key.name), fade), "w")
                value = self.as_j(k.over(value, "i", s.value.name))
                total = k.dot(s.name, key, value, "j", (s.key.name, s.value.name), total)
            else:
                key = k.value(op("mul", k.clean(w.key, "w", rows=True), left), "w")
                part = k.value(op("mul", key, value), "w")
                names = [x.name for x in (s.key, s.value) if x is not None]
                total = k.value(op("add", total, k.sum("w", k.over(part, "i", *names), "i")), s.name)
        return total


def _has_product(e: Expr) -> bool:
    """Whether a product of matrices stands in a factor of a write: both sides have another axis than the summed one."""
    return any(isinstance(n, Contract) and len(_axes(n.a) | _axes(n.b)) > 2 for n in walk(e))


def _axes(e: Expr) -> frozenset[str]:
    return frozenset(v.name for v in free(e)) - {"b", "h", "g"} - _SIZES
