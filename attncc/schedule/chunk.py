"""The chunkwise schedule of decaying states: one program a head walks the chunks of its tokens and carries the states.

Within a chunk, with G the running sum of the logarithms of the gates in base two (E without the token's own),

    read   r_i = 2^(G_i) x_i S  +  sum over j <= i of (x_i . w_j 2^(G_i - G_j)) y_j     after the change
           r_i = 2^(E_i) x_i S  +  sum over j <  i of (x_i . w_j 2^(E_i - G_j)) y_j     before it
    state  S   = 2^(G_last) S   +  sum over j of (2^(G_last - G_j) w_j) y_j

Gates are at most 1, so every exponent is at most 0; what lies outside j <= i is masked before its exponential. A gate
along the axis that a read keeps fades y instead of x . w. A read sums over either axis of a state: x . w is along the
axis that it sums over, y along the other. States whose scale is free are chunk_scale's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.nodes import Expr, Var
from attncc.ir.free import free
from attncc.passes.chunk_form import Held, ReadOf, Write
from attncc.passes.chunk_scale import plain, scaled
from attncc.passes.chunk_terms import product
from attncc.schedule.chunk_fading import Bounded, Fading, Gates, Maker
from attncc.schedule.chunk_halves import Halves
from attncc.schedule.chunk_kept import Kept
from attncc.schedule.chunk_moved import faded
from attncc.schedule.chunk_problem import Problem, has_product
from attncc.schedule.chunk_scaled import Scaled
from attncc.schedule.chunk_values import WHOLE, Chunk

N = ivar("N")


def map_of(n: int) -> str:
    """The tensor of the n-th rows that are made once."""
    return f"map_{n}"


class Forward:
    """The statements of a chunk, shared by the kernels that need them."""

    def __init__(self, p: Problem, reserved: tuple[str, ...] = (), columns: Mapping[str, int] = WHOLE) -> None:
        self.p = p
        self.k = Chunk(p.spec, p.variant, p.extents, reserved, columns)
        self.k.upright = p.halves
        wide = any(s.channels for s in p.form.states) and not p.halves
        self.count = 16 if wide else 32 if p.variant.dtype in ("f32", "f64") or p.large else 64
        self.kept = Kept(self.k, self.count, padded=p.of_tokens)
        self.known: dict[tuple[object, ...], Var] = {}
        self.pairs: list[Var] = []
        """Weights under gates along channels, as they are stored."""
        self.walks = False
        """A loop carries the states from chunk to chunk."""
        self.ends: list[Var] = []
        """Sums along channels that only the output reads."""
        self.maps = p.maps
        self.loaded: dict[int, Var] = {}
        """Rows that are loaded, by the numbers of their maps."""

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
        k, form = self.k, self.p.form
        self.known.clear()
        self.halved: dict[tuple[object, ...], tuple[Var, Var]] = {}
        self.fadings: dict[str, Fading] = {}
        self.left: dict[str, tuple[Var | None, ...]] = {}
        self.m = Maker(k, self.kept.sums if self.p.halves else None, self.kept.running if self.p.of_tokens else None)
        self.states = dict(zip((s.name for s in form.states), states, strict=True))
        self.held = {s.name: s for s in form.states}
        scales: dict[Expr, Expr] = {}
        k.still |= {self.states[s.name].name for s in form.states if s.scale_of}
        for r in form.reads:
            found = self.sound(self.read(r))
            fading = self.fading(self.held[r.state])
            if isinstance(fading, Scaled):
                scales[r.atom] = fading.exponent(r.after)
                mantissa = replace(r.atom, tensor=f"{r.atom.tensor} scaled")
                k.b.bindings[mantissa] = found
                if r.chained:
                    k.b.bindings[r.atom] = k.value(plain((mantissa, scales[r.atom]), self.m.natural, self.m.least), "r")
            else:
                k.b.bindings[r.atom] = found
        self.keep()
        out = form.out if not scales else scaled(form.out, scales, self.m.natural, self.m.least)
        rows = k.over(k.value(out, "o"), "i", "e")
        return tuple(self.step(s) for s in form.states), rows

    def keep(self) -> None:
        """What is kept for all kernels that walk, but the weights."""
        k = self.k
        for e in self.p.sums:
            k.b.bindings[e] = total = self.kept.total(k.over(k.value(e, "own"), "i"))
            self.ends += [total] if e not in self.p.sums_near else []
        if self.p.halves:
            for s in self.held.values():
                self.totals(s)
                for w in s.writes:
                    self.operand(s, w)
            for r in self.p.form.reads:
                self.start(r)

    def plain(self, states: tuple[Var, ...]) -> list[tuple[Held, Var]]:
        """The states of the program itself, as they are, of those that are carried."""
        by_name = dict(zip((s.name for s in self.p.form.states), states, strict=True))
        found = []
        for s in (s for s in self.p.form.states if not s.scale_of):
            v = by_name[s.name]
            if s.scale:
                m = self.m.number(by_name[s.scale])
                names = self.k.b.type_of(v.name).names()
                v = self.k.over(self.k.value(plain((v, m), self.m.natural, self.m.least), s.name), *names)
            found.append((s, v))
        return found

    def sound(self, v: Var) -> Var:
        """A read; 1 in rows behind the last token: they may be divided by, and 0 / 0 would reach the gradients."""
        return self.k.value(op("where", self.k.live, v, 1.0), "r") if self.p.divides else v

    def fading(self, s: Held) -> Fading:
        """The fading of a state without channels."""
        if s.name not in self.fadings:
            if s.scale:
                self.fadings[s.name] = Scaled(self.m, s.gate.log, s.log, self.states[s.scale])
                return self.fadings[s.name]
            gates = None if s.along_key else self.m.gates(s.gate, None)
            keep = (lambda v: self.kept.value(v, self.k.real)) if self.p.of_tokens else None
            self.fadings[s.name] = Bounded(self.m, gates, keep)
        return self.fadings[s.name]

    def channel_gates(self, s: Held) -> dict[str, Gates]:
        """The gates along axes, by the axis."""
        pairs = ((s.gate, s.key), (s.beside, s.value))
        found = (self.m.gates(gate, axis) for gate, axis in pairs if axis is not None and gate.along(axis))
        return {g.axis: g for g in found if g is not None}

    # --- reads ------------------------------------------------------------------------------------------------------

    def read(self, r: ReadOf) -> Var:
        """x @ S for every row of the chunk."""
        k, s, state = self.k, self.held[r.state], self.states[r.state]
        summed = r.axis
        kept = next((x for x in (s.key, s.value) if x is not None and x is not summed), None)
        swapped = (summed if summed is not None else kept) is (s.value if summed is not None else s.key)
        gates, fading = self.channel_gates(s), self.fading(s)
        total = self.far(self.start(r), state, summed, kept)
        beside = gates.get(kept.name) if kept is not None else None
        if beside is not None:
            total = k.value(op("mul", total, self.m.grown(beside, r.after)), "r")
        for w in s.writes:
            key, value = (w.value, w.key) if swapped else (w.key, w.value)
            parts = (r.parts, w.parts) if not swapped else ((), ())
            along = gates.get(summed.name) if summed is not None else None
            weights = self.weights(r, w, key, fading, along, parts)
            total = self.near(total, weights, value, kept, beside, r.after)
        return total

    def start(self, r: ReadOf) -> Var:
        """x, faded since the chunk's start."""
        if ("start", r) not in self.known:
            k, s, summed = self.k, self.held[r.state], r.axis
            gates, x = self.channel_gates(s), self.row_of(r, s)
            along = gates.get(summed.name) if summed is not None else None
            for f in (self.fading(s).start(r.after), self.m.grown(along, r.after) if along is not None else None):
                x = x if f is None else k.value(op("mul", x, f), "x")
            self.known["start", r] = self.kept.operand(x) if along is not None and self.p.halves else x
        return self.known["start", r]

    def rows(self) -> list[Var]:
        """What is made once for all kernels."""
        maps, self.maps = self.maps, ()
        return [self.wide(e, axis, rows=True) for e, axis in maps]

    def row_at(self, axis: Var) -> tuple[Expr, ...]:
        """Where rows over a channel axis lie."""
        return (ivar("b"), ivar("h"), self.k.at["i"], self.k.b.bindings[axis])

    def row_guard(self, axis: Var) -> Expr:
        """That a token and a channel exist."""
        return conj(self.k.live, self.k.inside[axis.name])

    def made(self, n: int, axis: Var) -> Var:
        """Rows as they are stored."""
        k = self.k
        if ("map", n) not in self.known:
            type = replace(k.b.over("i", axis.name), dtype=self.p.variant.dtype)
            found = k.load(map_of(n), self.row_at(axis), self.row_guard(axis), type, "x")
            self.loaded[n] = self.known["map", n] = found
        return k.cast(self.known["map", n], k.real)

    def wide(self, e: Expr, axis: Var | None, *, rows: bool = False) -> Var:
        """`e` over the rows and an axis that is summed over, 0 in its padding."""
        if axis is not None and (e, axis) in self.maps:
            return self.made(self.maps.index((e, axis)), axis)
        if axis is None:
            return self.k.clean(e, "x", rows=rows)
        guard = self.k.inside[axis.name]
        full = e if guard is TRUE or axis in free(e) else op("where", guard, e, 0.0)
        return self.k.over(self.k.clean(full, "x", rows=rows), "i", axis.name)

    def far(self, x: Var, state: Var, summed: Var | None, kept: Var | None) -> Var:
        """What earlier chunks add to a read."""
        k = self.k
        if summed is None:
            return k.over(k.value(op("mul", x, state), "r"), "i", *([kept.name] if kept is not None else []))
        if kept is None:
            return k.sum("r", op("mul", x, state), summed.name)
        return self.dot("r", x, state, summed.name, ("i", kept.name))

    def near(self, total: Var, weights: Var, value: Expr, kept: Var | None, beside: Gates | None, after: bool) -> Var:
        """What the chunk's own writes add to a read."""
        k = self.k
        y = self.m.as_j(k.clean(value, "y", rows=True))
        if kept is None:
            return k.value(op("add", total, k.sum("z", op("mul", weights, y), "j")), "r")
        y = k.over(y, "j", kept.name)
        if beside is None:
            return self.dot("r", weights, y, "j", ("i", kept.name), total)
        part = op("mul", op("mul", weights, y), self.m.between(beside, after))
        return k.value(op("add", total, k.sum("z", part, "j")), "r")

    def weights(
        self,
        r: ReadOf,
        w: Write,
        key: Expr,
        fading: Fading,
        along: Gates | None,
        parts: tuple[tuple[Expr, ...], tuple[Expr, ...]],
    ) -> Var:
        """(x_i . w_j) faded, over i and j; 0 where row i does not read row j."""
        pair = fading.pair(r.after)
        known = ("weights", r.x, key, pair, along and along.upto, r.after, r.axis)
        if known in self.known:
            return self.known[known]
        k, axis = self.k, r.axis
        if axis is None:
            p = op("mul", k.clean(r.x, "x"), self.m.as_j(k.clean(key, "w", rows=True)))
            found = k.over(k.value(op("mul", p, pair), "p"), "i", "j")
        elif along is not None and self.p.halves:
            found = self.halves(r, w, along, axis, fading)
            if not (isinstance(fading, Bounded) and fading.gates is None):
                found = k.value(op("mul", found, pair), "p")
        elif along is not None:
            x, y = self.wide(r.x, axis), self.m.as_j(self.wide(key, axis, rows=True))
            found = k.sum("p", op("mul", op("mul", x, y), self.m.between(along, r.after)), axis.name)
            if not (isinstance(fading, Bounded) and fading.gates is None):
                found = k.value(op("mul", found, pair), "p")
        else:
            dots: list[Expr] = [self.product(x, w, a) for x, w, a in self.factors(r, key, parts)]
            found = k.value(op("mul", product(dots), pair), "p")
        self.known[known] = found
        return found

    def halves(self, r: ReadOf, w: Write, along: Gates, axis: Var, fading: Fading) -> Var:
        """The weights under a gate along the axis that is summed over."""
        k, kept, sums, size = self.k, self.kept, along.parts[0], self.p.extents[axis.name]
        row, x_gated = self.gated(r.x, sums.of(r.after), axis)
        column, w_gated = self.gated(w.key, sums.upto, axis, -1.0)
        stored = [kept.number[v.name] for v in (self.start(r), self.left_of(self.held[r.state], w))]
        alone = isinstance(fading, Bounded) and fading.gates is None  # no other gate is in what is stored

        def end() -> Var:
            if ("end", sums) not in self.known:
                self.known["end", sums] = kept.end(kept.number[sums.upto.name], size)
            return self.known["end", sums]

        halves = Halves(k, row, column, sums, r.after, lambda at: kept.row(kept.number[sums.upto.name], at), end)
        product = (lambda: halves.product(*(kept.rows(n, size) for n in stored))) if alone else None
        found = kept.weights(halves.weights, product, halves.near)
        self.pairs.append(k.narrow(found))  # what is loaded
        k.known[self.pairs[-1].name] = (x_gated.name, w_gated.name), halves.gradients
        return found

    def gated(self, e: Expr, sums: Var, axis: Var, sign: float = 1.0) -> tuple[Var, Var]:
        """`e` over the rows and a gated axis, and as what is read times 2^sums (2^-sums: what is written)."""
        if ("gated", e, sums, sign) not in self.halved:
            v, behind = self.wide(e, axis, rows=sign < 0), self.kept.behind.get(sums.name, ((sums, 1.0),))
            self.halved["gated", e, sums, sign] = v, faded(self.k, v, [(x, sign * y) for x, y in behind])
        return self.halved["gated", e, sums, sign]

    def row_of(self, r: ReadOf, s: Held) -> Var:
        """x, as what is faded since the chunk's start."""
        gates = self.channel_gates(s).get(r.axis.name) if r.axis is not None else None
        if r.axis is not None and gates is not None and self.p.halves:
            return self.gated(r.x, gates.parts[0].of(r.after), r.axis)[1]
        return self.wide(r.x, r.axis)

    def factors(
        self, r: ReadOf, key: Expr, parts: tuple[tuple[Expr, ...], tuple[Expr, ...]]
    ) -> list[tuple[Var, Var, Var]]:
        """x and w along each axis that is summed over: two that are stored as one stay two where both have factors."""
        assert r.axis is not None
        s = self.held[r.state]
        if all(parts):
            three = zip(*parts, s.axes.groups[0], strict=True)
            return [(self.wide(x, a), self.key_j(w, a), a) for x, w, a in three]
        return [(self.row_of(r, s), self.key_j(key, r.axis), r.axis)]

    def product(self, x: Var, w: Var, axis: Var) -> Var:
        """x_i . w_j."""
        return self.dot("p", x, w, axis.name, ("i", "j"))

    def dot(self, hint: str, a: Var, c: Var, axis: str, out: tuple[str, str], start: Var | None = None) -> Var:
        """A product whose operands are made the way it takes them."""
        a, c = (self.k.laid(x, axis, out) for x in (a, c))
        return self.k.dot(hint, a, c, axis, out, start)

    def key_j(self, key: Expr, axis: Var) -> Var:
        """What is written along an axis, 0 behind the last token, with its tokens on the axis j.

        The result of a product of matrices is made anew with its tokens behind, as a product wants it.
        """
        known = ("key", key, axis)
        if known not in self.known:
            if has_product(key) and not self.p.chained(key):
                self.known[known] = self.k.on_j(key, "w")
            else:
                self.known[known] = self.m.as_j(self.wide(key, axis, rows=True))
        return self.known[known]

    # --- writes -----------------------------------------------------------------------------------------------------

    def step(self, s: Held) -> Var:
        """The state behind the chunk."""
        k, state = self.k, self.states[s.name]
        if s.scale_of:
            fading = self.fading(self.held[s.scale_of])
            assert isinstance(fading, Scaled)
            return fading.after(state)
        fading, gates = self.fading(s), self.channel_gates(s)
        total = state
        for f in self.totals(s):
            total = total if f is None else k.value(op("mul", total, f), s.name)
        for w in s.writes:
            total = self.written(s, w, total, fading.rest(), gates)
        return total

    def totals(self, s: Held) -> tuple[Var | None, ...]:
        """What the chunk leaves of a state: factors."""
        if s.name not in self.left:
            along = (self.m.total(g) for g in self.channel_gates(s).values())
            found = tuple(self.kept.value(v, self.k.real) if self.p.halves else v for v in along)
            self.left[s.name] = (self.fading(s).total(), *found)
        return self.left[s.name]

    def written(self, s: Held, w: Write, total: Var, rest: Var | None, gates: dict[str, Gates]) -> Var:
        """`total` and what is left of the chunk's writes at its end."""
        k = self.k
        if s.key is None or s.value is None:
            part: Expr = op("mul", k.clean(w.key, "w", rows=True), k.clean(w.value, "y", rows=True))
            for f in (rest, *(self.m.left(g) for g in gates.values())):
                part = part if f is None else op("mul", part, f)
            names = [x.name for x in (s.key, s.value) if x is not None]
            return k.value(op("add", total, k.sum("w", k.over(k.value(part, "w"), "i", *names), "i")), s.name)
        turned = has_product(w.key) and not self.p.chained(w.key)
        value = k.clean(w.value, "y", rows=True)
        if s.value.name in gates:
            value = k.value(op("mul", value, self.m.left(gates[s.value.name])), "y")
        if self.p.halves and s.key.name in gates:
            return self.added(s, self.operand(s, w), value, total)
        narrower = k.b.extent(s.key.name) - k.b.extent(s.value.name)
        if rest is not None and (narrower > 0 or (self.walks and narrower == 0)):  # the smaller one is scaled
            value, rest = k.value(op("mul", value, rest), "y"), None
        key = self.key_j(w.key, s.key)
        with k.turned() if turned else nullcontext():
            for f in (rest, self.m.left(gates[s.key.name]) if s.key.name in gates else None):
                key = key if f is None else k.value(op("mul", key, self.m.as_j(f)), "w")
        return self.added(s, key, value, total)

    def operand(self, s: Held, w: Write) -> Var:
        """What a write adds along a gated key, with its tokens on the axis j."""
        return self.m.as_j(self.left_of(s, w))

    def left_of(self, s: Held, w: Write) -> Var:
        """What is written along a gated key, faded until the chunk's end."""
        if ("left", s.name, w) not in self.known:
            k, gates = self.k, self.channel_gates(s)
            assert s.key is not None
            key = self.wide(w.key, s.key, rows=True)
            if s.key.name in gates:
                _, key = self.gated(w.key, gates[s.key.name].parts[0].upto, s.key, -1.0)
            for f in (self.fading(s).rest(), self.m.left(gates[s.key.name]) if s.key.name in gates else None):
                key = key if f is None else k.value(op("mul", key, f), "w")
            self.known["left", s.name, w] = self.kept.operand(key) if s.key.name in gates else key
        return self.known["left", s.name, w]

    def added(self, s: Held, key: Var, value: Var, total: Var) -> Var:
        """`total` and the sum of outer products over the rows."""
        assert s.value is not None
        value = self.m.as_j(self.k.over(value, "i", s.value.name))
        row, column = self.k.b.type_of(total.name).names()
        return self.dot(s.name, key, value, "j", (row, column), total)
