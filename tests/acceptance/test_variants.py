"""What compiles anew and what does not; odd strides of inputs and gradients on the CPU backend."""

from __future__ import annotations

import pytest

from tests.acceptance import recompiling, strided
from tests.acceptance.strided import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_views(case: Case, seed: int) -> None:
    strided.hold(case, backend="torch", seed=seed)


def test_sizes_and_constants_compile_nothing() -> None:
    recompiling.sizes_and_constants("torch")
