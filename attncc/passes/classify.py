"""State programs --> the class of each state's change, proved on symbols; what has none is refused with its term.

    S' = D S + b a^T S + writes

with D the identity, constant, one number a token, a diagonal along the key or the value axis, a product of two such or
one number an element, and with b a^T or without. What one class can't hold is split where the author assigns the state,
into micro-steps. A state that is changed through a function of itself is non-linear; one that is changed through a
frozen state has the class that it has while the frozen state stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from attncc.diagnostics import Span
from attncc.expr.build import op
from attncc.expr.nodes import Atom, Expr, Op, children
from attncc.ir.nodes import Assign, Keep, Micro, Read, Recurrence, Spec, Step
from attncc.ir.steps import flat, reads
from attncc.passes.classify_matrix import Map, NoClass, Shape, shape_of
from attncc.passes.classify_symbols import Exhausted, Grid, Index, OffGrid, Poly, run
from attncc.passes.mistakes import NoTransition

Order = Literal["inclusive", "exclusive", "between", "unread"]
WORDS = {
    "identity": "identity",
    "constant": "constant decay",
    "scalar": "token scalar",
    "key": "key-channel diagonal",
    "value": "value-channel diagonal",
    "separable": "key times value diagonal",
    "elementwise": "full elementwise",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One micro-step of a state: the assignments first .. last, once for each turn of the loop they stand in.

    `shape` is None where the change is non-linear.
    """

    state: str
    shape: Shape | None
    first: Assign
    last: Assign
    loop: str = ""
    axes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The class in one word: identity, constant, scalar, key, value, separable, elementwise or nonlinear."""
        return "nonlinear" if self.shape is None else self.shape.gate

    @property
    def rank(self) -> int:
        """1 with a product b a^T, else 0."""
        return int(self.shape is not None and self.shape.axis is not None)

    def __str__(self) -> str:
        if self.shape is None:
            return "non-linear"
        words = WORDS[self.shape.gate]
        if self.shape.static and self.shape.gate not in ("identity", "constant"):
            words += ", the same for every token"
        if self.shape.axis is not None:
            words += f", plus rank one along {self.axes[self.shape.axis]}"
            words += " tied to the write" if self.shape.tied else ""
        return words + (f", for each {self.loop}" if self.loop else "")


@dataclass(frozen=True, slots=True)
class StateClass:
    """How one state passes through a token."""

    state: str
    axes: tuple[str, ...]
    changes: tuple[Change, ...]
    order: Order
    """Whether `out` reads it after its changes, before them, or between."""
    needs: frozenset[str]
    """The other states whose values its change reads: they come first."""
    frozen: frozenset[str]
    """The frozen states that its change reads."""
    restarts: bool

    @property
    def kinds(self) -> tuple[tuple[str, int], ...]:
        """The class and rank of each change."""
        return tuple((c.kind, c.rank) for c in self.changes)

    def data(self) -> dict[str, object]:
        """As plain data."""
        return {
            "state": self.state,
            "axes": list(self.axes),
            "changes": [{"class": c.kind, "rank": c.rank, "loop": c.loop, "text": str(c)} for c in self.changes],
            "read": self.order,
            "needs": sorted(self.needs),
            "frozen": sorted(self.frozen),
            "restarts": self.restarts,
        }

    def __str__(self) -> str:
        words = " then ".join(map(str, self.changes))
        if self.frozen:
            words += f" while {', '.join(sorted(self.frozen))} is frozen"
        reads_at = {"inclusive": "read after it", "exclusive": "read before it", "between": "read between"}
        words += f"; {reads_at.get(self.order, 'not read by out itself')}"
        if self.needs:
            words += f"; after {', '.join(sorted(self.needs))}"
        if self.restarts:
            words += "; starts anew by its key"
        axes = f"[{', '.join(self.axes)}]" if self.axes else ""
        return f"state {self.state}{axes}: {words}"


def classify(spec: Spec) -> tuple[StateClass, ...]:
    """The class of each state, in the order of their declarations. NoTransition where a state has none."""
    r = spec.recurrence
    if r is None:
        return ()
    found = tuple(_state(spec, r, s.name) for s in r.states)
    _refuse_cycles(r, found)
    return found


# --- one state ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    shape: Shape | None
    states: frozenset[str]


def _state(spec: Spec, r: Recurrence, name: str) -> StateClass:
    state = next(s for s in r.states if s.name == name)
    axes = tuple(a.index for a in state.axes)
    changes: list[Change] = []
    states: frozenset[str] = frozenset()
    for loop, group in _groups(r.steps, name):
        while group:
            found, count = _longest(r, name, axes, group)
            changes.append(Change(name, found.shape, group[0], group[count - 1], loop, axes))
            states |= found.states
            group = group[count:]
    frozen = {f.name for f in r.frozen}
    needs = states - frozen - {name}
    return StateClass(name, axes, tuple(changes), _order(spec, r, name), needs, states & frozen, state.per is not None)


def _groups(steps: tuple[Step, ...], name: str, loop: str = "") -> Iterator[tuple[str, list[Assign]]]:
    """The assignments of a state, those of one loop body or of none together."""
    group: list[Assign] = []
    for step in steps:
        match step:
            case Assign(state) if state == name:
                group.append(step)
            case Micro(binder, inner) if any(isinstance(s, Assign) and s.state == name for s in flat(inner)):
                if group:
                    yield loop, group
                group = []
                yield from _groups(inner, name, binder.index.name)
            case _:
                pass
    if group:
        yield loop, group


def _longest(r: Recurrence, name: str, axes: tuple[str, ...], group: list[Assign]) -> tuple[_Found, int]:
    """The class of as many assignments from the first on as have one together."""
    best: tuple[_Found, int] | None = None
    reason: _Refusal | None = None
    for count in range(1, len(group) + 1):
        try:
            best = _class(r, name, axes, group[0], group[count - 1]), count
        except _Refusal as refusal:
            reason = reason or refusal
    if best is None:
        assert reason is not None
        raise _mistake(r, name, axes, group[0], reason)
    return best


class _Refusal(Exception):
    """No class; `reason` completes "the change of `S` ...", `node` is where it shows, if that is known."""

    def __init__(self, reason: str, node: Expr | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


def _class(r: Recurrence, name: str, axes: tuple[str, ...], first: Assign, last: Assign) -> _Found:
    size = 256
    while True:
        try:
            grid = Grid(r, size)
            mine, values = run(grid, name, first, last)
            return _read_off(grid, name, axes, mine, values)
        except Exhausted:
            size *= 2
        except OffGrid as off:
            raise _Refusal("reads a state at another place than its own", off.node) from None
        except NoClass as none:
            raise _Refusal(str(none)) from None


def _read_off(grid: Grid, name: str, axes: tuple[str, ...], mine: range, values: dict[Index, Poly]) -> _Found:
    """The class of what a state has become, in the symbols `mine` of what it was."""
    states = frozenset[str]().union(*(grid.states_in(p) for p in values.values()))
    symbols = {n for p in values.values() for n in grid.used(p)}
    foreign = [grid.symbols[n] for n in sorted(symbols) if n not in mine and name in grid.symbols[n].states]
    if any(s.element is not None for s in foreign):
        raise _Refusal("reads the state as it was before an earlier change")
    if foreign:
        return _Found(None, states)
    where = {n: grid.symbols[n].element[1] for n in mine}  # type: ignore[index]
    matrix: dict[tuple[Index, Index], Poly] = {}
    writes: dict[Index, Poly] = {}
    for at, p in values.items():
        writes[at] = grid.ring.zero
        for powers, factor in p.terms():
            own = [n for n in mine if powers[n]]
            if len(own) > 1 or (own and powers[own[0]] > 1):
                return _Found(None, states)
            rest = tuple(0 if n in own else power for n, power in enumerate(powers))
            term = grid.ring.from_dict({rest: factor})
            if own:
                place = (at, where[own[0]])
                matrix[place] = matrix.get(place, grid.ring.zero) + term
            else:
                writes[at] += term
    matrix = {place: p for place, p in matrix.items() if p}

    def token(p: Poly) -> bool:
        return any(grid.symbols[n].token for n in grid.used(p))

    return _Found(shape_of(Map(axes, matrix, writes, grid.ring.zero, grid.ring.one, token)), states)


# --- reads and dependences ------------------------------------------------------------------------------------------


def _order(spec: Spec, r: Recurrence, name: str) -> Order:
    """Where out reads the state among its changes, at once or through values kept above."""
    changes, kept, places = 0, dict[str, set[int]](), set[int]()

    def seen(body: Expr) -> set[int]:
        own = {changes} if name in reads(body) else set[int]()
        return own.union(*(kept[k] for k in reads(body) if k in kept))

    for step in flat(r.steps):
        match step:
            case Assign(state):
                changes += state == name
            case Keep(own, _, _, body):
                kept[own] = seen(body)
            case Read():
                places = seen(spec.out.body)
            case Micro():
                pass
    if not places:
        return "unread"
    return "inclusive" if places == {changes} else "exclusive" if places == {0} else "between"


def _refuse_cycles(r: Recurrence, classes: tuple[StateClass, ...]) -> None:
    """NoTransition where two states change each other within a token."""
    needs = {c.state: c.needs for c in classes}
    done: set[str] = set()
    while len(done) < len(needs):
        ready = {s for s in needs if s not in done and needs[s] <= done}
        if not ready:
            break
        done |= ready
    stuck = [c for c in classes if c.state not in done]
    if stuck:
        names = " and ".join(f"`{c.state}`" for c in stuck)
        hint = "let each state need earlier ones only, or freeze one: `frozen F = S every 16`"
        raise NoTransition(f"the states {names} change each other", stuck[0].changes[0].first.span, hint=hint)


# --- the term that breaks it ----------------------------------------------------------------------------------------


def _mistake(r: Recurrence, name: str, axes: tuple[str, ...], change: Assign, reason: _Refusal) -> NoTransition:
    """The error, at the first term with which the change has no class."""
    terms = list(_terms(change.body))
    for count in range(1, len(terms) + 1):
        body = terms[0]
        for term in terms[1:count]:
            body = op("add", body, term)
        part = replace(change, body=body)
        try:
            _class(replace(r, steps=_with(r.steps, change, part)), name, axes, part, part)
        except _Refusal as refusal:
            reason = refusal
            break
    span = _place(reason.node, change.span) or _place(terms[count - 1], change.span, name) or change.span
    hint = "a change in several statements, or in a `for`, is taken in as many steps"
    return NoTransition(f"this change of `{name}` {reason.reason}", span, hint=hint)


def _terms(e: Expr) -> Iterator[Expr]:
    match e:
        case Op("add", (a, b)):
            yield from _terms(a)
            yield from _terms(b)
        case Op("sub", (a, b)):
            yield from _terms(a)
            yield from (op("neg", t) for t in _terms(b))
        case _:
            yield e


def _with(steps: tuple[Step, ...], old: Assign, new: Assign) -> tuple[Step, ...]:
    return tuple(
        new if s is old else replace(s, steps=_with(s.steps, old, new)) if isinstance(s, Micro) else s for s in steps
    )


def _place(e: Expr | None, change: Span | None, name: str = "") -> Span | None:
    """Where the outermost part of `e` stands that reads the state, if that is a line of the change."""
    queue = [] if e is None else [e]
    while queue:
        node = queue.pop(0)
        span = getattr(node, "span", None)
        if isinstance(node, Atom) and span is not None and change is not None and (not name or name in reads(node)):
            if span.line >= change.line:
                return span  # type: ignore[no-any-return]
        queue.extend(children(node))
    return None
