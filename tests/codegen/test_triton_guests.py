"""The hand-built delta rule and paged decoding, printed as Triton: interpreted, and as cubins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncc.codegen.triton_printer import print_module
from attncc.schedule.expand import expand
from tests.codegen.interpreted import run
from tests.codegen.triton_cubin import compile_kernel
from tests.tile import delta_cases, paged_cases
from tests.tile.programs import gated_delta, paged_decode


def test_gated_delta_under_tritons_interpreter(tmp_path: Path) -> None:
    p = expand(gated_delta.program(gated_delta.Plan(D=16, E=24, chunk=16, columns=16)))
    x = delta_cases.inputs(1, 2, 37, 16, 24)
    out, state = run(print_module(p, None, p.name, portable=True), p.name, x, {"scale": 0.25}, tmp_path)
    want_out, want_state = delta_cases.recurrence(x, 0.25)
    np.testing.assert_allclose(out, want_out, rtol=0, atol=3e-5)
    np.testing.assert_allclose(state, want_state, rtol=0, atol=3e-5)


def test_paged_decode_under_tritons_interpreter(tmp_path: Path) -> None:
    p = paged_decode.program(paged_decode.Plan(D=16, E=16, page=16, splits=4))
    x = paged_cases.inputs(4, 2, 16, 16, [40, 0, 1, 75])
    out, lse = run(print_module(p, None, p.name, portable=True), p.name, x, {"scale": 0.2, "S": 3}, tmp_path)
    want_out, want_lse = paged_cases.dense(x, 0.2)
    np.testing.assert_allclose(out, want_out, rtol=0, atol=3e-6)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=3e-6)


@pytest.mark.parametrize("capability", [80, 90])
def test_gated_delta_cubin(capability: int, tmp_path: Path) -> None:
    p = expand(gated_delta.program(gated_delta.Plan(dtype="bf16")))
    cubin = compile_kernel(p, p.kernels[0], capability, tmp_path)
    assert cubin.products > 0
    assert cubin.spilled_bytes <= 32


@pytest.mark.parametrize("capability", [80, 90])
def test_paged_decode_cubins(capability: int, tmp_path: Path) -> None:
    p = paged_decode.program(paged_decode.Plan(D=128, E=128, dtype="bf16"))
    part, merge = (compile_kernel(p, k, capability, tmp_path) for k in p.kernels)
    assert part.products > 0
    assert part.copies >= 2  # pages are copied ahead although their numbers are loaded
    assert part.spilled_bytes == merge.spilled_bytes == 0
