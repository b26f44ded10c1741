"""Printed kernels of state programs fit into a Hopper's shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels are compiled by Triton")

from attncc import driver
from attncc.grammar import parse
from attncc.schedule.variant import Variant
from attncc.tile.hopper import SHARED_BYTES
from attncc.tile.nodes import Dtype
from tests.codegen.triton_cubin import Cubin, compile_kernel

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"


def cubins(name: str, d: int, e: int, folder: Path, *kernels: str) -> dict[str, Cubin]:
    """Some kernels of both programs in bfloat16, where no heads share keys."""
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))
    captured: tuple[tuple[str, Dtype], ...] = tuple((p.name, "bf16") for p in spec.params)
    gradients = ("q", "k", "v", *(p.name for p in spec.params))
    variant = Variant("triton", d, e, "bf16", captured, gradients=gradients, capability=90, grouped=False)
    pair = driver.programs(spec, variant)
    assert pair.backward is not None
    found = [(p, k) for p in (pair.forward, pair.backward) for k in p.kernels if k.name in kernels]
    return {k.name: compile_kernel(p, k, 90, folder) for p, k in found}


@pytest.mark.parametrize(("name", "d", "e"), [("simple_gla", 256, 256), ("mamba2", 256, 128), ("retnet", 256, 256)])
def test_large_states_fit(name: str, d: int, e: int, tmp_path: Path) -> None:
    """The walk that writes out, and the gradients of a chunk."""
    found = cubins(name, d, e, tmp_path, "forward_kernel", "gradients_kernel")
    assert {n: c.shared_bytes for n, c in found.items() if c.shared_bytes > SHARED_BYTES} == {}
    assert len(found) == 2


@pytest.mark.parametrize("name", ["linear_transformer", "simple_gla"])
def test_two_programs_share_a_multiprocessor(name: str, tmp_path: Path) -> None:
    """The gradients of 128 channels: 228 KiB hold both, each with 1 KiB of the system's."""
    (found,) = cubins(name, 128, 128, tmp_path, "gradients_kernel").values()
    assert 2 * (found.shared_bytes + 1024) <= 228 * 1024
