"""The language: text of a spec --> Spec IR. The four functions below are the whole face of the front end."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from attncc.diagnostics import Source, Span
from attncc.errors import SpecError
from attncc.grammar.mistakes import NotUtf8, SeveralSpecs, TooDeep, Unreadable

if TYPE_CHECKING:
    from attncc.ir.nodes import Spec

__all__ = ["format_source", "parse", "parse_all", "read"]


def parse(text: str, name: str = "<spec>") -> Spec:
    """The one attention of a text; `name` is what diagnostics call it. Raises a SpecError."""
    specs = parse_all(text, name)
    if len(specs) > 1:
        hint = "keep one attention a file"
        message = f"{len(specs)} attentions in this text, and one is wanted"
        raise SeveralSpecs(message, specs[1].span, hint=hint, source=Source(name, text))
    return specs[0]


def parse_all(text: str, name: str = "<spec>") -> tuple[Spec, ...]:
    """Every attention of a text, in order. Raises a SpecError."""
    from attncc.expr.nodes import placing
    from attncc.grammar.lower import lower
    from attncc.grammar.reader import read_tree

    source = Source(name, text)
    try:
        with placing() as places:
            specs = lower(read_tree(text))
        return tuple(replace(s, places=tuple(places.items())) for s in specs)
    except SpecError as error:
        error.source = error.source or source
        raise
    except RecursionError:
        hint = "give inner parts names with `let`"
        raise TooDeep("expressions are nested too deeply", Span(1, 1), hint=hint, source=source) from None


def read(where: str | os.PathLike[str] | bytes, name: str = "<spec>") -> Source:
    """The text of a file, or of bytes; Unreadable and NotUtf8 where that fails."""
    if isinstance(where, bytes):
        data = where
    else:
        name = os.fspath(where)
        try:
            data = Path(where).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreadable(f"{name} cannot be read: {reason}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        source = Source(name, data.decode("utf-8", "replace"))
        message = f"byte 0x{data[error.start]:02X} at position {error.start} is not UTF-8"
        raise NotUtf8(message, Span(line, column), hint="save the file as UTF-8", source=source) from None
    return Source(name, text)


def format_source(text: str, name: str = "<spec>") -> str:
    """The text in canonical form; comments stay. Raises a SpecError where it does not parse."""
    from attncc.grammar.format import format_text

    try:
        return format_text(text)
    except SpecError as error:
        error.source = error.source or Source(name, text)
        raise
