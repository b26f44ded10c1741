"""Which meetings of warps go from PTX, and which stay; what becomes of a compiled kernel's loops."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attncc.driver import analyse
from attncc.runtime import assemble
from attncc.runtime.arrivals import arrive_by_warp
from attncc.runtime.emit_arrivals import section
from attncc.runtime.mistakes import UnfitKernel
from attncc.schedule.programs import stream
from attncc.schedule.stream import Problem
from attncc.schedule.variant import Variant
from tests.support.interpreted import needs_compiler
from tests.support.specs import SPECS

LOOP = """\
$L__BB0_2:                              // %loop
\t.loc\t1 78 9
\tbar.sync \t0, 128;
\t// begin inline asm
{
\t.reg .pred complete;
\twaitLoop:
\tmbarrier.try_wait.parity.shared::cta.b64 complete, [%r5], %r6;
\t@!complete bra.uni waitLoop;
}
\tld.global.b32 \t%r8, [%rd1];
\tadd.s32 \t%r7, %r7, 1;              // not st.shared
\twgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r10}, %rd2, %rd3, 1, 1, 1, 0, 0;
\twgmma.wait_group.sync.aligned 0;
\tbar.sync \t0, 128;
\t// begin inline asm
\t@%p1 mbarrier.arrive.shared::cta.b64 _, [%r9], 4;
\tsetp.lt.s32 \t%p2, %r7, 9;
\t@%p2 bra \t$L__BB0_2;
"""
HEAD = """\
.version 8.7
.target sm_90a
.visible .entry kernel(
\t.param .u64 kernel_param_0
)
.maxntid 128
{
\t.reg .pred \t%p<9>;
\t.reg .b32 \t%r<99>;
\t.loc\t1 10 0
$L__func_begin0:
// %bb.0:
\tmov.u32 \t%r1, %tid.x;
\tand.b32 \t%r2, %r1, 127;
\tsetp.eq.b32 \t%p1, %r2, 0;
\tst.shared.b32 \t[%r3], %r4;
\tbar.sync \t0, 128;
"""
TAIL = """\
// %bb.3:
\tbar.sync \t0, 128;
\t@%p1 mbarrier.arrive.shared::cta.b64 _, [%r9], 4;
\tret;
}
"""


def module(*loops: str) -> str:
    return HEAD + "".join(loops) + TAIL


def named(loop: str, number: int) -> str:
    return loop.replace("BB0_2", f"BB0_{number}")


def test_each_warp_arrives_for_itself() -> None:
    found = arrive_by_warp(module(LOOP))
    begin = found.index("$L__BB0_2:")
    head, loop, tail = found[:begin], found[begin : -len(TAIL)], found[-len(TAIL) :]
    assert "bar.sync" not in loop
    assert "\t@%attncc_first_lane mbarrier.arrive.shared::cta.b64 _, [%r9];\n" in loop
    kept = [x for x in LOOP.splitlines() if "bar.sync" not in x and "mbarrier.arrive" not in x]
    assert [x for x in loop.splitlines() if "mbarrier.arrive" not in x] == kept
    assert tail == TAIL and head.count("bar.sync") == 1


def test_the_first_lane_is_known_before_anything_else() -> None:
    lines = arrive_by_warp(module(LOOP)).splitlines()
    declared = lines.index("\t.reg .pred %attncc_first_lane;")
    told = lines.index("\tsetp.eq.u32 %attncc_first_lane, %attncc_lane, 0;")
    others = [n for n, x in enumerate(lines) if x.startswith("\t.reg") and "%" in x and "attncc" not in x]
    assert max(others) < declared < told < lines.index("\tmov.u32 \t%r1, %tid.x;")


def test_every_loop_is_judged_by_itself() -> None:
    found = arrive_by_warp(module(LOOP, named(LOOP, 4).replace("ld.global.b32", "ld.shared.b32"), named(LOOP, 6)))
    assert found.count("mbarrier.arrive.shared::cta.b64 _, [%r9];") == 2
    assert found.count("bar.sync") == 1 + 2 + 1
    assert found.count("attncc_lane;") == 1


@pytest.mark.parametrize(
    "access",
    [
        "ld.shared.b32 %r8, [%r3];",
        "st.shared.v4.b32 [%r3], {%r8};",
        "@%p3 st.shared::cta.b32 [%r3], %r8;",
        "ld.volatile.shared.b32 %r8, [%r3];",
        "ld.relaxed.cta.shared::cta.b32 %r8, [%r3];",
        "ld.b32 %r8, [%rd4];",
        "st.b32 [%rd4], %r8;",
        "atom.shared.add.u32 %r8, [%r3], 1;",
        "atom.add.u32 %r8, [%rd4], 1;",
        "red.shared.add.u32 [%r3], 1;",
        "st.async.shared::cluster.b32 [%r3], %r8, [%r9];",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r8}, [%r3];",
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r3], {%r8};",
        "cp.async.bulk.commit_group;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd4], [%r3], 256;",
        "fence.proxy.async.shared::cta;",
        "mbarrier.init.shared::cta.b64 [%r3], 1;",
        "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r9], 4096;",
        "@%p3 mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r5], %r6;",
        "@%p1 mbarrier.arrive.shared::cta.b64 _, [%r9];",
        "@%p1 mbarrier.arrive.shared::cta.b64 _, [%r9], 2;",
        "mbarrier.arrive.shared::cta.b64 _, [%r9], 4;",
        "barrier.sync 1;",
        "bar.sync 1, 256;",
        "bar.arrive 1, 128;",
        "bar.red.popc.u32 %r8, 1, 128, %p3;",
        "setmaxnreg.dec.sync.aligned.u32 24;",
        "call.uni (%r8), helper, (%r3);",
    ],
)
def test_what_else_meetings_may_be_there_for(access: str) -> None:
    text = module(LOOP.replace("\tadd.s32", f"\t{access}\n\tadd.s32"))
    assert access in text and arrive_by_warp(text) is text


@pytest.mark.parametrize(
    "access",
    [
        "ld.global.nc.b32 %r8, [%rd4];",
        "@%p3 st.global.v2.b32 [%rd4], {%r8};",
        "ld.local.b32 %r8, [%rd4];",
        "ld.param.b32 %r8, [kernel_param_0];",
        "bar.warp.sync -1;",
        "shfl.sync.bfly.b32 %r8, %r8, 1, 31, -1;",
        "// ld.shared.b32 %r8, [%r3];",
    ],
)
def test_what_is_no_reason_to_meet(access: str) -> None:
    found = arrive_by_warp(module(LOOP.replace("\tadd.s32", f"\t{access}\n\tadd.s32")))
    assert access in found and "mbarrier.arrive.shared::cta.b64 _, [%r9];" in found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\t@%p1 mbarrier.arrive.shared::cta.b64 _, [%r9], 4;\n", ""),
        (", [%r9], 4;", ", [%r9];"),
        (", [%r9], 4;", ", [%r9], 8;"),
        ("@%p1 mbarrier", "@%p3 mbarrier"),
        ("@%p1 mbarrier", "@!%p1 mbarrier"),
        ("wgmma.mma_async", "mma"),
        ("bar.sync \t0, 128", "bar.warp.sync -1"),
        ("bar.sync \t0, 128", "bar.sync \t0, 256"),
        ("$L__BB0_2;", "$L__BB0_9;"),
    ],
)
def test_other_loops_stay(old: str, new: str) -> None:
    text = module(LOOP.replace(old, new))
    assert text != module(LOOP) and arrive_by_warp(text) is text


def test_an_arrival_without_a_meeting_of_its_own_stays() -> None:
    arrival = "\t@%p1 mbarrier.arrive.shared::cta.b64 _, [%r9], 4;\n"
    text = module(LOOP.replace(arrival, 2 * arrival))
    assert arrive_by_warp(text) is text
    twice = module(LOOP.replace(arrival, arrival + "\tbar.sync \t0, 128;\n" + arrival.replace("%r9", "%r5")))
    assert arrive_by_warp(twice).count("@%attncc_first_lane mbarrier.arrive") == 2


@pytest.mark.parametrize("more", ["and.pred \t%p1, %p1, %p3;", "@%p3 setp.eq.b32 \t%p1, %r4, 0;"])
def test_arrivals_on_a_condition_stay(more: str) -> None:
    text = module(LOOP).replace("\tst.shared", f"\t{more}\n\tst.shared")
    assert more in text and arrive_by_warp(text) is text


def test_only_the_inner_of_nested_loops_changes() -> None:
    meeting = "\tbar.sync \t0, 128;\n"
    outer = "$L__BB0_1:\n" + meeting + LOOP + meeting + "\t@%p4 bra \t$L__BB0_1;\n"
    found = arrive_by_warp(module(outer))
    inner = found[found.index("$L__BB0_2:") : found.index("@%p2 bra")]
    assert "bar.sync" not in inner and found.count("bar.sync") == 1 + 2 + 1


def test_a_loop_with_two_ends_is_judged_whole() -> None:
    rest = "\tst.shared.b32 \t[%r3], %r4;\n\t@%p4 bra.uni \t$L__BB0_2;\n"
    text = module(LOOP + rest)
    assert arrive_by_warp(text) is text
    harmless = arrive_by_warp(module(LOOP + rest.replace("shared", "global")))
    assert "@%attncc_first_lane mbarrier.arrive" in harmless


def test_loops_that_cross_or_are_entered_in_the_middle_stay() -> None:
    middle = LOOP.replace("\tadd.s32", "$L__BB0_5:\n\tadd.s32")
    for around in (
        ("", "\t@%p4 bra \t$L__BB0_5;\n"),
        ("\t@%p4 bra \t$L__BB0_5;\n", ""),
        ("$L__BB0_1:\n\tst.shared.b32 \t[%r3], %r4;\n", ""),
    ):
        before, after = around
        loop = middle.replace("\tsetp.lt", "\t@%p4 bra \t$L__BB0_1;\n\tsetp.lt") if "BB0_1" in before else middle
        text = module(before + loop + after)
        assert arrive_by_warp(text) is text
    inside = arrive_by_warp(module(middle.replace("\tld.global", "\t@%p4 bra \t$L__BB0_5;\n\tld.global")))
    assert "@%attncc_first_lane mbarrier.arrive" in inside


def test_text_without_kernels_is_returned_as_it_is() -> None:
    for text in ("", "// nothing\n", module()):
        assert arrive_by_warp(text) is text


# --- the assembler's notices -----------------------------------------------------------------------------------------

NOTICE = "ptxas info    : ({}) Potential Performance Loss: wgmma.mma_async instructions are serialized due to {} in 'f'"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("C7506", "ill formed pipeline stage"),
        ("C7507", "non wgmma instructions defining accumulator registers"),
        ("C7510", "the presence of Extern calls"),
        ("C7511", "insufficient register resources"),
        ("C7512", "wgmma pipeline crossing function boundary"),
        ("C7514", "non wgmma instructions reading accumulator registers"),
        ("C7599", "something that later versions find"),
    ],
)
def test_products_that_wait_make_a_kernel_unfit(code: str, why: str) -> None:
    with pytest.raises(UnfitKernel, match=code):
        assemble.assembled_well("f", "ptxas info : Used 168 registers\n" + NOTICE.format(code, why))


@pytest.mark.parametrize(
    "said",
    [
        "",
        "ptxas info    : (C7517) warpgroup.wait is injected in around line 7 by compiler to allow use of registers",
        "ptxas info    : (C7508) setmaxnreg ignored to maintain minimum register requirements",
        "ptxas info    : Used 168 registers, used 16 barriers, 32 bytes spill stores",
    ],
)
def test_other_notices_do_not(said: str) -> None:
    assemble.assembled_well("f", said)


# --- compiled kernels -----------------------------------------------------------------------------------------------


@needs_compiler
def test_the_main_loops_of_a_compiled_forward_do_without_meetings(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from tests.codegen.gluon_cubin import compile_kernel

    unit = analyse(SPECS["causal"], 128, 128)
    assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
    variant = Variant("gluon", 128, 128, "bf16", grouped=False)
    program = stream(Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, variant)).forward
    compile_kernel(program, next(k for k in program.kernels if k.name == "forward_kernel"), tmp_path)
    before = (tmp_path / "kernel.ptx").read_text()
    found = arrive_by_warp(before)
    assert [len(re.findall("bar.sync", x)) for x in loops(found)] == [0] * 4
    assert all(re.search("bar.sync", x) for x in loops(before))
    assert found.count("@%attncc_first_lane mbarrier.arrive") == 4
    _, said = assemble.assemble(found, 90)
    assert "C75" not in said.replace("C7508", "")
    assert sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", said)) <= assemble.SPILLED_BYTES


def loops(ptx: str) -> list[str]:
    """The innermost loops with products: of each of two consumers one with the mask and one without."""
    parts = re.split(r"(?=^\$L__BB\w+:)", ptx, flags=re.MULTILINE)
    mine = [(x.split(":")[0], x) for x in parts[1:]]
    return [x for name, x in mine if "wgmma.mma_async" in x and re.search(rf"bra\s+{re.escape(name)};", x)]


def test_emitted_modules_do_the_same_while_they_launch() -> None:
    runtime = SimpleNamespace(add_stages_inspection_hook=None)
    printed = module(LOOP)
    compiled: list[str] = []

    def launch(kernel: str) -> None:
        stages = {"ptx": lambda source, metadata: source}
        hook: Any = runtime.add_stages_inspection_hook
        assert hook() == ("arrive_by_warp", "arrive_by_warp")
        hook(None, stages, {}, None, 90)
        compiled.append(stages["ptx"](kernel, {}))

    names: dict[str, Any] = {"triton": SimpleNamespace(knobs=SimpleNamespace(runtime=runtime)), "_launch": launch}
    exec(section(), names)
    names["_launch"](printed)
    assert compiled == [arrive_by_warp(printed)] and compiled[0] != printed
    assert runtime.add_stages_inspection_hook is None
    with pytest.raises(TypeError):
        names["_launch"]()
    assert runtime.add_stages_inspection_hook is None
