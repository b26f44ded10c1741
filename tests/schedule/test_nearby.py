"""Tables by offset: which offsets they tell apart, and gradients that are summed by diagonals."""

from __future__ import annotations

from typing import Any

import pytest

from attncc.schedule.captured import captures
from attncc.schedule.nearby import nearby
from attncc.schedule.programs import stream
from attncc.schedule.variant import Target
from attncc.tile.nodes import Dtype, Program, ReduceAdd
from attncc.tile.verify import verify
from attncc.tile.verify_steps import bodies
from tests.schedule.test_hopper_backward import Case, distance, is_partitioned

HALF = (
    "def half(x, size, far) = x if x < size // 2 else "
    "min(size - 1, size // 2 + floor(log(2 * x / size) / log(2 * far / size) * (size - size // 2)))\n"
)
TABLES: dict[str, tuple[str, str, tuple[int, int] | None, int]] = {
    "causal": ("half(max(i - j, 0), 32, 128)", "j <= i", (-112, 0), 1),
    "a window": ("half(max(i - j, 0), 32, 128)", "j <= i and i - j < 100", (-99, 0), 0),
    "a wide window": ("half(max(i - j, 0), 32, 128)", "j <= i and i - j < 170", (-169, 0), 0),
    "one index on both sides": ("half(abs(i - j), 16, 40)", "", (-32, 32), 1),
    "a side each": ("half(abs(i - j), 16, 40) + (16 if j - i > 0 else 0)", "", (-32, 32), 2),
    "clipped": ("max(min(i - j, 20), -20) + 20", "", (-19, 19), 2),
    "clipped, causal": ("max(min(i - j, 20), -20) + 20", "j <= i", (-19, 0), 1),
    "two steps": ("(1 if j - i > 70 else 0) + (1 if i - j > 3 else 0)", "", (-3, 70), 1),
    "every offset": ("min(max(i - j, 0), 600)", "j <= i", None, 0),
    "no end": ("(i - j) * (i - j) % 7", "j <= i", None, 0),
}
"""Index, mask, the offsets that are told apart, how many indices lie beyond them."""


def case(name: str, shape: tuple[int, ...], score: str = "q @ k / sqrt(D) + table[{}, h]") -> Case:
    index, mask, *_ = TABLES[name]
    lines = [f"score = {score.format(index)}", *([f"mask = {mask}"] if mask else []), "out = softmax(score) @ v"]
    return Case(HALF + "attention a(table: real[601, h]):\n" + "".join(f"    {line}\n" for line in lines), shape)


def backward(one: Case, target: Target, **changes: Any) -> Program:
    program = stream(one.problem(target, **changes)).backward
    assert program is not None
    return program


@pytest.mark.parametrize("name", TABLES)
def test_offsets_that_are_told_apart(name: str) -> None:
    _, _, ends, beyond = TABLES[name]
    p = case(name, (1, 2, 2, 40, 40, 64, 64)).problem()
    found = nearby(p.attend.tables[0], p.by_row, False)
    if ends is None:
        assert found is None and [c.place for c in captures(p)] == ["pair"]
        return
    assert found is not None and (found.first, found.last) == ends and len(found.beyond) == beyond
    assert [c.place for c in captures(p)] == ["diagonal" if beyond < 2 else "pair"]


SHAPES = [(1, 2, 2, 270, 300, 64, 64), (2, 4, 2, 130, 200, 32, 64), (1, 2, 1, 200, 130, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [n for n in TABLES if TABLES[n][2] is not None and TABLES[n][3] < 2])
def test_their_gradients_match_the_reference(name: str, shape: tuple[int, ...]) -> None:
    one = case(name, shape)
    for target in ("triton", "gluon"):
        program = backward(one, target)
        assert is_partitioned(program) == (target == "gluon")
        added = {s.tensor for k in program.kernels for s in bodies(k.body) if isinstance(s, ReduceAdd)}
        assert not any("table" in tensor for tensor in added)
        assert distance(one.run(program)["d_table"], one.wanted["table"]) < 8e-3


def test_reads_that_something_multiplies() -> None:
    one = case("causal", SHAPES[0], "q @ k * table[{}, h] / sqrt(D)")
    for target in ("triton", "gluon"):
        assert distance(one.run(backward(one, target))["d_table"], one.wanted["table"]) < 8e-3


@pytest.mark.parametrize("name", ["causal", "a side each"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_smaller_tiles(name: str, dtype: Dtype) -> None:
    one = case(name, (1, 2, 1, 100, 130, 16, 32))
    program = backward(one, "triton", dtype=dtype)
    assert distance(one.run(program)["d_table"], one.wanted["table"]) < 4e-3


def test_channels_beyond_128() -> None:
    one = case("causal", (1, 1, 1, 70, 80, 160, 160))
    assert distance(one.run(backward(one, "triton"))["d_table"], one.wanted["table"]) < 8e-3


def test_with_a_gradient_of_lse_rows_do_not_add_up_to_0() -> None:
    p = case("causal", (1, 2, 1, 100, 130, 64, 64)).problem(lse_gradient=True)
    assert [c.place for c in captures(p)] == ["pair"]


@pytest.mark.parametrize(
    ("param", "score"),
    [("x: real[h]", "+ x[h]"), ("x: real[h, m]", "+ 3 * x[h, i]"), ("x: real[b, m]", "- x[b, i] * x[b, i]")],
)
def test_what_a_whole_row_shares_has_no_gradient(param: str, score: str) -> None:
    shape = (1, 2, 2, 130, 140, 64, 64)
    text = f"attention shared({param}):\n    score = q @ k / sqrt(D) {score}\n    out = softmax(score) @ v\n"
    one = Case(text, shape)
    for target in ("triton", "gluon"):
        program = backward(one, target)
        assert not captures(one.problem(target)) and not one.run(program)["d_x"].any()
        one.check(program)
    assert abs(one.wanted["x"]).max() < 1e-10
    assert captures(one.problem("triton", lse_gradient=True))


@pytest.mark.parametrize("score", ["+ x[h] * j", "+ x[h] * w[h, j]", "* x[h]", "+ x[h] * (q @ k)"])
def test_what_differs_along_a_row_has_one(score: str) -> None:
    text = "attention a(x: real[h], w: real[h, n]):\n    score = q @ k / sqrt(D) + w[h, j] " + score + "\n"
    one = Case(text + "    out = softmax(score) @ v\n", (1, 2, 2, 40, 40, 64, 64))
    assert "x" in {c.load.tensor for c in captures(one.problem())}


def test_two_reads_of_one_table() -> None:
    one = case("clipped", SHAPES[1], "q @ k / sqrt(D) + 0.5 * table[{}, h] + table[min(abs(i - j), 9), h]")
    assert distance(one.run(backward(one, "gluon"))["d_table"], one.wanted["table"]) < 8e-3


def test_where_sums_have_one_order() -> None:
    one = case("causal", SHAPES[1])
    program = backward(one, "gluon", ordered=True)
    verify(program, deterministic=True)
    first, again = (one.run(program, seed)["d_table"] for seed in (0, 1))
    assert (first == again).all() and distance(first, one.wanted["table"]) < 8e-3
