"""Plans of the partitioned kernels: a table by channel size and by what a score keeps alive; no tuning at a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from attncc.schedule.config import Demand
from attncc.schedule.rungs import BACKWARD, FORWARD, Class
from attncc.tile.hopper import REGISTERS, SHARED_BYTES

T = TypeVar("T")
ROOM = SHARED_BYTES - 1024
"""Bytes of shared memory for tiles; the rest is for barriers and what partitions are passed."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What partitioned kernels choose whose programs own rows and walk over keys."""

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
    resident: bool = True
    """Where there is room, a program stays on its multiprocessor and works at one place of the grid after another."""
    ahead: int = 2
    """Where walks are of different lengths: the last places, so many for every program, begin with the long walks."""

    @property
    def entry(self) -> int:
        """Registers of a thread before partitions trade them; the producer's one warp counts as four."""
        return REGISTERS // (128 * (self.consumers + 1)) // 8 * 8


@dataclass(frozen=True, slots=True)
class HopperForward(RowPlan):
    """What the partitioned forward chooses."""

    rounded: bool = False
    """Weights wait for their product in the inputs' dtype: fewer registers, longer turns."""
    lazy: bool = False
    """The running maximum moves only to what exceeds it by far: in most turns nothing is rescaled."""
    joined: bool = False
    """Terms by key are part of the product of queries and keys."""
    early: bool = False
    """The product of the turn before is awaited ahead of the exponentials: with `rounded` weights, fewer registers."""
    settled: bool = False
    """Values are awaited at a turn's end, else where they are multiplied.

    Compilers move nothing over that wait: at the end it keeps the product of the turn before under the exponentials;
    later, weights are rounded under them, but that product is awaited ahead of them.
    """
    lanes: bool = True
    """Sums of weights are completed by a row's threads after the last turn only: shorter turns, two more registers."""
    own: bool = False
    """Consumers pass over tiles that only rows of others see, and mask those that their own rows see in part alone."""
    fetched: bool = True
    """Where there is room, the next place's queries are fetched before this place's are read for the last time."""
    turns: bool = False
    """Consumers take turns to issue their products, so that one's exponentials run under the other's products."""


@dataclass(frozen=True, slots=True)
class HopperQueries(RowPlan):
    """What the partitioned kernel of dQ alone chooses: a turn's keys are read in the next one, too."""

    keys: int = 64
    depth: int = 4


_SPARE = "consumers=2 registers=240 early=False own=False turns=False rounded=True settled=True lanes=False"
"""The forward with the most registers to spare."""
_TWO = " ".join(f"partitioned.forward.{x}" for x in _SPARE.split())
_FEW = "partitioned.queries.keys=32"
"""The kernel of dQ alone with the fewest registers."""
LADDER: Mapping[str, tuple[str, ...]] = {
    "forward": (_TWO, f"{_TWO} partitioned.forward.keys=64"),
    "backward": tuple(
        f"{more}partitioned.backward.resident=False {_FEW}"
        for more in (
            "",
            "partitioned.backward.calm=True ",
            "partitioned.backward.rows=64 partitioned.backward.share=keys partitioned.backward.started=False ",
        )
    ),
}
"""What is tried in turn, as overrides, where the default plan of a half does not fit a thread's registers."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What the walks of a forward's rows over keys are like."""

    short: bool = False
    """Both ends move with the rows: fewer rows that share a walk visit fewer tiles."""
    even: bool = False
    """Neither end does, so that all rows take the same turns."""
    ended: bool = False
    """A constant term joins the sums at the end; assemblers make the products of `early` turns wait for it."""
    placed: bool = False
    """Scores have terms by position beside the product: their instructions fill the time that rescaling takes."""
    joins: bool = False
    """Scores have terms by key that can join the product."""


def forward_plan(widest: int, demand: Demand, walk: Walk = Walk()) -> HopperForward:
    """The default for channels of at most `widest`, or what was found to fit better."""
    lazy = demand.live == "plain" and not walk.placed
    found = HopperForward(rounded=True, settled=walk.short, lazy=lazy, joined=walk.joins)
    if widest <= 64 and not walk.short:
        early = not (lazy or walk.even or walk.ended or walk.joins)
        own = not walk.even
        found = replace(found, consumers=3, depth=4, registers=160, early=early, own=own, turns=True)
    elif widest > 128:
        found = HopperForward(keys=64)
    elif walk.even and not walk.ended and demand.live == "plain" and walk.placed:
        found = replace(found, early=True)
    return changed(found, FORWARD.get(class_of(widest, demand), ""))


def class_of(widest: int, demand: Demand) -> Class:
    """What plans are listed by."""
    return max(64, 1 << (widest - 1).bit_length()), demand.live


def changed(plan: T, text: str) -> T:
    """`plan` with fields set as in `rounded=True keys=64`."""
    for item in text.split():
        name, _, value = item.partition("=")
        old = getattr(plan, name)
        new = value == "True" if isinstance(old, bool) else type(old)(value)
        plan = replace(plan, **{name: new})  # type: ignore[type-var]
    return plan


@dataclass(frozen=True, slots=True)
class HopperBackward:
    """What the partitioned backward chooses. Two consumers of 64 keys each."""

    rows: int = 64
    """Queries per turn."""
    depth: int = 2
    """Slots of the ring of Q, dO and the row statistics."""
    share: Literal["columns", "rows", "keys"] = "columns"
    """What a consumer computes of dQ: half of its columns or rows over all keys, or all of it over its own keys."""
    lag: bool = True
    """dQ of a turn is multiplied in the next one, under its exponentials."""
    calm: bool = False
    """Where the mask is needed, that dQ is multiplied after the exponentials: its accumulator makes room for them."""
    started: bool = False
    """Products of q and k start at minus log2 Z, where the score is affine in them."""
    lanes: bool = False
    """Sums for captured tensors are completed after the last turn only: shorter turns, two more registers each."""
    hold: Literal["weights", "product"] = "weights"
    """What waits in registers for dP: the weights, or the product that all else is computed from again."""
    apart: bool = False
    """dQ is summed by a kernel of its rows' own, also where sums need no order."""
    resident: bool = True
    """Where there is room, a program stays on its multiprocessor and works at one place of the grid after another."""
    ahead: int = 2
    """Where walks are of different lengths: the last places, so many for every program, begin with the long walks."""
    registers: int = 240
    """Of a consumer's thread; the producer's keeps `spare`."""
    spare: int = 24
    entry: int = 168
    """Registers of a thread before partitions trade them."""


@dataclass(frozen=True, slots=True)
class Burden:
    """What registers of the backward hold beside what every score needs."""

    positions: bool = False
    """Scores are made of positions, too."""
    sums: bool = False
    """Sums are kept beside dK and dV, or masks need more than a comparison."""
    curved: bool = False
    """Weights are no exponentials."""
    far: bool = False
    """Most tiles lie where tables have one value, and need no positions."""
    brief: bool = False
    """Walks are short by data. Beyond 64 channels a kernel of dQ's own moves less memory than a sum that all keys add
    to; up to 64, tiles of fewer queries waste less."""


def backward_plan(D: int, E: int, demand: Demand, burden: Burden = Burden()) -> HopperBackward:
    """The default for these channels."""
    found = _backward_plan(D, E, demand, burden)
    return changed(found, BACKWARD.get(class_of(max(D, E), demand), ""))


def _backward_plan(D: int, E: int, demand: Demand, burden: Burden) -> HopperBackward:
    hold: Literal["weights", "product"] = "product" if burden.curved or demand.curved else "weights"
    crowded = burden.sums or hold == "product" or demand.reads_pairs
    calm = crowded or burden.positions or demand.reads_rows
    lanes = burden.sums and not burden.positions and not burden.far
    if max(D, E) > 64:
        share: Literal["columns", "keys"] = "columns" if D > 64 else "keys"
        resident = hold == "weights"
        return HopperBackward(share=share, hold=hold, calm=calm, apart=burden.brief, resident=resident, lanes=lanes)
    if hold == "product":
        return HopperBackward(share="keys", hold=hold, resident=False, started=burden.far, lanes=lanes)
    if crowded or burden.brief:
        return HopperBackward(depth=4, started=burden.far or burden.brief, lanes=burden.sums and not burden.far)
    return HopperBackward(rows=128, share="rows", started=True, calm=calm)
