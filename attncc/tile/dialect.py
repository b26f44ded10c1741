"""Which language a kernel is printed in on a GPU: warp-specialised ones need Triton's lower dialect."""

from __future__ import annotations

from attncc.tile.nodes import For, Kernel, Partitions, Program, Work


def partitioned(kernel: Kernel) -> bool:
    """Whether `kernel` gives its warps code of their own: partitions stand at the end of a body, never inside."""
    return any(isinstance(s, Partitions) for s in kernel.body)


def works(kernel: Kernel) -> bool:
    """Whether a kernel's partitions loop over the places of its grid: fewer programs than places are launched."""
    bodies = (part.body for s in kernel.body if isinstance(s, Partitions) for part in s.parts)
    return any(isinstance(s, For) and isinstance(s.over, Work) for body in bodies for s in body)


def any_partitioned(*programs: Program | None) -> bool:
    """Whether one of the kernels of `programs` is partitioned."""
    return any(partitioned(k) for p in programs if p is not None for k in p.kernels)
