"""State programs whose states decay --> what a chunk of tokens needs: gates in logarithms, writes, reads.

rewrite: S = exp(a) * S + outer(k, v); out = f(q @ S)  -->  log gate a, write (k, v), read (q, after the change), f(r)

Every step is put in where it is read. A state's new value becomes a sum of products: those with the state give its
gate, the others are writes, each a product of a factor along the key axis and one along the value axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from attncc.diagnostics import Span
from attncc.expr.build import op
from attncc.expr.evaluate import evaluate
from attncc.expr.interval import Interval, bounds
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite, substitute, walk
from attncc.ir.free import free
from attncc.ir.nodes import Assign, Contract, Keep, Load, Micro, Param, Read, Rebind, Spec, State
from attncc.ir.steps import reads
from attncc.passes.classify import StateClass, classify
from attncc.passes.mistakes import NotCompiled

ONE, ZERO = Const(1.0, "real"), Const(0.0, "real")
TINY = Const(1e-30, "real")
"""A gate below this is this: it forgets everything."""


@dataclass(frozen=True, slots=True)
class Write:
    """key (over i and the key axis) times value (over i and the value axis)."""

    key: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class Held:
    """A state [key, value], either axis may be missing: S becomes exp(log_gate) S + the writes. `init` is its first."""

    name: str
    key: Var | None
    value: Var | None
    extents: tuple[Expr, ...]
    log_gate: Expr
    """Over i and the key axis, at most 0."""
    writes: tuple[Write, ...]
    init: Expr


@dataclass(frozen=True, slots=True)
class ReadOf:
    """The sum over the key axis of x times a state, before or after the token's change; `atom` stands for it in out."""

    atom: Var
    state: str
    x: Expr
    after: bool


@dataclass(frozen=True, slots=True)
class Chunked:
    """A state program in the form of the chunkwise schedule."""

    states: tuple[Held, ...]
    reads: tuple[ReadOf, ...]
    out: Expr


def chunked(spec: Spec, D: int, E: int) -> Chunked:
    """The chunk form of a state program at these channel sizes; NotCompiled names what has none."""
    r = spec.recurrence
    assert r is not None
    for found in classify(spec):
        _refuse_class(spec, found)
    return _Builder(spec, {Var("D", "int"): Const(D, "int"), Var("E", "int"): Const(E, "int")}).run()


def _refuse_class(spec: Spec, found: StateClass) -> None:
    span = found.changes[0].first.span
    why = ""
    if found.frozen:
        why = "frozen states"
    elif found.needs:
        why = "a state that is changed by another one"
    elif found.restarts:
        why = "states that start anew by a key"
    elif len(found.changes) > 1 or found.changes[0].loop:
        why = "several changes of a state in one token"
    elif found.order == "between":
        why = "a read between the changes of a state"
    elif found.changes[0].rank or found.changes[0].kind not in ("identity", "constant", "scalar", "key"):
        why = f"a change of the class {found.changes[0]}"
    if why:
        raise _not_yet(why, span)


def _not_yet(what: str, span: Span | None) -> NotCompiled:
    hint = "`attncc.reference` runs it"
    return NotCompiled(f"{what}: not compiled yet", span, hint=hint)


@dataclass
class _Builder:
    spec: Spec
    sizes: dict[Expr, Expr]
    rows: dict[str, Rebind] = field(default_factory=dict)
    kept: dict[str, tuple[Keep, Expr]] = field(default_factory=dict)
    now: dict[str, Expr] = field(default_factory=dict)
    found: list[ReadOf] = field(default_factory=list)

    def run(self) -> Chunked:
        r = self.spec.recurrence
        assert r is not None
        for statement in self.spec.statements:
            if not isinstance(statement, Rebind):
                raise _not_yet("an array of `let` in a state program", statement.span)
            self.rows[statement.tensor] = statement
            body = self.expand(statement.body, skip=statement.tensor)
            self.rows[statement.tensor] = Rebind(statement.tensor, statement.vars, statement.channels, body)
        self.states = {s.name: s for s in r.states}
        self.now = {s.name: _load(s, "") for s in r.states}
        total = {s.name: sum(isinstance(x, Assign) and x.state == s.name for x in r.steps) for s in r.states}
        done = dict.fromkeys(total, 0)
        out: Expr = ZERO
        for step in r.steps:
            seen: dict[str, Expr] = {n: _load(s, "'" if done[n] == total[n] else "") for n, s in self.states.items()}
            match step:
                case Assign(name, _, body):
                    self.now[name] = self.expand(self.put(body, self.now))
                    done[name] += 1
                case Keep(name, _, _, body):
                    self.kept[name] = step, self.expand(self.put(body, seen))
                case Read():
                    out = self.read_off(self.expand(self.put(self.spec.out.body, seen)))
                case Micro():
                    raise _not_yet("a loop within a token", step.span)
        held = tuple(self.held(s) for s in r.states)
        return Chunked(held, tuple(self.found), out)

    # --- putting things in ------------------------------------------------------------------------------------------

    def put(self, e: Expr, states: dict[str, Expr]) -> Expr:
        """`e` with states for what they are."""

        def rule(node: Expr) -> Expr | None:
            if isinstance(node, Load) and node.tensor in self.states:
                if node is not _load(self.states[node.tensor], ""):
                    raise _not_yet("a state read at another place than its own", node.span)
                return states[node.tensor]
            return None

        return rewrite(e, rule)

    def expand(self, e: Expr, skip: str = "") -> Expr:
        """`e` with kept values and new rows of q, k and v put in, and the channel sizes' numbers."""

        def rule(node: Expr) -> Expr | None:
            if not isinstance(node, Load):
                return None
            if node.tensor in self.kept:
                step, body = self.kept[node.tensor]
                if node.index[2:] != step.vars:
                    raise _not_yet("a value of the token read at another place", node.span)
                return body
            row = self.rows.get(node.tensor)
            if row is not None and node.tensor != skip:
                if node.index[3] is not row.vars[3]:
                    raise _not_yet("a new row read at another channel", node.span)
                return substitute(row.body, {row.vars[2]: node.index[2]})
            return None

        return rewrite(substitute(rewrite(e, rule), self.sizes), _folded)

    # --- states -----------------------------------------------------------------------------------------------------

    def held(self, s: State) -> Held:
        """One state's gate and writes."""
        key, value = axes_of(s)
        own = _load(s, "")
        gate: list[Expr] = []
        writes: list[Write] = []
        span = next(x.span for x in self.spec.recurrence.steps if isinstance(x, Assign) and x.state == s.name)  # type: ignore[union-attr]
        for factors in self.products(self.now[s.name], key, value, span):
            left, right, states = self.sides(factors, value)
            if states:
                if states != [own] or right is not ONE:
                    raise _not_yet("a gate along the value axis", span)
                gate.append(left)
            else:
                writes.append(Write(left, right))
        total = gate[0] if gate else ZERO
        for g in gate[1:]:
            total = op("add", total, g)
        log_gate = self.logarithm(total, span)
        extents = tuple(substitute(a.size, self.sizes) for a in s.axes)
        return Held(s.name, key, value, extents, log_gate, tuple(writes), self.expand(s.init))

    def sides(self, factors: list[Expr], value: Var | None) -> tuple[Expr, Expr, list[Expr]]:
        """(the product along the key axis, that along the value axis, the states)."""
        states: list[Expr] = [f for f in factors if isinstance(f, Load) and f.tensor.rstrip("'") in self.states]
        right = [f for f in factors if f not in states and value is not None and value in free(f)]
        left = [f for f in factors if f not in states and f not in right]
        return _product(left), _product(right), states

    def products(self, e: Expr, key: Var | None, value: Var | None, span: Span | None) -> list[list[Expr]]:
        """`e` as a sum of products of states and of factors that have one axis at most."""
        axes = {x for x in (key, value) if x is not None}

        def whole(x: Expr) -> bool:
            return not self.stateful(x) and len(free(x) & axes) <= 1

        def go(x: Expr) -> list[list[Expr]]:
            if whole(x) or (isinstance(x, Load) and self.stateful(x)):
                return [] if x is ZERO else [[x]]
            match x:
                case Op("add", (a, b)):
                    return go(a) + go(b)
                case Op("sub", (a, b)):
                    return go(a) + [[Const(-1.0, "real"), *p] for p in go(b)]
                case Op("neg", (a,)):
                    return [[Const(-1.0, "real"), *p] for p in go(a)]
                case Op("mul", (a, b)):
                    return [[*p, *r] for p in go(a) for r in go(b)]
                case Op("div", (a, b)) if whole(b):
                    return [[*p, op("recip", b)] for p in go(a)]
                case Op("where", (c, a, b)) if whole(c):
                    yes, no = op("where", c, ONE, ZERO), op("where", c, ZERO, ONE)
                    return [[yes, *p] for p in go(a)] + [[no, *p] for p in go(b)]
                case _:
                    raise _not_yet("a write that is no product of a key and a value", span)

        return go(e)

    def stateful(self, e: Expr) -> bool:
        """Whether a state stands in `e`."""
        return any(n.rstrip("'") in self.states for n in reads(e))

    # --- gates ------------------------------------------------------------------------------------------------------

    def logarithm(self, gate: Expr, span: Span | None) -> Expr:
        """log(gate), proved to be at most 0 with the declared bounds, which hold by clamping."""
        params = {p.name: p for p in self.spec.params}

        def clamp(node: Expr) -> Expr | None:
            if isinstance(node, Load) and node.tensor in params:
                return _clamped(node, params[node.tensor])
            return None

        found = rewrite(_log(gate), clamp)
        env: dict[Expr, Interval] = {n: _interval(n, params) for n in walk(found) if isinstance(n, Load)}
        if not bounds(found, env).hi <= 0:
            hint = "declare bounds: `a: real[b, h, n] in [-inf, 0]` for `exp(a)`, `in [0, 1]` for `a` itself"
            raise NotCompiled("this gate is not proved to be at most 1", span, hint=hint)
        return found

    # --- reads ------------------------------------------------------------------------------------------------------

    def read_off(self, out: Expr) -> Expr:
        """out with a name for every read of a state."""

        def rule(node: Expr) -> Expr | None:
            match node:
                case Contract(a, b, axis, extent) if self.stateful(node):
                    return self.contraction(op("mul", a, b), axis, extent, node.span)
                case Load(tensor) if tensor.rstrip("'") in self.states:
                    state = self.states[tensor.rstrip("'")]
                    return (
                        self.named(ReadOf(self.fresh(), state.name, ONE, tensor.endswith("'")))
                        if (axes_of(state)[0] is None)
                        else None
                    )
                case _:
                    return None

        found = rewrite(out, rule)
        if self.stateful(found):
            raise _not_yet("a read of a state that is no product `x @ S` along its key axis", self.spec.out.span)
        return found

    def contraction(self, body: Expr, axis: Var, extent: Expr, span: Span | None) -> Expr:
        """The sum over a key axis of products, some with a state."""
        names = {n.tensor.rstrip("'") for n in walk(body) if isinstance(n, Load)} & set(self.states)
        total: Expr = ZERO
        for name in sorted(names):
            key, value = axes_of(self.states[name])
            if key is not axis:
                raise _not_yet("a product with a state along its value axis", span)
        for factors in self.products(body, axis, value, span):
            left, right, states = self.sides(factors, value)
            if len(states) > 1:
                raise _not_yet("a product of two states", span)
            if states:
                (load,) = states
                assert isinstance(load, Load)
                read = ReadOf(self.fresh(), load.tensor.rstrip("'"), left, load.tensor.endswith("'"))
                part: Expr = self.named(read)
            else:
                part = Contract(left, ONE, axis, extent) if axis in free(left) else op("mul", left, op("real", extent))
            part = part if right is ONE else op("mul", part, right)
            total = part if total is ZERO else op("add", total, part)
        return total

    def fresh(self) -> Var:
        """A name that stands for a read."""
        return Var(f"read{len(self.found)}'", "real")

    def named(self, read: ReadOf) -> Var:
        """The name of a read; equal reads have one."""
        for known in self.found:
            if (known.state, known.x, known.after) == (read.state, read.x, read.after):
                return known.atom
        self.found.append(read)
        return read.atom


def _folded(e: Expr) -> Expr | None:
    """An operation on literals, as a literal."""
    if isinstance(e, Op) and e.sort != "bool" and all(isinstance(a, Const) for a in e.args):
        value = evaluate(e)
        return Const(value, e.sort) if math.isfinite(value) else None
    return None


def axes_of(s: State) -> tuple[Var | None, Var | None]:
    """The key and the value axis of a state with at most two axes."""
    names = tuple(v.name for v in s.vars)
    if len(names) > 2:
        raise _not_yet("a state with more than two axes", s.span)
    if len(names) == 2:
        return s.vars[0], s.vars[1]
    if not names:
        raise _not_yet("a state without axes", s.span)
    return (None, s.vars[0]) if names == ("e",) else (s.vars[0], None)


def _load(s: State, mark: str) -> Load:
    return Load(s.name + mark, (Var("b", "int"), Var("h", "int"), *s.vars), "real")


def _product(factors: list[Expr]) -> Expr:
    total: Expr = ONE
    for f in factors:
        total = f if total is ONE else op("mul", total, f)
    return total


def _log(gate: Expr) -> Expr:
    match gate:
        case Const(value) if value > 0:
            return Const(math.log(value), "real")
        case Const(0.0):
            return op("log", TINY)
        case Op("exp", (x,)):
            return x
        case Op("sigmoid", (x,)):
            return op("neg", op("softplus", op("neg", x)))
        case Op("mul", (a, b)):
            return op("add", _log(a), _log(b))
        case Op("where", (c, a, b)):
            return op("where", c, _log(a), _log(b))
        case _:
            return op("log", op("where", op("lt", gate, TINY), TINY, gate))


def _clamped(load: Load, param: Param) -> Expr:
    """A read within its declared bounds; what lies within them is passed on with its whole derivative."""
    found: Expr = load
    if param.bounds is not None and load.sort == "real":
        low, high = param.bounds
        if isinstance(high, Const) and math.isfinite(high.value):
            found = op("where", op("lt", high, found), high, found)
        if isinstance(low, Const) and math.isfinite(low.value):
            found = op("where", op("lt", found, low), low, found)
    return found


def _interval(load: Load, params: dict[str, Param]) -> Interval:
    param = params.get(load.tensor)
    if param is None or param.bounds is None:
        return Interval()
    low, high = param.bounds
    assert isinstance(low, Const) and isinstance(high, Const)
    return Interval(float(low.value), float(high.value))
