"""The hand-built delta rule and paged decoding, printed as PyTorch and executed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from attncc.codegen.torch_printer import print_module
from attncc.tile.nodes import Program
from tests.tile import delta_cases, paged_cases
from tests.tile.programs import gated_delta, paged_decode

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def call(program: Program, inputs: Arrays, **named: float) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """The printed program called with `inputs` in its own order."""
    scope: dict[str, Any] = {}
    exec(compile(print_module(program, None, program.name), program.name, "exec"), scope)
    results = scope[program.name](*(torch.from_numpy(inputs[t.name]) for t in program.inputs), **named)
    return [r.numpy() for r in results]


@pytest.mark.parametrize("n", [1, 16, 37])
def test_gated_delta(n: int) -> None:
    p = gated_delta.program(gated_delta.Plan(D=16, E=24, chunk=16, columns=16))
    x = delta_cases.inputs(2, 3, n, 16, 24)
    out, state = call(p, x, scale=0.25)
    want_out, want_state = delta_cases.recurrence(x, 0.25)
    np.testing.assert_allclose(out, want_out, rtol=0, atol=3e-5)
    np.testing.assert_allclose(state, want_state, rtol=0, atol=3e-5)


def test_paged_decode() -> None:
    p = paged_decode.program(paged_decode.Plan(D=16, E=16, page=16, splits=4))
    x = paged_cases.inputs(4, 2, 16, 16, [40, 0, 1, 75])
    out, lse = call(p, x, scale=0.2, S=3)
    want_out, want_lse = paged_cases.dense(x, 0.2)
    np.testing.assert_allclose(out, want_out, rtol=0, atol=3e-6)
    np.testing.assert_allclose(lse, want_lse, rtol=0, atol=3e-6)
    assert math.isinf(lse[1].max())
