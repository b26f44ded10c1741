"""The form of a state program that is computed chunk by chunk: gates, writes, reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attncc.expr.nodes import Const, Expr, Var, walk
from attncc.ir.free import free
from attncc.ir.nodes import Load
from attncc.passes.chunk_axes import UNIT, Axes
from attncc.passes.chunk_gates import ONE, ZERO
from attncc.passes.mistakes import NotCompiled

NOTHING = Const(-1e30, "real")
"""The logarithm of a state of 0."""


@dataclass(frozen=True, slots=True)
class Gate:
    """exp(log) times linear: what is written as an exponential, and what may be 0 and has a derivative there."""

    log: Expr = ZERO
    linear: Expr = ONE

    def along(self, axis: Var) -> bool:
        """Whether it varies with an axis."""
        return axis in free(self.log) | free(self.linear)


OPEN = Gate()
"""A gate of 1."""


@dataclass(frozen=True, slots=True)
class Write:
    """key (over i and the key axis) times value (over i and the value axis)."""

    key: Expr
    value: Expr
    parts: tuple[Expr, ...] = ()
    """Of a key axis made of two: the factors of `key` along each, if it has such."""


@dataclass(frozen=True, slots=True)
class Held:
    """A state [key, value], either axis may be missing: S becomes gate beside S + the writes."""

    name: str
    axes: Axes
    gate: Gate
    """Over i and the key axis."""
    beside: Gate
    """Over i and the value axis."""
    writes: tuple[Write, ...]
    init: Expr
    """What it is before the first token."""
    log: Expr = ZERO
    """Over i: each write is exp(log) times what `writes` has."""
    scale: str = ""
    """Where gate or log are not proved small, it is carried as 2**-m times itself: the name of the m."""
    scale_of: str = ""
    """This is the m of a state, in base two, and of all that have its gate and log."""

    @property
    def key(self) -> Var | None:
        return self.axes.key

    @property
    def value(self) -> Var | None:
        return self.axes.value

    @property
    def bodies(self) -> tuple[Expr, ...]:
        """Its expressions over tokens."""
        gates = (x for g in (self.gate, self.beside) for x in (g.log, g.linear))
        return (*gates, self.log, *(x for w in self.writes for x in (w.key, w.value, *w.parts)))

    @property
    def along_key(self) -> bool:
        """Whether the gate varies along the key axis."""
        return self.key is not None and self.gate.along(self.key)

    @property
    def channels(self) -> bool:
        """Whether a gate varies along an axis."""
        return self.along_key or self.beside != OPEN


@dataclass(frozen=True, slots=True)
class ReadOf:
    """The sum over `axis` of x times a state, before or after the token's change; `atom` stands for it elsewhere.

    Without an axis it is x times the state, element by element.
    """

    atom: Load
    state: str
    x: Expr
    after: bool
    axis: Var | None
    parts: tuple[Expr, ...] = ()
    """As in Write."""
    chained: bool = False
    """Whether it stands elsewhere than in out."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """A state program in the form of the chunkwise schedule. A read may stand in the x of those behind it."""

    states: tuple[Held, ...]
    reads: tuple[ReadOf, ...]
    out: Expr

    @property
    def bodies(self) -> tuple[Expr, ...]:
        """Every expression over tokens."""
        states = (x for s in self.states for x in s.bodies)
        return (self.out, *states, *(x for r in self.reads for x in (r.x, *r.parts)))


def scales_of(states: tuple[Held, ...]) -> tuple[Held, ...]:
    """The states, and behind them the scales of those that have one; states that fade and grow alike share one."""
    shared: dict[tuple[Gate, Expr], list[Held]] = {}
    for s in states:
        if s.scale:
            shared.setdefault((s.gate, s.log), []).append(s)
    names = {s.name: f"{group[0].name}_scale" for group in shared.values() for s in group}
    axes = Axes(UNIT, None, (Const(1, "int"),), (), (), ((UNIT,), ()))
    found = [replace(s, scale=names.get(s.name, "")) for s in states]
    for group in shared.values():
        first = group[0]
        init = NOTHING if all(s.init is ZERO for s in group) else ZERO
        found.append(Held(names[first.name], axes, OPEN, OPEN, (), init, scale_of=first.name))
    return tuple(found)


def needed(out: Expr, found: list[ReadOf], states: tuple[Held, ...]) -> tuple[ReadOf, ...]:
    """The reads that out and the states need: behind those that they need themselves."""
    by_atom = {r.atom.tensor: r for r in found}
    by_state = {s.name: s for s in states}
    order: dict[str, ReadOf] = {}
    chained: set[str] = set()

    def names(bodies: tuple[Expr, ...]) -> list[str]:
        inside = [n for body in bodies for n in walk(body) if isinstance(n, Load) and n.tensor in by_atom]
        for n in inside:
            if n is not by_atom[n.tensor].atom:
                what = "what a token read of a state, at another channel: not compiled yet"
                raise NotCompiled(what, n.span, hint="`attncc.reference` runs it")
        return [n.tensor for n in inside]

    def visit(name: str) -> None:
        if name not in order:
            r = by_atom[name]
            for other in names((r.x, *by_state[r.state].bodies)):
                chained.add(other)
                visit(other)
            order[name] = r

    for name in [*names((out,)), *(n for s in states for n in names(s.bodies))]:
        visit(name)
    chained |= {n for s in states for n in names(s.bodies)}
    return tuple(replace(r, chained=name in chained) for name, r in order.items())
