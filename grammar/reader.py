"""Text --> syntax tree: the lexer, the LALR tables and their cache, and the road to a good syntax error.

Building the tables takes a third of a second, loading them ten milliseconds, so they are kept in the user's cache
folder under a name that changes with the grammar, lark and Python. Where that folder can't be written they are built.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import lark
from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from attncc.debug import setting
from attncc.diagnostics import Span
from attncc.grammar import tree as ast
from attncc.grammar.build import Builder
from attncc.grammar.lines import arrange, refuse_tabs
from attncc.grammar.mistakes import BadCharacter, EmptySpec
from attncc.grammar.syntax import explain, stray

GRAMMAR = Path(__file__).with_name("attention.lark")


def read_tree(text: str) -> ast.File:
    """The syntax tree of a text; SpecErrors carry no source yet."""
    file = Builder(text.splitlines()).file(parse_tree(text))
    if not file.attentions:
        hint = "the least one is `attention full: out = softmax(q @ k / sqrt(D)) @ v`"
        raise EmptySpec("no `attention` in this text", Span(1, 1), hint=hint)
    return file


def parse_tree(text: str) -> Any:
    """Lark's tree of a text."""
    refuse_tabs(text)
    tokens = arrange(lex(text))
    end = tokens[-1] if tokens else Token("NEWLINE", "", 0, 1, 1)
    tokens.append(Token.new_borrow_pos("$END", "", end))
    parser = tables().parse_interactive()
    root: Any = None
    for index, token in enumerate(tokens):
        try:
            root = parser.feed_token(token)
        except UnexpectedToken:
            raise explain(tokens, index, _accepted(tokens[:index])) from None
    return root


def _accepted(tokens: list[Token]) -> frozenset[str]:
    """What may follow these tokens. Asked anew: a failing token has already folded what stands before it."""
    parser = tables().parse_interactive()
    for token in tokens:
        parser.feed_token(token)
    return frozenset(parser.accepts())  # type: ignore[no-untyped-call]


def lex(text: str, *, comments: bool = False) -> list[Token]:
    """The tokens of a text; with `comments` the ignored ones too."""
    try:
        return list(tables().lex(text, dont_ignore=comments))
    except UnexpectedCharacters as error:
        message, hint = stray(error.char)
        raise BadCharacter(message, Span(error.line, error.column), hint=hint) from None


@cache
def tables() -> Lark:
    """The parser, from the cache where that holds it."""
    grammar = GRAMMAR.read_text(encoding="utf-8")
    place = _cache_file(grammar)
    if place is not None and place.is_file():
        try:
            with place.open("rb") as file:
                return Lark.load(file)
        except Exception:  # a cut or foreign file: pickle may raise anything, and building is always right
            pass
    built = Lark(grammar, parser="lalr", lexer="basic", propagate_positions=True, maybe_placeholders=False)
    if place is not None:
        _store(built, place)
    return built


def _cache_file(grammar: str) -> Path | None:
    key = f"{lark.__version__} {sys.version_info[:2]} {grammar}".encode()
    name = f"grammar-{hashlib.sha256(key).hexdigest()[:20]}.tables"
    try:
        folder = setting("ATTNCC_CACHE")
        if folder == "off":
            return None
        if folder:
            return Path(folder).expanduser() / name
        import platformdirs

        return Path(platformdirs.user_cache_dir("attncc", appauthor=False)) / name
    except (RuntimeError, OSError):
        return None


def _store(built: Lark, place: Path) -> None:
    """Written beside and moved into place, so that nobody reads half a file; failing to write is no error."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            built.save(file)
        os.replace(file.name, place)
    except (OSError, pickle.PicklingError):
        return
