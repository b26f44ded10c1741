"""What a turn of a walk reads beside its products is loaded a turn before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncc import driver
from attncc.grammar import parse
from attncc.schedule import chunk_forward
from attncc.schedule.chunk_forward import every
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.interpret import run_program

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
SPEC = parse((EXAMPLES / "simple_gla.attn").read_text(encoding="utf-8"))
VARIANT = Variant("triton", 16, 16, "f16", (("decay", "f16"),), gradients=("q", "k", "v", "decay"), capability=90)


def walks(pair: object) -> list[t.For]:
    """The loops over chunks that carry what is loaded ahead."""
    programs = (pair.forward, pair.backward)  # type: ignore[attr-defined]
    loops = [s for p in programs for k in p.kernels for s in every(k.body) if isinstance(s, t.For)]
    return [x for x in loops if any(c.name.endswith("_now") for c in x.carried)]


def test_what_scales_sums_is_carried() -> None:
    found = walks(driver.programs(SPEC, VARIANT))
    assert len(found) == 5  # two of the forward; what segments own, the states, their gradients
    for walk in found:
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
