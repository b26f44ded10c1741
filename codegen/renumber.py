"""Shorter names inside one printed function: without the numbers that told them apart from other functions' names."""

from __future__ import annotations

import io
import itertools
import re
import tokenize
from collections.abc import Collection, Sequence


def renumbered(text: str, arguments: Sequence[str], names: Collection[str]) -> tuple[str, list[str]]:
    """`text`, statements of one function, with its arguments and its locals `names` numbered anew in order.

    rewrite: s_8, s_11, s_9 --> s, s_1, s_2

    Also gives the arguments' new names.
    """
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type != tokenize.COMMENT]
    wanted = {*arguments, *names}
    pairs = itertools.pairwise(tokens)
    taken = {b.string for a, b in pairs if b.type == tokenize.NAME and a.string != "."} - wanted
    new: dict[str, str] = {}

    def number(name: str) -> None:
        new[name] = _free(re.sub(r"_\d+(?=_|$)", "", name), taken)
        taken.add(new[name])

    for name in arguments:
        number(name)
    places: list[tuple[int, int, str]] = []
    depth = 0
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.string, 0)
        member = before is not None and before.string == "."
        keyword = depth > 0 and after is not None and after.string == "="
        if token.type == tokenize.NAME and token.string in wanted and not member and not keyword:
            if token.string not in new:
                number(token.string)
            places.append((*token.start, token.string))
    lines = text.splitlines(keepends=True)
    for row, column, name in reversed(places):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + new[name] + line[column + len(name) :]
    return "".join(lines), [new[a] for a in arguments]


def _free(base: str, taken: Collection[str]) -> str:
    if base not in taken:
        return base
    return next(n for n in (f"{base}_{k}" for k in range(1, len(taken) + 2)) if n not in taken)
