"""Modules that hold partitioned and plain kernels, and the host text between them."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from attncc import driver
from attncc.codegen.gluon_printer import print_module
from attncc.codegen.signature import kernel_function, signature
from attncc.runtime.interface import interface_of
from attncc.runtime.printing import usual_variant
from attncc.runtime.text import host_part
from attncc.schedule.programs import Pair
from attncc.schedule.variant import Layout
from attncc.tile.dialect import any_partitioned, partitioned

EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"


def mixed(name: str) -> Pair:
    """A partitioned forward with the plain backward."""
    spec, _ = driver.load(EXAMPLES / f"{name}.attn")
    split = usual_variant(interface_of(spec), "gluon", D=64, E=64)
    forward = driver.programs(spec, dataclasses.replace(split, gradients=())).forward
    return Pair(forward, driver.programs(spec, dataclasses.replace(split, target="triton")).backward)


@pytest.fixture(scope="module")
def softcap() -> tuple[Pair, str]:
    pair = mixed("gemma2")
    return pair, print_module(pair.forward, pair.backward, "gemma2", triton=(3, 6))


def test_each_kernel_is_printed_once_in_its_dialect(softcap: tuple[Pair, str]) -> None:
    pair, text = softcap
    assert pair.backward is not None
    assert any_partitioned(pair.forward) and not any_partitioned(pair.backward)
    tree = ast.parse(text)
    marks = {
        f.name: ast.unparse(f.decorator_list[0])
        for f in tree.body
        if isinstance(f, ast.FunctionDef) and f.decorator_list
    }
    for kernel in (*pair.forward.kernels, *pair.backward.kernels):
        assert marks[kernel_function(kernel)].startswith("gluon.jit" if partitioned(kernel) else "triton.jit")
    assert text.startswith('"""gemma2, for Triton 3.6"""')


def test_dialects_do_not_share_helpers(softcap: tuple[Pair, str]) -> None:
    """Both kernels take a tanh; neither dialect can call the other's."""
    _, text = softcap
    functions = {f.name: ast.unparse(f) for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)}
    assert "gluon.jit" in functions["_tanh_gl"] and "triton.jit" in functions["_tanh"]
    for name in ("forward_consumer0", "keys_kernel"):
        called = set(re.findall(r"\b_tanh\w*(?=\()", functions[name]))
        assert called == {"_tanh" if name == "keys_kernel" else "_tanh_gl"}


def test_host_describes_what_is_copied_in_bulk(softcap: tuple[Pair, str]) -> None:
    pair, text = softcap
    (kernel,) = pair.forward.kernels
    host = host_part(text)
    assert "gl." not in host and "triton" not in host and "constexpr" not in host
    described = dict(re.findall(r"(\w+) = _descriptor\((\w+), \[", host))
    wanted = {a.name: a.tensor for a in signature(pair.forward, kernel) if a.kind == "descriptor"}
    assert described == wanted and {"q", "k", "v", "out"} == set(wanted.values())
    assert re.search(r"_launch\(forward_kernel, .*warps=4, stages=1, registers=\d+\)", host)


def test_the_host_of_bulk_sums_needs_no_triton() -> None:
    spec, _ = driver.load(EXAMPLES / "causal.attn")
    variant = usual_variant(interface_of(spec), "gluon", "bf16", 64, 64)
    pair = driver.programs(spec, variant)
    assert any_partitioned(pair.backward)
    for triton in ((3, 6), (3, 9)):
        host = host_part(driver.source(pair, variant, "causal", triton=triton))
        names: dict[str, object] = {}
        exec(host, names)
        assert "triton" not in host.replace("for Triton", "") and {"forward", "backward", "_launch"} <= set(names)


def test_a_pair_that_can_not_be_partitioned_is_a_plain_module() -> None:
    spec, _ = driver.load(EXAMPLES / "causal.attn")
    variant = usual_variant(interface_of(spec), "gluon", "bf16", 64, 64)
    loose = tuple((n, Layout(aligned=False)) for n in ("q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v"))
    variant = dataclasses.replace(variant, layouts=loose)
    pair = driver.programs(spec, variant)
    assert "not partitioned: " in pair.forward.note and pair.backward is not None
    assert "gluon" not in driver.source(pair, variant, "causal")
