"""Every environment variable attncc reads, in one table with one reader."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Setting:
    """An environment variable, its value where it is not set, and what it does."""

    name: str
    default: str
    meaning: str


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting("ATTNCC_CACHE", "", "folder of compiled kernels and the parser's tables; `off` keeps them in memory only"),
    Setting("ATTNCC_BACKEND", "auto", 'what `backend="auto"` means: gluon, triton, torch or interpret'),
    Setting("ATTNCC_WORKERS", "0", "threads that compile kernels; 0 takes one per core, at most 8"),
    Setting("ATTNCC_KEEP", "", "folder into which the printed source of every variant is written"),
)

_KNOWN = {s.name: s for s in SETTINGS}


def setting(name: str) -> str:
    """The value of a variable of the table, read from the environment at each call."""
    return os.environ.get(name, _KNOWN[name].default)


def integer(name: str) -> int:
    """The same as a number; what is no number counts as the default."""
    try:
        return int(setting(name))
    except ValueError:
        return int(_KNOWN[name].default)


def table() -> str:
    """The settings as text, one a line."""
    width = max(len(s.name) for s in SETTINGS)
    return "\n".join(f"{s.name:<{width}}  {s.meaning} (default: {s.default or 'none'})" for s in SETTINGS)
