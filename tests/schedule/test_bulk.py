"""Tiles that the hardware moves by itself: which ones, and that they are what the guarded loads read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncc import driver
from attncc.expr.build import conj, op
from attncc.grammar import parse
from attncc.schedule import chunk_programs
from attncc.schedule.programs import Pair
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.interpret import run_program
from attncc.tile.interpret_faults import IndexFault
from attncc.tile.text import dump
from attncc.tile.text_parse import parse as read
from attncc.tile.verify import verify
from attncc.tile.verify_faults import VerifyError
from attncc.tile.walks import every

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
SPEC = parse((EXAMPLES / "simple_gla.attn").read_text(encoding="utf-8"))
VARIANT = Variant("triton", 16, 16, "f16", (("decay", "f16"),), gradients=("q", "k", "v", "decay"), capability=90)


def loads(kernel: t.Kernel) -> list[t.Load]:
    """All of a kernel."""
    return [s.op for s in every(kernel.body) if isinstance(s, t.Let) and isinstance(s.op, t.Load)]


def in_bulk(pair: Pair) -> dict[str, set[str]]:
    """The tensors that are loaded in bulk, by kernel."""
    assert pair.backward is not None
    kernels = (*pair.forward.kernels, *pair.backward.kernels)
    return {k.name: {x.tensor for x in loads(k) if x.bulk} for k in kernels}


def with_loads(program: t.Program, change: dict[str, Any]) -> t.Program:
    """The program with its bulk loads of q changed."""

    def body(stmts: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
        found: list[t.Stmt] = []
        for s in stmts:
            if isinstance(s, t.For):
                s = replace(s, body=body(s.body))
            if isinstance(s, t.Let) and isinstance(s.op, t.Load) and s.op.bulk and s.op.tensor == "q":
                s = replace(s, op=replace(s.op, **change))
            found.append(s)
        return tuple(found)

    return replace(program, kernels=tuple(replace(k, body=body(k.body)) for k in program.kernels))


def given(tokens: int, rows: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    inputs = {n: draw.normal(size=(1, 2, rows if n == "q" else tokens, 16)).astype(np.float16) for n in "qkv"}
    return inputs | {"decay": -np.abs(draw.normal(size=(1, 2, tokens))).astype(np.float16)}


def test_what_products_read_is_moved_in_bulk() -> None:
    """Tiles of inputs and of states; vectors are not, and what a kernel only computes with is not."""
    assert in_bulk(driver.programs(SPEC, VARIANT)) == {
        "sums_kernel": set(),
        "owns_kernel": {"k", "v"},
        "forward_kernel": {"q", "k", "v"},
        "states_kernel": {"k", "v"},
        "adjoints_kernel": {"q", "d_out"},
        "gradients_kernel": {"q", "k", "v", "d_out", "S_starts", "S_ends"},
        "gates_kernel": set(),
    }


@pytest.mark.parametrize("change", [{"capability": 80}, {"dtype": "f32", "captured": (("decay", "f32"),)}])
def test_only_on_hopper_and_of_16_bits(change: dict[str, Any]) -> None:
    """Nothing moves in bulk elsewhere."""
    assert not any(in_bulk(driver.programs(SPEC, replace(VARIANT, **change))).values())


@pytest.mark.parametrize("D", [16, 20])
def test_rows_begin_at_multiples_of_16_bytes(D: int) -> None:
    """The buffers of states of 20 channels do not; the promise for inputs is the caller's."""
    found = in_bulk(driver.programs(SPEC, replace(VARIANT, D=D, E=D)))
    assert ("S_starts" in found["gradients_kernel"]) == (D == 16)
    assert {"q", "k", "v"} <= found["forward_kernel"]


@pytest.mark.parametrize(("tokens", "rows"), [(0, 0), (1, 1), (65, 65), (200, 200), (130, 70)])
def test_the_same_bits(tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with guards, for chunks that end outside of a tensor, and for rows that begin in one."""
    inputs = given(tokens, rows)

    def run() -> np.ndarray:
        forward = driver.programs(SPEC, VARIANT).forward
        return run_program(forward, inputs).outputs["out"]

    found = run()
    monkeypatch.setattr(chunk_programs, "bulk", lambda program, moved: program)
    assert np.array_equal(found, run())


def test_a_guard_that_keeps_less_is_found() -> None:
    """A bulk copy knows no guard: one that excludes what lies in the tensor is a mistake."""
    forward = driver.programs(SPEC, VARIANT).forward
    (load,) = [x for k in forward.kernels for x in loads(k) if x.tensor == "q"]
    narrow = conj(load.guard, op("lt", load.index[2], 5))
    with pytest.raises(IndexFault, match="is read in bulk, and its guard is false"):
        run_program(with_loads(forward, {"guard": narrow}), given(8, 8))


def test_outside_there_is_nothing_but_0() -> None:
    """Bulk copies fill up with 0."""
    forward = driver.programs(SPEC, VARIANT).forward
    with pytest.raises(VerifyError, match="a bulk load reads a box of its tensor, and 0 outside"):
        verify(with_loads(forward, {"other": 1.0}))


def test_text() -> None:
    """`in bulk` is read back."""
    forward = driver.programs(SPEC, VARIANT).forward
    text = dump(forward)
    assert " in bulk" in text
    assert read(text) == forward


def test_printed() -> None:
    """The host describes a tensor once for a box, and a kernel names the box's place."""
    text = driver.source(driver.programs(SPEC, VARIANT), VARIANT, "simple_gla")
    assert "q_desc = _descriptor(q, [1, 1, 64, 16])" in text
    assert "q_1 = q_desc.load([b, h, r0, 0]).reshape(64, 16)" in text
