"""An unexpected token --> the SpecError that says what is meant."""

from __future__ import annotations

from lark import Token

from attncc.errors import SpecError
from attncc.grammar.lines import line_starts, missing_colon, span_of
from attncc.grammar.mistakes import (
    ChainedComparison,
    EqualsForComparison,
    ReservedWord,
    SyntaxMistake,
)

STATEMENTS = {"LET", "EMIT", "SELECT", "STATE", "FROZEN", "AXES", "QUANTIZE", "CACHE"}
WORDS = STATEMENTS | {
    "DEF", "ATTENTION", "IN", "FOR", "SET", "OF", "EVERY", "PER", "BY", "INCLUDING", "PLUS", "IF", "ELSE", "OR", "AND",
    "NOT", "OVER", "WHERE",
}  # fmt: skip
PRINTED = {
    "NAME": "a name", "NUMBER": "a number", "NEWLINE": "the end of the line", "INDENT": "an indented block",
    "DEDENT": "the end of the block", "$END": "the end of the text", "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`",
    "RSQB": "`]`", "LBRACE": "`{`", "RBRACE": "`}`", "COLON": "`:`", "COMMA": "`,`", "EQUAL": "`=`",
    "SEMICOLON": "`;`", "DOT": "`.`",
}  # fmt: skip
OPERATORS = {"COMPARE", "ADD", "SUB", "MUL", "DIV", "FLOORDIV", "MOD", "AT", "POWER", "ROOT", "AND", "OR", "IF"}
LOOKALIKES = {
    "&": "`and`", "|": "`or`", "!": "`not`, or `!=`", "^": "`**`", "×": "`*`", "÷": "`/`", "−": "`-`", "∈": "`in`",
    "≠": "`!=`", "∧": "`and`", "∨": "`or`", "¬": "`not`", "∞": "`inf`", "Σ": "`sum(x over j)`", "∑": "`sum(x over j)`",
    "⊙": "`*`", "…": "nothing: every term is spelled out", "?": "`a if c else b`",
}  # fmt: skip


def stray(char: str) -> tuple[str, str]:
    """Message and hint for a character no token starts with."""
    shown = char if char.isprintable() else f"U+{ord(char):04X}"
    if char in "\"'":
        return f"`{shown}` means nothing here", "specs have no strings"
    known = LOOKALIKES.get(char)
    return f"`{shown}` means nothing here", f"write {known}" if known else ""


def explain(tokens: list[Token], index: int, accepts: frozenset[str]) -> SpecError:
    """The mistake behind `tokens[index]`, where the grammar accepts only `accepts`."""
    token = tokens[index]
    last = tokens[index - 1] if index else None
    return _special(tokens, index, last, accepts) or SyntaxMistake(
        f"expected {_list(accepts)}, found {_shown(token)}", span_of(token), hint=_hint(token, last, accepts)
    )


def _special(tokens: list[Token], index: int, last: Token | None, accepts: frozenset[str]) -> SpecError | None:
    token = tokens[index]
    place = span_of(token)
    if token.type == "NEWLINE" and "COLON" in accepts and line_starts(tokens, index) in ("ATTENTION", "FOR"):
        return missing_colon(token)
    if token.type in ("COMPARE", "IN") and _compared(tokens, index):
        hint = "join two with `and`: `0 <= j and j <= i`"
        return ChainedComparison("comparisons do not chain", place, hint=hint)
    if token.type == "EQUAL" and "COMPARE" in accepts:
        return EqualsForComparison("`=` names a value and compares nothing", place, hint="a comparison is written `==`")
    if token.type == "COMPARE" and str(token) == "==" and "EQUAL" in accepts:
        return SyntaxMistake("`==` compares, and a name is given here", place, hint="write `=`")
    if token.type in WORDS and "NAME" in accepts and not (token.type in OPERATORS and last is not None):
        hint = "take another name"
        return ReservedWord(f"`{token}` is a word of the language and no name", place, hint=hint)
    return None


def _compared(tokens: list[Token], index: int) -> bool:
    """Whether a comparison stands to the left on the same bracket level, with no logic or clause between."""
    level = 0
    for token in reversed(tokens[:index]):
        if token.type in ("RPAR", "RSQB", "RBRACE"):
            level += 1
        elif token.type in ("LPAR", "LSQB", "LBRACE"):
            level -= 1
            if level < 0:
                return False
        elif level == 0:
            if token.type in ("COMPARE", "IN"):
                return True
            if token.type in WORDS or token.type in ("NEWLINE", "EQUAL", "COMMA", "COLON", "SEMICOLON"):
                return False
    return False


def _list(accepts: frozenset[str]) -> str:
    if {"NAME", "NUMBER", "LPAR"} <= accepts:
        return "an expression"
    named = [PRINTED[a] for a in PRINTED if a in accepts]
    words = sorted(f"`{a.lower()}`" for a in accepts & WORDS)
    if accepts & {"ADD", "MUL"}:
        named = [n for n in named if n not in ("`[`", "`(`", "`.`")]
        words = [w for w in words if w == "`else`"]
        named = [*words, *named] if words else ["an operator", *named]
        words = []
    if STATEMENTS <= accepts:
        named, words = ["a statement"], []
    shown = [*named, *words][:6]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " or " + shown[-1] if shown else "something else"


def _shown(token: Token) -> str:
    return PRINTED[token.type] if token.type in ("NEWLINE", "INDENT", "DEDENT", "$END") else f"`{token}`"


def _hint(token: Token, last: Token | None, accepts: frozenset[str]) -> str:
    """A hint for the usual slips."""
    if last is None:
        return "a text is a list of `def` and `attention`" if "ATTENTION" in accepts else ""
    if token.type == "NAME" and str(token) in ("return", "lambda", "while", "import", "class"):
        return f"specs have no `{token}`"
    if token.type == "NEWLINE" and last.type in OPERATORS:
        return "a line goes on inside brackets only"
    if "ELSE" in accepts and last.type != "IF":
        return "a choice is `a if c else b`"
    if token.type in ("NAME", "NUMBER", "LPAR") and "MUL" in accepts:
        return "is an operator or a comma missing?"
    if token.type == "COLON" and "RSQB" not in accepts:
        return "a type is given in the header of the attention, `name: real[h]`" if "EQUAL" in accepts else ""
    return ""
