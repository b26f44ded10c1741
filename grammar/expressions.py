"""Expressions of a spec --> Values: names resolved, sorts checked, indices inferred, Spec IR built."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_never

from attncc.diagnostics import Span
from attncc.expr.build import FALSE, TRUE, disj, lift, op, to_real
from attncc.expr.nodes import Const, Expr, Var
from attncc.grammar import tree as ast
from attncc.grammar.mistakes import (
    BadContraction,
    NotAValue,
    NotBoolean,
    NotCompiled,
    NotNumber,
    RealIndex,
    TooDeep,
    TooMuchInlining,
)
from attncc.grammar.names import SIZES, Constant, Function, Named, Row, Scope, Tensor
from attncc.grammar.subscripts import bare_row, bare_tensor, subscripted
from attncc.grammar.values import CHANNELS, Value, align, given, merge_sizes
from attncc.grammar.weights import as_weights, has_weights
from attncc.ir.nodes import Axis, Binder, Contract

MAX_DEPTH = 200
MAX_CALLS = 20_000
FLIPPED = {">": "lt", ">=": "le"}
OPS = {
    "+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "**": "pow",
    "<": "lt", "<=": "le", "==": "eq", "!=": "ne", "and": "and", "or": "or",
}  # fmt: skip
LITERALS = {"true": TRUE, "false": FALSE, "inf": Const(math.inf, "real")}
Call = Callable[["Elaborator", ast.Call], Value]


class Elaborator:
    """Evaluates expressions in a scope.

    `mask` is what weights without a `where` take, `frame` the arguments of the `def` that is being expanded.
    """

    def __init__(self, scope: Scope, call: Call) -> None:
        self.scope = scope
        self.call_function = call
        self.frame: dict[str, Value] | None = None
        self.depth = 0
        self.calls = 0
        self.mask: Value | None = None
        self.mask_uses = 0
        self.unmasked: Span | None = None  # the first weight over j above the mask that has no `where`
        self.guards: set[Expr] = set()
        self.stateful = False
        self.carried: dict[str, tuple[Axis, ...]] = {}  # the axes of states and frozen states
        self.loops: set[str] = set()  # the indices of the loops around
        self.out: Expr | None = None

    def eval(self, node: ast.Expr) -> Value:
        """The value of an expression."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            hint = "give inner parts names with `let`"
            raise TooDeep(f"more than {MAX_DEPTH} operators and calls inside one another", node.span, hint=hint)
        value = self._eval(node)
        self.depth -= 1
        return value

    def _eval(self, node: ast.Expr) -> Value:
        match node:
            case ast.Name():
                return self.name(node)
            case ast.Number(value=value):
                return Value(lift(value))
            case ast.Unary():
                return self.unary(node)
            case ast.Binary():
                return self.binary(node)
            case ast.Contract():
                return self.contract(node)
            case ast.Choice():
                return self.choice(node)
            case ast.Member():
                return self.member(node)
            case ast.Subscripted():
                return subscripted(self, node)
            case ast.Call(function=name):
                function = self.scope.meanings.get(name)
                return self.inline(node, function) if isinstance(function, Function) else self.call_function(self, node)
            case ast.SetOf():
                hint = "a set stands right of `in`"
                raise NotAValue("a set is no value", node.span, hint=hint)
            case ast.Coordinate(name=name):
                raise NotCompiled(f"the coordinate `.{name}` of an index is not compiled yet", node.span)
            case ast.Selection(rule=rule):
                what = rule.id if isinstance(rule, ast.Name) else rule.function
                raise NotCompiled(f"`{what} of {node.index.id} by ...` is not compiled yet", node.span)
            case _:
                assert_never(node)

    # --- names ---

    def name(self, node: ast.Name) -> Value:
        """A bare name."""
        name = node.id
        if self.frame is not None and name in self.frame:
            return self.frame[name]
        if name in self.scope.indices:
            return Value(Var(name, "int"), frozenset({name}))
        if name in SIZES:
            return Value(Var(name, "int"))
        if name in LITERALS:
            return Value(LITERALS[name])
        if name == "all":
            raise NotAValue("`all` stands for a state's first set only", node.span)
        match self.scope.meanings.get(name):
            case Constant(sort):
                return Value(Var(name, sort))
            case Row() as row:
                return bare_row(name, row, node.span)
            case Tensor() as tensor:
                return bare_tensor(name, tensor, node.span)
            case Named(value=value):
                return value
            case Function() | None:
                raise self.scope.unknown(node)

    # --- sorts ---

    def boolean(self, node: ast.Expr, what: str) -> Value:
        """A condition; NotBoolean where it is a number."""
        value = self.eval(node)
        if value.sort != "bool":
            hint = "compare it with something: `i - j < 8`, `x != 0`"
            raise NotBoolean(f"{what} is a condition, and this is {_a(value)}", node.span, hint=hint)
        return value

    def number(self, node: ast.Expr, what: str) -> Value:
        """A number; NotNumber where it is a condition."""
        value = self.eval(node)
        if value.sort == "bool":
            hint = "`1 if c else 0` makes a number of a condition"
            raise NotNumber(f"{what} is a number, and this is a condition", node.span, hint=hint)
        return value

    def integer(self, node: ast.Expr, what: str) -> Value:
        """An integer; RealIndex where it is real."""
        value = self.number(node, what)
        if value.sort != "int":
            hint = "`//` divides integers; `floor(x)` and `ceil(x)` round"
            raise RealIndex(f"{what} is an integer, and this is a real number", node.span, hint=hint)
        return value

    # --- operators ---

    def unary(self, node: ast.Unary) -> Value:
        """- x, + x, not x."""
        if node.op == "not":
            value = self.boolean(node.operand, "the operand of `not`")
            return value.of(op("not", value.expr))
        value = self.number(node.operand, f"the operand of `{node.op}`")
        if node.op == "+":
            return value
        return value.of(lift(-value.expr.value) if isinstance(value.expr, Const) else op("neg", value.expr))

    def binary(self, node: ast.Binary) -> Value:
        """Arithmetic, comparisons, and, or."""
        sign = node.op
        if sign in ("and", "or"):
            left, right = (self.boolean(x, f"each side of `{sign}`") for x in (node.left, node.right))
        elif sign in ("//", "%"):
            left, right = (self.integer(x, f"each side of `{sign}`") for x in (node.left, node.right))
        elif sign in ("==", "!="):
            left, right = self.eval(node.left), self.eval(node.right)
            if (left.sort == "bool") != (right.sort == "bool"):
                raise NotNumber(f"`{sign}` compares a number with a condition", node.place)
        else:
            left, right = (self.number(x, f"each side of `{sign}`") for x in (node.left, node.right))
        both = align((left, right), node.place)
        if sign in FLIPPED:
            return both.of(op(FLIPPED[sign], right.expr, left.expr))
        if sign == "**" and right.expr is lift(2):
            return both.of(op("square", left.expr))
        return both.of(op(OPS[sign], left.expr, right.expr))

    def choice(self, node: ast.Choice) -> Value:
        """then if condition else other."""
        condition = self.boolean(node.condition, "the middle of a choice")
        then, other = self.eval(node.then), self.eval(node.other)
        if (then.sort == "bool") != (other.sort == "bool"):
            raise NotNumber("one branch is a number, the other a condition", node.span)
        both = align((condition, then, other), node.span)
        return both.of(op("where", condition.expr, then.expr, other.expr))

    def member(self, node: ast.Member) -> Value:
        """x in {a, b}."""
        if not isinstance(node.group, ast.SetOf):
            hint = "a set is `{0, 1}`, or what a `select` names"
            raise NotAValue("`in` wants a set on its right", node.group.span, hint=hint)
        item = self.number(node.item, "the left side of `in`")
        items = [self.number(x, "a member of a set") for x in node.group.items]
        found = disj(*(op("eq", item.expr, x.expr) for x in items))
        return align((item, *items), node.span).of(op("not", found) if node.negated else found)

    # --- contraction ---

    def contract(self, node: ast.Contract) -> Value:
        """x @ y: the sum over the one index both have besides b, h, g, i."""
        left, right = (self.number(x, "each side of `@`") for x in (node.left, node.right))
        shared = (left.free & right.free) - {"b", "h", "g", "i"} - self.loops
        if len(shared) != 1:
            raise _contraction(left, right, shared, node.place)
        (axis,) = shared
        sizes = dict(left.sizes)
        merge_sizes(sizes, right.sizes, node.place)
        extent = sizes.pop(axis, self.scope.indices[axis])
        a, b = left, right
        if self.stateful:  # a plain sum: weights over keys have a token's whole past, and a step has none
            expr = Contract(to_real(a.expr), to_real(b.expr), Var(axis, "int"), extent, span=node.span)
            return Value(expr, given((a.free | b.free) - {axis}), sizes)
        if axis not in CHANNELS and not has_weights(a.expr, axis) and _weighs(b, axis) and not _weighs(a, axis):
            a, b = b, a  # v @ w is w @ v
        first = self.weigh(a, (Binder(Var(axis, "int"), extent),), node.span) if _weighs(a, axis) else a
        free = given((first.free | b.free) - {axis})
        expr = Contract(to_real(first.expr), to_real(b.expr), Var(axis, "int"), extent, span=node.span)
        return Value(expr, free, sizes)

    def weigh(self, value: Value, keys: tuple[Binder, ...], place: Span) -> Value:
        """`value` as attention weights over `keys`: terms without a normaliser become weights of their own."""
        uses = self.mask_uses
        expr = as_weights(value.expr, keys, lambda: self.take_mask(keys, place), self.guards)
        return Value(expr, value.free | (self.mask_free() if self.mask_uses > uses else frozenset()), value.sizes)

    def take_mask(self, keys: tuple[Binder, ...], place: Span) -> Expr:
        """The mask, for a weight without a `where` of its own."""
        if all(k.index.name != "j" for k in keys):
            return TRUE
        if self.mask is None:
            self.unmasked = self.unmasked or place
            return TRUE
        self.mask_uses += 1
        return self.mask.expr

    def mask_free(self) -> frozenset[str]:
        """What a masked weight depends on besides its score."""
        return self.mask.free if self.mask is not None else frozenset()

    # --- definitions ---

    def inline(self, node: ast.Call, function: Function) -> Value:
        """A call of a `def`: its body with the arguments' values for its parameters."""
        definition = function.definition
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise TooMuchInlining(f"more than {MAX_CALLS} calls of `def`s", node.span, hint="name parts with `let`")
        arguments = self.arguments(node, len(definition.parameters))
        outer = self.frame
        self.frame = {p.id: a for p, a in zip(definition.parameters, arguments, strict=True)}
        value = self.eval(definition.body)
        self.frame = outer
        return value

    def arguments(self, node: ast.Call, count: int) -> list[Value]:
        """The values of a plain call's arguments; BadCall for another number of them, or for clauses."""
        from attncc.grammar.functions import expect

        expect(node, count, clauses=())
        return [self.eval(a) for a in node.arguments]


def _weighs(value: Value, axis: str) -> bool:
    """Whether a factor of `@` over that axis is a weight: it has the key's index, the query's, and no channel."""
    return axis not in CHANNELS and not value.channels and {axis, "i"} <= value.free


def _contraction(left: Value, right: Value, shared: frozenset[str], place: Span) -> BadContraction:
    if shared:
        message = f"both sides of `@` have {_list(shared)}, and it sums over one index"
        hint = "`@` binds like `*`, from the left: bracket it, `x * (q @ k)`; `sum(x * y over ...)` names its indices"
        return BadContraction(message, place, hint=hint)
    message = f"the sides of `@` share no index to sum over: left {_list(left.free)}, right {_list(right.free)}"
    return BadContraction(message, place, hint="`*` multiplies elementwise")


def _list(free: frozenset[str]) -> str:
    return ", ".join(f"`{x}`" for x in sorted(free)) or "none"


def _a(value: Value) -> str:
    return "an integer" if value.sort == "int" else "a real number"
