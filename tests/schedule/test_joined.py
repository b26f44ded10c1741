"""Terms by key as channels of the inner product, by the interpreter against the reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from attncc.reference import evaluate
from attncc.runtime.assemble import SPILLED_BYTES
from attncc.runtime.spills import spilled_in_loops
from attncc.schedule.joined import joining
from attncc.schedule.stream import Problem
from attncc.tile.interpret import run_program
from attncc.tile.nodes import Program
from attncc.tile.text import dump
from tests.codegen.gluon_cubin import compile_kernel
from tests.schedule.test_hopper_forward import SHAPES, SMALL, TEXTS, Case, Shape, kernel
from tests.support.compare import error

JOINED = {
    "slopes": "score = q @ k / sqrt(D) + slope[h] * (j - i)",
    "steps": "score = q @ k - 2.0 * slope[h] * (i - j) / temperature",
    "bare": "score = max(temperature, 0.5) * (q @ k) + (j - i)",
}
WITH_KEYS = {
    "bias": "score = q @ k / sqrt(D) + bias[h, j]",
    "mixed": "score = max(temperature, 0.5) * (q @ k) - 0.5 * bias[h, j] + slope[h] * i",
    "squares": "score = q @ k + slope[h] * (j * j)",
}
APART = {
    "product": "score = q @ k / sqrt(D)",
    "distance": "score = q @ k / sqrt(D) - slope[h] * abs(i - j)",
    "pairs": "score = q @ k / sqrt(D) + slope[h] * (j - i) * (j - i)",
    "curved": "score = tanh(q @ k + slope[h] * (j - i))",
    "sign": "score = temperature * (q @ k) + slope[h] * (j - i)",
    "both": "score = q @ k / sqrt(D) + slope[h] * (j - i) + bias[h, j]",
    "rows": "score = q @ k * temperature + bias[h, i]",
}


@pytest.mark.parametrize("name", [*JOINED, *WITH_KEYS, *APART])
def test_terms_by_key_beside_a_positive_multiple_of_the_product_join_it(name: str) -> None:
    score = (JOINED | WITH_KEYS | APART)[name]
    head = "attention a(slope: real[h], bias: real[h, n], temperature = 2.0):"
    TEXTS[f"a_{name}"] = f"{head}\n    {score}\n    out = softmax(score) @ v\n"
    term = joining(Case(f"a_{name}", SHAPES["square"]).problem(dtype="bf16"))
    assert (term is not None) == (name not in APART)
    assert (term is not None and term.evenly) == (name in JOINED)


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


def products_overlap_and_little_spills(program: Program, folder: Path) -> None:
    cubin = compile_kernel(program, kernel(program), folder)
    within = spilled_in_loops((folder / "kernel.cubin").read_bytes())
    assert not cubin.serialised and cubin.reallocates and within is not None and within <= SPILLED_BYTES


@pytest.mark.parametrize("side", [64, 128])
def test_products_overlap_and_little_spills(side: int, tmp_path: Path) -> None:
    """Three consumers at 64 channels: the terms by key take no registers."""
    program = joined(Case("alibi", (1, 1, 1, 8, 8, side, side)), lazy=True, early=False)
    products_overlap_and_little_spills(program, tmp_path)


def test_scores_without_such_a_term_have_no_other_channels() -> None:
    program = Case("causal", SHAPES["square"]).program(**SMALL, joined=True)
    assert "k_more" not in dump(program)


@pytest.mark.parametrize("slope", [3e-5, 0.3, 70.0, 4e4])
def test_slopes_of_any_size_keep_their_digits(slope: float) -> None:
    case = Case("alibi", (1, 2, 1, 40, 60, 16, 16), slope=torch.tensor([slope, -slope], dtype=torch.float64))
    case.check(joined(case, **SMALL))


# --- terms that come with the keys


TEXTS["forgetting"] = """attention forgetting(total: real[b, h, n]):
    score = q @ k / sqrt(D) + total[b, h, i] - total[b, h, j]
    mask  = j <= i
    out   = softmax(score) @ v
"""


class Wide(Case):
    """A case in bfloat16, whose range is that of float32; captured tensors are not rounded."""

    def __init__(self, name: str, shape: Shape, **inputs: torch.Tensor) -> None:
        super().__init__(name, shape)
        self.tensors |= {n: x.float().double() for n, x in inputs.items()}
        self.tensors |= {n: self.tensors[n].bfloat16().double() for n in "qkv"}
        self.want = evaluate(self.spec, self.tensors, self.constants, return_lse=True)

    def problem(self, **changes: Any) -> Problem:
        return super().problem(**{"dtype": "bf16", **changes})

    def check(self, program: Program, seed: int = 0) -> None:
        """out within the rounding of bf16, lse of f32."""
        found = run_program(program, {n: x.numpy() for n, x in self.tensors.items()}, {}, seed=seed).outputs
        assert self.want.lse is not None
        assert error(torch.from_numpy(found["out"]), self.want.out) < 5e-3
        assert error(torch.from_numpy(found["lse"]), self.want.lse) < 2e-6


def with_keys(case: Case, **plan: Any) -> Program:
    program = case.program(**plan)
    assert [k.name for k in program.kernels] == ["key_terms_kernel", "forward_kernel"]
    return program


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["key_bias", "forgetting"])
def test_terms_that_come_with_the_keys(name: str, shape: str) -> None:
    case = Wide(name, SHAPES[shape])
    case.check(with_keys(case, **SMALL, resident=shape != "more rows"))
    case.check(with_keys(case, **SMALL, lazy=False, early=shape == "square"))


@pytest.mark.parametrize("side", [64, 128])
def test_their_default_plans(side: int, tmp_path: Path) -> None:
    case = Wide("key_bias", (1, 2, 1, 150, 190, side, side))
    program = with_keys(case)
    case.check(program)
    products_overlap_and_little_spills(program, tmp_path)


def test_no_interleaving_of_their_copies_differs() -> None:
    case = Wide("forgetting", (1, 1, 1, 50, 50, 16, 16))
    program = with_keys(case, **SMALL)
    for seed in range(100):
        case.check(program, seed)


def test_float16_has_no_room_for_them() -> None:
    assert [k.name for k in Case("key_bias", SHAPES["square"]).program(**SMALL).kernels] == ["forward_kernel"]


LEAST = [-math.inf, -1e9, torch.finfo(torch.float32).min]


@pytest.mark.parametrize("kind", [Case, Wide])
@pytest.mark.parametrize("left", [(0, 40), (20, 60), (0, 16)], ids=str)
@pytest.mark.parametrize("least", LEAST)
def test_biases_that_leave_keys_out_may_fill_whole_tiles(kind: Any, left: tuple[int, int], least: float) -> None:
    bias = torch.randn(2, 60, dtype=torch.float64).half().double()
    bias[:, left[0] : left[1]] = least
    case = kind("key_bias", (1, 2, 1, 50, 60, 16, 16), bias=bias)
    case.check(case.program(**SMALL))


@pytest.mark.parametrize("size", [1e-6, 3e-3, 1.0, 300.0, 1e5])
def test_biases_of_any_size_keep_their_digits(size: float) -> None:
    """As far as a float32 of that size has digits for what keys differ by."""
    case = Wide("key_bias", (1, 2, 1, 40, 60, 16, 16), bias=size + torch.randn(2, 60, dtype=torch.float64))
    case.check(with_keys(case, **SMALL))
