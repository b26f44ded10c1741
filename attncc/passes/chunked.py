"""State programs whose states decay --> what a chunk of tokens needs: gates in logarithms, writes, reads.

rewrite: S = exp(a) * S + outer(k, v); out = f(q @ S)  -->  log gate a, write (k, v), read (q, after the change), f(r)

Every step is put in where it is read. A state's new value becomes a sum of products: those with the state give its
gate, the others are writes, each a product of a factor along the key axis and one along the value axis. A gate is a
number of the token, times one along the key axis, times one along the value axis. States with three axes have one made
of two: the two that every read sums over. What is read of one state may stand in the gates, writes and reads of others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from attncc.diagnostics import Span
from attncc.expr.build import op
from attncc.expr.nodes import Expr, Op, Var, rewrite
from attncc.ir.free import free
from attncc.ir.nodes import Assign, Binder, Contract, Load, Reduce, Spec, State
from attncc.ir.steps import reads
from attncc.passes.chunk_axes import UNIT, Axes, alike, axes_of
from attncc.passes.chunk_form import OPEN, Chunked, Gate, Held, ReadOf, Write, needed, scales_of
from attncc.passes.chunk_gates import ONE, ZERO, clamped, floored, interval, logarithm
from attncc.passes.chunk_steps import Steps
from attncc.passes.chunk_terms import Reader, Term, apart, gathered, parts_of, plain, product
from attncc.passes.classify import StateClass, classify
from attncc.passes.mistakes import NotCompiled

__all__ = ["ONE", "ZERO", "Chunked", "Held", "ReadOf", "Write", "chunked"]
LARGE = 16.0
"""Exponents of writes that may be larger are kept apart, as `Held.log`."""


@lru_cache(maxsize=64)
def chunked(spec: Spec, D: int, E: int) -> Chunked:
    """The chunk form of a state program at these channel sizes; NotCompiled names what has none."""
    assert spec.recurrence is not None
    for found in classify(spec):
        _refuse_class(spec, found)
    return _Builder(spec, Steps(spec, D, E)).run()


def _refuse_class(spec: Spec, found: StateClass) -> None:
    for change in found.changes:
        if found.frozen:
            raise _not_yet("frozen states", change.first.span)
        if found.restarts:
            raise _not_yet("states that start anew by a key", change.first.span)
        if change.rank or change.kind not in _kinds(found):
            raise _not_yet(f"a change of the class {change}", change.first.span)


def _kinds(found: StateClass) -> tuple[str, ...]:
    """The classes that have a chunk form; along one axis a gate of each element is one of each channel."""
    alone = ("elementwise",) if len(found.axes) < 2 else ()
    return ("identity", "constant", "scalar", "key", "value", "separable", *alone)


def _not_yet(what: str, span: Span | None) -> NotCompiled:
    return NotCompiled(f"{what}: not compiled yet", span, hint="`attncc.reference` runs it")


@dataclass
class _Builder:
    spec: Spec
    steps: Steps
    found: list[ReadOf] = field(default_factory=list)

    def run(self) -> Chunked:
        r = self.spec.recurrence
        assert r is not None
        self.params = {p.name: p for p in self.spec.params}
        self.states = {s.name: s for s in r.states}
        self.axes = alike({s.name: axes_of(self.spec, s, self.steps.sizes) for s in r.states})
        self.reader = Reader(self.stateful, self.settle)
        self.span = self.spec.out.span
        now, out = self.steps.run(self.read)
        out = self.guarded(out)
        held = tuple(self.held(s, now[s.name]) for s in r.states)
        held = scales_of(held)
        return Chunked(held, needed(out, self.found, held), out)

    def stateful(self, e: Expr) -> bool:
        """Whether a state stands in `e` that is to be read now."""
        return any(n.rstrip("'") in self.states and n.rstrip("'") != self.own for n in reads(e))

    def read(self, e: Expr, own: str, span: Span | None) -> Expr:
        """`e` with a name for every read of a state but `own`."""
        self.own, self.span = own, span
        return self.reader.read(e)

    # --- reads ------------------------------------------------------------------------------------------------------

    def settle(self, t: Term) -> Expr:
        """The value of a term: its read, times the rest."""
        loads = [f for f in t.factors if isinstance(f, Load) and self.stateful(f)]
        rest = [f for f in t.factors if f not in loads]
        if len(loads) > 1:
            return plain(t.bound, [*rest, *(self.elementwise(x) for x in loads)])
        if not loads:
            return plain(t.bound, rest)
        (load,) = loads
        axes = self.axes[load.tensor.rstrip("'")]
        foreign = tuple((x, n) for x, n in t.bound if x not in axes.own)
        contracted = [x for x, _ in t.bound if x in axes.own]
        if not contracted:
            return plain(foreign, [*rest, self.elementwise(load)])
        total: Expr = ZERO
        for factors in apart(gathered(foreign, rest), frozenset(axes.own)):
            part = self.contraction(load, axes, contracted, factors, t)
            total = part if total is ZERO else op("add", total, part)
        return total

    def contraction(self, load: Load, axes: Axes, contracted: list[Var], factors: list[Expr], t: Term) -> Expr:
        """The sum of factors times a state over some of its axes."""
        first = [x for x in axes.groups[0] if x in contracted]
        if first and len(first) < len(axes.groups[0]):
            raise _not_yet("a read that sums over one of a state's axes where another read sums over two", self.span)
        along, side = (axes.groups[0], axes.key) if first or axes.value is None else (axes.groups[1], axes.value)
        outer = [x for x in contracted if x not in along]
        mine = [f for f in factors if free(f) & set(along)]
        others = [f for f in factors if f not in mine]
        if any(free(f) & (set(axes.own) - set(along)) for f in mine):
            raise _not_yet("a read of a state whose factors are tied to two of its axes", self.span)
        scalars = [f for f in others if not free(f) & set(axes.own)]
        others = [f for f in others if f not in scalars]
        x = product([*mine, *scalars])
        parts = parts_of(along, mine, scalars)
        part: Expr = self.named(load, axes.joined(x), side, parts)
        sizes = dict(t.bound)
        for axis in outer:
            here = [f for f in others if axis in free(f)]
            others = [f for f in others if f not in here]
            part = Contract(part, product(here), axis, sizes[axis])
        return part if not others else op("mul", part, product(others))

    def elementwise(self, load: Load) -> Expr:
        """A state with one axis as it is, or one without axes."""
        axes = self.axes[load.tensor.rstrip("'")]
        if axes.key is not None and axes.value is not None:
            raise _not_yet("a read of a state that is no product `x @ S` along one of its axes", self.span)
        if axes.own:
            return self.named(load, ONE, None, ())
        first = op("where", op("lt", UNIT, 1), ONE, ZERO)  # printers pad the axis
        return self.named(load, first, UNIT, ())

    def named(self, load: Load, x: Expr, axis: Var | None, parts: tuple[Expr, ...]) -> Load:
        """The name of a read; equal reads have one."""
        state, after = load.tensor.rstrip("'"), load.tensor.endswith("'")
        x, parts = self.guarded(x), tuple(self.guarded(p) for p in parts)
        for known in self.found:
            if (known.state, known.x, known.after, known.axis) == (state, x, after, axis):
                return known.atom
        axes = self.axes[state]
        left = [v for v in (axes.key, axes.value) if v is not None and v is not axis]
        index = (Var("b", "int"), Var("h", "int"), Var("i", "int"), *left)
        atom = Load(f"read{len(self.found)}'", index, "real")
        self.found.append(ReadOf(atom, state, x, after, axis, parts))
        return atom

    # --- states -----------------------------------------------------------------------------------------------------

    def held(self, s: State, now: Expr) -> Held:
        """One state's gate and writes."""
        axes = self.axes[s.name]
        self.span = next(x.span for x in self.steps.order if isinstance(x, Assign) and x.state == s.name)
        self.own = ""
        gates: list[tuple[Expr, Expr]] = []
        pieces: list[tuple[list[Expr], list[Expr], list[Expr]]] = []
        for term in Reader(self.stateful, self.tied).terms(now):
            own = [f for f in term.factors if isinstance(f, Load) and f.tensor == s.name]
            for factors in apart([f for f in term.factors if f not in own], frozenset(axes.own)):
                left, right, scalar = self.sides(factors, axes)
                if own:
                    gates.append((product([*scalar, *left]), product(right)))
                else:
                    pieces.append((left, right, scalar))
        key, value = _gate(gates)
        if value is None:
            raise _not_yet("a gate that is a sum of gates along two axes", self.span)
        gate, proved = self.gate(key)
        beside, _ = self.gate(value)
        channels = bool(self.steps.channels(key)) or beside != OPEN
        writes = [self.write(axes, *p, apart_logs=not channels) for p in pieces]
        log = _largest([x for _, x in writes])
        init = axes.joined(self.steps.expand(s.init))
        found = tuple(_relative(w, x, log) for w, x in writes)
        scale = "" if log is ZERO and proved else s.name
        if scale and not interval(gate.linear, self.params).lo > 0:
            raise _not_yet("a gate that may be 0, of a state whose gate or writes may be of any size", self.span)
        if scale:
            gate = Gate(op("add", gate.log, floored(gate.linear)) if gate.linear is not ONE else gate.log)
        gate, beside = (Gate(axes.joined(g.log), axes.joined(g.linear)) for g in (gate, beside))
        return Held(s.name, axes, gate, beside, found, init, log, scale)

    def tied(self, t: Term) -> Expr:
        raise _not_yet("a state in a sum of its own change", self.span)

    def sides(self, factors: list[Expr], axes: Axes) -> tuple[list[Expr], list[Expr], list[Expr]]:
        """The factors along the key axis, those along the value axis, and the rest."""
        keys, values = (set(g) for g in axes.groups)
        left = [f for f in factors if free(f) & keys]
        right = [f for f in factors if f not in left and free(f) & values]
        if any(free(f) & values for f in left):
            raise _not_yet("a write that is no product of a key and a value", self.span)
        return left, right, [f for f in factors if f not in left and f not in right]

    def write(
        self, axes: Axes, left: list[Expr], right: list[Expr], scalar: list[Expr], *, apart_logs: bool
    ) -> tuple[Write, Expr]:
        """A write and the exponent kept apart from it."""
        logs: list[Expr] = []
        if apart_logs:
            left, right, scalar = (self.small(x, logs) for x in (left, right, scalar))
        log = logs[0] if logs else ZERO
        for x in logs[1:]:
            log = op("add", log, x)
        left, right, scalar = ([self.guarded(f) for f in x] for x in (left, right, scalar))
        parts = parts_of(axes.groups[0], left, scalar)
        return Write(axes.joined(product([*scalar, *left])), axes.joined(product(right)), parts), log

    def guarded(self, e: Expr) -> Expr:
        """`e` with exponents that the declared bounds keep small within those, as gates are."""

        def rule(node: Expr) -> Expr | None:
            match node:
                case Op("exp", (x,)) if interval(x, self.params).hi <= LARGE:
                    return op("exp", clamped(x, self.params))
                case _:
                    return None

        return rewrite(e, rule)

    def small(self, factors: list[Expr], logs: list[Expr]) -> list[Expr]:
        """The factors without exponentials that may be large: their exponents go to `logs`, at their largest."""
        found = []
        for f in factors:
            match f:
                case Op("exp", (x,)) if not interval(x, self.params).hi <= LARGE:
                    top = x
                    for axis, size in self.steps.channels(x):
                        top = Reduce("max", top, (Binder(axis, size),))
                    logs.append(top)
                    if top is not x:
                        found.append(op("exp", op("sub", x, top)))
                case _:
                    found.append(f)
        return found

    def gate(self, gate: Expr) -> tuple[Gate, bool]:
        """A gate, and whether the declared bounds prove it at most 1; they hold by clamping."""
        within = clamped(gate, self.params)
        if not interval(within, self.params).lo >= 0:
            hint = "declare bounds: `a: real[b, h, n] in [0, 1]`, or write it as `exp(a)`"
            raise NotCompiled("this gate is not proved to be at least 0", self.span, hint=hint)
        log, linear = logarithm(gate)
        log, linear = clamped(log, self.params), clamped(linear, self.params)
        proved = interval(log, self.params).hi <= 0 and interval(linear, self.params).hi <= 1
        if not proved and self.steps.channels(within):
            hint = "declare bounds: `a: real[b, h, n, d] in [-inf, 0]` for `exp(a)`, `in [0, 1]` for `a` itself"
            raise NotCompiled("this gate is not proved to be at most 1", self.span, hint=hint)
        return Gate(log, linear), proved


def _gate(terms: list[tuple[Expr, Expr]]) -> tuple[Expr, Expr | None]:
    """The factors along the key axis and the value axis of a sum of gates; None where it has no such."""
    if not terms:
        return ZERO, ONE
    if len(terms) == 1:
        return terms[0]
    for n in (0, 1):
        if all(pair[1 - n] is terms[0][1 - n] for pair in terms):
            total = terms[0][n]
            for pair in terms[1:]:
                total = op("add", total, pair[n])
            return (total, terms[0][1]) if n == 0 else (terms[0][0], total)
    return ZERO, None


def _largest(logs: list[Expr]) -> Expr:
    """The largest of some exponents."""
    different = list(dict.fromkeys(logs))
    top = different[0] if different else ZERO
    for x in different[1:]:
        top = op("max", top, x)
    return top


def _relative(w: Write, log: Expr, top: Expr) -> Write:
    """A write whose exponent is `log`, as one with exponent `top`."""
    if log is top:
        return w
    less = op("exp", op("sub", log, top))
    parts = (op("mul", less, w.parts[0]), *w.parts[1:]) if w.parts else ()
    return Write(op("mul", less, w.key), w.value, parts)
