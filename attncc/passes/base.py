"""A pass: a named, documented step from one state of a compilation to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attncc.ir.nodes import Spec
from attncc.passes.attend import Attend
from attncc.passes.bounds import Bounds


@dataclass(frozen=True, slots=True)
class Unit:
    """A compilation on its way: the spec, what it is specialised to, and what was derived so far."""

    spec: Spec
    D: int
    E: int
    attend: Attend | None = None
    by_row: Bounds | None = None
    by_key: Bounds | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """`name` is a verb; `duty` one sentence; `run` never looks at dumps, timing or verification."""

    name: str
    duty: str
    run: Callable[[Unit], Unit]
