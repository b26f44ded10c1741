"""Gradients of what multiplies q @ k row by row: from the sum that dQ comes from, with no pass over the pairs."""

from __future__ import annotations

import pytest

from attncc.schedule.captured import along_queries, captures
from attncc.schedule.programs import stream
from attncc.tile.nodes import Program
from attncc.tile.verify import verify
from tests.schedule.test_hopper_backward import Case, distance, is_partitioned

SHAPES = [(1, 2, 2, 270, 300, 64, 64), (2, 4, 2, 130, 100, 128, 128), (1, 4, 2, 170, 190, 96, 64)]
"""Of some length: over few pairs the sum for one number a head nearly cancels, and is 1.5e-2 off however it is made."""
MULTIPLIED = {
    "by row": ("heat: real[h, m]", "heat[h, i] * (q @ k) / sqrt(D)"),
    "by head": ("heat: real[h]", "heat[h] * (q @ k) / sqrt(D)"),
    "by batch, behind it": ("heat: real[b]", "q @ k / sqrt(D) * heat[b]"),
    "by a function": ("heat: real[b, h, m]", "exp(heat[b, h, i] / 4.0) * (q @ k) / sqrt(D) + 0.01 * (j - i)"),
    "by two": ("heat: real[h, m], cold: real[m]", "heat[h, i] / (1 + abs(cold[i])) * (q @ k) / sqrt(D)"),
}
OTHERWISE = {
    "under a function": ("heat: real[h, m]", "tanh(heat[h, i] * (q @ k) / sqrt(D))"),
    "beside the product": ("heat: real[h, m]", "q @ k / sqrt(D) + heat[h, i] * sin(j / 7.0)"),
    "with a key": ("heat: real[h, m], cold: real[h, n]", "heat[h, i] * cold[h, j] * (q @ k) / sqrt(D)"),
    "and beside it": ("heat: real[h, m]", "heat[h, i] * (q @ k + 0.01 * j) / sqrt(D)"),
}


def case_of(params: str, score: str, shape: tuple[int, ...], gradients: tuple[str, ...] | None = None) -> Case:
    text = f"attention x({params}):\n    score = {score}\n    mask  = j <= i\n    out   = softmax(score) @ v\n"
    return Case(text, shape, gradients)


def near(case: Case, program: Program, *names: str) -> None:
    case.check(program)
    found = case.run(program)
    for n in names:
        assert distance(found[f"d_{n}"], case.wanted[n]) < 8e-3, n


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MULTIPLIED)
def test_they_come_from_the_sum_of_dq(name: str, shape: tuple[int, ...]) -> None:
    case = case_of(*MULTIPLIED[name], shape)
    program = case.backward()
    assert is_partitioned(program) and not program.note
    assert "queries_kernel" not in {k.name for k in program.kernels}
    near(case, program, *(p.name for p in case.spec.params))


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_factors_are_summed_over_the_pairs(name: str) -> None:
    case = case_of(*OTHERWISE[name], SHAPES[0])
    p = case.problem()
    found = {c.load.tensor: along_queries(p, c) for c in captures(p)}
    assert found["heat"].along is None
    program = case.backward()
    assert "queries_kernel" in {k.name for k in program.kernels}
    near(case, program, *(x.name for x in case.spec.params))


def test_where_nobody_sums_dq_a_kernel_of_rows_does() -> None:
    case = case_of(*MULTIPLIED["by row"], SHAPES[0], ("k", "heat"))
    program = case.backward()
    assert "queries_kernel" in {k.name for k in program.kernels}
    near(case, program, "heat")
    ordered = case_of(*MULTIPLIED["by row"], SHAPES[0])
    program = stream(ordered.problem(ordered=True)).backward or pytest.fail("no backward")
    verify(program, deterministic=True)
    assert "queries_kernel" in {k.name for k in program.kernels}
    near(ordered, program, "heat")
