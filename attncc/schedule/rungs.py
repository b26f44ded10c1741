"""What partitioned kernels differ in from the default plan, by the widest channels and by what a score keeps alive.

Written by `python -m tests.benchmarks.rungs --write`; compiled with Triton 3.6.0 for sm_90. Of the plans whose kernels
the assembler takes without waits and without spilling, for every spec of the class, these are the fastest (or, where no
GPU was at hand, the first). Types of 16 bits need the same registers. A class that is not listed has the default plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Class = tuple[int, str]
"""Channels, padded to a power of two; Demand.live."""

MEASURED: Final = False
"""Whether a GPU chose."""
FORWARD: Final[Mapping[Class, str]] = {
    (64, "held"): "consumers=2 registers=240 early=False turns=False rounded=True",
    (64, "keys"): "consumers=2 registers=240 early=False turns=False rounded=True",
    (64, "pairs"): "consumers=2 registers=240 early=False turns=False rounded=True",
    (64, "rows"): "consumers=2 registers=240 early=False turns=False rounded=True",
    (64, "rows held"): "consumers=2 registers=240 early=False turns=False rounded=True",
    (64, "rows keys"): "consumers=2 registers=240 early=False turns=False rounded=True",
    (128, "pairs"): "consumers=2 registers=240 early=False turns=False rounded=True keys=64",
}
BACKWARD: Final[Mapping[Class, str]] = {}
