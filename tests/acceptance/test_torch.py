"""The seven specs as printed PyTorch, over the whole covering array in single and double precision."""

from __future__ import annotations

import pytest

from tests.acceptance.holds import hold
from tests.support.cells import Cell, torch_cells


@pytest.mark.cells("torch")
def test_results_and_gradients(name: str, cell: Cell, seed: int) -> None:
    hold(name, cell, backend="torch", seed=seed)


def test_the_array_is_wide_enough(seed: int) -> None:
    made = torch_cells(seed)
    assert len(made) >= 60
    assert {c.dtype for c in made} == {"float32", "float64"}
