"""Weights under gates along channels, added up some channels at a time: where that may be done."""

from __future__ import annotations

from pathlib import Path

import pytest

from attncc import driver
from attncc.expr.nodes import Const
from attncc.grammar import parse
from attncc.schedule.chunk_problem import problem
from attncc.schedule.chunk_weights import PART, parted
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.walks import every

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
GATED = """attention gated(decay: real[b, h, n, d] in [-inf, 0]):
    {}
    state S[d, e]
    S = exp(decay[b, h, i, d]) * S + outer(k, v)
    out = q @ S
"""
FEATURES = {
    "the input": ("", "d"),
    "each channel by itself": ("q = relu(q)", "d"),
    "a softmax of all channels": ("q = softmax(q over d)", ""),
    "a norm of all channels": ("q = layernorm(q)", ""),
}


def variant(channels: int, gate: str) -> Variant:
    names = ("q", "k", "v", gate)
    return Variant("triton", channels, channels, "bf16", ((gate, "bf16"),), gradients=names, capability=90)


@pytest.mark.parametrize("name", FEATURES)
def test_only_sums_along_the_axis_are_taken_in_parts(name: str) -> None:
    line, axis = FEATURES[name]
    assert parted(problem(parse(GATED.format(line)), variant(128, "decay"))) == axis


@pytest.mark.parametrize(("channels", "parts"), [(64, 0), (96, 2), (128, 2), (256, 4)])
def test_parts_are_added_up_in_a_loop(channels: int, parts: int) -> None:
    spec = parse((EXAMPLES / "gla.attn").read_text(encoding="utf-8"))
    pair = driver.programs(spec, variant(channels, "decay"))
    (kernel,) = (k for k in pair.forward.kernels if k.name == "weights_kernel")
    far = next(s for s in kernel.body if isinstance(s, t.If))
    outer = [s for s in far.then if isinstance(s, t.For)]
    over = [s.over for s in outer if s.note == "some channels after others"]
    assert over == ([t.Count(Const(0, "int"), Const(parts, "int"))] if parts else [])
    widest = max(a.extent for s in every(kernel.body) if isinstance(s, t.Let) for a in s.type.axes if a.name == "d")
    assert widest == PART and kernel.config.warps == 4
    assert [s.tensor for s in far.then if isinstance(s, t.Store)] == ["kept_3"]
