"""Bounds of 1,000 random masks, both ways, beside brute force: sound everywhere, tight nearly everywhere."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from attncc.expr.nodes import Expr, Op, walk
from attncc.passes.bounds import Bounds, bounds
from tests.passes import random_masks
from tests.passes.mask_tiles import Array, World, brute, corners, dense, support, tiles

TILE = 32
COUNT = 1000


@dataclass(frozen=True)
class Found:
    """What one direction of one mask gave; `tight` is within one tile a row of brute force."""

    isolated: bool
    tight: bool
    tight_with_corners: bool
    alternatives: int
    full: int
    full_with_corners: int
    full_exists: int


def study(mask: Expr, world: World, index: str) -> Found:
    """Everything that must hold of any mask, asserted; the rest returned."""
    found: Bounds = bounds(mask, index, "i" if index == "j" else "j", positive=random_masks.POSITIVE)
    truth = dense(mask, world)
    some, every = brute(truth, TILE)
    must, may = corners(found.mask, world, TILE, random_masks.POSITIVE)
    if index == "i":
        some, every, must, may = some.T, every.T, must.T, may.T
    visited, full = tiles(found, world, TILE)
    assert not (some & ~visited).any(), "a pair outside the visited tiles"
    assert not (full & ~every).any(), "a false pair in a full tile"
    assert not (some & ~may).any() and not (must & ~every).any(), "the test of corners"
    assert (support(found, world) == truth).all(), "the alternatives are another mask"
    assert (dense(found.mask, world) == truth).all(), "the guarded mask is another mask"
    assert len(found.alternatives) <= 8
    return Found(
        all(a.exact for a in found.alternatives),
        excess(visited, some) <= 1,
        excess(visited & may, some) <= 1,
        len(found.alternatives),
        int(full.sum()),
        int((full | must).sum()),
        int(every.sum()),
    )


def excess(visited: Array, some: Array) -> int:
    """The most tiles that one row visits for nothing."""
    return int((visited & ~some).sum(1).max())


def masks(count: int) -> list[tuple[Expr, World]]:
    return [(random_masks.mask(r), random_masks.world(r)) for r in map(random.Random, range(count))]


def report(name: str, found: list[Found]) -> str:
    def share(flags: list[bool]) -> str:
        return f"{np.mean(flags):.1%}"

    exists = sum(f.full_exists for f in found)
    return (
        f"{name}: within one tile a row {share([f.tight for f in found])} by intervals, "
        f"{share([f.tight_with_corners for f in found])} with corners, "
        f"{share([f.tight for f in found if f.isolated])} of the {share([f.isolated for f in found])} that isolate; "
        f"full tiles found {sum(f.full for f in found) / exists:.1%}, "
        f"{sum(f.full_with_corners for f in found) / exists:.1%} with corners; "
        f"most alternatives {max(f.alternatives for f in found)}"
    )


@pytest.mark.slow
def test_random_masks_are_sound_and_tight_both_ways() -> None:
    print(f"\n{COUNT} masks, seeds 0 to {COUNT - 1}, tiles of {TILE}")
    for index in ("j", "i"):
        found = [study(mask, world, index) for mask, world in masks(COUNT)]
        print(report(index, found))
        assert all(f.tight for f in found if f.isolated)
        assert np.mean([f.isolated for f in found]) >= 0.6
        assert np.mean([f.tight_with_corners for f in found]) >= 0.95
        assert sum(f.full_with_corners for f in found) >= 0.9 * sum(f.full_exists for f in found)


def test_the_generator_covers_what_masks_are_made_of() -> None:
    names = [n.name for mask, _ in masks(COUNT) for n in walk(mask) if isinstance(n, Op)]
    wanted = "add sub mul neg abs min max floordiv mod where lt le eq ne and or not".split()
    assert min(names.count(name) for name in wanted) >= 50
    worlds = [world for _, world in masks(COUNT)]
    assert sum(w.M > w.N for w in worlds) >= 100 and sum(w.M < w.N for w in worlds) >= 100
