"""What a turn of a walk reads beside its products is loaded a turn before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncc import driver
from attncc.grammar import parse
from attncc.schedule import chunk_forward
from attncc.schedule.programs import Pair
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.interpret import run_program
from attncc.tile.walks import every

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
SPEC = parse((EXAMPLES / "simple_gla.attn").read_text(encoding="utf-8"))
VARIANT = Variant("triton", 16, 16, "f16", (("decay", "f16"),), gradients=("q", "k", "v", "decay"), capability=90)


def walks(pair: Pair) -> list[tuple[str, t.For]]:
    """(a kernel's name, a loop of it that carries what is loaded ahead)."""
    assert pair.backward is not None
    kernels = (*pair.forward.kernels, *pair.backward.kernels)
    loops = [(k.name, s) for k in kernels for s in every(k.body) if isinstance(s, t.For)]
    return [(name, x) for name, x in loops if any(c.name.endswith("_now") for c in x.carried)]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("simple_gla", ["adjoints_kernel", "forward_kernel", "owns_kernel", "states_kernel"]),
        ("gla", ["adjoints_kernel", "forward_kernel", "owns_kernel", "states_kernel"]),
    ],
)
def test_what_scales_sums_is_carried(name: str, kernels: list[str]) -> None:
    """What Triton loads ahead by itself stays where it is."""
    pair = driver.programs(parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8")), VARIANT)
    found = walks(pair)
    assert sorted({kernel for kernel, _ in found}) == kernels
    for _, walk in found:
        carried = {c.name for c in walk.carried if c.name.endswith("_now")}
        loads = {s.name: s for s in walk.body if isinstance(s, t.Let) and isinstance(s.op, t.Load)}
        assert {f"{n.removesuffix('_now')}_next" for n in carried} <= set(loads)
        assert not {n.removesuffix("_now") for n in carried} & set(loads)


@pytest.mark.parametrize("tokens", [0, 1, 64, 65, 200])
def test_the_same_bits(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without, for no chunk, one, and more."""
    draw = np.random.default_rng(0)
    shape = (1, 2, tokens, 16)
    inputs = {n: draw.normal(size=shape).astype(np.float16) for n in "qkv"}
    inputs["decay"] = -np.abs(draw.normal(size=shape[:3])).astype(np.float16)

    def run() -> np.ndarray:
        forward = driver.programs(SPEC, VARIANT).forward
        found: np.ndarray = run_program(forward, inputs).outputs["out"]
        return found

    mine = run()
    monkeypatch.setattr(chunk_forward, "ahead", lambda kernel: kernel)
    assert np.array_equal(mine, run())
