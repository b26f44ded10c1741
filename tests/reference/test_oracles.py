"""The reference equals torch written by hand: outputs, lse and every gradient, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.oracles
from attncc.grammar import parse
from tests.oracles import ORACLES
from tests.support.cells import LAYOUTS, Cell, cells
from tests.support.compare import BARS, compare
from tests.support.inputs import make_inputs, run, truth
from tests.support.specs import SEVEN, SPECS

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "softmax").glob("*.attn"))
SHORT = (1, 7, 31, 64)
CASES = [
    *cells(7, count=9, M=SHORT, N=(0, *SHORT), D=(8, 24, 40), E=(0, 16), dtype=("float64",)),
    Cell(2, (4, 2), 0, 9, 8, 8, "contiguous", "plain", "float64"),
    Cell(0, (2, 1), 3, 5, 8, 4, "contiguous", "plain", "float64"),
    Cell(1, (4, 4), 12, 5, 8, 4, "contiguous", "empty rows", "float64"),
    Cell(2, (8, 2), 5, 12, 8, 4, "transposed", "large means", "float64"),
]


def by_hand(name: str, constants: dict[str, int | float]) -> Callable[..., Any]:
    oracle = partial(ORACLES[name], **constants)

    def call(*, return_lse: bool, **tensors: Tensor) -> object:
        out, lse = oracle(**tensors)
        return (out, lse) if return_lse else out

    return call


@pytest.mark.parametrize("name", SPECS)
def test_reference_equals_oracle(name: str, seed: int) -> None:
    for number, cell in enumerate(CASES):
        inputs = make_inputs(name, cell, seed=seed + number)
        got = run(truth(name, inputs.constants), inputs)
        want = run(by_hand(name, inputs.constants), inputs.exact())
        compare(got, want, BARS["float64"], f"{name} {cell}", lambda i=inputs: _magnitudes(name, i))  # type: ignore[misc]


def _magnitudes(name: str, inputs: Any) -> dict[str, Tensor]:
    return run(truth(name, inputs.constants, magnitudes=True), inputs.exact())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_file_equals_oracle(path: Path) -> None:
    spec = parse(path.read_text(encoding="utf-8"), path.name)
    cell = Cell(2, (4, 2), 9, 13, 8, 4, "contiguous", "plain", "float64")
    inputs = make_inputs(spec.name, cell)
    got = run(truth(spec, inputs.constants), inputs)
    compare(got, run(by_hand(spec.name, inputs.constants), inputs.exact()), BARS["float64"], path.name)


def test_every_spec_has_an_oracle() -> None:
    assert set(SPECS) == set(ORACLES)
    assert set(SEVEN) <= set(ORACLES)


def test_cases_reach_every_corner() -> None:
    assert {c.layout for c in CASES} == set(LAYOUTS)
    assert any(c.M > c.N > 0 for c in CASES) and any(c.M < c.N for c in CASES)
    assert any(c.N == 0 for c in CASES) and any(c.M == 0 for c in CASES) and any(c.B == 0 for c in CASES)
    assert any(c.H == 8 * c.G for c in CASES) and any(c.E != c.D for c in CASES)


def test_oracles_know_nothing_of_the_compiler() -> None:
    assert "attncc" not in Path(tests.oracles.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SPECS)
def test_float32_is_near(name: str) -> None:
    cell = Cell(1, (4, 2), 40, 70, 24, 16, "contiguous", "plain", "float32")
    inputs = make_inputs(name, cell)
    got = run(truth(name, inputs.constants, dtype=torch.float32), inputs)
    want = run(truth(name, inputs.constants), inputs.exact())
    compare(got, want, BARS["float32"], f"{name} {cell}", lambda: _magnitudes(name, inputs))
