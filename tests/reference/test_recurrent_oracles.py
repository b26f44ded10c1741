"""Every recurrent example equals its loop by hand: out and every gradient, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tests.oracles.recurrent
from attncc.expr.evaluate import evaluate as number
from attncc.expr.nodes import Const
from attncc.grammar import parse
from attncc.ir.nodes import Param
from attncc.reference import evaluate
from tests.oracles.recurrent import RECURRENT
from tests.support.compare import BARS, compare

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
B, H, G, N, D, E = 2, 4, 2, 9, 6, 5
SIZES = {"b": B, "h": H, "g": G, "m": N, "n": N, "d": D, "e": E}


def made(param: Param, rng: torch.Generator) -> Tensor:
    """Values within the declared bounds."""
    shape = [SIZES[a.index] if a.index in SIZES else int(number(a.size)) for a in param.axes]
    x = torch.randn(shape, generator=rng, dtype=torch.float64)
    if param.bounds is None:
        return x
    low, high = (x.value for x in param.bounds if isinstance(x, Const))
    return torch.sigmoid(x) if (low, high) == (0, 1) else x.abs() if low == 0 else -x.abs()


def tensors(params: tuple[Param, ...]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(11)
    shapes = {"q": (B, H, N, D), "k": (B, G, N, D), "v": (B, G, N, E)}
    found = {x: torch.randn(s, generator=rng, dtype=torch.float64) for x, s in shapes.items()}
    found |= {p.name: made(p, rng) for p in params}
    return {name: x.requires_grad_() for name, x in found.items()}


@pytest.mark.parametrize("name", RECURRENT)
def test_reference_equals_the_loop(name: str) -> None:
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"), name)
    leaves = tensors(spec.params)
    found = {}
    for which, out in (("reference", evaluate(spec, leaves).out), ("loop", RECURRENT[name](**leaves))):
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        grads = torch.autograd.grad((out * weight).sum(), list(leaves.values()), allow_unused=True)
        named = zip(leaves, grads, strict=True)
        found[which] = {"out": out} | {f"d{n}": torch.zeros(1) if g is None else g for n, g in named}
    compare(found["reference"], found["loop"], BARS["float64"], name)


def test_every_example_has_a_loop() -> None:
    assert {p.stem for p in EXAMPLES.glob("*.attn")} == set(RECURRENT)


def test_loops_know_nothing_of_the_compiler() -> None:
    assert "attncc" not in Path(tests.oracles.recurrent.__file__).read_text(encoding="utf-8")
