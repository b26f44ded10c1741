"""An indented text writer: lines in, a module's text out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from string import ascii_letters, digits

INDENT = "    "
WIDTH = 120
_NAME = {*ascii_letters, *digits, *"_ +,"}
"""Characters on the left of an assignment."""


def wrapped(text: str, width: int, inside: bool = False) -> list[str]:
    """A long statement with the arguments of its longest call on lines of their own; as it is where it has none.

    `inside` brackets a line may also end between terms.
    """
    if len(text) <= width:
        return [text]
    if text.startswith("(") and len(_filled(text, width)) > 1:
        return _filled(text, width)
    calls = [(b, e) for b, e in _brackets(text) if b and _is_call(text, b, e)]
    terms = _terms(text) if inside else []
    if len(terms) > 1 and (len(terms) > 2 or not calls):
        return _joined(terms, width)
    if not calls:
        return [text] if inside else _bracketed(text, width)
    begin, end = max(calls, key=lambda pair: pair[1] - pair[0])
    if begin >= width and not inside and len(_bracketed(text, width)) > 1:
        return _bracketed(text, width)
    parts = _split(text[begin + 1 : end])
    lone = len(parts) == 1 and (text[begin] == "[" or " for " in parts[0])
    inner = [line for p in parts for line in wrapped(p if lone else f"{p},", width - len(INDENT), inside=True)]
    return [text[: begin + 1], *(f"{INDENT}{line}" for line in inner), text[end:]]


def _bracketed(text: str, width: int) -> list[str]:
    """A long assignment whose value is a sum, in brackets; as it is where it is no such thing."""
    target, sign, value = text.partition("= ")
    if not sign or not set(target) <= _NAME or len(terms := _terms(value)) < 2:
        return [text]
    return [f"{target}= (", *(f"{INDENT}{line}" for line in _joined(terms, width - len(INDENT))), ")"]


def _is_call(text: str, begin: int, end: int) -> bool:
    """Whether a bracket holds arguments, or an index that is worth a line."""
    named = text[begin - 1].isalnum() or text[begin - 1] in "_)]"
    return named and not set(text[begin + 1 : end]) <= set(": ,None")


def _terms(text: str) -> list[str]:
    """The terms of a sum, or of a conjunction, each but the first with its operator."""
    covered = _brackets(text)
    for sign in (" & ", " + "):
        places = [n for n in _found(text, sign) if not any(b < n < e for b, e in covered)]
        if places:
            ends = [*places, len(text)]
            return [text[a:b].strip() for a, b in zip([0, *places], ends, strict=True)]
    return [text]


def _found(text: str, part: str) -> list[int]:
    return [n for n in range(len(text)) if text.startswith(part, n)]


def _joined(terms: list[str], width: int) -> list[str]:
    """As many terms to a line as fit."""
    lines = terms[:1]
    for term in terms[1:]:
        if len(lines[-1]) + len(term) + 1 <= width:
            lines[-1] += f" {term}"
        else:
            lines.append(term)
    return lines


def _filled(text: str, width: int) -> list[str]:
    """A long tuple with as many parts to a line as fit; as it is where something else stands beside it."""
    begin, end = _brackets(text)[0]
    if begin or text[end + 1 :] not in ("", ","):
        return [text]
    lines: list[str] = []
    for part in _split(text[1:end]):
        if lines and len(lines[-1]) + len(part) + len(INDENT) + 3 <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return ["(", *(f"{INDENT}{line}," for line in lines), text[end:]]


def _brackets(text: str) -> list[tuple[int, int]]:
    """(opening, closing) positions of the outermost brackets; of those that are closed only, nothing."""
    pairs, opened, quote = [], [], ""
    for n, c in enumerate(text):
        if quote or c in "\"'":
            quote = "" if c == quote else quote or c
        elif c in "([{":
            opened.append(n)
        elif c in ")]}" and opened:
            first = opened.pop()
            if not opened:
                pairs.append((first, n))
    return pairs


def _split(text: str) -> list[str]:
    """The parts between the outermost commas."""
    covered = _brackets(text)
    commas = [n for n, c in enumerate(text) if c == "," and not any(b < n < e for b, e in covered)]
    ends = [*commas, len(text)]
    parts = [text[a:b].strip() for a, b in zip([0, *(n + 1 for n in commas)], ends, strict=True)]
    return [p for p in parts if p]


class Writer:
    """Collects lines at the current depth of indentation."""

    def __init__(self, depth: int = 0) -> None:
        self._lines: list[str] = []
        self._depth = depth

    @property
    def depth(self) -> int:
        """The current indentation, in steps."""
        return self._depth

    def append(self, other: Writer) -> None:
        """Everything another writer has written."""
        self._lines += other._lines

    def line(self, text: str = "", note: str = "") -> None:
        """One statement; `note` becomes a comment behind it, or above it where the line would grow too long."""
        if note and len(INDENT) * self._depth + len(text) + len(note) + 4 > WIDTH:
            self._lines.append(f"{INDENT * self._depth}# {note}")
            note = ""
        pad = INDENT * self._depth
        if len(pad) + len(text) > WIDTH:
            self._lines += [f"{pad}{part}" for part in wrapped(text, WIDTH - len(pad))]
            return
        tail = f"  # {note}" if note else ""
        self._lines.append(f"{pad}{text}{tail}".rstrip())

    def lines(self, text: str) -> None:
        """Several lines, each put at the current depth."""
        for part in text.splitlines():
            self.line(part)

    def verbatim(self, text: str) -> None:
        """Lines that are laid out already."""
        self._lines += text.splitlines()

    def comment(self, text: str) -> None:
        """A comment on lines of its own; nothing for an empty text."""
        for part in text.splitlines():
            self.line(f"# {part}")

    @contextmanager
    def block(self, header: str, note: str = "") -> Iterator[None]:
        """`header` and, deeper by one, what is written inside; `pass` where nothing is."""
        self.line(header, note)
        before = len(self._lines)
        self._depth += 1
        try:
            yield
            if len(self._lines) == before:
                self.line("pass")
        finally:
            self._depth -= 1

    def room(self) -> int:
        """How many columns are left at this depth."""
        return WIDTH - len(INDENT) * self._depth

    def deeper(self) -> None:
        """What follows is indented by one more."""
        self._depth += 1

    def shallower(self) -> None:
        """What follows is indented by one less."""
        self._depth -= 1

    def call(self, target: str, args: list[str], tail: str = "") -> None:
        """`target(args)tail`, one argument a line where it does not fit on one."""
        flat = f"{target}({', '.join(args)}){tail}"
        if len(INDENT) * self._depth + len(flat) <= WIDTH:
            self.line(flat)
            return
        self.line(f"{target}(")
        self._depth += 1
        for arg in args:
            self._lines += [f"{INDENT * self._depth}{part}" for part in wrapped(f"{arg},", self.room(), inside=True)]
        self._depth -= 1
        self.line(f"){tail}")

    def chained(self, variable: str, call: str) -> None:
        """`variable.call`, joined to the line before where that is a chain of calls on the same variable."""
        pad = INDENT * self._depth
        joined = f"{self._lines[-1]}.{call}" if self._lines else ""
        if (
            joined.startswith(f"{pad}{variable}.")
            and not joined.startswith(f"{pad}{variable}.flatten(")  # a chain on a view gives the view
            and "#" not in joined
            and " = " not in joined
            and len(joined) <= WIDTH
        ):
            self._lines[-1] = joined
        else:
            self.line(f"{variable}.{call}")

    def text(self) -> str:
        """Everything written so far."""
        return "\n".join(self._lines) + "\n" if self._lines else ""
