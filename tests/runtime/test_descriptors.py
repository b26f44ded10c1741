"""Kernels whose descriptors an older assembler would mistake go to a newer one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from attncc import driver
from attncc.grammar import parse
from attncc.runtime.descriptors import mistakable
from attncc.schedule.variant import Variant

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
PRODUCT = "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%r1}, {%r2}"
BEFORE = f"""
    cvt.u64.u32 %rd1, %r9;
    or.b64 %rd2, %rd1, 4611686293305294848;
    {PRODUCT}, %rd2, 0, 1, 1, 0;
"""
LOOP = """
    {made} %rd3, {base}, -9223371899415822272;
$L__BB0_1:
    {product}, %rd3, 0, 1, 1, 1;
    @%p1 bra $L__BB0_1;
"""


@pytest.mark.parametrize("made", ["or.b64", "add.s64"])
@pytest.mark.parametrize(("base", "expected"), [("%rd1", True), ("%rd7", False)])
def test_an_address_before_and_in_a_loop(made: str, base: str, expected: bool) -> None:
    loop = LOOP.format(made=made, base=base, product=PRODUCT)
    assert mistakable(BEFORE + loop) == expected
    assert not mistakable(loop)


def test_descriptors_made_in_the_loop() -> None:
    label = "$L__BB0_1:"
    loop = LOOP.format(made="add.s64", base="%rd1", product=PRODUCT).replace(label, "").lstrip()
    assert not mistakable(f"{BEFORE}\n{label}\n    {loop}")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_newest_assembler_makes_such_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.nvidia import compiler

    from attncc.codegen.triton_printer import print_module
    from attncc.runtime import assemble
    from attncc.runtime.family import orders
    from attncc.runtime.kernels import compile_one, numbers
    from attncc.runtime.text import execute

    spec = parse((EXAMPLES / "gla.attn").read_text(encoding="utf-8"))
    variant = Variant("triton", 128, 128, "bf16", (("decay", "f32"),), gradients=("q", "k", "v", "decay"))
    backward = driver.programs(spec, variant).backward
    assert backward is not None
    functions = execute(print_module(backward, None, backward.name), "descriptors")
    order = next(o for o in orders(backward) if o.name == "gradients_kernel")
    taken: list[str] = []
    found = compiler.get_ptxas

    def get_ptxas(arch: int) -> Any:
        taken.append(found(arch).version)
        return found(arch)

    monkeypatch.setattr(compiler, "get_ptxas", get_ptxas)
    made = compile_one(functions[order.name], order, 90)
    assert made.image
    assert not mistakable(made.ptx) or numbers(taken[-1]) >= assemble.SURE
