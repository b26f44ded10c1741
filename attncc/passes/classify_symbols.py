"""The steps of a state program, executed on symbols: every element of a state becomes a polynomial.

Channels and new indices have four values each, enough to tell a full matrix from a diagonal plus a product. A part that
reads no state becomes one symbol for each value of its indices, sums, products and exponentials of sums excepted. A
function of a state that is no polynomial becomes a symbol that remembers the state. sympy's sparse polynomials do the
arithmetic, over the rationals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from attncc.expr.build import op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Const, Expr, Op, Var, walk
from attncc.ir.free import SIZES, free
from attncc.ir.nodes import Assign, Axis, Binder, Contract, Gradient, Keep, Load, Micro, Recurrence, Reduce, Scan, Step
from attncc.ir.steps import flat, reads

WIDTH = 4
"""The extent of every channel and new index."""

Poly = Any
"""An element of a sympy PolyRing."""
Index = tuple[int, ...]
Point = tuple[tuple[str, int], ...]
"""Values of the indices an expression depends on, by name."""


class Exhausted(Exception):
    """The ring has no generator left; a larger one is wanted."""


class OffGrid(Exception):
    """A state is read or added up at a place that is not known before the call; `node` says where."""

    def __init__(self, node: Expr) -> None:
        super().__init__()
        self.node = node


@dataclass(frozen=True)
class Symbol:
    """What a generator stands for."""

    node: Expr | None
    token: bool
    """Whether it differs from token to token."""
    states: frozenset[str] = frozenset()
    """The states it depends on, and the frozen states."""
    element: tuple[str, Index] | None = None
    """The state's element that it is; functions of states have none."""


@dataclass
class Grid:
    """Symbols and the polynomials that names stand for at the moment."""

    recurrence: Recurrence
    size: int
    symbols: list[Symbol] = field(default_factory=list)
    held: dict[str, dict[Index, Poly]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from sympy import QQ
        from sympy.polys.rings import PolyRing

        self.ring = PolyRing([f"x{n}" for n in range(self.size)], QQ)
        self.names = set(self.recurrence.carried)
        self._opaque: dict[tuple[Expr, Point], Poly] = {}
        self._moment: dict[tuple[Expr, Point], Poly] = {}  # of what reads states: until one of them changes
        self._numbers: dict[tuple[Expr, str, Point], tuple[range, Poly]] = {}  # what gradients are taken of
        self._free: dict[Expr, frozenset[str]] = {}
        self._reads: dict[Expr, frozenset[str]] = {}
        self.axes = {s.name: s.axes for s in self.recurrence.states}
        self.axes |= {f.name: self.axes[f.state] for f in self.recurrence.frozen}
        self.initial = {name: self.refresh(name) for name in self.axes}

    # --- symbols ----------------------------------------------------------------------------------------------------

    def new(self, symbol: Symbol) -> Poly:
        """A generator of its own."""
        if len(self.symbols) == self.size:
            raise Exhausted
        self.symbols.append(symbol)
        return self.ring.gens[len(self.symbols) - 1]

    def refresh(self, name: str) -> range:
        """New symbols for all elements of a state; their numbers."""
        first = len(self.symbols)
        places = elements(len(self.axes[name]))
        self.hold(name, {at: self.new(Symbol(None, True, frozenset({name}), (name, at))) for at in places})
        return range(first, len(self.symbols))

    def hold(self, name: str, values: dict[Index, Poly]) -> None:
        """What a state or a kept value is from here on."""
        self.held[name] = values
        self._moment.clear()
        self._numbers.clear()
        if name not in self.names:
            self.names.add(name)
            self._reads.clear()

    def used(self, p: Poly) -> set[int]:
        """The numbers of the symbols in a polynomial."""
        return {n for powers in p.itermonoms() for n, power in enumerate(powers) if power}

    def states_in(self, p: Poly) -> frozenset[str]:
        """The states that a polynomial depends on."""
        return frozenset[str]().union(*(self.symbols[n].states for n in self.used(p)))

    # --- steps ------------------------------------------------------------------------------------------------------

    def array(self, body: Expr, axes: tuple[Axis, ...], place: Mapping[str, int]) -> dict[Index, Poly]:
        """`body` at every element."""
        names = [a.index for a in axes]
        return {at: self.value(body, {**place, **dict(zip(names, at, strict=True))}) for at in elements(len(names))}

    # --- expressions ------------------------------------------------------------------------------------------------

    def value(self, e: Expr, at: Mapping[str, int]) -> Poly:
        """`e` at those values of its indices."""
        point = tuple(sorted((n, at[n]) for n in self.free(e) if n in at))
        key = (e, point)
        if self.reads(e):
            if key not in self._moment:
                self._moment[key] = self._value(e, at)
            return self._moment[key]
        if key not in self._opaque:
            self._opaque[key] = self._value(e, at)
        return self._opaque[key]

    def free(self, e: Expr) -> frozenset[str]:
        """Names of the free variables."""
        if e not in self._free:
            self._free[e] = frozenset(v.name for v in free(e))
        return self._free[e]

    def reads(self, e: Expr) -> frozenset[str]:
        """The states and kept values that `e` reads."""
        if e not in self._reads:
            self._reads[e] = reads(e) & self.names
        return self._reads[e]

    def _value(self, e: Expr, at: Mapping[str, int]) -> Poly:
        match e:
            case Const(value, _) if math.isfinite(value):
                return self.ring.domain_new(Fraction(value).numerator) * self.ring.one / Fraction(value).denominator
            case Op():
                return self._op(e, at)
            case Load(tensor, index) if tensor in self.names:
                return self._held(e, tensor, index[2:], at)
            case Contract(a, b, axis) if self.reads(e):
                points = self._points((Binder(axis, e.extent),), at)
                return self._sum(self.value(a, p) * self.value(b, p) for p in points)
            case Reduce() if self.reads(e):
                return self._reduce(e, at)
            case Scan() if self.reads(e):
                return self._sum(self.value(e.body, p) for p in self._passed(e, at))
            case Gradient():
                return self._gradient(e, at)
            case _:
                return self._opaque_symbol(e)

    def _opaque_symbol(self, e: Expr) -> Poly:
        states: set[str] = set()
        for name in self.reads(e):
            for p in self.held[name].values():
                states |= self.states_in(p)
        token = bool(states) or any(isinstance(n, Var) and n.name == "i" for n in walk(e))
        return self.new(Symbol(e, token, frozenset(states)))

    def _op(self, e: Op, at: Mapping[str, int]) -> Poly:
        args = e.args
        match e.name:
            case "add" | "sub" | "mul" if e.sort == "real":
                a, b = (self.value(x, at) for x in args)
                return a + b if e.name == "add" else a - b if e.name == "sub" else a * b
            case "neg" if e.sort == "real":
                return -self.value(args[0], at)
            case "square" if e.sort == "real":
                return self.value(args[0], at) ** 2
            case "pow" if isinstance(args[1], Const) and args[1].value in (1.0, 2.0, 3.0):
                return self.value(args[0], at) ** int(args[1].value)
            case "div" if not self.reads(args[1]):
                if isinstance(args[1], Const) and args[1].value and math.isfinite(args[1].value):
                    return self.value(args[0], at) * (1 / Fraction(args[1].value))
                return self.value(args[0], at) * self.value(op("recip", args[1]), at)
            case "where" if e.sort == "real" and not self.reads(args[0]):
                return self._choice(args, at)
            case "exp" if not self.reads(e):
                return self._exp(args[0], at)
            case "real":
                known = self.integer(args[0], at)
                return self._opaque_symbol(e) if known is None else self.ring.one * known
        return self._opaque_symbol(e)

    def _exp(self, x: Expr, at: Mapping[str, int]) -> Poly:
        """The exponential of a sum is a product."""
        match x:
            case Op("add", (a, b)):
                return self.value(op("exp", a), at) * self.value(op("exp", b), at)
            case Op("sub", (a, b)):
                return self.value(op("exp", a), at) * self.value(op("exp", op("neg", b)), at)
            case _:
                return self._opaque_symbol(op("exp", x))

    def _choice(self, args: tuple[Expr, ...], at: Mapping[str, int]) -> Poly:
        condition, then, other = args
        known = self.integer(condition, at)
        if known is not None:
            return self.value(then if known else other, at)
        yes = self.value(op("where", condition, 1.0, 0.0), at) if (then, other) != (ONE, ZERO) else None
        if yes is None:
            return self._opaque_symbol(op("where", condition, 1.0, 0.0))
        return yes * self.value(then, at) + (1 - yes) * self.value(other, at)

    def integer(self, e: Expr, at: Mapping[str, int]) -> int | None:
        """An integer or a condition of indices and sizes alone; None where it needs more."""
        known: dict[Expr, int] = {}
        for n in walk(e):
            if isinstance(n, Var):
                if n.name not in at and n.name not in SIZES:
                    return None
                known[n] = at.get(n.name, WIDTH)
            elif not isinstance(n, Const | Op):
                return None
        return int(evaluate(e, known))

    def _held(self, e: Expr, name: str, index: tuple[Expr, ...], at: Mapping[str, int]) -> Poly:
        place = tuple(self.integer(x, at) for x in index)
        if place not in self.held[name]:
            raise OffGrid(e)
        return self.held[name][place]  # type: ignore[index]

    def _points(self, binders: tuple[Binder, ...], at: Mapping[str, int]) -> Iterator[dict[str, int]]:
        for values in itertools.product(*(range(self._extent(b.size)) for b in binders)):
            yield {**at, **{b.index.name: x for b, x in zip(binders, values, strict=True)}}

    def _passed(self, e: Scan, at: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """The points that a running sum has added up."""
        own = e.binder.index.name
        for p in self._points((e.binder,), at):
            ahead = at[own] - p[own] if e.reverse else p[own] - at[own]
            if ahead < 0 or (ahead == 0 and not e.exclusive):
                yield p

    def _extent(self, size: Expr) -> int:
        """WIDTH, or less for a slice of a channel."""
        known = None if isinstance(size, Const) else self.integer(size, {})
        return WIDTH if known is None else max(1, min(WIDTH, known))

    def _sum(self, parts: Iterable[Poly]) -> Poly:
        total = self.ring.zero
        for part in parts:
            total = total + part
        return total

    def _reduce(self, e: Reduce, at: Mapping[str, int]) -> Poly:
        if e.op not in ("sum", "mean") or self.reads(e.where):
            return self._opaque_symbol(e)
        weighed = op("where", e.where, e.body, 0.0) if e.where is not Const(True, "bool") else e.body
        points = list(self._points(e.binders, at))
        total = self._sum(self.value(weighed, p) for p in points)
        return total if e.op == "sum" else total * Fraction(1, len(points))

    def _gradient(self, e: Gradient, at: Mapping[str, int]) -> Poly:
        """The derivative of the polynomial, where the number is one in the state's elements."""
        place = tuple(self.integer(x, at) for x in e.index)
        before = self.held[e.of]
        order = list(before)
        if place not in before:
            raise OffGrid(e)
        key = (e.body, e.of, tuple(sorted((n, at[n]) for n in self.free(e.body) if n in at)))
        if key not in self._numbers:
            mine = self.refresh(e.of)
            body = self.value(e.body, at)
            self.hold(e.of, before)
            self._numbers[key] = (mine, body)
        mine, body = self._numbers[key]
        functions = (n for n in self.used(body) if n >= mine.stop and e.of in self.symbols[n].states)
        if any(self.symbols[n].element is None for n in functions):
            return self._opaque_symbol(e)
        slope = body.diff(self.ring.gens[mine[order.index(place)]])  # type: ignore[arg-type]
        return self._back(slope, mine, before)

    def _back(self, p: Poly, mine: range, before: dict[Index, Poly]) -> Poly:
        """`p` with the symbols of `mine` replaced by what they stood for."""
        total = self.ring.zero
        order = list(before)
        for powers, factor in p.terms():
            rest = list(powers)
            term = self.ring.one * factor
            for n in mine:
                if powers[n]:
                    rest[n] = 0
                    term = term * before[order[n - mine.start]] ** powers[n]
            total = total + term * self.ring.from_dict({tuple(rest): self.ring.domain.one})
        return total


ONE, ZERO = Const(1.0, "real"), Const(0.0, "real")


def elements(rank: int) -> Iterator[Index]:
    """All places of an array of that many axes."""
    return itertools.product(range(WIDTH), repeat=rank)


def run(grid: Grid, state: str, first: Assign, last: Assign) -> tuple[range, dict[Index, Poly]]:
    """The elements of `state` after `last`, and the numbers of their symbols before `first`.

    Loops are run once. What stands before `first` does not change `state` here; values kept there know it by other
    symbols, unless no change stands before `first` at all.
    """
    anchor = _anchor(grid.recurrence.steps, state, first)
    mine = grid.initial[state] if anchor is None else range(0)

    def go(steps: tuple[Step, ...], place: dict[str, int]) -> dict[Index, Poly] | None:
        nonlocal mine
        for step in steps:
            if step is anchor:
                mine = grid.refresh(state)
            match step:
                case Assign(name, _, body) if name != state or len(mine):
                    grid.hold(name, grid.array(body, grid.axes[name], place))
                case Keep(name, own, _, body):
                    grid.hold(name, grid.array(body, own, place))
                case Micro(Binder(index), inner):
                    found = go(inner, place | {index.name: 0})
                    if found is not None:
                        return found
                case _:
                    pass
            if step is last:
                return grid.held[state]
        return None

    found = go(grid.recurrence.steps, {})
    assert found is not None
    return mine, found


def _anchor(steps: tuple[Step, ...], state: str, first: Assign, inside: Micro | None = None) -> Step | None:
    """Where the state gets symbols of its own: at the loop around, at the change itself, or nowhere for the first."""
    changes = [s for s in flat(steps) if isinstance(s, Assign) and s.state == state]
    for step in steps:
        if isinstance(step, Micro) and any(s is first for s in flat(step.steps)):
            return _anchor(step.steps, state, first, step)
    return inside if changes[0] is first else first
