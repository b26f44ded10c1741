"""What partitioned kernels use, as text and as cubins: bulk additions, packed statistics, pieces, captures, layouts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from attncc.codegen.gluon_layouts import Blocked, Mma, Operand, Slice, layouts
from attncc.codegen.gluon_printer import arguments, print_gluon
from attncc.codegen.gluon_spelling import TESTED, descriptor_name
from attncc.codegen.writer import wrapped
from attncc.expr.build import op
from attncc.expr.nodes import Const, Var
from attncc.tile.nodes import (
    AllocShared,
    Axis,
    Fence,
    Full,
    Map,
    SharedLoad,
    SharedStore,
    Slot,
    Stmt,
    Store,
    Tensor,
    Type,
)
from attncc.tile.verify import verify
from tests.codegen.gluon_backward import Plan, program
from tests.codegen.gluon_cubin import VERSION, compile_kernel
from tests.codegen.gluon_small import small
from tests.tile.programs.build import Builder

PLANS = {
    "plain": Plan(captures=False),
    "captures": Plan(),
    "pieces": Plan(pieces=((0, 64), (64, 32))),
    "wide_rows": Plan(pieces=((0, 64),), rows=128, captures=False),
}
ZERO = Const(0, "int")


def lines(text: str, part: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if part in line]


@pytest.mark.parametrize("name", PLANS)
def test_backward_by_hand_compiles(name: str, tmp_path: Path) -> None:
    p = program(PLANS[name])
    verify(p)
    cubin = compile_kernel(p, p.kernels[0], tmp_path)
    ptx = (tmp_path / "kernel.ptx").read_text()
    parts = sum(-(-n // 64) for _, n in PLANS[name].pieces)
    adds = len(re.findall(r"cp\.reduce\.async\.bulk\.tensor\.4d\.global\.shared::cta\.add", ptx))
    assert adds % parts == 0 and adds >= parts
    assert cubin.products > 0
    assert cubin.serialised == ()


def test_channels_in_pieces_have_descriptors_by_their_extent() -> None:
    p = program(PLANS["pieces"])
    names = [a.name for a in arguments(p, p.kernels[0]) if a.kind == "descriptor"]
    assert names[:4] == ["q_desc_64", "q_desc_32", "k_desc_64", "k_desc_32"]
    assert "stats_desc" in names
    text = print_gluon(p, triton=VERSION)
    assert "q_desc_32 = _descriptor(q, [1, 1, 64, 32], 64)" in text
    assert "stats_desc = _descriptor(stats, [128], 0)" in text


def test_descriptors_are_told_apart() -> None:
    wide, narrow, tall = (1, 1, 64, 64), (1, 1, 64, 32), (1, 1, 128, 64)
    assert descriptor_name("q", wide, [wide]) == "q_desc"
    assert descriptor_name("q", narrow, [wide, narrow]) == "q_desc_32"
    assert descriptor_name("q", tall, [wide, narrow, tall]) == "q_desc_128x64"


@pytest.mark.parametrize("version", TESTED)
def test_additions_in_bulk_are_spelled_for_the_version_of_triton(version: tuple[int, int]) -> None:
    text = print_gluon(program(PLANS["plain"]), triton=version)
    own = "def _add_shared_to_global(" in text
    assert own == (version < (3, 9))
    assert ("tma.async_atomic_add(d_q_sum_desc, " in text) == (not own)
    assert text.count("def _add_shared_to_global(") <= 1


def test_statistics_are_read_where_the_columns_of_the_scores_lie() -> None:
    table, _ = layouts(program(PLANS["plain"]).kernels[0])
    scores = Mma(64, 16, 4)
    assert table["s"] == table["p"] == table["ds16"] == scores
    assert table["delta_x"] == table["log_z"] == table["row"] == Slice(0, scores)
    assert table["dq"] == Mma(64, 16, 4)
    assert table["dv"] == table["dk0"] == Mma(128, 16, 4)
    assert not any(isinstance(layout, Blocked | Operand) for layout in table.values())


def test_what_a_tile_reads_lies_as_the_scores_do() -> None:
    table, _ = layouts(program(PLANS["captures"]).kernels[0])
    scores = Mma(64, 16, 4)
    assert table["bias_ij"] == table["table_ij"] == table["offset"] == scores
    assert table["doc_i"] == table["shift_i"] == Slice(0, scores)
    assert table["doc_j"] == table["keep_j"] == Slice(1, scores)


def test_addresses_keep_positions_of_a_tile_in_32_bits() -> None:
    text = print_gluon(program(PLANS["captures"]), triton=VERSION)
    (doc,) = lines(text, "doc_i = gl.load(")
    assert "doc + b * doc_sb + t * 64 + gl.arange(0, 64, COLS_64), mask=row < N, other=-2" in doc
    assert "gl.arange(0, 64, COLS_64) * bias_si.to(gl.int32)" in text
    assert "(gl.cast(b, gl.int64) * H + h) * N + j0 + gl.arange(0, 64, ROWS_64)" in text


def test_waits_side_by_side_are_one() -> None:
    text = print_gluon(program(PLANS["plain"]), triton=VERSION)
    assert re.search(r"dv\w+, dk\w+ = warpgroup_mma_wait\(0, \[dv\w*, dk\w*\]\)", text)


# --- layouts where users differ ---------------------------------------------------------------------------------------

I, J, D = Axis("i", 64), Axis("j", 64), Axis("d", 64)
MATRIX = Tensor("x", ("r", "c"), (Const(64, "int"), Const(64, "int")), "bf16")
OUT = Tensor("y", ("r", "c"), (Const(64, "int"), Const(64, "int")), "f32")
VECTOR = Tensor("z", ("r",), (Const(64, "int"),), "f32")


def products(x: Builder, *, read: bool) -> tuple[Stmt, ...]:
    """s[j, i] = k q and dq[i, d] = (s masked)[j, i] k, both masked by a vector over i: a column here, a row there."""
    row, key = x.iota("row", I, ZERO), x.iota("key", J, ZERO)
    each = x.load("each", Type((I,), "f32"), "z", (row,)) if read else x.map("each", op("real", row))
    s = x.wait("s", x.dot("s", (J, I), Slot("k_s", ZERO), Slot("q_s", ZERO), "d", asynchronous=True), 0)
    masked = x.map("masked", op("where", op("le", key, row), op("mul", s, each), 0.0))
    x.add(SharedStore(Slot("ds_s", ZERO), x.cast("narrow", masked, "bf16").name), Fence())
    dq = x.wait("dq", x.dot("dq", (I, D), Slot("ds_s", ZERO), Slot("k_s", ZERO), "j", asynchronous=True), 0)
    channel = x.iota("channel", D, ZERO)
    x.add(Store("y", (row, channel), x.map("scaled", op("mul", dq, each)).name, op("lt", row, 60)))
    return tuple(x.here)


def shared(*names: str) -> tuple[Stmt, ...]:
    axes = {"k_s": (J, D), "q_s": (I, D), "ds_s": (J, I)}
    return tuple(AllocShared(n, Type(axes[n], "bf16")) for n in names)


def test_positions_are_computed_again_in_a_second_layout(tmp_path: Path) -> None:
    p = small(products(Builder(), read=False), (MATRIX, VECTOR, OUT), top=shared("k_s", "q_s", "ds_s"))
    text = print_gluon(p, triton=VERSION)
    assert "convert_layout" not in text
    assert "row = gl.arange(0, 64, COLS_64)" in text
    assert "gl.arange(0, 64, ROWS_64).to(gl.float32)" in text
    assert compile_kernel(p, p.kernels[0], tmp_path).serialised == ()


def test_what_was_read_is_exchanged_between_threads(tmp_path: Path) -> None:
    p = small(products(Builder(), read=True), (MATRIX, VECTOR, OUT), top=shared("k_s", "q_s", "ds_s"))
    text = print_gluon(p, triton=VERSION)
    assert text.count("convert_layout") == 1
    assert "dq1 * gl.convert_layout(each, ROWS_64)[:, None]" in text
    compile_kernel(p, p.kernels[0], tmp_path)


def chained(x: Builder, widths: tuple[int, ...]) -> tuple[Stmt, ...]:
    """o[j, e] = cast(s[j, i]) v[i, e]: the first product's result is an operand of the others, in registers."""
    s = x.wait("s", x.dot("s", (J, I), Slot("k_s", ZERO), Slot("q_s", ZERO), "d", asynchronous=True), 0)
    p = x.convert("p", x.cast("narrow", s, "bf16"), "operand")
    key = x.iota("key", J, ZERO)
    for n, width in enumerate(widths):
        e = Axis(f"e{n}", width)
        o = x.wait("o", x.dot("o", (J, e), p, Slot(f"v_s{n}", ZERO), "i", asynchronous=True), 0)
        x.add(Store("y", (key, x.iota(f"at{n}", e, ZERO)), o.name))
    return tuple(x.here)


@pytest.mark.parametrize("widths", [(64,), (128,), (64, 32)])
def test_scores_become_an_operand_without_a_way_through_memory(widths: tuple[int, ...], tmp_path: Path) -> None:
    values = tuple(AllocShared(f"v_s{n}", Type((I, Axis(f"e{n}", w)), "bf16")) for n, w in enumerate(widths))
    p = small(chained(Builder(), widths), (MATRIX, OUT), top=(*shared("k_s", "q_s"), *values))
    assert "convert_layout(narrow, A_" in print_gluon(p, triton=VERSION)
    cubin = compile_kernel(p, p.kernels[0], tmp_path)
    assert cubin.products == 4 + 4 * len(widths)
    (tmp_path / "nothing").mkdir()
    nothing = small(products_nothing(Builder()), (MATRIX, OUT))
    compile_kernel(nothing, nothing.kernels[0], tmp_path / "nothing")
    assert exchanges(tmp_path) == exchanges(tmp_path / "nothing")


def exchanges(folder: Path) -> Counter[str]:
    """Instructions by which threads tell each other something; some of every kernel start its partitions."""
    ptx = (folder / "kernel.ptx").read_text()
    return Counter(re.findall(r"\b(st\.shared|stmatrix|ldmatrix|shfl\.sync\.\w+)", ptx))


def products_nothing(x: Builder) -> tuple[Stmt, ...]:
    key = x.iota("key", J, ZERO)
    x.add(Store("y", (key, ZERO), x.map("zero", op("real", key)).name))
    return tuple(x.here)


def test_an_operand_may_be_read_into_registers_at_once(tmp_path: Path) -> None:
    x = Builder()
    k = x.let("k", Type((J, D), "bf16"), SharedLoad(Slot("k_s", ZERO)))
    s = x.wait("s", x.dot("s", (J, I), k, Slot("q_s", ZERO), "d", asynchronous=True), 0)
    x.add(Store("y", (x.iota("key", J, ZERO), x.iota("row", I, ZERO)), s.name))
    p = small(tuple(x.here), (MATRIX, OUT), top=shared("k_s", "q_s"))
    table, _ = layouts(p.kernels[0])
    assert table["k"] == Operand(Mma(64, 16, 4))
    assert "convert_layout" not in print_gluon(p, triton=VERSION)
    assert compile_kernel(p, p.kernels[0], tmp_path).products == 4


def test_tiles_of_slices_alone_lie_as_the_slices_do() -> None:
    x = Builder()
    row, key = x.iota("row", I, ZERO), x.iota("key", J, ZERO)
    s = x.wait("s", x.dot("s", (J, I), Slot("k_s", ZERO), Slot("q_s", ZERO), "d", asynchronous=True), 0)
    top = x.reduce("top", "max", s, "i")
    pairs = x.let("pairs", Type((J, I), "f32"), Map(op("add", op("mul", top, 2.0), op("real", row))))
    x.add(Store("y", (key, row), pairs.name))
    table, _ = layouts(small(tuple(x.here), (MATRIX, OUT), top=shared("k_s", "q_s")).kernels[0])
    assert table["pairs"] == table["s"]
    assert table["row"] == Slice(0, Mma(64, 16, 4))


def test_reductions_to_a_number_and_of_truth(tmp_path: Path) -> None:
    x = Builder()
    row = x.iota("row", I, ZERO)
    value = x.load("value", Type((I,), "f32"), "z", (row,))
    some, every = (x.reduce(n, n, x.map("small", op("lt", value, c)), "i") for n, c in (("any", 0.0), ("all", 1.0)))
    least = x.reduce("least", "min", x.map("whole", op("floor", value)), "i")
    total = x.reduce("total", "sum", value, "i")
    number = x.map("number", op("add", total, op("real", op("where", op("and", some, every), least, 1))))
    x.add(Store("z", (ZERO,), number.name))
    p = small(tuple(x.here), (VECTOR,))
    compile_kernel(p, p.kernels[0], tmp_path)


@pytest.mark.parametrize(("how", "exclusive"), [("sum", False), ("sum", True), ("max", False), ("mul", False)])
def test_scans(how: str, exclusive: bool, tmp_path: Path) -> None:
    x = Builder()
    row = x.iota("row", I, ZERO)
    value = x.load("value", Type((I,), "f32"), "z", (row,))
    x.add(Store("z", (row,), x.scan("running", how, value, "i", exclusive=exclusive).name))
    p = small(tuple(x.here), (VECTOR,))
    compile_kernel(p, p.kernels[0], tmp_path)


def test_constants_of_every_type_and_broadcasts(tmp_path: Path) -> None:
    x = Builder()
    row, key = x.iota("row", I, ZERO), x.iota("key", J, ZERO)
    yes = x.map("yes", op("le", 0, 1))
    flags = x.let("flags", Type((I,), "bool"), Full(Const(True, "bool")))
    counts = x.full("counts", (I,), 3, "i32")
    spread = x.let("spread", Type((J, I), "f32"), Map(op("real", counts)))
    chosen = x.map("chosen", op("where", op("and", flags, Var(yes.name, "bool")), spread, 0.0))
    x.add(Store("y", (key, row), chosen.name))
    p = small(tuple(x.here), (MATRIX, OUT))
    assert "gl.full([64], True, gl.int1" in print_gluon(p, triton=VERSION)
    compile_kernel(p, p.kernels[0], tmp_path)


NAMES = ("pid", "tma", "gl", "min", "ir", "mbarrier", "COLS_64", "lambda")


def test_tensors_may_be_called_what_printed_code_calls_its_own(tmp_path: Path) -> None:
    x = Builder()
    row = x.iota("row", I, ZERO)
    given = tuple(Tensor(n, ("r",), (Const(64, "int"),), "f32") for n in NAMES)
    total = x.load("start", Type((I,), "f32"), "z", (row,))
    for n in NAMES:
        total = x.map("total", op("add", total, x.load(f"of_{n}", Type((I,), "f32"), n, (row,))))
    x.add(Store("z", (row,), total.name))
    p = small(tuple(x.here), (*given, VECTOR))
    compile_kernel(p, p.kernels[0], tmp_path)


def test_far_strides_take_64_bits(tmp_path: Path) -> None:
    """Offsets of positions in a tile stay in 32 bits only where strides are promised to be near."""
    x = Builder()
    row, channel = x.iota("row", I, ZERO), x.iota("channel", D, ZERO)
    shape = (Const(64, "int"), Const(64, "int"))
    near = Tensor("near", ("r", "c"), shape, "f16", strided=True)
    far = Tensor("far", ("r", "c"), shape, "f16", strided=True, unit=False, near=False)
    loaded = [x.load(f"of_{n}", Type((I, D), "f16"), n, (row, channel)) for n in ("near", "far")]
    total = x.map("total", op("add", *(x.cast("wide", value, "f32") for value in loaded)))
    x.add(Store("y", (row, channel), total.name))
    p = small(tuple(x.here), (near, far, OUT))
    text = re.sub(r"\s+", " ", print_gluon(p, triton=VERSION))
    assert re.search(r"near \+ \(gl\.arange\(0, 64, \w+\) \* near_sr\.to\(gl\.int32\)\)\[:, None\] \+ gl\.arange", text)
    assert re.search(r"far \+ \(gl\.arange\(0, 64, \w+\)\.to\(gl\.int64\) \* far_sr\)\[:, None\]", text)
    assert re.search(r"\(gl\.arange\(0, 64, \w+\)\.to\(gl\.int64\) \* far_sc\)\[None, :\]", text)
    compile_kernel(p, p.kernels[0], tmp_path)


def test_long_lines_break_between_terms() -> None:
    text = print_gluon(program(PLANS["captures"]), triton=VERSION)
    assert max(map(len, text.splitlines())) <= 120
    assert wrapped("x = first + second + third", 16) == ["x = (", "    first", "    + second", "    + third", ")"]
    assert wrapped("x = first + second(a)", 12) == [
        "x = (",
        "    first",
        "    + second(a)",
        ")",
    ]  # no call fits its line
    assert wrapped("call(a[:, None] & b[None, :])", 20) == ["call(", "    a[:, None]", "    & b[None, :],", ")"]
