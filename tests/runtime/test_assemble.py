"""Kernels whose descriptors an older assembler would mistake go to a newer one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from triton.backends.nvidia import compiler

from attncc import driver
from attncc.codegen.triton_printer import print_module
from attncc.grammar import parse
from attncc.runtime import assemble
from attncc.runtime.family import orders
from attncc.runtime.kernels import compile_one, numbers
from attncc.runtime.text import execute
from attncc.schedule.variant import Variant

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
PRODUCT = "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%r1}, {%r2}, %rd2, 0, 1, 1, 0;"


class Tool:
    """What Triton says of an assembler."""

    def __init__(self, version: str) -> None:
        self.version, self.path = version, f"ptxas-{version}"


@pytest.mark.parametrize(
    ("ptx", "version", "expected"), [(PRODUCT, "12.8", True), (PRODUCT, "12.9", False), ("", "12.8", False)]
)
def test_products_go_to_a_sure_assembler(
    ptx: str, version: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "get_ptxas", lambda arch: Tool(version))
    assert assemble.mistaken(ptx, 90) == expected


def test_no_sure_assembler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "get_ptxas", lambda arch: Tool("12.8"))
    with pytest.raises(RuntimeError, match=r"CUDA 12\.8, mistakes descriptors"):
        assemble.assemble(PRODUCT, 90)


@pytest.mark.parametrize("version", ["12.8", "12.9"])
def test_the_newest_assembler_makes_such_kernels(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse((EXAMPLES / "gla.attn").read_text(encoding="utf-8"))
    variant = Variant("triton", 128, 128, "bf16", (("decay", "f32"),), gradients=("q", "k", "v", "decay"))
    backward = driver.programs(spec, variant).backward
    assert backward is not None
    functions = execute(print_module(backward, None, backward.name), "descriptors")
    order = next(o for o in orders(backward) if o.name == "gradients_kernel")
    taken: list[int] = []
    found = compiler.get_ptxas

    class Older:
        """Triton's own, that says it is of another version."""

        def __init__(self, arch: int) -> None:
            taken.append(arch)
            self.path = found(arch).path
            self.version = version if arch < assemble.NEWEST else found(arch).version

    monkeypatch.setattr(compiler, "get_ptxas", Older)
    made: Any = compile_one(functions[order.name], order, 90)
    assert made.image and "wgmma" in made.ptx
    assert (assemble.NEWEST in taken) == (numbers(version) < assemble.SURE)
