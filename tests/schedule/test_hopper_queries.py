"""The partitioned kernel of dQ alone, run by the interpreter of the Tile IR, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attncc.reference import evaluate
from attncc.schedule.programs import stream
from attncc.schedule.variant import Layout
from attncc.tile.dialect import partitioned
from attncc.tile.nodes import Program
from tests.schedule.test_hopper_backward import SHAPES, Case
from tests.support.specs import SPECS

SMALL = "partitioned.queries.rows=16 partitioned.queries.keys=16"
FIRST = f"{SMALL} partitioned.backward.rows=16"
"""Places are whole tiles of the statistics."""


def names(program: Program) -> list[str]:
    return [k.name for k in program.kernels if partitioned(k)]


def computes_statistics(program: Program) -> bool:
    first = names(program) == ["queries_kernel", "keys_kernel"]
    assert first != ("statistics_kernel" in [k.name for k in program.kernels])
    return first


def ordered(case: Case, tiles: str = "", **changes: Any) -> Program:
    program = stream(case.problem(ordered=True, tiles=tiles, **changes)).backward
    assert program is not None
    return program


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradients_match_the_reference(name: str, shape: tuple[int, ...]) -> None:
    case = Case(name, shape, ("q", "k", "v"))
    program = ordered(case)
    normalised = name != "sigmoid_attention"
    assert (names(program) == ["queries_kernel", "keys_kernel"]) == normalised
    assert "statistics_kernel" not in [k.name for k in program.kernels]
    case.check(program)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "placed"])
@pytest.mark.parametrize("plan", ["", "depth=2", "consumers=3 registers=160", "keys=32 depth=4"])
def test_every_plan_computes_the_same(plan: str, resident: bool) -> None:
    case = Case("sliding_window", (1, 2, 1, 100, 120, 16, 16), ("q", "k", "v"))
    items = f"{plan} resident={resident}".split()
    for base in (SMALL, FIRST):
        program = ordered(case, " ".join([base, *(f"partitioned.queries.{x}" for x in items)]))
        assert computes_statistics(program) == (base == FIRST)
        case.check(program, seed=1)


@pytest.mark.parametrize("tiles", [SMALL, FIRST], ids=["after", "first"])
def test_no_interleaving_differs(tiles: str) -> None:
    case = Case("causal", (1, 1, 1, 50, 40, 16, 16), ("q", "k", "v"))
    program = ordered(case, tiles)
    for seed in range(100):
        case.check(program, seed)


@pytest.mark.parametrize(("side", "apart"), [(64, False), (128, True)])
def test_documents_have_it_where_channels_are_wide(side: int, apart: bool) -> None:
    case = Case("packed_documents", (1, 2, 1, 200, 200, side, side))
    program = case.backward()
    assert computes_statistics(program) == apart
    case.check(program)


def test_the_gradient_of_lse_counts() -> None:
    case = Case("causal", (1, 2, 2, 130, 130, 64, 64))
    tensors = {n: torch.from_numpy(case.arrays[n]).requires_grad_() for n in "qkv"}
    done = evaluate(case.spec, tensors, {}, return_lse=True)
    assert done.lse is not None
    d_lse = torch.randn_like(done.lse)
    total = (done.out * torch.from_numpy(case.arrays["d_out"])).sum() + (done.lse * d_lse).sum()
    case.wanted = {
        n: g.numpy() for n, g in zip("qkv", torch.autograd.grad(total, tuple(tensors.values())), strict=True)
    }
    case.arrays["d_lse"] = d_lse.numpy()
    program = ordered(case, lse_gradient=True)
    assert computes_statistics(program)
    case.check(program)


def test_rows_of_outputs_that_bulk_copies_cannot_take_have_statistics_before() -> None:
    case = Case("causal", (1, 2, 2, 70, 60, 64, 64), ("q", "k", "v"))
    program = ordered(case, layouts=(("out", Layout(aligned=False)),))
    assert names(program) == ["keys_kernel", "queries_kernel"]
    case.check(program)


def test_rows_that_bulk_copies_cannot_take_have_a_plain_kernel() -> None:
    case = Case("causal", (1, 2, 2, 70, 60, 64, 64), ("q", "k", "v"))
    program = ordered(case, layouts=(("d_q", Layout(aligned=False)),))
    assert names(program) == ["keys_kernel"]
    case.check(program)
