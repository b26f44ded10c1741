"""Scalar expressions in the text form of the Tile IR: infix, and read back to the very same nodes.

A Var's sort is that of the name in scope (int where it is unknown) or written after it, as in x@real.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Op, Sort, Var, walk
from attncc.expr.ops import OPS
from attncc.tile.text_lexer import Cursor, spell_name

Sorts = Mapping[str, Sort]

_LEVEL = {"or": 1, "and": 2, "not": 3, "lt": 4, "le": 4, "eq": 4, "ne": 4, "add": 5, "sub": 5}
_LEVEL |= {"mul": 6, "div": 6, "floordiv": 6, "mod": 6, "neg": 7, "pow": 8}
_COMPARE, _UNARY, _ATOM = 4, 7, 9
_DIGITS = re.compile(r"-?(\d|inf\b)")
"""What a minus sign would join into one literal."""
_INFIX = {OPS[name].infix: name for name in _LEVEL if OPS[name].arity == 2}


def spell_number(x: float | bool) -> str:
    """A literal."""
    return ("true" if x else "false") if isinstance(x, bool) else repr(x)


def spell_expr(e: Expr, sorts: Sorts) -> str:
    """`e` as text; shared nodes are written out each time."""
    done: dict[Expr, tuple[str, int]] = {}
    for node in walk(e):
        done[node] = _spell(node, done, sorts)
    return done[e][0]


def _spell(e: Expr, done: dict[Expr, tuple[str, int]], sorts: Sorts) -> tuple[str, int]:
    def fit(x: Expr, level: int) -> str:
        text, own = done[x]
        return text if own >= level else f"({text})"

    match e:
        case Const(value, _):
            return spell_number(value), _UNARY if value < 0 else _ATOM
        case Var(name, sort):
            return spell_name(name) + ("" if sorts.get(name, "int") == sort else f"@{sort}"), _ATOM
        case Op("not", (x,), _):
            return f"not {fit(x, _LEVEL['not'])}", _LEVEL["not"]
        case Op("neg", (x,), _) if not _DIGITS.match(done[x][0]):
            return f"-{fit(x, _LEVEL['pow'])}", _UNARY
        case Op(name, (a, b), _) if name in _LEVEL:
            level = _LEVEL[name]
            left = level + 1 if level in (_COMPARE, _LEVEL["pow"]) else level
            return f"{fit(a, left)} {OPS[name].infix} {fit(b, level + 1)}", level
        case Op(name, args, _):
            return f"{name}({', '.join(done[a][0] for a in args)})", _ATOM
        case _:
            raise TypeError(f"{type(e).__name__} does not belong in the Tile IR")


def read_number(c: Cursor) -> float | bool:
    """A literal, signed."""
    if c.accept("true"):
        return True
    if c.accept("false"):
        return False
    sign = -1 if c.accept("-") else 1
    if c.accept("inf"):
        return sign * float("inf")
    token = c.next()
    if token.kind != "number":
        c.at -= 1
        raise c.error("a number is wanted")
    return sign * (int(token.text) if token.text.isdigit() else float(token.text))


def _literal(x: float | bool) -> Const:
    return Const(x, "bool" if isinstance(x, bool) else "int" if isinstance(x, int) else "real")


def read_expr(c: Cursor, sorts: Sorts, level: int = 1) -> Expr:
    """The expression of at least this level that begins here."""
    left = _prefix(c, sorts, level)
    while c.peek().kind in ("sign", "name") and (name := _INFIX.get(c.peek().text)) and _LEVEL[name] >= level:
        c.next()
        left = op(name, left, read_expr(c, sorts, _LEVEL[name] + 1))
    return left


def _prefix(c: Cursor, sorts: Sorts, level: int) -> Expr:
    token = c.peek()
    if token.kind == "number" or (token.text in ("true", "false", "inf") and token.kind == "name"):
        return _literal(read_number(c))
    if token.text == "-" and (c.peek(1).kind == "number" or c.peek(1).text == "inf"):
        return _literal(read_number(c))
    if c.accept("-"):
        return op("neg", read_expr(c, sorts, _LEVEL["pow"]))
    if c.accept("not"):
        return op("not", read_expr(c, sorts, _LEVEL["not"]))
    if c.accept("("):
        inner = read_expr(c, sorts)
        c.expect(")")
        return inner
    if token.kind == "name" and token.text in OPS and c.peek(1).text == "(":
        return _call(c, sorts)
    name = c.name()
    if c.accept("@"):
        return Var(name, _sort(c))
    return Var(name, sorts.get(name, "int"))


def _sort(c: Cursor) -> Sort:
    table: dict[str, Sort] = {"int": "int", "real": "real", "bool": "bool"}
    word = c.name()
    if word not in table:
        raise c.error("int, real or bool is wanted before this")
    return table[word]


def _call(c: Cursor, sorts: Sorts) -> Expr:
    name = c.name()
    c.expect("(")
    args = [read_expr(c, sorts)]
    while c.accept(","):
        args.append(read_expr(c, sorts))
    c.expect(")")
    return op(name, *args)
