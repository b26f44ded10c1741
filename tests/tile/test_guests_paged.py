"""Decoding over a page table, interpreted, against dense decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.tile.interpret import run_program
from attncc.tile.nodes import Dtype
from attncc.tile.text import dump
from attncc.tile.text_parse import parse
from attncc.tile.verify import verify
from tests.tile.paged_cases import dense, inputs
from tests.tile.programs.paged_decode import Plan, program

SMALL = Plan(D=16, E=16, page=8, rows=4, splits=8)


def check(h: int, g: int, lengths: list[int], splits: int, seed: int) -> None:
    x = inputs(h, g, SMALL.page, 16, lengths, seed)
    report = run_program(program(SMALL), x, {"scale": 0.2, "S": splits}, seed=seed)
    out, lse = dense(x, 0.2)
    np.testing.assert_allclose(report.outputs["out"], out, rtol=0, atol=3e-6)
    np.testing.assert_allclose(report.outputs["lse"], lse, rtol=0, atol=3e-6)


@pytest.mark.parametrize("splits", [1, 3, 8])
def test_rows_of_all_lengths(splits: int) -> None:
    check(8, 2, [100, 0, 1, 8, 333], splits, seed=1)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.integers(1, 8),
    st.sampled_from([(1, 1), (6, 2)]),
    st.integers(0, 99),
)
def test_any_rows_and_splits(lengths: list[int], splits: int, heads: tuple[int, int], seed: int) -> None:
    check(*heads, lengths, splits, seed)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_verified(dtype: Dtype) -> None:
    verify(program(Plan(dtype=dtype)))


def test_text_round_trip() -> None:
    p = program(SMALL)
    assert parse(dump(p)) == p
