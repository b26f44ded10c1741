"""One cell of one spec, end to end: compile the example, run it forward and backward, hold it to the bars.

In half precision the backward knows the output as it was rounded. With large means that rounding alone moves dq by
more than a bar (delta = rowsum(dO * O) is off by the same amount for every key, and the keys don't cancel), so there
the gradients are held to the truth for the output that the kernel gave; the output itself is held to the truth.

A gradient that vanishes altogether (one key: its weight is 1 whatever the score) is what w * dP - w * delta leaves of
two equal numbers. It is held to the bar relative to the first of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import attncc
from attncc.runtime.attention import Attention
from tests.support.cells import Cell
from tests.support.compare import BARS, compare
from tests.support.inputs import Inputs, Results, expected, make_inputs, run

EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"


def compiled(name: str, inputs: Inputs, backend: str = "auto") -> Attention:
    """The example `name` with the constants of `inputs`."""
    constants: dict[str, Any] = dict(inputs.constants)
    return attncc.compile(EXAMPLES / f"{name}.attn", backend=backend, **constants)


def hold(name: str, cell: Cell, *, backend: str = "auto", device: str = "cpu", seed: int = 0) -> dict[str, float]:
    """Asserts out, lse and every gradient of `cell` within the bar of its type; gives the errors."""
    inputs = make_inputs(name, cell, device=device, seed=seed)
    got = run(compiled(name, inputs, backend), inputs)
    return within_bars(got, inputs)


def within_bars(got: Results, inputs: Inputs) -> dict[str, float]:
    """Asserts the results of a call on `inputs` within the bar of their type."""
    cell = inputs.cell
    want, magnitudes = expected(inputs)
    if cell.feature == "large means" and cell.dtype in ("float16", "bfloat16") and inputs.has_lse:
        want = {**expected(_given(got, want, inputs))[0], "out": want["out"], "lse": want["lse"]}
    sizes = (lambda: _sizes(inputs, want, magnitudes())) if inputs.has_lse else magnitudes
    return compare(got, want, BARS[cell.dtype], f"{inputs.spec} {cell}", sizes)


def _sizes(inputs: Inputs, want: Results, sizes: Results) -> Results:
    """`sizes`, and for gradients that vanish a thousand times what they are before delta is subtracted."""
    delta = (inputs.cotangent.double() * want["out"]).sum(-1)
    before = expected(replace(inputs, lse_cotangent=inputs.lse_cotangent + delta))[1]()
    return {n: 1e3 * before[n] if want[n].norm() <= 1e-9 * before[n].norm() else x for n, x in sizes.items()}


def _given(got: Results, want: Results, inputs: Inputs) -> Inputs:
    """The inputs whose true gradients are those of `inputs` for the output `got`.

    delta enters a gradient where the cotangent of lse does, with the other sign.
    """
    slip = (inputs.cotangent.double() * (got["out"].double() - want["out"])).sum(-1)
    return replace(inputs, lse_cotangent=inputs.lse_cotangent - slip)
