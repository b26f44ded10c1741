"""Terms that grow evenly with the key as channels of the inner product, by the interpreter against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attncc.runtime.assemble import SPILLED_BYTES
from attncc.runtime.spills import spilled_in_loops
from attncc.schedule.joined import joined_factor
from attncc.tile.nodes import Program
from attncc.tile.text import dump
from tests.codegen.gluon_cubin import compile_kernel
from tests.schedule.test_hopper_forward import SHAPES, SMALL, TEXTS, Case, kernel

JOINED = {
    "slopes": "score = q @ k / sqrt(D) + slope[h] * (j - i)",
    "steps": "score = q @ k - 2.0 * slope[h] * (i - j) / temperature",
    "bare": "score = max(temperature, 0.5) * (q @ k) + (j - i)",
}
APART = {
    "product": "score = q @ k / sqrt(D)",
    "distance": "score = q @ k / sqrt(D) - slope[h] * abs(i - j)",
    "pairs": "score = q @ k / sqrt(D) + slope[h] * (j - i) * (j - i)",
    "curved": "score = tanh(q @ k + slope[h] * (j - i))",
    "sign": "score = temperature * (q @ k) + slope[h] * (j - i)",
}


@pytest.mark.parametrize("name", [*JOINED, *APART])
def test_even_terms_beside_a_positive_multiple_of_the_product_join_it(name: str) -> None:
    score = JOINED.get(name) or APART[name]
    TEXTS[f"a_{name}"] = f"attention a(slope: real[h], temperature = 2.0):\n    {score}\n    out = softmax(score) @ v\n"
    problem = Case(f"a_{name}", SHAPES["square"]).problem()
    assert (joined_factor(problem) is not None) == (name in JOINED)


def joined(case: Case, **plan: Any) -> Program:
    program = case.program(**plan, joined=True)
    assert "k_more" in dump(program)
    return program


TEXTS["joined_steps"] = """attention joined_steps(slope: real[h]):
    score = q @ k / sqrt(D) - 2.0 * slope[h] * (i - j) / 3
    mask  = i - j < 25
    out   = softmax(score) @ v
"""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["alibi", "joined_steps"])
def test_out_and_lse_match_the_reference(name: str, shape: str) -> None:
    case = Case(name, SHAPES[shape])
    case.check(joined(case, **SMALL, resident=shape != "more rows"))
    case.check(joined(case, **SMALL, lazy=True, early=shape == "square"))


@pytest.mark.parametrize("side", [64, 128])
def test_default_plans_match_the_reference(side: int) -> None:
    case = Case("alibi", (1, 2, 1, 150, 190, side, side))
    case.check(joined(case))


def test_no_interleaving_differs() -> None:
    case = Case("alibi", (1, 1, 1, 50, 40, 16, 16))
    program = joined(case, **SMALL)
    for seed in range(100):
        case.check(program, seed)


@pytest.mark.parametrize("side", [64, 128])
def test_products_overlap_and_little_spills(side: int, tmp_path: Path) -> None:
    """Three consumers at 64 channels: the terms by key take no registers."""
    program = joined(Case("alibi", (1, 1, 1, 8, 8, side, side)), lazy=True, early=False)
    cubin = compile_kernel(program, kernel(program), tmp_path)
    within = spilled_in_loops((tmp_path / "kernel.cubin").read_bytes())
    assert not cubin.serialised and cubin.reallocates and within is not None and within <= SPILLED_BYTES


def test_scores_without_such_a_term_have_no_other_channels() -> None:
    program = Case("causal", SHAPES["square"]).program(**SMALL, joined=True)
    assert "k_more" not in dump(program)


@pytest.mark.parametrize("slope", [3e-5, 0.3, 70.0, 4e4])
def test_slopes_of_any_size_keep_their_digits(slope: float) -> None:
    case = Case("alibi", (1, 2, 1, 40, 60, 16, 16), slope=torch.tensor([slope, -slope], dtype=torch.float64))
    case.check(joined(case, **SMALL))
