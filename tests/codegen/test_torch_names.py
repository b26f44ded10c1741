"""Several names for one tensor: what one of them still reads is not overwritten through another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import attncc
from attncc.driver import load
from attncc.reference import evaluate
from attncc.runtime.trial import error

SPECS = Path(__file__).parents[2] / "examples" / "recurrent"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["gla", "simple_gla", "rwkv6"])
def test_gates_of_any_precision(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cast of what a load gives is the load itself, and a score may hold several of them."""
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path))
    spec = load(SPECS / f"{name}.attn")[0]
    torch.manual_seed(0)
    tensors: dict[str, Any] = {n: torch.randn(1, 2, 80, 32) for n in "qkv"}
    shapes = {"decay": (1, 2, 80), "w": (1, 2, 80, 32), "u": (2, 32)} | (
        {"decay": (1, 2, 80, 32)} if name == "gla" else {}
    )
    for p in spec.params:
        made = torch.randn(shapes[p.name])
        tensors[p.name] = (made if p.name == "u" else torch.nn.functional.logsigmoid(made) / 16).to(dtype)
    out = attncc.compile(SPECS / f"{name}.attn", backend="torch")(**tensors)
    wanted = evaluate(spec, {n: t.double() for n, t in tensors.items()}, {}).out
    assert error(out, wanted) < 1e-6
