"""First calls of peers, made side by side in other processes: what these leave in the caches of compilers is reused."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

import torch

from attncc.runtime.bench.peers import peers
from attncc.runtime.bench.rows import Kind, case_of
from attncc.runtime.bench.suite import Row

_MOST_PROCESSES = 16


def first_calls(
    family: str, name: str, rows: Sequence[Row], kind: Kind, before: Callable[[], None]
) -> list[Future[None]]:
    """Begins a peer's forward and backward of each row, after `before` in each process; what fails shows later."""
    if not rows:
        return []
    count = min(len(rows), os.cpu_count() or 1, _MOST_PROCESSES)
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=before)
    found = [pool.submit(first_call, family, name, row, kind) for row in rows]
    pool.shutdown(wait=False)
    return found


def first_call(family: str, name: str, row: Row, kind: Kind) -> None:
    """One row."""
    with contextlib.suppress(Exception):
        peer = next(p for p in peers(family) if p.name == name)
        ready = peer.prepare(case_of(row, kind)[0])
        if not isinstance(ready, str):
            out = ready.forward()
            if ready.leaves:
                torch.autograd.grad(out, ready.leaves, ready.d_out, allow_unused=True)
            if out.is_cuda:
                torch.cuda.synchronize()
