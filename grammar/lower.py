"""Syntax tree --> Spec IR: headers, statements, the checks on each left side. State programs: grammar/states.py."""

from __future__ import annotations

from typing import Literal, assert_never, cast

from attncc.expr.build import to_real
from attncc.expr.nodes import Var, walk
from attncc.grammar import tree as ast
from attncc.grammar.expressions import Elaborator
from attncc.grammar.functions import call
from attncc.grammar.headers import constant, let_axes, tensor
from attncc.grammar.mistakes import (
    AssignedTwice,
    FreeIndex,
    LetAxes,
    Misplaced,
    NoOut,
    NotCompiled,
    PlainAssignment,
    UnusedMask,
)
from attncc.grammar.names import ROWS, SIZE_OF, Named, Row, Scope, Tensor, define, refuse_cycles
from attncc.grammar.states import StateProgram, is_state_program
from attncc.grammar.values import CHANNELS, Value, given, rename
from attncc.ir.nodes import Axis, ConstParam, Let, Out, Param, Rebind, Scan, Spec, Statement

HINTS = {
    "j": "`@ v` or `sum(... over j)` removes j",
    "d": "`q @ k` sums over d; `q[e]` reads a row at v's channel",
    "n": "an `n` axis is read at a position: `[b, i]` or `[b, j]`",
}


def lower(file: ast.File) -> tuple[Spec, ...]:
    """Every attention of a text."""
    refuse_cycles([p for p in file.parts if isinstance(p, ast.Def)])
    top = Scope()
    later = {p.name.id: p.name.span.line for p in file.parts if isinstance(p, ast.Def)}
    specs: list[Spec] = []
    for part in file.parts:
        match part:
            case ast.Def():
                define(top, part, later)
            case ast.Attention():
                specs.append(_Lowering(top, part, later).run())
            case _:
                assert_never(part)
    return tuple(specs)


class _Lowering:
    """One attention."""

    def __init__(self, top: Scope, node: ast.Attention, later: dict[str, int]) -> None:
        self.node = node
        self.scope = top.child()
        self.scope.later = {**_later(node.body), **{k: v for k, v in later.items() if k not in top.meanings}}
        self.env = Elaborator(self.scope, call)
        self.constants: list[ConstParam] = []
        self.params: list[Param] = []
        self.statements: list[Statement] = []
        self.seen: dict[str, ast.Name] = {}
        self.out: Out | None = None
        self.program: StateProgram | None = None

    def run(self) -> Spec:
        for parameter in self.node.parameters:
            match parameter:
                case ast.ConstantDecl():
                    self.constants.append(constant(self.scope, parameter))
                case ast.TensorDecl():
                    self.params.append(tensor(self.env, parameter))
        if is_state_program(self.node.body):
            self.program = StateProgram(self.env)
        for statement in self.node.body:
            self.statement(statement)
        if self.out is None:
            hint = "add `out = softmax(score) @ v`, or what it computes"
            raise NoOut(f"`{self.node.name.id}` assigns no `out`", self.node.name.span, hint=hint)
        if "mask" in self.seen and not self.env.mask_uses:
            hint = "each weight has a `where` of its own, or there is none over j; drop the mask or the `where`"
            raise UnusedMask("no weight takes this mask", self.seen["mask"].span, hint=hint)
        name = self.node.name
        parts = (tuple(self.constants), tuple(self.params), tuple(self.statements))
        recurrence = None if self.program is None else self.program.recurrence()
        return Spec(name.id, *parts, self.out, name.span, recurrence)

    def statement(self, node: ast.Statement) -> None:
        match node:
            case ast.Def():
                define(self.scope, node, self.scope.later)
            case ast.Let():
                self.let(node)
            case ast.Assign():
                self.assign(node)
            case ast.Select():
                raise self.refused("select", node)
            case ast.State():
                self.of_program("state", node).state(node)
            case ast.Frozen():
                self.of_program("frozen", node).freeze(node)
            case ast.Coordinates():
                raise self.refused("axes", node)
            case ast.Quantize():
                raise self.refused("quantize", node)
            case ast.Cache():
                raise self.refused("cache", node)
            case ast.For():
                self.loop(node)
            case _:
                assert_never(node)

    def of_program(self, what: str, node: ast.Statement) -> StateProgram:
        if self.program is None:
            raise self.refused(what, node)
        return self.program

    def loop(self, node: ast.For) -> None:
        program = self.of_program("for", node)
        known = set(self.scope.meanings)
        program.open(node)
        for statement in node.body:
            change = isinstance(statement, ast.Assign) and statement.name.id in self.env.carried
            if not change and not isinstance(statement, ast.Let | ast.For | ast.Def):
                hint = "changes of states, `let` and `for` stand in a loop"
                raise Misplaced("this has no place in a loop", statement.span, hint=hint)
            self.statement(statement)
        program.close(node, known)

    def refused(self, what: str, node: ast.Statement) -> NotCompiled:
        return NotCompiled(f"`{what}` is not compiled yet", node.span)

    # --- let and emit ---

    def let(self, node: ast.Let) -> None:
        self.scope.refuse(node.name)
        axes = None if node.axes is None else let_axes(self.env, node.axes)
        value = self.env.eval(node.value)
        names = None if axes is None else tuple(a.index for a in axes)
        if names is not None and given(names) != value.free:
            raise _let_mismatch(node, names, value)
        if node.emitted and names is None:
            hint = f"`emit {node.name.id}[b, h, i] = ...`"
            raise LetAxes("`emit` names its axes in brackets", node.name.span, hint=hint)
        if self.program is not None and self.program.depends(value.expr):
            self.program.keep(node, value)
            return
        if axes is None or names is None or (not node.emitted and self.stands_for_itself(value, names)):
            self.scope.add(node.name, Named(value, names), "is a `let`")
            return
        self.array(node, axes, value)

    def stands_for_itself(self, value: Value, names: tuple[str, ...]) -> bool:
        """Whether a `let` is put in where it is read: a value at (i, j) is never an array unless it must be."""
        at = {"i"} if self.program is not None else {"i", "j"}  # i is the token there, no query row
        return at <= set(names) and not any(isinstance(n, Scan) for n in walk(value.expr))

    def array(self, node: ast.Let, axes: tuple[Axis, ...], value: Value) -> None:
        """A `let` that is computed once and read from memory; an n axis is j inside."""
        sized = tuple(Axis(a.index, value.sizes.get(a.index) or a.size) for a in axes)
        named = {"i": "m", "j": "n"}
        kept = tuple(Axis(named.get(a.index, a.index), a.size) for a in sized)
        read = {"n": Var("j", "int")} if "n" in value.free else {}
        body = rename(value.expr, read, node.span)
        index = tuple(Var("j" if a.index == "n" else a.index, "int") for a in sized)
        name = node.name.id
        self.statements.append(Let(name, kept, index, body, node.emitted, node.span))
        self.scope.add(node.name, Tensor(value.sort, sized), "is a `let`")

    # --- plain assignments ---

    def assign(self, node: ast.Assign) -> None:
        name = node.name.id
        if name in ("score", "mask", "out"):
            if name in self.seen:
                line = self.seen[name].span.line
                hint = "one line each; `let` names parts"
                raise AssignedTwice(f"`{name}` has its value from line {line}", node.name.span, hint=hint)
            self.seen[name] = node.name
            {"score": self.score, "mask": self.mask, "out": self.result}[name](node)
        elif name in self.env.carried and self.program is not None:
            self.program.assign(node)
        elif name in ROWS:
            self.rebind(node)
        else:
            self.scope.refuse(node.name)
            hint = f"write `let {name} = ...`"
            raise PlainAssignment(f"a plain `=` gives no new name `{name}`", node.name.span, hint=hint)

    def score(self, node: ast.Assign) -> None:
        value = self.env.number(node.value, "`score`")
        _within(node, value, frozenset(self.scope.indices) - CHANNELS - {"n"}, "b, h, i, j")
        self.scope.meanings["score"] = Named(value, None)

    def mask(self, node: ast.Assign) -> None:
        if self.program is not None:
            hint = "a choice masks a token: `x if c else 0`; `state S[d, e] per doc[b, i]` starts anew"
            raise Misplaced("a state program has no mask", node.span, hint=hint)
        value = self.env.boolean(node.value, "`mask`")
        _within(node, value, frozenset("bhgij"), "b, h, i, j")
        if self.env.unmasked is not None:
            line = self.env.unmasked.line
            hint = "move the mask up"
            raise UnusedMask(f"the weights of line {line} stand above this mask", node.name.span, hint=hint)
        self.env.mask = value
        self.scope.meanings["mask"] = Named(value, None)

    def result(self, node: ast.Assign) -> None:
        value = self.env.number(node.value, "`out`")
        _within(node, value, frozenset("bhgie"), "b, h, i, e")
        self.out = Out(to_real(value.expr), node.span)
        if self.program is not None:
            self.env.out = self.out.body
            self.program.read()

    def rebind(self, node: ast.Assign) -> None:
        """A new q, k or v; the right side's one channel becomes its own."""
        name = cast(Literal["q", "k", "v"], node.name.id)
        own = self.scope.meanings[name]
        assert isinstance(own, Row)
        value = self.env.number(node.value, f"`{name}`")
        if self.program is not None:
            self.program.check_row(node, value)
        _within(node, value, frozenset(own.axes) | CHANNELS, ", ".join(own.axes))
        if len(value.channels) > 1:
            raise FreeIndex(f"`{name}` has one channel, and this has d and e", node.value.span)
        channel = own.axes[-1]
        expr, extent = to_real(value.expr), own.channels
        for old in value.channels:
            expr = rename(expr, {old: Var(channel, "int")}, node.span)
            extent = value.sizes.get(old) or self.scope.indices[old]
        at = ROWS[name][2]  # in a state program k and v stand at i, and the new rows are for every j
        expr = rename(expr, {own.axes[2]: Var(at, "int")}, node.span)
        index = tuple(Var(a, "int") for a in ROWS[name])
        self.statements.append(Rebind(name, index, extent, expr, node.span))
        self.scope.meanings[name] = Row(own.axes, extent)


def _later(body: tuple[ast.Statement, ...]) -> dict[str, int]:
    """Names that statements give a meaning to, and in which line."""
    found: dict[str, int] = {}
    for node in body:
        match node:
            case ast.State(parts=parts):
                for part in parts:
                    found.setdefault(part.name.id, part.name.span.line)
            case ast.Let() | ast.Select() | ast.Frozen() | ast.Assign() | ast.Def():
                if node.name.id not in ROWS:
                    found.setdefault(node.name.id, node.name.span.line)
            case _:
                pass
    return found


def _within(node: ast.Assign, value: Value, allowed: frozenset[str], shown: str) -> None:
    more = sorted(value.free - allowed)
    if more:
        name = node.name.id
        message = f"`{name}` depends on `{more[0]}`, and has at most {shown}"
        raise FreeIndex(message, node.value.span, hint=HINTS.get(more[0], ""))


def _let_mismatch(node: ast.Let, names: tuple[str, ...], value: Value) -> LetAxes:
    have = ", ".join(sorted(value.free, key=list([*SIZE_OF, *sorted(value.free)]).index))
    hint = f"`{'emit' if node.emitted else 'let'} {node.name.id}[{have}] = ...`" if have else "drop the brackets"
    message = f"the brackets say {', '.join(names)}, and the value has {have or 'no index'}"
    return LetAxes(message, node.name.span, hint=hint)
