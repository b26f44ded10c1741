"""Rows that take long to compute are made once: where, for whom, and that results and gradients stay right."""

from __future__ import annotations

from pathlib import Path

import pytest

from attncc import driver
from attncc.expr.nodes import Op, walk
from attncc.grammar import parse
from attncc.schedule.chunk_problem import problem
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.walks import every
from tests.support.interpreted import all_near, needs_triton

RETNET = (Path(__file__).parents[2] / "examples" / "recurrent" / "retnet.attn").read_text(encoding="utf-8")
TURNED = """attention turned(decay: real[b, h, n] in [-inf, 0]):
    q = rope(q, at = i)
    state S[d, e]
    S = exp(decay[b, h, i]) * S + outer(k, v)
    out = q @ S
"""
TWICE = """attention twice:
    state S[d, e]
    S = S + outer(k, v)
    out = rope(q, at = i) @ S + q @ S
"""
TEXTS = {"retnet": RETNET, "turned": TURNED}
"""Both sides are turned, and a state fades by a number; the reads alone, and it fades by tokens."""


def pair(text: str, *, dtype: t.Dtype = "bf16", capability: int = 90) -> tuple[t.Program, t.Program]:
    spec = parse(text)
    captured: tuple[tuple[str, t.Dtype], ...] = tuple((p.name, dtype) for p in spec.params)
    gradients = ("q", "k", "v", *(p.name for p in spec.params))
    variant = Variant("triton", 128, 128, dtype, captured, gradients=gradients, capability=capability)
    found = driver.programs(spec, variant)
    assert found.backward is not None
    return found.forward, found.backward


def turning(kernel: t.Kernel) -> bool:
    bodies = (s.op.body for s in every(kernel.body) if isinstance(s, t.Let) and isinstance(s.op, t.Map))
    return any(isinstance(n, Op) and n.name in ("sin", "cos") for e in bodies for n in walk(e))


@pytest.mark.parametrize("name", TEXTS)
def test_angles_are_computed_once_a_pass(name: str) -> None:
    for program, kernels in zip(pair(TEXTS[name]), (1, 2), strict=True):
        names = [k.name for k in program.kernels if turning(k)]
        assert names == ["maps_kernel", "maps_gradients_kernel"][:kernels]
        assert program.kernels[0].name == "maps_kernel"


def test_the_rest_is_that_of_inputs_as_they_lie() -> None:
    plain = "\n".join(line for line in RETNET.splitlines() if "rope" not in line) + "\n"
    for ours, theirs in zip(pair(RETNET), pair(plain), strict=True):
        found = {k.name: k.config for k in ours.kernels if not k.name.startswith("maps")}
        assert found == {k.name: k.config for k in theirs.kernels}


def test_inputs_that_are_read_besides_are_not_turned_apart() -> None:
    made = problem(parse(TWICE), Variant("triton", 128, 128, "bf16", gradients=("q", "k", "v"), capability=90))
    assert made.maps == ()
    assert not any(k.name.startswith("maps") for program in pair(TWICE) for k in program.kernels)


_INTERPRET = """
import torch
from pathlib import Path
from tests.schedule.test_chunk import tensors
from tests.schedule.test_chunk_maps import TEXTS
from tests.support.interpreted import errors
for name, text in TEXTS.items():
    file = Path(f"{name}.attn")
    file.write_text(text)
    for dtype, bar, sizes in (
        (torch.float16, 3e-3, dict(G=2, M=70, N=70, D=16, E=16)),
        (torch.float16, 3e-3, dict(G=1, M=50, N=75, D=20, E=24)),
        (torch.float32, 1e-5, dict(G=1, M=40, N=40, D=16, E=80)),
    ):
        _, given = tensors(file, dtype, B=1, H=2, **sizes)
        for n, error in errors(file, given).items():
            assert error < bar, (name, dtype, sizes, n, error)
print("all near")
"""


@needs_triton
def test_interpreted_triton(tmp_path: Path) -> None:
    all_near(_INTERPRET, tmp_path, ATTNCC_CACHE="off")
