"""Canonical formatting: spacing, indentation, spellings and aligned `=`; line breaks and comments stay the author's.

Works on tokens, so nothing can get lost; the syntax tree only says which colons declare an index.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lark import Token

from attncc.grammar.lines import CLOSERS
from attncc.grammar.reader import lex, parse_tree, read_tree
from attncc.grammar.syntax import OPERATORS, WORDS

INDENT = 4
SPELLING = {"·": "@", "≤": "<=", "≥": ">="}
ALIGNED = {"score", "mask", "out"}
TIGHT_BEFORE = {"RPAR", "RSQB", "RBRACE", "COMMA", "SEMICOLON", "COLON", "DOT"}
TIGHT_AFTER = {"LPAR", "LSQB", "LBRACE", "DOT", "ROOT"}
CLOSING = frozenset(CLOSERS.values())


@dataclass
class _Line:
    """One line as written: its tokens, its comment, and where it stands."""

    tokens: list[Token] = field(default_factory=list)
    comment: Token | None = None
    level: int = 0
    inside: bool = False  # it goes on inside a bracket
    pad: int = 0  # spaces before an aligned `=`

    @property
    def blank(self) -> bool:
        return not self.tokens and self.comment is None


def format_text(text: str) -> str:
    """The canonical form of a text that parses."""
    read_tree(text)
    declaring = {t.children[0].start_pos for t in parse_tree(text).find_data("new_axis")}
    lines = _lines(_spelled([t for t in lex(text, comments=True) if not t.isspace() or t.type == "NEWLINE"]))
    _levels(lines)
    _align(lines)
    return _Printer(declaring).print(lines)


def _spelled(tokens: list[Token]) -> list[Token]:
    """One spelling for each word; `√x` --> `sqrt(x)`."""
    out: list[Token] = []
    index = 0
    ends: list[int] = []  # where an opened `sqrt(` closes
    while index < len(tokens):
        token = tokens[index]
        if token.type == "ROOT":
            out.append(Token.new_borrow_pos("NAME", "sqrt", token))
            if tokens[index + 1].type != "LPAR" or _operand_end(tokens, index + 1) != _match(tokens, index + 1) + 1:
                out.append(Token.new_borrow_pos("LPAR", "(", token))
                ends.append(_operand_end(tokens, index + 1))
        else:
            text = SPELLING.get(str(token), str(token).rstrip() if token.type == "COMMENT" else str(token))
            out.append(Token.new_borrow_pos(token.type, text, token))
        index += 1
        while ends and ends[-1] == index:
            ends.pop()
            out.append(Token.new_borrow_pos("RPAR", ")", token))
    return out


def _match(tokens: list[Token], index: int) -> int:
    """The index of the bracket that closes the one at `index`."""
    depth = 0
    while True:
        depth += (tokens[index].type in CLOSERS) - (tokens[index].type in CLOSING)
        if depth == 0:
            return index
        index += 1


def _operand_end(tokens: list[Token], index: int) -> int:
    """The index after the operand of a root that starts at `index`: a word or a bracket, then [..], (..), .name."""
    while tokens[index].type == "ROOT":
        index += 1
    index = _match(tokens, index) + 1 if tokens[index].type in CLOSERS else index + 1
    while index < len(tokens):
        if tokens[index].type == "LSQB" or (tokens[index].type == "LPAR" and tokens[index - 1].type == "NAME"):
            index = _match(tokens, index) + 1
        elif tokens[index].type == "DOT":
            index += 2
        else:
            break
    return index


def _lines(tokens: list[Token]) -> list[_Line]:
    lines = [_Line()]
    depth = 0
    for token in tokens:
        if token.type == "NEWLINE":
            lines.append(_Line(inside=depth > 0))
        elif token.type == "COMMENT":
            lines[-1].comment = token
        else:
            lines[-1].tokens.append(token)
            depth += (token.type in CLOSERS) - (token.type in CLOSING)
    for line in lines:
        if line.tokens and line.tokens[-1].type == "SEMICOLON":
            line.tokens.pop()
    return lines


def _levels(lines: list[_Line]) -> None:
    """How deep each line stands; a comment of its own belongs to the block its column is in."""
    columns = [1]
    waiting: list[tuple[_Line, list[int]]] = []
    for line in lines:
        if line.inside or line.blank:
            continue
        if not line.tokens:
            waiting.append((line, list(columns)))
            continue
        column = line.tokens[0].column or 1
        while column < columns[-1]:
            columns.pop()
        if column > columns[-1]:
            columns.append(column)
        line.level = len(columns) - 1
        for comment, before in waiting:
            comment.level = _comment_level(comment, before, columns)
        waiting.clear()
    for comment, before in waiting:
        comment.level = _comment_level(comment, before, [1])


def _comment_level(line: _Line, before: list[int], after: list[int]) -> int:
    assert line.comment is not None
    column = line.comment.column or 1
    known = before if len(before) > len(after) else after
    return max(n for n, c in enumerate(known) if c <= column)


def _align(lines: list[_Line]) -> None:
    """score, mask and out in a row of lines have their `=` in one column."""
    run: list[_Line] = []
    for line in [*lines, _Line()]:
        if line.inside:
            continue
        tokens = line.tokens
        fits = len(tokens) > 1 and str(tokens[0]) in ALIGNED and tokens[1].type == "EQUAL"
        if fits and (not run or run[0].level == line.level):
            run.append(line)
            continue
        width = max((len(r.tokens[0]) for r in run), default=0)
        for r in run:
            r.pad = width - len(r.tokens[0])
        run = [line] if fits else []


class _Printer:
    def __init__(self, declaring: set[int | None]) -> None:
        self.declaring = declaring
        self.open: list[tuple[str, int, int]] = []  # type, column of what follows inside, indent of its line
        self.last: tuple[Token | None, Token | None] = (None, None)

    def print(self, lines: list[_Line]) -> str:
        out: list[str] = []
        for line in lines:
            if not line.blank:
                out.append(self.line(line))
            elif out and out[-1] and not line.inside:
                out.append("")
        return "\n".join(out).strip("\n") + "\n"

    def line(self, line: _Line) -> str:
        indent = self.indent(line)
        text = " " * indent
        before, last = self.last if line.inside else (None, None)
        for token in line.tokens:
            if last is not None and token is not line.tokens[0] and self.spaced(before, last, token):
                text += " "
            if token.type == "EQUAL" and last is line.tokens[0]:
                text += " " * line.pad
            text += token
            if token.type in CLOSERS:
                ends_line = token is line.tokens[-1]
                self.open.append((token.type, indent + INDENT if ends_line else len(text), indent))
            elif token.type in CLOSING:
                self.open.pop()
            before, last = last, token
        self.last = (before, last)
        if line.comment is None:
            return text
        return f"{text}  {line.comment}" if line.tokens else text + line.comment

    def indent(self, line: _Line) -> int:
        if not self.open:
            return line.level * INDENT
        _, column, outer = self.open[-1]
        closes = bool(line.tokens) and line.tokens[0].type in CLOSING
        return outer if closes and column == outer + INDENT else column

    def spaced(self, before: Token | None, last: Token, token: Token) -> bool:
        """Whether a space stands between two tokens of a line."""
        if last.type == "COLON":
            return not self.slicing(before)
        if token.type == "COLON" and self.slicing(last) and last.type == "COMMA":
            return True
        if token.type in TIGHT_BEFORE or last.type in TIGHT_AFTER:
            return False
        if last.type in ("SUB", "ADD") and _prefix(before):
            return False
        if token.type == "LPAR":
            return last.type != "NAME"
        if token.type == "LSQB":
            return last.type not in ("NAME", "RSQB", "RPAR")
        return True

    def slicing(self, name: Token | None) -> bool:
        """Whether the colon after `name` makes a slice."""
        inside = bool(self.open) and self.open[-1][0] == "LSQB"
        return inside and (name is None or name.start_pos not in self.declaring)


def _prefix(before: Token | None) -> bool:
    """Whether a sign after this token has no left operand."""
    signs = OPERATORS | WORDS | {"COMMA", "EQUAL", "COLON", "SEMICOLON"} | set(CLOSERS)
    return before is None or before.type in signs
