"""Lark's parse tree --> the syntax tree of grammar/tree.py, with a bound on its depth."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from typing import Any

from lark import Token, Tree

from attncc.diagnostics import Span
from attncc.grammar import tree as ast
from attncc.grammar.lines import span_of
from attncc.grammar.mistakes import BadName, BadNumber, TooDeep

MAX_DEPTH = 200
Part = Any  # a Tree or a Token
SPELLING = {"≤": "<=", "≥": ">=", "√": "sqrt"}


class Builder:
    """Builds one text's syntax tree; `lines` are the text's lines, for spans that go on to the next."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.depth = 0

    def file(self, tree: Part) -> ast.File:
        """The tree of a whole text."""
        parts = tuple(self.attention(t) if t.data == "attention" else self.define(t) for t in tree.children)
        return ast.File(Span(1, 1), parts)

    # --- helpers ---

    def span(self, tree: Part) -> Span:
        if isinstance(tree, Token):
            return span_of(tree)
        meta = tree.meta
        if meta.empty:
            return Span(1, 1)
        line = self.lines[meta.line - 1] if meta.line <= len(self.lines) else ""
        end = meta.end_column if meta.end_line == meta.line else len(line) + 1
        return Span(meta.line, meta.column, max(1, end - meta.column))

    def name(self, token: Token) -> ast.Name:
        text = unicodedata.normalize("NFKC", str(token))
        if not text.isidentifier() or text.startswith("__"):
            hint = "letters, digits and single underscores make a name"
            raise BadName(f"`{token}` is no name", span_of(token), hint=hint)
        return ast.Name(span_of(token), text)

    def names(self, tree: Part) -> tuple[ast.Name, ...]:
        found: list[ast.Name] = []
        while len(tree.children) == 2:  # names: names "," NAME
            found.append(self.name(tree.children[1]))
            tree = tree.children[0]
        found.append(self.name(tree.children[0]))
        return tuple(reversed(found))

    def pick(self, parts: list[Part], data: str) -> Part | None:
        """The one child tree of that kind, or None."""
        return next((p for p in parts if isinstance(p, Tree) and p.data == data), None)

    def axes(self, tree: Part | None) -> tuple[ast.AxisDecl, ...] | None:
        return None if tree is None else tuple(self.axis(t) for t in tree.children)

    def axis(self, tree: Part) -> ast.AxisDecl:
        if tree.data == "new_axis":
            return ast.AxisDecl(self.span(tree), self.name(tree.children[0]).id, self.expr(tree.children[1]))
        return ast.AxisDecl(self.span(tree), None, self.expr(tree.children[0]))

    # --- declarations ---

    def define(self, tree: Part) -> ast.Def:
        parameters = self.pick(tree.children, "names")
        body = next(t for t in reversed(tree.children) if isinstance(t, Tree))
        names = () if parameters is None else self.names(parameters)
        return ast.Def(self.span(tree), self.name(tree.children[0]), names, self.expr(body))

    def attention(self, tree: Part) -> ast.Attention:
        name, *rest = tree.children
        parameters = tuple(self.parameter(t) for t in rest if t.data != "suite")
        return ast.Attention(self.span(tree), self.name(name), parameters, self.suite(rest[-1]))

    def parameter(self, tree: Part) -> ast.ConstantDecl | ast.TensorDecl:
        name, *rest = tree.children
        if tree.data == "constant":
            return ast.ConstantDecl(self.span(tree), self.name(name), self.expr(rest[0]))
        bounds = self.pick(rest, "bounds")
        low_high = None if bounds is None else (self.expr(bounds.children[0]), self.expr(bounds.children[1]))
        axes = self.axes(self.pick(rest, "axes")) or ()
        return ast.TensorDecl(self.span(tree), self.name(name), self.name(rest[0]), axes, low_high)

    # --- statements ---

    def suite(self, tree: Part) -> tuple[ast.Statement, ...]:
        return tuple(self.statement(t) for t in tree.children if isinstance(t, Tree))

    def statement(self, tree: Part) -> ast.Statement:
        make: Callable[[Part], ast.Statement] = getattr(self, f"_{tree.data}")
        return make(tree)

    def _def(self, tree: Part) -> ast.Def:
        return self.define(tree)

    def _assign(self, tree: Part) -> ast.Assign:
        return ast.Assign(self.span(tree), self.name(tree.children[0]), self.expr(tree.children[1]))

    def _let(self, tree: Part) -> ast.Let:
        axes = self.axes(self.pick(tree.children[1:-1], "axes"))
        value = self.expr(tree.children[-1])
        return ast.Let(self.span(tree), self.name(tree.children[0]), axes, value, tree.data == "emit")

    _emit = _let

    def _select(self, tree: Part) -> ast.Select:
        axes = self.axes(self.pick(tree.children[1:-1], "axes"))
        return ast.Select(self.span(tree), self.name(tree.children[0]), axes, self.selection(tree.children[-1]))

    def _state(self, tree: Part) -> ast.State:
        key = self.pick(tree.children, "key")
        parts = tuple(self.carried(t) for t in tree.children if t.data == "carried")
        return ast.State(self.span(tree), parts, None if key is None else self.expr(key.children[0]))

    def carried(self, tree: Part) -> ast.Carried:
        name, *rest = tree.children
        elements, initial = self.pick(rest, "elements"), self.pick(rest, "initial")
        set_of = None if elements is None else self.name(elements.children[0])
        start = None if initial is None else self.expr(initial.children[0])
        axes = self.axes(self.pick(rest, "axes")) or ()
        return ast.Carried(self.span(tree), self.name(name), axes, set_of, start)

    def _frozen(self, tree: Part) -> ast.Frozen:
        name, state, every = tree.children
        return ast.Frozen(self.span(tree), self.name(name), self.name(state), self.expr(every))

    def _coordinates(self, tree: Part) -> ast.Coordinates:
        names, *axes = tree.children
        return ast.Coordinates(self.span(tree), self.names(names), tuple(self.axis(t) for t in axes))

    def _quantize(self, tree: Part) -> ast.Quantize:
        name, *words = tree.children
        return ast.Quantize(self.span(tree), self.name(name), tuple(self.word(t) for t in words))

    def _cache(self, tree: Part) -> ast.Cache:
        name, *words = tree.children
        return ast.Cache(self.span(tree), self.name(name), tuple(self.word(t) for t in words))

    def word(self, tree: Part) -> ast.Word:
        name, *amount = tree.children
        value = self.expr(amount[0]) if amount else None
        return ast.Word(self.span(tree), self.name(name).id, value, tree.data == "per")

    def _for(self, tree: Part) -> ast.For:
        name, count, body = tree.children
        return ast.For(self.span(tree), self.name(name), self.expr(count), self.suite(body))

    # --- expressions ---

    def expr(self, tree: Part) -> ast.Expr:
        """An expression; TooDeep where it nests further than the recursion of later stages should go."""
        if isinstance(tree, Token):
            return self._number_token(tree)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            hint = "give inner parts names with `let`"
            raise TooDeep(f"more than {MAX_DEPTH} operators inside one another", self.span(tree), hint=hint)
        make: Callable[[Part], ast.Expr] = getattr(self, f"_x_{tree.data}")
        made = make(tree)
        self.depth -= 1
        return made

    def _number_token(self, token: Token) -> ast.Number:
        whole = token.isdecimal()
        if whole and len(token) > 18:
            raise BadNumber(f"`{token[:18]}...` is too large for an integer", span_of(token))
        value = int(token) if whole else float(token)
        if math.isinf(value):
            raise BadNumber(f"`{token}` is too large", span_of(token), hint="infinity is written `inf`")
        return ast.Number(span_of(token), value)

    def _x_number(self, tree: Part) -> ast.Expr:
        return self._number_token(tree.children[0])

    def _x_name(self, tree: Part) -> ast.Expr:
        return self.name(tree.children[0])

    def _x_choice(self, tree: Part) -> ast.Expr:
        return ast.Choice(self.span(tree), *(self.expr(t) for t in tree.children))

    def _infix(self, tree: Part, op: str, left: Part, right: Part, place: Span) -> ast.Expr:
        return ast.Binary(self.span(tree), op, self.expr(left), self.expr(right), place)

    def _x_either(self, tree: Part) -> ast.Expr:
        left, right = tree.children
        return self._infix(tree, "or", left, right, self.span(tree))

    def _x_both(self, tree: Part) -> ast.Expr:
        left, right = tree.children
        return self._infix(tree, "and", left, right, self.span(tree))

    def _x_binary(self, tree: Part) -> ast.Expr:
        left, op, right = tree.children
        return self._infix(tree, SPELLING.get(op, str(op)), left, right, span_of(op))

    _x_comparison = _x_binary

    def _x_contract(self, tree: Part) -> ast.Expr:
        left, op, right = tree.children
        return ast.Contract(self.span(tree), self.expr(left), self.expr(right), span_of(op))

    def _x_member(self, tree: Part) -> ast.Expr:
        item, group = tree.children
        return ast.Member(self.span(tree), self.expr(item), self.expr(group), tree.data == "no_member")

    _x_no_member = _x_member

    def _prefix(self, tree: Part, op: str) -> ast.Expr:
        return ast.Unary(self.span(tree), op, self.expr(tree.children[-1]))

    def _x_minus(self, tree: Part) -> ast.Expr:
        return self._prefix(tree, "-")

    def _x_plus_sign(self, tree: Part) -> ast.Expr:
        return self._prefix(tree, "+")

    def _x_negation(self, tree: Part) -> ast.Expr:
        return self._prefix(tree, "not")

    def _x_root(self, tree: Part) -> ast.Expr:
        root, operand = tree.children
        return ast.Call(self.span(tree), "sqrt", (self.expr(operand),), (), None, (), span_of(root))

    def _x_set(self, tree: Part) -> ast.Expr:
        return ast.SetOf(self.span(tree), tuple(self.expr(t) for t in tree.children))

    def _x_coordinate(self, tree: Part) -> ast.Expr:
        return ast.Coordinate(self.span(tree), self.expr(tree.children[0]), self.name(tree.children[1]).id)

    def _x_subscripted(self, tree: Part) -> ast.Expr:
        base, *rest = tree.children
        return ast.Subscripted(self.span(tree), self.expr(base), tuple(self.subscript(t) for t in rest))

    def subscript(self, tree: Part) -> ast.Expr | ast.Slice:
        if tree.data != "slice":
            return self.expr(tree)
        low, high = self.pick(tree.children, "low"), self.pick(tree.children, "high")
        first = None if low is None else self.expr(low.children[0])
        last = None if high is None else self.expr(high.children[0])
        return ast.Slice(self.span(tree), first, last)

    def _x_call(self, tree: Part) -> ast.Expr:
        name, *rest = tree.children
        clauses = ("names", "where", "option")
        values = tuple(self.expr(t) for t in rest if t.data not in clauses)
        over, where = self.pick(rest, "names"), self.pick(rest, "where")
        condition = None if where is None else self.expr(where.children[0])
        options = tuple(
            ast.Option(self.span(t), self.name(t.children[0]).id, self.expr(t.children[1]))
            for t in rest
            if t.data == "option"
        )
        indices = () if over is None else self.names(over)
        return ast.Call(self.span(tree), self.name(name).id, values, indices, condition, options, span_of(name))

    def selection(self, tree: Part) -> ast.Selection:
        rule, index, by, *rest = tree.children
        what: ast.Expr = self.name(rule) if isinstance(rule, Token) else self.expr(rule)
        assert isinstance(what, ast.Name | ast.Call)
        clause = {t.data: self.expr(t.children[0]) for t in rest}
        more = (clause.get("where"), clause.get("including"), clause.get("plus"))
        return ast.Selection(self.span(tree), what, self.name(index), self.expr(by), *more)

    _x_selection = selection
