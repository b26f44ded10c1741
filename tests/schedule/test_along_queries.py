"""Gradients of what multiplies q @ k row by row: from q and the sum that dQ comes from, in one order."""

from __future__ import annotations

import pytest

from attncc.schedule.captured import captures
from attncc.tile.nodes import For, Kernel, Let, Program, Reduce, Stmt
from attncc.tile.verify import verify
from attncc.tile.walks import every
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


def loops(kernel: Kernel) -> list[For]:
    """A kernel's walks over tiles."""
    return [s for s in every(kernel.body) if isinstance(s, For)]


def sums(body: tuple[Stmt, ...]) -> list[str]:
    """What is added up along keys there."""
    return [s.name for s in every(body) if isinstance(s, Let) and isinstance(s.op, Reduce) and s.op.op == "sum"]


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
    if shape[1] == shape[2]:  # heads that share keys add to their dK and dV as they come
        verify(program, deterministic=True)
    (rows,) = (k for k in program.kernels if k.name == "queries_kernel")
    assert loops(rows) and not any(sums(x.body) for x in loops(rows))
    near(case, program, "q", *(p.name for p in case.spec.params))


@pytest.mark.parametrize("name", MULTIPLIED)
def test_so_they_do_in_plain_kernels(name: str) -> None:
    case = case_of(*MULTIPLIED[name], SHAPES[0])
    program = case.backward(target="triton")
    (rows,) = (k for k in program.kernels if k.name == "queries_kernel")
    assert not any(sums(x.body) for x in loops(rows))
    near(case, program, "q", *(p.name for p in case.spec.params))


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_factors_are_summed_over_the_pairs(name: str) -> None:
    case = case_of(*OTHERWISE[name], SHAPES[0])
    p = case.problem()
    found = {c.load.tensor: c for c in captures(p)}
    assert found["heat"].along is None
    program = case.backward()
    assert "queries_kernel" in {k.name for k in program.kernels}
    near(case, program, *(x.name for x in case.spec.params))


def test_where_nobody_sums_dq_rows_are_summed() -> None:
    case = case_of(*MULTIPLIED["by row"], SHAPES[0], ("k", "heat"))
    assert all(c.along is None for c in captures(case.problem()))
    program = case.backward()
    assert "queries_kernel" in {k.name for k in program.kernels}
    near(case, program, "heat")
