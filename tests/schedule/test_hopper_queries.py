"""The partitioned kernel of dQ alone, run by the interpreter of the Tile IR, against the reference."""

from __future__ import annotations

from typing import Any

import pytest

from attncc.schedule.programs import stream
from attncc.schedule.variant import Layout
from attncc.tile.dialect import partitioned
from attncc.tile.nodes import Program
from tests.schedule.test_hopper_backward import SHAPES, Case
from tests.support.specs import SPECS

SMALL = "partitioned.queries.rows=16 partitioned.queries.keys=16"


def names(program: Program) -> list[str]:
    return [k.name for k in program.kernels if partitioned(k)]


def ordered(case: Case, tiles: str = "", **changes: Any) -> Program:
    program = stream(case.problem(ordered=True, tiles=tiles, **changes)).backward
    assert program is not None
    return program


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradients_match_the_reference(name: str, shape: tuple[int, ...]) -> None:
    case = Case(name, shape, ("q", "k", "v"))
    program = ordered(case)
    assert names(program) == ["keys_kernel", "queries_kernel"]
    case.check(program)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "placed"])
@pytest.mark.parametrize("plan", ["", "depth=2", "consumers=3 registers=160", "keys=32 depth=4"])
def test_every_plan_computes_the_same(plan: str, resident: bool) -> None:
    case = Case("sliding_window", (1, 2, 1, 100, 120, 16, 16), ("q", "k", "v"))
    items = f"{plan} resident={resident}".split()
    case.check(ordered(case, " ".join([SMALL, *(f"partitioned.queries.{x}" for x in items)])), seed=1)


def test_no_interleaving_differs() -> None:
    case = Case("causal", (1, 1, 1, 50, 40, 16, 16), ("q", "k", "v"))
    program = ordered(case, SMALL)
    for seed in range(100):
        case.check(program, seed)


def test_rows_that_bulk_copies_cannot_take_have_a_plain_kernel() -> None:
    case = Case("causal", (1, 2, 2, 70, 60, 64, 64), ("q", "k", "v"))
    program = ordered(case, layouts=(("d_q", Layout(aligned=False)),))
    assert names(program) == ["keys_kernel"]
    case.check(program)
