"""The words of the Tile IR's text form, one line at a time."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from attncc.errors import InternalError

_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*\Z")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign>\.\.|\+=|->|//|\*\*|<=|==|!=|[-+*/%<=()\[\],:;@]))",
    re.ASCII,
)
RESERVED = frozenset({"true", "false", "inf", "and", "or", "not", "none"})


class TextError(InternalError):
    """A text of the Tile IR that can't be read."""

    code = "E940"


@dataclass(frozen=True, slots=True)
class Token:
    """A word: kind is number, string, name, sign or end."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line's depth of indentation, its words, its note and its number."""

    depth: int
    tokens: tuple[Token, ...]
    note: str
    number: int


def spell_name(name: str) -> str:
    """A name as it is written: bare where it is a word, in quotes where not."""
    return name if _WORD.match(name) and name not in RESERVED else json.dumps(name)


def spell_note(note: str) -> str:
    """A note as the end of a line."""
    return "  # " + note.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") if note else ""


def _read_note(text: str) -> str:
    table = {"\\n": "\n", "\\r": "\r", "\\\\": "\\"}
    return re.sub(r"\\[nr\\]", lambda m: table[m[0]], text)


def lines(text: str) -> list[Line]:
    """The lines that hold words, split into them."""
    found = []
    for number, raw in enumerate(text.split("\n"), 1):
        if raw.strip():
            found.append(_line(raw, number))
    return found


def _line(raw: str, number: int) -> Line:
    spaces = len(raw) - len(raw.lstrip(" "))
    if spaces % 2:
        raise TextError(f"line {number}: an odd indentation")
    tokens, note, at = [], "", 0
    while raw[at:].strip():
        rest = raw[at:].lstrip()
        if rest.startswith("#"):
            note = _read_note(rest[2:])
            break
        m = _TOKEN.match(raw, at)
        if m is None or m.lastgroup is None:
            raise TextError(f"line {number}: no word begins with {rest[:10]!r}")
        tokens.append(Token(m.lastgroup, m[m.lastgroup]))
        at = m.end()
    return Line(spaces // 2, tuple(tokens), note, number)


class Cursor:
    """A reader of one line's words."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.at = 0

    def peek(self, ahead: int = 0) -> Token:
        """A word to come."""
        at = self.at + ahead
        return self.line.tokens[at] if at < len(self.line.tokens) else Token("end", "")

    def next(self) -> Token:
        """The next word."""
        token = self.peek()
        self.at += 1
        return token

    def accept(self, *texts: str) -> bool:
        """Takes the next words if they are these."""
        if all(self.peek(n).text == t and self.peek(n).kind != "string" for n, t in enumerate(texts)):
            self.at += len(texts)
            return True
        return False

    def expect(self, text: str) -> None:
        """Takes the next word, which must be this one."""
        if not self.accept(text):
            raise self.error(f"{text!r} is wanted")

    def name(self) -> str:
        """A name, bare or in quotes."""
        token = self.next()
        if token.kind == "string":
            return str(json.loads(token.text))
        if token.kind != "name":
            self.at -= 1
            raise self.error("a name is wanted")
        return token.text

    def integer(self) -> int:
        """An integer literal, signed."""
        sign = -1 if self.accept("-") else 1
        token = self.next()
        if token.kind != "number" or not token.text.isdigit():
            raise self.error("an integer is wanted")
        return sign * int(token.text)

    def end(self) -> None:
        """Nothing may follow."""
        if self.peek().kind != "end":
            raise self.error("the line should end here")

    def error(self, message: str) -> TextError:
        """A complaint about the next word."""
        return TextError(f"line {self.line.number}: {message}, not {self.peek().text!r}")
