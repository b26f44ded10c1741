"""Specs that are understood and that the schedules can't compile yet."""

from __future__ import annotations

from typing import ClassVar

from attncc.errors import SpecError


class NotCompiled(SpecError):
    """The spec is well formed, and no schedule covers this construct yet.

    The reference evaluates it: `attncc.reference(...)`. Compiled today: one weighted sum `weights @ v` over the keys,
    with an elementwise or ratio normaliser (softmax, sinks, `ratio`) and a score that reads `q @ k` once.
    """

    code: ClassVar[str] = "E450"
