"""Where something stands in a spec, and how it is shown: Source, Span, Diagnostic, carets, "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """A spec's text and the name it is reported under."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """The line of a 1-based number, without its end."""
        lines = self.text.splitlines()
        return lines[number - 1] if 0 < number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a source: 1-based line and column, and how many columns it covers (at least one)."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message: a code such as E203, what is wrong, where, and what to write instead."""

    code: str
    message: str
    span: Span | None = None
    hint: str = ""

    def render(self, source: Source | None = None) -> str:
        """file:line:column, the message, the line, carets, the hint."""
        if self.span is None or source is None:
            head = f"{source.name}: " if source else ""
            body = f"{head}error[{self.code}]: {self.message}"
        else:
            line = source.line(self.span.line)
            pad = "".join("\t" if c == "\t" else " " for c in line[: self.span.column - 1])
            room = max(1, min(self.span.width, len(line) - self.span.column + 1))
            place = f"{source.name}:{self.span.line}:{self.span.column}"
            body = f"{place}: error[{self.code}]: {self.message}\n  {line}\n  {pad}{'^' * room}"
        return f"{body}\n  hint: {self.hint}" if self.hint else body


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest known spelling, or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""
