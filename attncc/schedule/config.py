"""Default tiles and warps of the streaming kernels: a table by channel size and element width; no tuning at a call."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.schedule.variant import Variant
from attncc.tile.nodes import Config


@dataclass(frozen=True, slots=True)
class Tiles:
    """Query rows and keys per tile, and what the printer needs."""

    rows: int
    keys: int
    config: Config


@dataclass(frozen=True, slots=True)
class Plan:
    """The tiles of each kernel of one variant."""

    forward: Tiles
    delta: Tiles
    keys: Tiles
    queries: Tiles
    fused: bool = False
    """dK, dV and dQ from one walk: dQ is added in memory, so programs must run one after another."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a score and its mask add to the registers of a kernel beside the products themselves."""

    curved: bool = False
    """The score's derivative differs from pair to pair: one more tile lives through the backward."""
    reads_pairs: bool = False
    """Something is read at (i, j)."""
    reads_rows: bool = False
    """Something is read at every i."""
    reads_keys: bool = False
    """The score reads something at every j."""
    masks_keys: bool = False
    """The mask reads something at every j."""
    general: bool = False
    """Weights are more than exponentials."""

    @property
    def live(self) -> str:
        """All of it in words: `keys`, `curved rows`, `held` (keys by a mask); `plain` where there is nothing."""
        named = ("curved", self.curved), ("pairs", self.reads_pairs), ("rows", self.reads_rows)
        more = ("keys", self.reads_keys), ("held", self.masks_keys), ("general", self.general)
        return " ".join(name for name, holds in (*named, *more) if holds) or "plain"


def plan(v: Variant, demand: Demand) -> Plan:
    """The default for a variant."""
    if v.target == "torch":
        wide = Tiles(256, 64, Config())
        fused = v.dtype in ("f32", "f64")
        return Plan(wide, Tiles(1024, 1, Config()), Tiles(64, 256, Config()), wide, fused)
    widest = max(v.D, v.E)
    if v.dtype in ("f32", "f64") or not _staged(v):
        # Rows that bulk copies can't take pass through registers. Warp-group dots of such tiles are miscompiled by
        # Triton 3.6 (shared memory out of range at D 100, E 40); tiles of 32 rows keep to warp-level dots.
        side = 32 if widest <= 128 else 16
        small = _tiles(side, side, 4, 1)
        return Plan(small, _tiles(64, 1, 4, 1), small, small)
    table = _half if 90 <= v.capability < 120 else _small
    return table(widest, v.grouped, demand)


def diagonal_tiles(v: Variant) -> Tiles:
    """Square tiles whose diagonals are summed."""
    widest = max(v.D, v.E)
    if v.dtype in ("f32", "f64") or not _staged(v):
        side = 32 if widest <= 128 else 16
        return _tiles(side, side, 4, 1)
    if 90 <= v.capability < 120:
        return _tiles(64, 64, 4, 1) if widest <= 128 else _tiles(32, 32, 4, 2)
    return _tiles(64, 64, 8, 1) if widest <= 64 else _tiles(32, 32, 4, 1)


def _staged(v: Variant) -> bool:
    """Whether rows are such that bulk copies can take them."""
    return all(v.layout(n).aligned and v.layout(n).unit for n in ("q", "k", "v", "d_out"))


def _tiles(rows: int, keys: int, warps: int, stages: int) -> Tiles:
    return Tiles(rows, keys, Config(warps=warps, stages=stages))


def _half(widest: int, grouped: bool, demand: Demand) -> Plan:
    """16-bit operands: the fastest on an H100 of those that spill at most 32 bytes."""
    delta = _tiles(64, 1, 4, 1)
    if widest <= 64:
        keys = _tiles(64, 128, 8, 2) if grouped else _tiles(64, 64, 4, 3)
        rows = _tiles(64, 64, 4, 3)
        return Plan(rows if demand.reads_pairs else _tiles(128, 64, 4, 3), delta, keys, rows)
    if widest <= 128:
        crowded = grouped or demand.curved
        tight = demand.curved and grouped
        rows = _tiles(128, 64, 8, 3)
        keys = _tiles(64, 128, 8, 3)
        if demand.reads_rows and not crowded:  # documents: short walks, whose ends two programs a processor hide
            return Plan(rows, delta, _tiles(32, 64, 4, 3), rows)
        if crowded:
            keys = _tiles(32, 128, 8, 2 if tight else 3)
        return Plan(rows, delta, keys, rows)
    return Plan(_tiles(64, 64, 8, 2), delta, _tiles(32, 32, 8, 2), _tiles(64, 32, 4, 2))


def _small(widest: int, grouped: bool, demand: Demand) -> Plan:
    """16-bit operands with 100 KB of shared memory, and products of one warp that keep both factors in registers."""
    delta = _tiles(64, 1, 4, 1)
    if widest <= 64:
        if demand.reads_pairs:
            return Plan(_tiles(64, 64, 4, 3), delta, _tiles(32, 128, 8, 2), _tiles(64, 32, 4, 3))
        return Plan(_tiles(128, 64, 4, 3), delta, _tiles(32, 128, 8, 2), _tiles(64, 64, 4, 3))
    if widest <= 128:
        keys = _tiles(16, 128, 8, 2) if demand.reads_rows and grouped else _tiles(64, 64, 8, 2)
        if demand.reads_pairs:
            return Plan(_tiles(128, 32, 8, 3), delta, keys, _tiles(64, 32, 4, 2))
        return Plan(_tiles(128, 64, 8, 3), delta, keys, _tiles(128, 64, 8, 2))
    return Plan(_tiles(64, 32, 4, 2), delta, _tiles(32, 32, 8, 2), _tiles(32, 32, 4, 2))


@dataclass(frozen=True, slots=True)
class Channels:
    """A channel axis in register-sized pieces: (offset, extent, how many of them are real)."""

    pieces: tuple[tuple[int, int, int], ...]


def channels(size: int, v: Variant) -> Channels:
    """At most two powers of two of at least 16, the last one masked; one exact piece for torch.

    Two that together are no larger than one power of two are that one, up to 128.
    """
    if v.target == "torch":
        return Channels(((0, size, size),))
    whole = max(16, 1 << (size - 1).bit_length())
    first = max(16, 1 << (size.bit_length() - 1))
    rest = max(16, 1 << max(size - first - 1, 0).bit_length())
    if size <= first or (first + rest >= whole and whole <= 128):
        return Channels(((0, whole if size > first else first, size),))
    return Channels(((0, first, first), (first, rest, size - first)))
