"""A partitioned forward and backward under a hundred random interleavings each: none races, deadlocks or differs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.schedule import test_hopper_backward as backward
from tests.schedule import test_hopper_forward as forward

PLANS: dict[str, dict[str, Any]] = {
    "causal": {"resident": True},
    "full": {"resident": False, "consumers": 3, "registers": 160},
    "window": {"resident": True, "turns": True, "settled": True},
}
OWN: dict[str, Any] = {"own": True, "turns": True, "consumers": 3, "registers": 160}


@pytest.mark.parametrize("name", PLANS)
def test_forward(name: str) -> None:
    case = forward.Case(name, (1, 1, 1, 50, 40, 16, 16))
    program = case.program(**forward.SMALL, **PLANS[name])
    for seed in range(100):
        case.check(program, seed)


def test_forward_whose_consumers_pass_over_tiles() -> None:
    case = forward.Case("causal", (1, 2, 1, 120, 110, 16, 16))
    program = case.program(**forward.SMALL, **OWN)
    for seed in range(100):
        case.check(program, seed)


@pytest.mark.parametrize("lengths", [(130, 140), (40, 300)], ids=["many turns", "one turn at each place"])
def test_backward(lengths: tuple[int, int]) -> None:
    case = backward.Case("causal", (1, 1, 1, *lengths, 16, 16))
    program = case.backward()
    assert backward.is_partitioned(program)
    for seed in range(100):
        case.check(program, seed)
