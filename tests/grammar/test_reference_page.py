"""The blocks of REFERENCE.md: specs that lower, specs of later versions that parse, and a list of reserved words."""

import re

import pytest

from attncc.grammar import format_source, parse
from attncc.grammar.mistakes import NotCompiled
from attncc.grammar.names import FUNCTIONS
from attncc.grammar.reader import GRAMMAR
from attncc.grammar.syntax import WORDS

PAGE = GRAMMAR.with_name("REFERENCE.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", [t for kind, t in BLOCKS if kind == "attn"], ids=lambda t: t.split()[1])
def test_specs_lower(text: str) -> None:
    assert parse(text).out
    assert format_source(text) == text


@pytest.mark.parametrize("text", [t for kind, t in BLOCKS if kind == "attn-later"], ids=lambda t: t.split()[1])
def test_later_specs_parse_and_are_refused(text: str) -> None:
    assert format_source(text) == text
    with pytest.raises(NotCompiled):
        parse(text)


def test_the_page_is_whole() -> None:
    (reserved,) = re.findall(r"Reserved words: `([a-z\s]+)`", PAGE)
    assert {w.upper() for w in reserved.split()} == WORDS
    assert not [f for f in FUNCTIONS if not re.search(rf"\b{f}\b", PAGE)]
