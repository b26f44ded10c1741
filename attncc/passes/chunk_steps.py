"""The steps of a token, put into each other: every state's new value and out, in terms of the states before.

A state that a step reads is what it is there: as it was before the token (S), as it is after its last change (S'), or
between two changes the expression that it has become. Loops within a token are unrolled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from attncc.diagnostics import Span
from attncc.expr.build import TRUE, op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite, substitute, walk
from attncc.ir.free import free
from attncc.ir.nodes import (
    Assign,
    Binder,
    Contract,
    Keep,
    Let,
    Load,
    Micro,
    Read,
    Rebind,
    Reduce,
    Spec,
    State,
    Step,
    Weights,
)
from attncc.passes.chunk_axes import put
from attncc.passes.chunk_gates import ZERO, weights_of
from attncc.passes.mistakes import NotCompiled

_KNOWN = frozenset("bhgijBHGMN")
Reading = Callable[[Expr, str, Span | None], Expr]


def load(s: State, mark: str = "") -> Load:
    """A state at its own place, before the token's change or (') after it."""
    return Load(s.name + mark, (Var("b", "int"), Var("h", "int"), *s.vars), "real")


class Steps:
    """A state program's steps at fixed channel sizes."""

    def __init__(self, spec: Spec, D: int, E: int) -> None:
        assert spec.recurrence is not None
        self.spec, self.recurrence = spec, spec.recurrence
        self.sizes: dict[Expr, Expr] = {Var("D", "int"): Const(D, "int"), Var("E", "int"): Const(E, "int")}
        self.extents: dict[str, Expr] = {"d": Const(D, "int"), "e": Const(E, "int")}
        for a in (
            a for axes in (*(p.axes for p in spec.params), *(s.axes for s in self.recurrence.states)) for a in axes
        ):
            if a.index not in ("", *_KNOWN):
                self.extents[a.index] = substitute(a.size, self.sizes)
        self.states = {s.name: s for s in self.recurrence.states}
        self.order = tuple(self._unrolled(self.recurrence.steps, {}))
        self.rows: dict[str, Rebind] = {}
        self.arrays: dict[str, Let] = {}
        self.kept: dict[str, tuple[Keep, Expr]] = {}
        for statement in spec.statements:
            if isinstance(statement, Let):
                if statement.emitted:
                    raise NotCompiled("`emit` in a state program: not compiled yet", statement.span)
                self.arrays[statement.name] = replace(statement, body=self.expand(statement.body))
            else:
                self.rows[statement.tensor] = replace(statement, body=self.expand(statement.body))

    def _unrolled(self, steps: tuple[Step, ...], place: dict[Expr, Expr]) -> Iterator[Assign | Keep | Read]:
        for step in steps:
            match step:
                case Micro(binder, inner):
                    size = substitute(binder.size, self.sizes)
                    if not isinstance(size, Const):
                        hint = "write the number of turns itself: `for t in 2`"
                        what = "a loop within a token of a size not fixed: not compiled yet"
                        raise NotCompiled(what, step.span, hint=hint)
                    for n in range(int(size.value)):
                        yield from self._unrolled(inner, {**place, binder.index: Const(n, "int")})
                case Assign() | Keep():
                    yield replace(step, body=put(step.body, place))
                case Read():
                    yield step

    def run(self, read: Reading) -> tuple[dict[str, Expr], Expr]:
        """(every state's new value, out); `read(e, own, span)` names the reads of other states than `own` in `e`."""
        total = {n: sum(isinstance(x, Assign) and x.state == n for x in self.order) for n in self.states}
        done = dict.fromkeys(total, 0)
        now: dict[str, Expr] = {n: load(s) for n, s in self.states.items()}
        out: Expr = ZERO

        def seen(own: str = "") -> dict[str, Expr]:
            last = {n: load(s, "'") for n, s in self.states.items() if done[n] == total[n] and done[n] and n != own}
            return {**now, **last}

        for step in self.order:
            match step:
                case Assign(name, _, body):
                    now[name] = read(self.put(self.expand(body), seen(name)), name, step.span)
                    done[name] += 1
                case Keep(name, _, _, body):
                    self.kept[name] = step, read(self.put(self.expand(body), seen()), "", step.span)
                case Read():
                    out = read(self.put(self.expand(self.spec.out.body), seen()), "", self.spec.out.span)
        return now, out

    def put(self, e: Expr, states: dict[str, Expr]) -> Expr:
        """`e` with states for what they are."""

        def rule(node: Expr) -> Expr | None:
            if isinstance(node, Load) and node.tensor in self.states:
                if node is not load(self.states[node.tensor]):
                    raise NotCompiled("a state read at another place than its own: not compiled yet", node.span)
                return states[node.tensor]
            return None

        return rewrite(e, rule)

    def expand(self, e: Expr) -> Expr:
        """`e` with kept values, arrays and new rows of q, k and v put in, and the channel sizes' numbers."""

        def rule(node: Expr) -> Expr | None:
            match node:
                case Load(tensor, index) if tensor in self.kept:
                    step, body = self.kept[tensor]
                    return put(body, dict(zip(step.vars, index[2:], strict=True)))
                case Load(tensor, index) if tensor in self.arrays:
                    array = self.arrays[tensor]
                    return put(array.body, dict(zip(array.vars, index, strict=True)))
                case Load(tensor, index) if tensor in self.rows:
                    row = self.rows[tensor]
                    return put(row.body, dict(zip(row.vars, index, strict=True)))
                case Weights():
                    return weights_of(node)
                case Reduce("sum", body, binders, where) if where is not TRUE or len(binders) > 1:
                    return _nested(body if where is TRUE else op("where", where, body, ZERO), binders)
                case _:
                    return None

        return rewrite(substitute(rewrite(e, rule), self.sizes), _folded)

    def channels(self, e: Expr) -> list[tuple[Var, Expr]]:
        """The channel axes that `e` varies with, and their sizes."""
        names = {v.name: v for v in free(e) if v.name in self.extents}
        bound = {x.axis.name: x.extent for x in walk(e) if isinstance(x, Contract)}
        bound |= {b.index.name: b.size for x in walk(e) if isinstance(x, Reduce) for b in x.binders}
        return [(names[n], self.extents.get(n) or bound[n]) for n in sorted(names)]


def _nested(body: Expr, binders: tuple[Binder, ...]) -> Expr:
    """A sum over several indices as one within the other."""
    for x in binders:
        body = Reduce("sum", body, (x,))
    return body


def _folded(e: Expr) -> Expr | None:
    """An operation on literals, as a literal."""
    if isinstance(e, Op) and e.sort != "bool" and all(isinstance(a, Const) for a in e.args):
        value = evaluate(e)
        return Const(value, e.sort) if math.isfinite(value) else None
    return None
