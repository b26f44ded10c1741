"""Reads the text form of the Spec IR. attncc.ir.text prints it and describes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn, TypeVar, cast

from attncc.errors import InternalError
from attncc.expr.build import TRUE, op
from attncc.expr.nodes import Const, Expr, Sort, Var
from attncc.expr.ops import OPS
from attncc.ir.nodes import (
    Assign,
    Axis,
    Binder,
    ConstParam,
    Contract,
    Frozen,
    Gradient,
    Keep,
    Let,
    Load,
    Micro,
    Normaliser,
    Out,
    Param,
    Read,
    Rebind,
    Recurrence,
    Reduce,
    S,
    Scan,
    Segment,
    Spec,
    State,
    Statement,
    Step,
    Weights,
)

LEVEL: dict[str, int] = {"or": 1, "and": 2, "not": 3, "lt": 4, "le": 4, "eq": 4, "ne": 4, "add": 5, "sub": 5}
LEVEL |= {"mul": 6, "div": 6, "floordiv": 6, "mod": 6, "pow": 8}
"""How tightly an infix operation binds; neg stands at UNARY, everything else at ATOM."""
COMPARE, UNARY, POWER, ATOM = 4, 7, 8, 9

_INFIX = {OPS[name].infix: name for name in LEVEL if OPS[name].arity == 2}
_TOKEN = re.compile(r"\s*(%\w+|\d+(?:\.\d*)?(?:e[+-]?\d+)?|[^\W\d]\w*(?:\.\w+)*|//|\*\*|<=|==|!=|[-+*/%<=()\[\],:@])")
_SORTS = ("int", "real", "bool")
_KINDS = ("ratio", "none", "scan", "threshold")

T = TypeVar("T")
ReduceOp = Literal["sum", "mean", "max", "min", "any", "argmax"]


class BadText(InternalError):
    """A text is not that of a Spec; the message names its line."""

    code: ClassVar[str] = "E902"


def read_spec(text: str) -> Spec:
    """The Spec that `spell_spec` printed."""
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            reader.line(number, line)
    return reader.spec()


@dataclass
class _Line:
    """The tokens of one line and a place in them."""

    number: int
    tokens: list[str]
    at: int = 0

    def fail(self, message: str) -> NoReturn:
        raise BadText(f"line {self.number}: {message} at {' '.join(self.tokens[self.at : self.at + 4]) or 'its end'}")

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, token: str) -> bool:
        found = self.peek() == token
        self.at += found
        return found

    def expect(self, token: str) -> None:
        if not self.accept(token):
            self.fail(f"`{token}` is wanted")

    def name(self) -> str:
        if not re.fullmatch(r"[^\W\d][\w.]*", self.peek()):
            self.fail("a name is wanted")
        return self.next()

    def choice(self, names: tuple[str, ...]) -> str:
        if self.peek() not in names:
            self.fail(f"one of {', '.join(names)} is wanted")
        return self.next()

    def several(self, close: str, item: Callable[[], T]) -> list[T]:
        """Items separated by commas up to `close`."""
        found: list[T] = []
        while not self.accept(close):
            if found:
                self.expect(",")
            found.append(item())
        return found


def _tokens(number: int, line: str) -> _Line:
    tokens, at = [], 0
    while at < len(line.rstrip()):
        match = _TOKEN.match(line, at)
        if match is None:
            raise BadText(f"line {number}: can't read {line[at:].strip()[:20]}")
        tokens.append(match[1])
        at = match.end()
    return _Line(number, tokens)


class _Reader:
    """Lines in order; the parts named so far."""

    def __init__(self) -> None:
        self.title = ""
        self.constants: list[ConstParam] = []
        self.params: list[Param] = []
        self.statements: list[Statement] = []
        self.out: Out | None = None
        self.parts: dict[str, Expr] = {"%s": S}
        self.sorts: dict[str, Sort] = {}
        self.holds: dict[str, Sort] = {"q": "real", "k": "real", "v": "real"}
        self.states: list[State] = []
        self.frozen: list[Frozen] = []
        self.steps: list[list[Step]] = [[]]
        self.loops: list[Binder] = []

    def spec(self) -> Spec:
        """The whole, after its last line."""
        if self.out is None:
            raise BadText("there is no line for out")
        if self.loops:
            raise BadText(f"the loop over {self.loops[-1].index.name} has no end")
        recurrence = Recurrence(tuple(self.states), tuple(self.frozen), tuple(self.steps[0])) if self.states else None
        parts = (tuple(self.constants), tuple(self.params), tuple(self.statements))
        return Spec(self.title, *parts, self.out, recurrence=recurrence)

    def line(self, number: int, line: str) -> None:
        """One line."""
        c = _tokens(number, line)
        try:
            self._statement(c)
        except (TypeError, KeyError, RecursionError) as error:
            raise BadText(f"line {number}: {error}") from error
        if c.peek():
            c.fail("something is left over")

    def _statement(self, c: _Line) -> None:
        head = c.next()
        match head:
            case "spec":
                self.title = c.name()
            case "const":
                self._const(c)
            case "param":
                self._param(c)
            case "let" | "emit":
                self._let(c, head == "emit")
            case "rebind":
                self._rebind(c)
            case "out":
                self.out = Out(self._assigned(c))
                self.steps[-1].append(Read())
            case "state" | "frozen" | "assign" | "keep" | "for" | "end":
                self._step(head, c)
            case _ if head.startswith("%") and len(head) > 1:
                self.parts[head] = self._assigned(c)
            case _:
                c.at = 0
                c.fail("a statement is wanted")

    def _assigned(self, c: _Line) -> Expr:
        c.expect("=")
        return self._expr(c)

    # --- declarations -----------------------------------------------------------------------------------------------

    def _const(self, c: _Line) -> None:
        name = c.name()
        c.expect(":")
        sort = cast(Sort, c.choice(_SORTS))
        value = self._assigned(c)
        if not isinstance(value, Const):
            c.fail("a literal is wanted")
        self.constants.append(ConstParam(name, value.value, sort))
        self.sorts[name] = sort

    def _param(self, c: _Line) -> None:
        name = c.name()
        c.expect(":")
        if c.accept("offsets"):
            self.params.append(Param(name, "int", (), offsets=True))
            return
        sort = cast(Sort, c.choice(_SORTS))
        c.expect("[")
        axes = tuple(c.several("]", lambda: self._axis(c)))
        bounds = None
        if c.accept("in"):
            c.expect("[")
            low, high = c.several("]", lambda: self._expr(c))
            bounds = (low, high)
        self.params.append(Param(name, sort, axes, bounds))
        self.holds[name] = sort

    def _axis(self, c: _Line) -> Axis:
        index = ""
        if c.peek(1) == ":":
            index = c.name()
            c.expect(":")
        return Axis(index, self._expr(c))

    def _let(self, c: _Line, emitted: bool) -> None:
        name = c.name()
        c.expect("[")

        def axis() -> tuple[Axis, Var]:
            made = self._axis(c)
            return made, Var(c.name() if c.accept("as") else made.index, "int")

        pairs = c.several("]", axis)
        body = self._assigned(c)
        self.statements.append(Let(name, tuple(a for a, _ in pairs), tuple(v for _, v in pairs), body, emitted))
        self.holds[name] = body.sort

    def _rebind(self, c: _Line) -> None:
        tensor = cast(Literal["q", "k", "v"], c.choice(("q", "k", "v")))
        c.expect("[")
        names: list[Var] = []
        while c.peek(1) != ":":
            names.append(Var(c.name(), "int"))
            c.expect(",")
        channels = self._axis(c)
        c.expect("]")
        variables = (*names, Var(channels.index, "int"))
        self.statements.append(Rebind(tensor, variables, channels.size, self._assigned(c)))

    def _step(self, head: str, c: _Line) -> None:
        match head:
            case "state":
                name, axes, init = c.name(), self._axes(c), self._assigned(c)
                per = self._expr(c) if c.accept("per") else None
                self.states.append(State(name, axes, _vars(axes), init, per))
            case "frozen":
                name = c.name()
                c.expect("=")
                state = c.name()
                c.expect("every")
                self.frozen.append(Frozen(name, state, self._expr(c)))
            case "assign":
                name = c.name()
                c.expect("[")
                variables = tuple(Var(x, "int") for x in c.several("]", c.name))
                self.steps[-1].append(Assign(name, variables, self._assigned(c)))
            case "keep":
                name, axes, body = c.name(), self._axes(c), self._assigned(c)
                self.holds[name] = body.sort
                self.steps[-1].append(Keep(name, axes, _vars(axes), body))
            case "for":
                index = Var(c.name(), "int")
                c.expect("<")
                self.loops.append(Binder(index, self._expr(c, COMPARE + 1)))
                self.steps.append([])
            case _:
                if not self.loops:
                    c.fail("a loop is wanted before its end")
                inner = tuple(self.steps.pop())
                self.steps[-1].append(Micro(self.loops.pop(), inner))

    def _axes(self, c: _Line) -> tuple[Axis, ...]:
        c.expect("[")
        return tuple(c.several("]", lambda: self._axis(c)))

    # --- expressions ------------------------------------------------------------------------------------------------

    def _expr(self, c: _Line, level: int = 1) -> Expr:
        if level == LEVEL["not"] and c.accept("not"):
            return op("not", self._expr(c, level))
        if level == UNARY:
            return self._unary(c)
        if level == ATOM:
            return self._primary(c)
        found = self._expr(c, level + 1)
        while LEVEL.get(_INFIX.get(c.peek(), ""), 0) == level:
            found = op(_INFIX[c.next()], found, self._expr(c, level + 1))
        return found

    def _unary(self, c: _Line) -> Expr:
        number = c.peek(1)
        if c.peek() == "-" and c.peek(2) != "**" and (number[:1].isdigit() or number == "inf"):
            return self._number(c)
        return op("neg", self._expr(c, POWER)) if c.accept("-") else self._expr(c, POWER)

    def _number(self, c: _Line) -> Const:
        sign = -1 if c.accept("-") else 1
        text = c.next()
        return Const(sign * int(text), "int") if text.isdigit() else Const(sign * float(text), "real")

    def _primary(self, c: _Line) -> Expr:
        head = c.peek()
        if head[:1].isdigit() or head == "inf":
            return self._number(c)
        if c.accept("("):
            inside = self._expr(c)
            c.expect(")")
            return inside
        if head.startswith("%"):
            return self.parts[c.next()]
        name = c.name()
        if name in ("true", "false"):
            return Const(name == "true", "bool")
        if c.accept("["):
            index = tuple(c.several("]", lambda: self._expr(c)))
            return Load(name, index, self._sort(c, self.holds.get(name, "real")))
        if c.accept("("):
            return self._call(name, c)
        return Var(name, self._sort(c, self.sorts.get(name, "int")))

    def _sort(self, c: _Line, usual: Sort) -> Sort:
        return cast(Sort, c.choice(_SORTS)) if c.accept("@") else usual

    def _call(self, name: str, c: _Line) -> Expr:
        match name:
            case "contract":
                (binder,) = self._binders(c)
                a = self._expr(c)
                c.expect(",")
                b = self._expr(c)
                c.expect(")")
                return Contract(a, b, binder.index, binder.size, self._sort(c, "real"))
            case "reduce":
                return self._reduce(c)
            case "scan":
                return self._scan(c)
            case "segment":
                tensor = c.name()
                c.expect(",")
                at = self._expr(c)
                c.expect(")")
                return Segment(tensor, at, self._sort(c, "int"))
            case "weights":
                return self._weights(c)
            case "gradient":
                of = c.name()
                c.expect(",")
                body, *index = c.several(")", lambda: self._expr(c))
                return Gradient(body, of, tuple(index), self._sort(c, "real"))
            case _:
                return op(name, *c.several(")", lambda: self._expr(c)))

    def _binders(self, c: _Line) -> tuple[Binder, ...]:
        """`j < N, ` as often as it stands there."""
        found = []
        while c.peek(1) == "<":
            index = Var(c.name(), "int")
            c.expect("<")
            found.append(Binder(index, self._expr(c, COMPARE + 1)))
            if c.peek() != ")":
                c.expect(",")
        return tuple(found)

    def _reduce(self, c: _Line) -> Reduce:
        name = cast(ReduceOp, c.choice(("sum", "mean", "max", "min", "any", "argmax")))
        c.expect(",")
        binders = self._binders(c)
        body = self._expr(c)
        where: Expr = TRUE
        if c.accept(","):
            c.expect("where")
            where = self._assigned(c)
        c.expect(")")
        usual: Sort = "int" if name == "argmax" else "real" if name == "mean" else body.sort
        return Reduce(name, body, binders, where, self._sort(c, usual))

    def _scan(self, c: _Line) -> Scan:
        name = cast(Literal["sum"], c.choice(("sum",)))
        c.expect(",")
        (binder,) = self._binders(c)
        body = self._expr(c)
        flags = {c.choice(("reverse", "exclusive")) for _ in iter(lambda: c.accept(","), False)}
        c.expect(")")
        return Scan(name, body, binder, "reverse" in flags, "exclusive" in flags, self._sort(c, body.sort))

    def _weights(self, c: _Line) -> Weights:
        kind = cast(Literal["ratio", "none", "scan", "threshold"], c.choice(_KINDS))
        c.expect(",")
        keys = self._binders(c)
        parts = dict(c.several(")", lambda: (c.name(), self._assigned(c))))
        options = tuple((n.removeprefix("option."), x) for n, x in parts.items() if n.startswith("option."))
        normaliser = Normaliser(kind, parts["phi"], parts.get("psi"), parts.get("z"), options)
        dropout = parts.get("dropout")
        return Weights(parts["score"], parts["mask"], normaliser, keys, dropout, self._sort(c, "real"))


def _vars(axes: tuple[Axis, ...]) -> tuple[Var, ...]:
    return tuple(Var(a.index, "int") for a in axes)
