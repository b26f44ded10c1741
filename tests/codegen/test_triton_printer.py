"""Printed Triton modules as text: they parse, fit the page, and no value takes a tensor's name."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from attncc.codegen.triton_printer import print_module
from attncc.driver import programs
from attncc.grammar import parse
from attncc.reference import evaluate
from attncc.schedule.variant import Layout, Variant
from attncc.tile.nodes import Dtype
from tests.codegen.interpreted import run
from tests.support.specs import SPECS

KINDS: dict[str, Dtype] = {"real": "f32", "int": "i64", "bool": "bool"}


def module(name: str, dtype: Dtype, *, portable: bool = False, layouts: tuple[tuple[str, Layout], ...] = ()) -> str:
    """The printed module of one spec."""
    spec = SPECS[name]
    captured = tuple((p.name, KINDS[p.sort]) for p in spec.params)
    gradients = ("q", "k", "v", *(p.name for p in spec.params if p.sort == "real"))
    pair = programs(spec, Variant("triton", 96, 64, dtype, captured, layouts, gradients))
    return print_module(pair.forward, pair.backward, name, portable=portable)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_modules_parse_and_kernels_fit_the_page(name: str, dtype: Dtype) -> None:
    text = module(name, dtype)
    tree = ast.parse(text)
    lines = text.splitlines()
    for f in tree.body:
        if isinstance(f, ast.FunctionDef) and f.name.endswith("_kernel"):
            assert max(len(line) for line in lines[f.lineno - 1 : f.end_lineno]) <= 120, f.name
    defined = [f.name for f in tree.body if isinstance(f, ast.FunctionDef)]
    assert len(defined) == len(set(defined)) and {"forward", "backward"} <= set(defined)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_no_value_takes_an_arguments_name(name: str) -> None:
    for f in ast.parse(module(name, "bf16")).body:
        if not (isinstance(f, ast.FunctionDef) and f.name.endswith("_kernel")):
            continue
        args = {a.arg for a in f.args.args}
        bound = {n.id for n in ast.walk(f) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert not args & bound, f.name


def test_bfloat16_takes_the_special_function_units_tanh() -> None:
    assert "tanh.approx.f32" in module("gemma2", "bf16")


@pytest.mark.parametrize(("dtype", "portable"), [("f16", False), ("f32", False), ("bf16", True)])
def test_other_types_and_portable_text_take_an_exponential(dtype: Dtype, portable: bool) -> None:
    text = module("gemma2", dtype, portable=portable)
    assert "tanh.approx" not in text and "def _tanh(x):" in text


def test_far_strides_are_multiplied_in_64_bits() -> None:
    text = module("causal", "bf16", layouts=(("k", Layout(near=False)),))
    assert " k_sj.to(tl.int32)" not in text and " q_si.to(tl.int32)" in text


def test_tiles_inside_the_mask_have_no_predicate() -> None:
    kernel = next(
        f
        for f in ast.parse(module("causal", "bf16")).body
        if isinstance(f, ast.FunctionDef) and f.name == "forward_kernel"
    )
    loops = [n for n in kernel.body if isinstance(n, ast.For)]
    partial, full = (ast.unparse(n) for n in loops)
    assert "tl.where" in partial and "mask=" in partial
    assert "tl.where" not in full and "mask=(tl.arange(0, 64) < N" not in full


DIVIDED = """attention divided(block = 7):
    score = q @ k / sqrt(D)
    mask  = (i - 3 * j) % block <= 2 and (j - 9) // block <= 5
    out   = softmax(score) @ v
"""


@pytest.mark.parametrize("block", [7, -5])
def test_divisions_round_down_whatever_the_signs(block: int, tmp_path: Path) -> None:
    spec = parse(DIVIDED)
    pair = programs(spec, Variant("triton", 16, 16, "f32"))
    text = print_module(pair.forward, None, "divided", portable=True)
    assert "def _mod(a, b):" in text and "def _floordiv(a, b):" in text
    torch.manual_seed(0)
    tensors = {n: torch.randn(1, 2, 40, 16) for n in "qkv"}
    out, _ = run(text, "forward", {n: t.numpy() for n, t in tensors.items()}, {"block": block}, tmp_path)
    wanted = evaluate(spec, {n: t.double() for n, t in tensors.items()}, {"block": block}).out
    np.testing.assert_allclose(out, wanted.numpy(), rtol=0, atol=3e-6)
    assert "_mod" not in module("causal", "bf16")
