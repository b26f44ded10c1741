"""State programs: `state`, `frozen`, `for`, changes of states and `grad` --> the Recurrence of the Spec IR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attncc.diagnostics import Span, did_you_mean
from attncc.expr.build import op, to_real
from attncc.expr.nodes import Const, Expr, Var
from attncc.grammar import tree as ast
from attncc.grammar.headers import extent, let_axes
from attncc.grammar.mistakes import (
    BadAxis,
    BadCall,
    BadState,
    FreeIndex,
    LateRow,
    NoSuchDependence,
    NotAState,
    NotCompiled,
    QueryRow,
    UnusedState,
)
from attncc.grammar.names import Named, Row, Tensor
from attncc.grammar.values import Value, given, merge_sizes
from attncc.ir.nodes import Assign, Axis, Binder, Frozen, Gradient, Keep, Load, Micro, Read, Recurrence, State, Step
from attncc.ir.steps import flat, reads

if TYPE_CHECKING:
    from attncc.grammar.expressions import Elaborator

PLACE = frozenset({"b", "h", "g", "i"})
"""The indices that every step has."""


def is_state_program(body: tuple[ast.Statement, ...]) -> bool:
    """Whether a step is a token: there are states, and none has j or is a set."""
    parts = [p for s in body if isinstance(s, ast.State) for p in s.parts]
    return bool(parts) and not any(p.set_of is not None or _has_keys(p) for p in parts)


def _has_keys(part: ast.Carried) -> bool:
    return any(isinstance(a.size, ast.Name) and a.size.id == "j" for a in part.axes)


class StateProgram:
    """The state program of one attention, as far as it is read."""

    def __init__(self, env: Elaborator) -> None:
        self.env = env
        self.states: list[State] = []
        self.frozen: list[Frozen] = []
        self.steps: list[list[Step]] = [[]]
        self.kept: set[str] = set()
        env.stateful = True
        scope = env.scope
        del scope.indices["j"]
        for name in ("k", "v"):
            row = scope.meanings[name]
            assert isinstance(row, Row)
            scope.meanings[name] = Row(("b", "g", "i", row.axes[-1]), row.channels)

    def names(self) -> frozenset[str]:
        """States, frozen states and kept values."""
        return frozenset(self.env.carried) | self.kept

    def depends(self, e: Expr) -> bool:
        """Whether a value changes with the states."""
        return bool(reads(e) & self.names())

    def recurrence(self) -> Recurrence:
        """The whole; UnusedState where a state does nothing."""
        made = Recurrence(tuple(self.states), tuple(self.frozen), tuple(self.steps[0]))
        for state in self.states:
            self._check_use(state, made)
        return made

    def _check_use(self, state: State, made: Recurrence) -> None:
        steps = list(flat(made.steps))
        if not any(isinstance(s, Assign) and s.state == state.name for s in steps):
            hint = f"a step says `{state.name} = ...`"
            raise UnusedState(f"nothing changes the state `{state.name}`", state.span, hint=hint)
        names = {state.name, *(f.name for f in made.frozen if f.state == state.name)}
        users = [s.body for s in steps if isinstance(s, Keep) or (isinstance(s, Assign) and s.state != state.name)]
        if self.env.out is not None:
            users.append(self.env.out)
        if not any(reads(body) & names for body in users):
            raise UnusedState(f"nothing reads the state `{state.name}`", state.span, hint=f"`out = q @ {state.name}`")

    # --- declarations ---

    def state(self, node: ast.State) -> None:
        """state a[...] = x, b[...] per key."""
        if self.steps[0] or len(self.steps) > 1:
            raise BadState("a state is declared above the first step", node.span)
        key = None if node.per is None else self.env.integer(node.per, "the key of a state")
        if key is not None and key.free - PLACE:
            message = f"the key of a state depends on `{min(key.free - PLACE)}`, and has at most b, h, i"
            raise FreeIndex(message, node.span)
        for part in node.parts:
            self.carried(part, None if key is None else key.expr)

    def carried(self, part: ast.Carried, key: Expr | None) -> None:
        """One state."""
        scope = self.env.scope
        scope.refuse(part.name)
        for a in part.axes:
            if a.name is None and isinstance(a.size, ast.Name) and a.size.id in PLACE | {"n", "m"}:
                hint = "a state is one for each b and h; its axes are channels and new indices, `r: 16`"
                raise BadState(f"a state has no axis `{a.size.id}`", a.span, hint=hint)
        axes = let_axes(self.env, part.axes)
        init: Expr = Const(0.0, "real")
        if part.initial is not None:
            value = self.env.number(part.initial, "what a state starts with")
            self._fits(part.name.id, value, axes, part.initial.span)
            init = to_real(value.expr)
        self.states.append(State(part.name.id, axes, _vars(axes), init, key, part.span))
        self.declare(part.name, axes, "is a state")

    def declare(self, name: ast.Name, axes: tuple[Axis, ...], what: str) -> None:
        """From here on `name` is a state, read as it is at that place."""
        self.env.carried[name.id] = axes
        self.env.scope.add(name, Named(_read(name.id, axes, name.span), tuple(a.index for a in axes)), what)

    def freeze(self, node: ast.Frozen) -> None:
        """frozen F = S every count."""
        state = next((s for s in self.states if s.name == node.state.id), None)
        if state is None:
            hint = did_you_mean(node.state.id, [s.name for s in self.states])
            raise NotAState(f"`{node.state.id}` is no state", node.state.span, hint=hint)
        every = extent(self.env, node.every)
        if isinstance(every, Const) and every.value < 1:
            raise BadAxis("a frozen state lasts for one token or more", node.every.span)
        self.env.scope.refuse(node.name)
        self.frozen.append(Frozen(node.name.id, state.name, every, node.span))
        self.declare(node.name, state.axes, "is a frozen state")

    # --- steps ---

    def assign(self, node: ast.Assign) -> None:
        """S = x."""
        name = node.name.id
        axes = self.env.carried[name]
        if all(s.name != name for s in self.states):
            hint = "assign the state that it is taken from"
            raise NotAState(f"`{name}` is frozen and is not assigned", node.name.span, hint=hint)
        value = self.env.number(node.value, f"`{name}`")
        self._fits(name, value, axes, node.value.span)
        self.steps[-1].append(Assign(name, _vars(axes), to_real(value.expr), node.span))

    def keep(self, node: ast.Let, value: Value) -> None:
        """A `let` that reads states: it holds what they are here."""
        if node.emitted:
            raise NotCompiled("`emit` of a value that reads states is not compiled yet", node.span)
        own = value.free - PLACE - self.env.loops
        order = [a for a in self.env.scope.indices if a in own]
        if node.axes is not None:
            order = [a.size.id for a in node.axes if isinstance(a.size, ast.Name) and a.size.id in own]
        axes = tuple(Axis(a, value.sizes.get(a) or self.env.scope.indices[a]) for a in order)
        name = node.name.id
        asks = value.sort == "bool"
        body = op("where", value.expr, 1.0, 0.0) if asks else to_real(value.expr)
        self.steps[-1].append(Keep(name, axes, _vars(axes), body, node.span))
        self.kept.add(name)
        read = _read(name, axes, node.name.span)
        names = None if node.axes is None else tuple(_index(a) for a in node.axes)
        self.env.scope.add(node.name, Named(read.of(op("ne", read.expr, 0.0)) if asks else read, names), "is a `let`")

    def read(self) -> None:
        """The place of `out`."""
        self.steps[-1].append(Read())

    def open(self, node: ast.For) -> None:
        """for t in count: the steps up to `close` are its own."""
        size = extent(self.env, node.count)
        self.env.scope.add_index(node.name, size)
        self.env.loops.add(node.name.id)
        self.steps.append([])

    def close(self, node: ast.For, known: set[str]) -> None:
        """The end of the loop; what was named inside ends with it. `known` are the names from above."""
        scope = self.env.scope
        size = scope.indices.pop(node.name.id)
        self.env.loops.discard(node.name.id)
        for name in set(scope.meanings) - known:
            del scope.meanings[name]
        inner = tuple(self.steps.pop())
        self.steps[-1].append(Micro(Binder(Var(node.name.id, "int"), size), inner, node.span))

    def check_row(self, node: ast.Assign, value: Value) -> None:
        """A new q, k or v holds for all tokens."""
        name = node.name.id
        if self.depends(value.expr):
            hint = "`let u = ...` names a value of this token"
            raise LateRow(f"the new `{name}` reads a state", node.value.span, hint=hint)
        if self.steps[0] or len(self.steps) > 1:
            raise LateRow(f"the new `{name}` stands below the first step", node.span, hint="move it up")
        if name != "q":
            for tensor in sorted(reads(value.expr)):
                meaning = self.env.scope.meanings.get(tensor)
                rows = isinstance(meaning, Tensor) and any(a.index == "m" for a in meaning.axes)
                if tensor == "q" or rows:
                    message = f"`{name}` is there for all N tokens, `{tensor}` for M query rows"
                    raise QueryRow(message, node.value.span)

    def _fits(self, name: str, value: Value, axes: tuple[Axis, ...], place: Span) -> None:
        names = [a.index for a in axes]
        more = sorted(value.free - PLACE - self.env.loops - set(names))
        if more:
            message = f"`{name}` depends on `{more[0]}`, and has at most {', '.join(['b', 'h', 'i', *names])}"
            hint = "`q @ k` sums over d; `outer(k, v)` has d and e" if more[0] in ("d", "e") else ""
            raise FreeIndex(message, place, hint=hint)
        merge_sizes({a.index: a.size for a in axes}, value.sizes, place)


def gradient(env: Elaborator, node: ast.Call) -> Value:
    """grad(x, S): the derivative of a number by a state."""
    if len(node.arguments) != 2 or node.over or node.where is not None or node.options:
        raise BadCall("`grad` takes a number and a state", node.span, hint="`grad(0.5 * sum(x ** 2 over e), S)`")
    number, by = node.arguments
    if not isinstance(by, ast.Name) or by.id not in env.carried:
        raise NotAState("`grad` wants a state", by.span, hint="a name declared by `state` or `frozen`")
    body = env.number(number, "what `grad` differentiates")
    more = sorted(body.free - PLACE - env.loops)
    if more:
        hint = f"`sum(... over {', '.join(more)})`"
        raise FreeIndex(f"`grad` wants one number, and this depends on `{more[0]}`", number.span, hint=hint)
    if by.id not in reads(body.expr):
        raise NoSuchDependence(f"the number does not depend on `{by.id}`", number.span)
    axes = env.carried[by.id]
    read = _read(by.id, axes, by.span)
    return Value(
        Gradient(to_real(body.expr), by.id, _vars(axes), span=node.span), given(read.free | body.free), read.sizes
    )


def _read(name: str, axes: tuple[Axis, ...], place: Span) -> Value:
    index = (Var("b", "int"), Var("h", "int"), *_vars(axes))
    return Value(
        Load(name, index, "real", place),
        frozenset({"b", "h", "i", *(a.index for a in axes)}),
        {a.index: a.size for a in axes},
    )


def _vars(axes: tuple[Axis, ...]) -> tuple[Var, ...]:
    return tuple(Var(a.index, "int") for a in axes)


def _index(axis: ast.AxisDecl) -> str:
    return axis.name or (axis.size.id if isinstance(axis.size, ast.Name) else "")
