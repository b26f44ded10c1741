"""The grammar itself: LALR(1) without conflicts, terminals without collisions."""

import logging

import pytest
from lark import Lark, logger

from attncc.grammar.reader import GRAMMAR
from attncc.grammar.syntax import WORDS


def test_no_conflicts() -> None:
    pytest.importorskip("interegular", reason="lark's strict mode compares terminals with it")
    Lark(GRAMMAR.read_text(encoding="utf-8"), parser="lalr", lexer="basic", strict=True)


def test_no_conflict_is_resolved_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    logger.setLevel(logging.DEBUG)
    try:
        with caplog.at_level(logging.DEBUG, logger=logger.name):
            Lark(GRAMMAR.read_text(encoding="utf-8"), parser="lalr", lexer="basic", debug=True)
    finally:
        logger.setLevel(logging.CRITICAL)
    assert not [r for r in caplog.records if "conflict" in r.getMessage().lower()]


def test_every_reserved_word_is_known_to_the_diagnostics() -> None:
    built = Lark(GRAMMAR.read_text(encoding="utf-8"), parser="lalr", lexer="basic")
    words = {t.name for t in built.terminals if t.pattern.type == "str" and t.pattern.value.isalpha()}
    assert words == WORDS
