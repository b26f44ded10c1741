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


def plan(v: Variant) -> Plan:
    """The default for a variant."""
    if v.target == "torch":
        wide = Tiles(256, 512, Config())
        return Plan(wide, Tiles(1024, 1, Config()), Tiles(256, 256, Config()), Tiles(256, 512, Config()))
    widest = max(v.D, v.E)
    if v.dtype in ("f32", "f64"):
        side = 32 if widest <= 128 else 16
        small = Tiles(side, side, Config(warps=4, stages=1))
        return Plan(small, Tiles(64, 1, Config(warps=4, stages=1)), small, small)
    return _half(widest)


def _half(widest: int) -> Plan:
    delta = Tiles(64, 1, Config(warps=4, stages=1))
    if widest <= 64:
        return Plan(
            Tiles(128, 64, Config(warps=4, stages=3)),
            delta,
            Tiles(64, 128, Config(warps=8, stages=2)),
            Tiles(128, 64, Config(warps=8, stages=3)),
        )
    if widest <= 128:
        return Plan(
            Tiles(128, 64, Config(warps=8, stages=3)),
            delta,
            Tiles(64, 128, Config(warps=8, stages=2)),
            Tiles(128, 64, Config(warps=8, stages=2)),
        )
    return Plan(
        Tiles(64, 64, Config(warps=8, stages=2)),
        delta,
        Tiles(32, 64, Config(warps=8, stages=1)),
        Tiles(64, 32, Config(warps=8, stages=1)),
    )


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
