"""Tokens as the lexer gives them --> tokens as the grammar wants them: logical lines, blocks, balanced brackets."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lark import Token

from attncc.diagnostics import Span
from attncc.grammar.mistakes import BadIndent, BadNumber, MissingColon, TabIndent, TooDeep, Unbalanced

MAX_BRACKETS = 100
CLOSERS = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}


def span_of(token: Token) -> Span:
    """Where a token stands."""
    return Span(token.line or 1, token.column or 1, max(1, len(token) if token.type != "NEWLINE" else 1))


def refuse_tabs(text: str) -> None:
    """TabIndent at the first line that a tab indents."""
    found = re.search(r"^ *(\t)[ \t]*[^\s#]", text, re.MULTILINE)
    if found:
        line = text.count("\n", 0, found.start(1)) + 1
        column = found.start(1) - text.rfind("\n", 0, found.start(1))
        raise TabIndent("a tab in the indentation", Span(line, column), hint="indent with spaces, four a block")


def arrange(tokens: Iterable[Token]) -> list[Token]:
    """NEWLINE only where a statement ends, INDENT and DEDENT around blocks; brackets are checked on the way."""
    out: list[Token] = []
    brackets: list[Token] = []
    columns = [1]
    fresh = True  # at the start of a logical line
    for token in tokens:
        if token.type == "NEWLINE":
            if not brackets and not fresh:
                out.append(token)
                fresh = True
            continue
        if fresh:
            _indent(token, columns, out)
            fresh = False
        _number(token, out)
        _bracket(token, brackets)
        out.append(token)
    if brackets:
        opened = brackets[-1]
        raise Unbalanced(f"`{opened}` is never closed", span_of(opened), hint=f"add the closing `{_closer(opened)}`")
    if not fresh:
        out.append(_empty("NEWLINE", out[-1]))
    out.extend(_empty("DEDENT", out[-1]) for _ in columns[1:])
    return out


def _indent(token: Token, columns: list[int], out: list[Token]) -> None:
    column = token.column or 1
    if column > columns[-1]:
        opens = len(out) >= 2 and out[-1].type == "NEWLINE" and out[-2].type == "COLON"
        if not opens:
            if line_starts(out, len(out) - 1) in ("ATTENTION", "FOR"):
                raise missing_colon(out[-1])
            hint = "statements of a block start at the same column; an expression goes on inside brackets"
            raise BadIndent("this line is indented and no block begins here", span_of(token), hint=hint)
        columns.append(column)
        out.append(_empty("INDENT", token))
    known = ", ".join(str(c) for c in columns)
    while column < columns[-1]:
        columns.pop()
        out.append(_empty("DEDENT", token))
    if column != columns[-1]:
        hint = "statements of a block start at the same column"
        message = f"this line starts at column {column}, and the blocks above at {known}"
        raise BadIndent(message, span_of(token), hint=hint)


def line_starts(tokens: list[Token], index: int) -> str:
    """The type of the first token of the logical line that `index` is in."""
    start = index
    while start > 0 and tokens[start - 1].type not in ("NEWLINE", "INDENT", "DEDENT"):
        start -= 1
    return tokens[start].type if tokens else ""


def missing_colon(end: Token) -> MissingColon:
    """For a header that ends in a line end."""
    return MissingColon("this line wants a `:` at its end", span_of(end), hint="the statements follow, indented")


def _number(token: Token, out: list[Token]) -> None:
    """`.5`, `5.` and `2x` are read as two tokens; nobody means two."""
    last = out[-1] if out else None
    if last is None or last.end_pos != token.start_pos:
        return
    pair = (last.type, token.type)
    text = last + token
    if pair == ("DOT", "NUMBER"):
        hint = f"write `0{text}`"
    elif pair == ("NUMBER", "DOT"):
        hint = f"write `{text}0`"
    elif last.type == "NUMBER" and (token[0].isalpha() or token[0] == "_" or token.type == "NUMBER"):
        hint = f"a product is written `{last} * {token}`"
    else:
        return
    raise BadNumber(f"`{text}` is no number", Span(last.line or 1, last.column or 1, len(text)), hint=hint)


def _bracket(token: Token, brackets: list[Token]) -> None:
    if token.type in CLOSERS:
        brackets.append(token)
        if len(brackets) > MAX_BRACKETS:
            hint = "give inner parts names with `let`"
            raise TooDeep(f"more than {MAX_BRACKETS} brackets inside one another", span_of(token), hint=hint)
    elif token.type in CLOSERS.values():
        if not brackets:
            raise Unbalanced(f"`{token}` closes nothing", span_of(token), hint="remove it, or open the bracket before")
        opened = brackets.pop()
        if CLOSERS[opened.type] != token.type:
            where = f"the `{opened}` of line {opened.line}, column {opened.column}"
            hint = f"`{_closer(opened)}` closes it"
            raise Unbalanced(f"`{token}` cannot close {where}", span_of(token), hint=hint)


def _closer(opened: Token) -> str:
    return {"(": ")", "[": "]", "{": "}"}[str(opened)]


def _empty(kind: str, at: Token) -> Token:
    return Token.new_borrow_pos(kind, "", at)
