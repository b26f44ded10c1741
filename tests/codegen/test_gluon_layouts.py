"""Register layouts inferred from dots, and the conversions printed where two meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from attncc.codegen.gluon_layouts import Blocked, Mma, Operand, Runs, Slice, layouts, project
from attncc.codegen.gluon_printer import print_gluon
from attncc.codegen.gluon_spelling import swizzle
from attncc.driver import programs
from attncc.expr.build import ivar
from attncc.expr.nodes import Const
from attncc.grammar import parse
from attncc.schedule.variant import Variant
from attncc.tile.hopper import LANES
from attncc.tile.nodes import (
    AllocShared,
    Axis,
    Dot,
    Dtype,
    Iota,
    Kernel,
    Let,
    Load,
    Reduce,
    Slot,
    SplitAxis,
    Store,
    Type,
)
from tests.codegen.gluon_cubin import VERSION, compile_kernel
from tests.tile.programs.hopper_forward import DEFAULT, program, scaled

NARROW_KEYS = replace(DEFAULT, keys=64, depth=4)


def test_values_follow_the_dots_they_meet() -> None:
    table, types = layouts(program(NARROW_KEYS).kernels[0])
    scores, sums = Mma(64, 16, 4), Mma(128, 16, 4)
    assert table["s"] == scores
    assert table["o"] == sums
    assert table["m"] == table["l"] == table["row"] == Slice(1, scores)
    assert table["key"] == Slice(0, scores)
    operands = {n for n, layout in table.items() if layout == Operand(sums)}
    assert operands and all(types[n].dtype == "bf16" for n in operands)
    assert not any(isinstance(layout, Blocked) for layout in table.values())


def test_every_value_with_axes_has_a_layout() -> None:
    table, types = layouts(program(DEFAULT).kernels[0])
    buffers = {"q_s", "k_s", "v_s", "out_s"}
    assert {n for n, t in types.items() if t.axes} - buffers == set(table)


def test_conversions_stand_only_between_different_layouts() -> None:
    same = [x for x in print_gluon(program(DEFAULT)).splitlines() if " = gl.convert_layout" in x]
    assert {line.split(", ")[1] for line in same} == {"A_128)"}
    other = print_gluon(program(NARROW_KEYS))
    assert "ROWS_128)[:, None]" in other


def test_keys_of_another_width_compile(tmp_path: Path) -> None:
    p = program(NARROW_KEYS, scaled)
    cubin = compile_kernel(p, p.kernels[0], tmp_path)
    assert cubin.serialised == ()
    assert cubin.spilled_bytes == 0
    if VERSION < (3, 9):
        assert cubin.products == 2 * 2 * (128 // 16 + 64 // 16)


def test_a_tile_in_runs_is_added_up_within_threads() -> None:
    i, j, d = Axis("i", 64), Axis("j", 128), Axis("d", 64)
    run, lane = Axis("run", 16), Axis("lane", LANES)
    body = (
        AllocShared("a", Type((i, d), "bf16"), 1),
        AllocShared("b", Type((j, d), "bf16"), 1),
        Let("s", Type((i, j), "f32"), Dot(Slot("a", Const(0, "int")), Slot("b", Const(0, "int")), "d")),
        Let("runs", Type((i, run, lane), "f32"), SplitAxis("s", "j", run, lane)),
        Let("parts", Type((i, lane), "f32"), Reduce("sum", "runs", "run")),
        Let("whole", Type((i,), "f32"), Reduce("sum", "parts", "lane")),
    )
    table, _ = layouts(Kernel("sums", (), (), (), body))
    assert table["runs"] == Runs(Mma(128, 16, 4))
    assert table["parts"] == Mma(LANES, 16, 4)
    assert table["whole"] == Slice(1, Mma(LANES, 16, 4))


def test_sums_over_runs_pass_no_numbers_between_threads(tmp_path: Path) -> None:
    spec = "attention full:\n    score = q @ k / sqrt(D)\n    out   = softmax(score) @ v\n"
    shuffles = {}
    for lanes in (True, False):
        v = Variant("gluon", 128, 128, "bf16", (), capability=90, tiles=f"partitioned.forward.lanes={lanes}")
        p = programs(parse(spec), v).forward
        shuffles[lanes] = compile_kernel(p, p.kernels[0], tmp_path).exchanges
    assert shuffles[True] < shuffles[False]


def test_what_no_dot_touches_is_spread_in_blocks() -> None:
    i = Axis("i", 256)
    body = (
        Let("at", Type((i,), "i32"), Iota(Const(0, "int"))),
        Let("x", Type((i,), "f32"), Load("a", (ivar("at"),))),
        Store("b", (ivar("at"),), "x"),
    )
    table, _ = layouts(Kernel("copy", (), ("a", "b"), (), body))
    assert isinstance(table["x"], Blocked)


def test_projection_drops_the_axes_that_are_missing() -> None:
    mma = Mma(128, 16, 4)
    assert project(mma, ("i", "j"), ("i", "j")) == mma
    assert project(mma, ("i", "j"), ("i",)) == Slice(1, mma)
    assert project(mma, ("i", "j"), ("j",)) == Slice(0, mma)


def test_rows_of_shared_buffers_choose_the_swizzle() -> None:
    def width(columns: int, dtype: Dtype) -> int:
        return swizzle(Type((Axis("i", 64), Axis("d", columns)), dtype))

    assert [width(n, "bf16") for n in (128, 64, 32, 16, 8)] == [128, 128, 64, 32, 0]
    assert width(64, "f32") == 128
