"""The text form of expressions, and back: infix with the fewest parentheses, `parse_expr(show(e), sorts)` is `e`.

    2.0 * cap * tanh(x) + real(j - i)      where(i <= j and not p, x, -inf)      x ** 2.0      (i + 1) // 4 % 3

Atoms are written and read by hooks, so that each IR gives its own a form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attncc.expr.build import FALSE, TRUE, op
from attncc.expr.nodes import Const, Expr, Op, Sort, Var
from attncc.expr.ops import OPS
from attncc.expr.ops_spelling import AND, ATOM, CHOICE, COMPARE, NOT, OR, POWER, SIGN, SUM, TERM
from attncc.expr.order import scalar_walk

_BINARY: dict[str, tuple[str, int]] = {
    "or": ("or", OR),
    "and": ("and", AND),
    "<": ("lt", COMPARE),
    "<=": ("le", COMPARE),
    "==": ("eq", COMPARE),
    "!=": ("ne", COMPARE),
    "+": ("add", SUM),
    "-": ("sub", SUM),
    "*": ("mul", TERM),
    "/": ("div", TERM),
    "//": ("floordiv", TERM),
    "%": ("mod", TERM),
    "**": ("pow", POWER),
}
_SIGNS = {name: (sign, level) for sign, (name, level) in _BINARY.items()}
_PREFIX = {"-": ("neg", SIGN), "not": ("not", NOT)}
_CONSTANTS = {"true": TRUE, "false": FALSE, "inf": Const(float("inf"), "real")}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>\*\*|//|<=|>=|==|!=|[^\s\w]))"
)


class ExprSyntaxError(ValueError):
    """A text that is no expression; `position` is where reading stopped."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (at character {position})")
        self.position = position


# --- printing -------------------------------------------------------------------------------------------------------


def show(e: Expr, atom: Callable[[Expr], str] | None = None) -> str:
    """`e` as text. `atom` writes the leaves that are no constants and no variables; by default that is an error."""
    texts: dict[Expr, tuple[str, int]] = {}
    for node in scalar_walk(e):
        match node:
            case Const():
                texts[node] = _constant(node)
            case Var(name, _):
                texts[node] = name, ATOM
            case Op():
                texts[node] = _operation(node, [texts[a] for a in node.args])
            case _:
                if atom is None:
                    raise TypeError(f"no text form for {type(node).__name__}")
                texts[node] = atom(node), ATOM
    return texts[e][0]


def _constant(c: Const) -> tuple[str, int]:
    text = repr(c.value).lower()
    return text, SIGN if text.startswith("-") else ATOM


def _operation(e: Op, args: list[tuple[str, int]]) -> tuple[str, int]:
    match e.name:
        case "neg":
            literal = isinstance(e.args[0], Const)
            return f"-({args[0][0]})" if literal else f"-{_fit(args[0], SIGN)}", SIGN
        case "not":
            return f"not {_fit(args[0], NOT)}", NOT
        case "pow":
            return f"{_fit(args[0], ATOM)} ** {_fit(args[1], SIGN)}", POWER
        case name if name in _SIGNS:
            sign, level = _SIGNS[name]
            left = level + 1 if level == COMPARE else level
            return f"{_fit(args[0], left)} {sign} {_fit(args[1], level + 1)}", level
    return f"{e.name}({', '.join(text for text, _ in args)})", ATOM


def _fit(part: tuple[str, int], level: int) -> str:
    return part[0] if part[1] >= level else f"({part[0]})"


# --- parsing --------------------------------------------------------------------------------------------------------

AtomReader = Callable[["Reader", str], Expr | None]
"""Called at a name that is no operation, before a variable is looked up; reads on with the reader's methods, or
returns None without having read anything."""


def parse_expr(text: str, sorts: Mapping[str, Sort], atom: AtomReader | None = None) -> Expr:
    """The expression of a text; `sorts` gives the sort of each variable. ExprSyntaxError says where it goes wrong."""
    reader = Reader(text, sorts, atom)
    e = reader.expr()
    reader.expect("")
    return e


@dataclass(slots=True)
class _Pending:
    """What is open on the reader's stack: an operator waiting for its right side, a parenthesis or a call."""

    name: str
    level: int
    count: int
    base: int
    position: int


class Reader:
    """A cursor over tokens with an operator-precedence parser; it keeps a stack of its own, so nesting is free."""

    def __init__(self, text: str, sorts: Mapping[str, Sort], atom: AtomReader | None = None) -> None:
        self._sorts, self._atom = sorts, atom
        self._tokens: list[tuple[str, str, int]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            m = _TOKEN.match(text, at)
            assert m and m.lastgroup
            self._tokens.append((m.lastgroup, m[m.lastgroup], m.start(m.lastgroup)))
            at = m.end()
        self._tokens.append(("end", "", end))
        self._next = 0

    def peek(self, ahead: int = 0) -> str:
        """The text of a coming token; "" at the end."""
        return self._tokens[min(self._next + ahead, len(self._tokens) - 1)][1]

    def take(self) -> str:
        """The next token, read."""
        text = self.peek()
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return text

    def expect(self, text: str) -> None:
        """Reads one token, which must be `text`."""
        if self.peek() != text:
            raise self.error(f"expected {repr(text) if text else 'the end'}, found {self.peek() or 'the end'!r}")
        self.take()

    def error(self, message: str) -> ExprSyntaxError:
        """An error at the next token."""
        return ExprSyntaxError(message, self._tokens[self._next][2])

    def expr(self) -> Expr:
        """Reads one expression, up to a token that can't go on with it."""
        values: list[Expr] = []
        stack: list[_Pending] = []
        while True:
            self._operand(values, stack)
            if not self._operator(values, stack):
                return values.pop()

    def _operand(self, values: list[Expr], stack: list[_Pending]) -> None:
        """Reads prefix operators, opening parentheses and one value."""
        while True:
            kind, text, position = self._tokens[self._next]
            if text == "-" and self._tokens[self._next + 1][:1] == ("number",) and self.peek(2) != "**":
                self.take()
                values.append(_number("-" + self.take()))
                return
            if text == "-" and self.peek(1) == "inf":
                self._next += 2
                values.append(Const(float("-inf"), "real"))
                return
            if text in _PREFIX:
                self.take()
                name, level = _PREFIX[text]
                stack.append(_Pending(name, level, 1, len(values), position))
            elif text == "(":
                self.take()
                stack.append(_Pending("(", CHOICE, 1, len(values), position))
            elif kind == "name" and text in OPS and self.peek(1) == "(":
                self._next += 2
                stack.append(_Pending(text, -1, OPS[text].arity, len(values), position))
            else:
                values.append(self._leaf(kind, text))
                return

    def _leaf(self, kind: str, text: str) -> Expr:
        if kind == "number":
            self.take()
            return _number(text)
        if kind == "name":
            if text in _CONSTANTS:
                self.take()
                return _CONSTANTS[text]
            found = self._atom(self, text) if self._atom else None
            if found is not None:
                return found
            if text in self._sorts:
                self.take()
                return Var(text, self._sorts[text])
            raise self.error(f"unknown name {text!r}")
        raise self.error(f"expected an expression, found {text or 'the end'!r}")

    def _operator(self, values: list[Expr], stack: list[_Pending]) -> bool:
        """Reads what follows a value: closing parentheses, then an infix operator or comma; False at the end."""
        while True:
            text = self.peek()
            swap = {">": "<", ">=": "<="}.get(text)
            if text in _BINARY or swap:
                name, level = _BINARY[swap or text]
                self._close(values, stack, level + 1 if level in (POWER, COMPARE) else level)
                if level == COMPARE and stack and stack[-1].level == COMPARE:
                    raise self.error("comparisons do not chain")
                position = self._tokens[self._next][2]
                stack.append(_Pending(f"{name}'" if swap else name, level, 2, len(values) - 1, position))
                self.take()
                return True
            self._close(values, stack, CHOICE + 1)
            if not stack:
                return False
            top = stack[-1]
            if text == "," and top.name != "(":
                self.take()
                return True
            if text != ")":
                raise self.error(f"expected ')', found {text or 'the end'!r}")
            self.take()
            stack.pop()
            if top.name != "(":
                self._reduce(values, top)

    def _close(self, values: list[Expr], stack: list[_Pending], level: int) -> None:
        """Applies the waiting operators that bind at least as tightly as `level`."""
        while stack and stack[-1].level >= level and stack[-1].name != "(":
            self._reduce(values, stack.pop())

    def _reduce(self, values: list[Expr], top: _Pending) -> None:
        args = values[top.base :]
        del values[top.base :]
        name = top.name.removesuffix("'")
        if len(args) != top.count:
            raise ExprSyntaxError(f"{name} takes {top.count} arguments, not {len(args)}", top.position)
        try:
            values.append(op(name, *(args if name == top.name else reversed(args))))
        except TypeError as problem:
            raise ExprSyntaxError(str(problem), top.position) from None


def _number(text: str) -> Const:
    if re.fullmatch(r"-?\d+", text):
        return Const(int(text), "int")
    return Const(float(text), "real")
