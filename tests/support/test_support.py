"""The harness itself: the array covers what it says, inputs are what a cell asks for, and errors are caught."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from attncc.expr.build import op
from attncc.ir.nodes import Load
from tests.support.cells import CHANNELS, LAYOUTS, LENGTHS, Cell, covering, device_cells, interpreted_cells, torch_cells
from tests.support.compare import BARS, compare, error, low_precision_bars
from tests.support.inputs import expected, make_inputs, run, truth
from tests.support.specs import QK, SEVEN, SPECS, attend, h, param, softmax, spec


def test_every_pair_is_covered() -> None:
    factors = {"a": (1, 2, 3), "b": "xyz", "c": (True, False), "d": (0, 1, 2, 3)}
    rows = covering(factors, 1)
    for left, right in combinations(factors, 2):
        assert {(r[left], r[right]) for r in rows} == {(x, y) for x in factors[left] for y in factors[right]}
    assert len(rows) <= 20


def test_forbidden_pairs_stay_out_and_the_rest_is_covered() -> None:
    rows = covering({"a": (1, 2, 3), "b": (1, 2, 3), "c": (0, 1)}, 1, lambda r: r.get("a", 0) <= r.get("b", 9))
    assert {(r["a"], r["b"]) for r in rows} == {(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)}


@pytest.mark.parametrize("number", range(3))
def test_torch_cells(number: int) -> None:
    found = torch_cells(number)
    assert len(found) >= 60 and found == torch_cells(number)
    assert {c.D for c in found} == set(CHANNELS) and {c.layout for c in found} == set(LAYOUTS)
    assert {(c.M, c.N) for c in found} >= {(m, n) for m in LENGTHS for n in (0, *LENGTHS)}
    assert any(c.N == 0 for c in found) and any(c.E != c.D for c in found)
    assert all(c.M > c.N for c in found if c.feature == "empty rows")
    assert len({str(c) for c in found}) == len(found)


def test_short_lists() -> None:
    assert len(interpreted_cells(0)) == 8 and {c.dtype for c in interpreted_cells(0)} == {"float32", "float16"}
    assert len(device_cells(0)) == 12 and {c.dtype for c in device_cells(0)} == {"float32", "float16", "bfloat16"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    inputs = make_inputs("causal", Cell(2, (4, 2), 5, 7, 8, 6, layout, "plain", "float32"))
    views = inputs.views()
    assert views["q"].shape == (2, 4, 5, 8) and views["k"].shape == (2, 2, 7, 8) and views["v"].shape == (2, 2, 7, 6)
    strides = {
        "contiguous": (160, 40, 8, 1),
        "transposed": (160, 8, 32, 1),
        "broadcast": (0, 40, 8, 1),
        "unaligned": (180, 45, 9, 1),
    }
    assert views["q"].stride() == strides[layout]
    results = run(truth("causal", dtype=torch.float32), inputs)
    assert results["dq"].shape == inputs.leaves["q"].shape


@pytest.mark.parametrize("name", SEVEN)
def test_inputs_are_the_same_in_every_type(name: str) -> None:
    cell = Cell(1, (2, 1), 5, 7, 8, 8, "contiguous", "outliers", "bfloat16")
    inputs = make_inputs(name, cell)
    for leaf, exact in zip(inputs.leaves.values(), inputs.exact().leaves.values(), strict=True):
        assert torch.equal(leaf.double(), exact.double())
    assert all(x.dtype == torch.bfloat16 for x in inputs.leaves.values() if x.is_floating_point())


def test_a_wrong_result_is_named() -> None:
    cell = Cell(1, (2, 1), 5, 7, 8, 8, "contiguous", "plain", "float32")
    inputs = make_inputs("alibi", cell)
    want, magnitudes = expected(inputs)
    compare(want, want, 1e-12, cell, magnitudes)
    for name in want:
        for spoilt in (want[name] * 1.01, want[name] * float("nan"), want[name][..., :0]):
            with pytest.raises(AssertionError, match=rf"B1-H2.1-M5-N7-D8-E8.*\n  {name}: "):
                compare({**want, name: spoilt}, want, BARS["float32"], cell)


def test_infinities_must_agree() -> None:
    inf = torch.tensor([1.0, -float("inf")])
    assert error(inf, inf) == 0
    assert error(torch.tensor([1.0, -1e30]), inf) == float("inf")


def test_gradients_that_cancel_are_measured_by_their_parts() -> None:
    """softmax does not feel a bias of the row: the true gradient is 0, and rounding is all that is left of it."""
    score = op("add", QK, Load("slope", (h,), "real"))
    biased = spec("biased", attend(softmax(score)), param("slope", "real", "h"))
    cell = Cell(1, (2, 1), 5, 7, 8, 8, "contiguous", "plain", "float32")
    inputs = replace(make_inputs("alibi", cell), has_lse=False)
    want, magnitudes = expected(inputs, biased)
    got = run(truth(biased, dtype=torch.float32), inputs)
    assert error(got["dslope"], want["dslope"]) > 1
    compare(got, want, low_precision_bars(got, want, torch.float32, magnitudes), cell, magnitudes)
    assert error(got["dslope"], want["dslope"], magnitudes()["dslope"]) < 1e-3


@pytest.mark.parametrize("name", SPECS)
def test_plain_half_precision_keeps_its_own_bar(name: str) -> None:
    inputs = make_inputs(name, Cell(1, (2, 1), 31, 40, 24, 24, "contiguous", "plain", "float16"))
    want, magnitudes = expected(inputs)
    plain = run(truth(name, inputs.constants, dtype=torch.float16), inputs)
    bars = low_precision_bars(plain, want, torch.float16, magnitudes)
    assert all(0 < bar < 0.1 for bar in bars.values())
    compare(plain, want, bars, name, magnitudes)


def test_empty_is_poisoned() -> None:
    assert bool(torch.empty(3).isnan().all()) and bool(torch.empty_like(torch.ones(2)).isnan().all())
    assert int(torch.empty(1, dtype=torch.int32)) == -0x5A5A


@pytest.mark.unpoisoned
def test_poison_can_be_left_out() -> None:
    assert torch.empty.__name__ == "empty"
