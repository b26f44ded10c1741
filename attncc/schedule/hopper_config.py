"""Plans of the partitioned kernels: a table by channel size and by what a score keeps alive; no tuning at a call."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.schedule.config import Demand

ROOM = 232448 - 4096
"""Bytes of shared memory for tiles; the rest is for barriers and what partitions are passed."""


@dataclass(frozen=True, slots=True)
class HopperForward:
    """What the partitioned forward chooses."""

    consumers: int = 2
    """Warpgroups that compute, of `rows` queries each."""
    rows: int = 64
    keys: int = 128
    """Keys per turn."""
    depth: int = 2
    """Slots of the rings of K and of V."""
    registers: int = 240
    """Of a consumer's thread; the producer's keeps `spare`."""
    spare: int = 24
    turns: bool = False
    """Consumers take turns to issue their products, so that one's exponentials run under the other's products."""

    @property
    def entry(self) -> int:
        """Registers of a thread before partitions trade them; the producer's one warp counts as four."""
        return 65536 // (128 * (self.consumers + 1)) // 8 * 8


def forward_plan(widest: int, demand: Demand) -> HopperForward:
    """The default for channels of at most `widest`."""
    if widest <= 64:
        return HopperForward(consumers=3, depth=3, registers=160)
    if widest <= 128:
        return HopperForward()
    return HopperForward(keys=64)
