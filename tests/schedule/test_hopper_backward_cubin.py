"""What the assembler makes of the partitioned backward: products that overlap, and registers that suffice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from attncc.driver import analyse
from attncc.runtime.assemble import SPILLED_BYTES, SPILLED_ONCE
from attncc.runtime.spills import spilled_in_loops
from attncc.schedule.hopper_config import LADDER
from attncc.schedule.programs import stream
from attncc.schedule.stream import Problem
from attncc.schedule.variant import Variant
from attncc.tile.nodes import Dtype
from tests.support.specs import SPECS

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the compiler is replaced by the interpreter", allow_module_level=True)

from tests.codegen.gluon_cubin import Cubin, compile_kernel

CASES = {
    "causal 128": ("causal", 128, False),
    "causal 64": ("causal", 64, False),
    "full 128": ("full", 128, False),
    "full 64": ("full", 64, False),
}


def compiled(name: str, side: int, grouped: bool, folder: Path, tiles: str = "", kernel: str = "keys_kernel") -> Cubin:
    unit = analyse(SPECS[name], side, side)
    assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
    gradients = ("q", "k", "v", *(p.name for p in unit.spec.params if p.sort == "real"))
    kinds: tuple[tuple[str, Dtype], ...] = tuple((p.name, "f32") for p in unit.spec.params)
    how: dict[str, Any] = {"grouped": grouped, "tiles": tiles, "ordered": kernel == "queries_kernel"}
    variant = Variant("gluon", side, side, "bf16", kinds, gradients=gradients, **how)
    program = stream(Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, variant)).backward
    assert program is not None
    return compile_kernel(program, next(k for k in program.kernels if k.name == kernel), folder)


@pytest.mark.parametrize("case", CASES)
def test_products_overlap_and_nothing_spills(case: str, tmp_path: Path) -> None:
    """By the default plan, or where this assembler spills in its loops by the one that is tried next."""
    cubin, within = judged(case, tmp_path, "")
    if within > SPILLED_BYTES:
        cubin, within = judged(case, tmp_path, LADDER["backward"][0])
    assert not cubin.serialised
    assert cubin.reallocates
    assert cubin.spilled_bytes <= SPILLED_ONCE and within <= SPILLED_BYTES


def judged(case: str, folder: Path, tiles: str) -> tuple[Cubin, int]:
    """A kernel, and what it spills in loops with products."""
    cubin = compiled(*CASES[case], folder, tiles)
    within = spilled_in_loops((folder / "kernel.cubin").read_bytes())
    assert within is not None
    return cubin, within


@pytest.mark.parametrize(("name", "side", "grouped"), [("gemma2", 128, False), ("alibi", 64, True)])
def test_products_overlap_under_any_score(name: str, side: int, grouped: bool, tmp_path: Path) -> None:
    cubin = compiled(name, side, grouped, tmp_path)
    assert not cubin.serialised and cubin.reallocates


@pytest.mark.parametrize("name", ["causal", "full"])
@pytest.mark.parametrize("side", [64, 128])
def test_products_of_queries_alone_overlap(name: str, side: int, tmp_path: Path) -> None:
    cubin = compiled(name, side, False, tmp_path, kernel="queries_kernel")
    assert not cubin.serialised and cubin.reallocates
    assert cubin.spilled_bytes <= SPILLED_ONCE
    if (name, side) != ("causal", 128):  # 112 bytes in the masked loop with Triton 3.9, none with 3.6
        within = spilled_in_loops((tmp_path / "kernel.cubin").read_bytes())
        assert within is not None and within <= SPILLED_BYTES
