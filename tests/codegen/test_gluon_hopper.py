"""The hand-built Hopper forward as Gluon text and as a cubin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from attncc.codegen.gluon_printer import arguments, print_gluon
from tests.codegen.gluon_cubin import VERSION, compile_kernel
from tests.tile.programs.hopper_forward import PLANS, program

COMPILED = ["causal_turns", "causal_peeled", "full", "softcap", "narrow"]


@pytest.mark.parametrize("name", PLANS)
def test_text_is_python_and_speaks_of_no_attention(name: str) -> None:
    text = print_gluon(program(*PLANS[name]))
    tree = ast.parse(text)
    functions = {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}
    consumers = {f"forward_consumer{c}" for c in range(PLANS[name][0].consumers)}
    assert {*consumers, "forward_producer", "forward_kernel", "hopper_forward"} <= functions


@pytest.mark.parametrize(
    ("version", "spelling"), [((3, 6), "async_copy_global_to_shared"), ((3, 9), "tma.async_load(")]
)
def test_bulk_copies_are_spelled_for_the_version_of_triton(version: tuple[int, int], spelling: str) -> None:
    assert spelling in print_gluon(program(*PLANS["causal"]), triton=version)


def test_tensors_copied_in_bulk_are_passed_as_descriptors_only() -> None:
    p = program(*PLANS["bias"])
    names = [a.name for a in arguments(p, p.kernels[0])]
    assert names == ["q_desc", "k_desc", "v_desc", "slopes", "out_desc", "lse", "H", "G", "M", "N", "c0"]


@pytest.mark.parametrize("name", COMPILED)
def test_cubin_is_healthy(name: str, tmp_path: Path) -> None:
    plan, score = PLANS[name]
    p = program(plan, score)
    cubin = compile_kernel(p, p.kernels[0], tmp_path)
    bodies = 3 if plan.peeled else 2  # q k of the first tile and of each loop, as many of p v
    products = plan.consumers * bodies * (plan.D // 16 + plan.keys // 16)
    if VERSION < (3, 9):
        assert (cubin.products, cubin.waits) == (products, plan.consumers * 2 * bodies)
    else:  # newer versions share equal code between branches and partitions
        assert products // 2 < cubin.products <= products
        assert cubin.waits <= plan.consumers * 2 * bodies
    assert cubin.serialised == ()
    assert cubin.spilled_bytes == 0
    assert cubin.reallocates
    assert cubin.bulk_copies >= plan.consumers + 2
    assert cubin.shared_bytes <= 227 * 1024
