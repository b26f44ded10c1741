"""`attncc.reference(...)`: the dense float64 truth, called like a compiled spec."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from attncc.runtime.checks import check_constants
from attncc.runtime.family import family


def dense(spec: str | os.PathLike[str], **constants: int | float | bool) -> Callable[..., Any]:
    """A function `f(q, k, v, return_lse=False, **captured)` that computes in float64 over full arrays."""
    from attncc.reference import reference_callable

    found = family(spec, deterministic=False)
    return reference_callable(found.spec, check_constants(found.face, constants))
