"""Kernels for the rows of a table, compiled side by side before anything is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from attncc.runtime.attention import compile_spec
from attncc.runtime.bench.case import Case

_LENGTH = 256


def prefetch(cases: Sequence[Case], backends: Sequence[str], device: torch.device) -> list[Future[None]]:
    """Begins to compile what attncc needs for `cases`, which may be short: variants know no lengths.

    Nothing is begun on a CPU. A failure shows when the kernels are wanted.
    """
    if device.type != "cuda":
        return []
    pool = ThreadPoolExecutor(4, thread_name_prefix="attncc-bench")
    found = [pool.submit(_warm, case, backend) for case in cases for backend in backends]
    pool.shutdown(wait=False)
    return found


def _warm(case: Case, backend: str) -> None:
    with contextlib.suppress(Exception):
        attention = compile_spec(case.file, backend=backend, deterministic=False, constants=case.constants)
        tensors: dict[str, Any] = dict(case.tensors)
        attention.warmup(**tensors)


def shortened(sizes: dict[str, int]) -> dict[str, int]:
    """Sizes that need the same kernels, at little memory: one batch, few positions, the heads and channels."""
    few = min(_LENGTH, sizes["M"], sizes["N"])
    return {**sizes, "B": min(sizes["B"], 1), "M": few, "N": few}
