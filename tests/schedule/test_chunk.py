"""State programs in chunks: printed PyTorch and interpreted Triton equal the token loop."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attncc
from attncc import driver
from attncc.grammar import parse
from attncc.passes.mistakes import NotCompiled
from attncc.reference import evaluate
from attncc.runtime.inputs import made_up
from attncc.runtime.warmup import full_sizes
from attncc.schedule.variant import Target, Variant
from attncc.tile.nodes import Dtype
from attncc.tile.verify import unproved
from tests.support.compare import error

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
COMPILED = (
    "chela", "cosformer", "gla", "hgrn2", "lightning", "linear_transformer", "mamba2", "metala", "mlstm", "performer",
    "retnet", "rodimus", "rwkv5", "rwkv6", "simple_gla",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", "off")


def tensors(spec: str | Path, dtype: torch.dtype = torch.float64, **sizes: int) -> tuple[Any, dict[str, Tensor]]:
    """A compiled spec and inputs that fit it."""
    attention = attncc.compile(spec, backend="torch", form="chunk")
    full = full_sizes({"B": 2, "H": 4, "G": 2, "M": 45, "N": 45, "D": 6, "E": 5} | sizes)
    made = made_up(attention._family.spec, attention.constants, full, dtype=dtype, device=CPU)
    return attention, {n: x.detach().to(dtype) if x.is_floating_point() else x for n, x in made.items()}


def distance(spec: str | Path, sizes: dict[str, int] | None = None, dtype: torch.dtype = torch.float64) -> float:
    """How far the torch backend is from the token loop: the worst of out and every gradient."""
    attention, given = tensors(spec, dtype, **(sizes or {}))
    results = []
    for call in (attention, lambda **x: evaluate(attention._family.spec, x).out):
        wide = call is not attention
        leaves = {n: (x.double() if wide and x.is_floating_point() else x).clone() for n, x in given.items()}
        real = {n: x.requires_grad_() for n, x in leaves.items() if x.is_floating_point()}
        out = call(**leaves)
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
        total = (out * weight).sum() + 0 * leaves["q"].sum()  # out may have no rows
        grads = torch.autograd.grad(total, list(real.values()), allow_unused=True)
        zeros = (torch.zeros_like(x) if g is None else g for g, x in zip(grads, real.values(), strict=True))
        results.append({"out": out.detach(), **{f"d_{n}": g for n, g in zip(real, zeros, strict=True)}})
    got, wanted = results
    assert got["out"].dtype == dtype
    return max(error(got[n].double(), wanted[n], wanted[n] if n == "out" else wanted["d_v"]) for n in wanted)


@pytest.mark.parametrize("name", COMPILED)
def test_examples(name: str) -> None:
    assert distance(EXAMPLES / f"{name}.attn") < 1e-12
    assert distance(EXAMPLES / f"{name}.attn", {"M": 40, "N": 70, "D": 16, "E": 24}, torch.float32) < 1e-5


@pytest.mark.parametrize(
    "sizes", [{"N": 1, "M": 1}, {"N": 16, "M": 3}, {"N": 33, "M": 0}, {"B": 0}, {"N": 130, "M": 65}]
)
@pytest.mark.parametrize("name", ["gla", "simple_gla", "linear_transformer"])
def test_lengths(name: str, sizes: dict[str, int]) -> None:
    assert distance(EXAMPLES / f"{name}.attn", sizes) < 1e-12


@pytest.mark.parametrize("value", [0.0, -1e4, -torch.inf])
@pytest.mark.parametrize("name", ["gla", "simple_gla"])
def test_extreme_gates(name: str, value: float) -> None:
    attention, given = tensors(EXAMPLES / f"{name}.attn")
    given["decay"][:, :, ::7] = value
    given["decay"][:, 1] = value
    leaves = {n: x.clone().requires_grad_() for n, x in given.items()}
    truth = evaluate(attention._family.spec, leaves).out
    out = attention(**leaves)
    torch.testing.assert_close(out, truth, atol=1e-12, rtol=1e-12)
    for mine, true in zip(*(torch.autograd.grad(x.sum(), list(leaves.values())) for x in (out, truth)), strict=True):
        torch.testing.assert_close(mine, true, atol=1e-11, rtol=1e-11)


def chunked(*lines: str, header: str = "") -> str:
    return f"attention a({header}):\n" + "".join(f"    {line}\n" for line in lines)


WRITTEN = {
    "an initial state": chunked(
        "state S[d, e] = S0", "S = 0.5 * S + outer(k, v)", "out = q @ S", header="S0: real[b, h, d, e]"
    ),
    "documents as a gate": chunked(
        "let same = doc[b, i] == doc[b, max(i - 1, 0)]",
        "state S[d, e]",
        "S = (S if same else 0) + outer(k, v)",
        "out = q @ S",
        header="doc: int[b, n]",
    ),
    "two writes": chunked("state S[d, e]", "S = S + outer(k, v) - 0.5 * outer(k ** 2, relu(v))", "out = q @ S"),
    "a gate in two factors": chunked(
        "state S[d, e]",
        "S = sigmoid(x[b, h, i]) * exp(y[h]) * S",
        "S = S + outer(k, v)",
        "out = q @ S",
        header="x: real[b, h, n], y: real[h] in [-inf, 0]",
    ),
    "a vector of values": chunked(
        "state z[e]", "z = exp(a[h]) * z + v", "out = z * q[e]", header="a: real[h] in [-1, 0]"
    ),
    "a kept value": chunked("state S[d, e]", "let u = q @ S", "S = 0.5 * S + outer(k, v)", "out = tanh(u) + v"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_programs(name: str) -> None:
    assert distance(WRITTEN[name], {"D": 6, "E": 6}) < 1e-12


REFUSED = {
    "one product": (
        chunked("state S[d, e]", "S = S + outer(k, v - k @ S)", "out = q @ S"),
        "a change of the class identity, plus rank one",
    ),
    "an unbounded gate": (
        chunked("state S[d, e]", "S = exp(a[h]) * S + outer(k, v)", "out = q @ S", header="a: real[h]"),
        "this gate is not proved to be at most 1",
    ),
    "a restart": (
        chunked("state S[d, e] per doc[b, i]", "S = S + outer(k, v)", "out = q @ S", header="doc: int[b, n]"),
        "states that start anew by a key",
    ),
    "a number": (chunked("state c", "c = 0.9 * c + k @ k", "out = v * c"), "a state without axes"),
    "no product": (
        chunked("state S[d, e]", "S = S + sin(outer(k, v))", "out = q @ S"),
        "a write that is no product of a key and a value",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_chunk_form_is_refused(name: str) -> None:
    text, message = REFUSED[name]
    spec = parse(text)
    with pytest.raises(NotCompiled, match=message) as caught:
        driver.programs(spec, Variant("torch", 6, 6, "f64", tuple((p.name, "f64") for p in spec.params)))
    assert caught.value.diagnostic.span is not None


@pytest.mark.parametrize("name", sorted({*COMPILED} - {"chela", "cosformer", "linear_transformer", "performer"}))
@pytest.mark.parametrize("target", ["torch", "triton"])
def test_every_exponent_of_a_gate_is_proved(name: str, target: Target) -> None:
    """Exponentials of the spec itself are exp; those of the schedule are exp2."""
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))
    captured: tuple[tuple[str, Dtype], ...] = tuple((p.name, "f32") for p in spec.params)
    forward = driver.programs(spec, Variant(target, 64, 128, "f32", captured)).forward
    left = [str(x) for x in unproved(forward) if x.check == "exponents_anchored" and "= exp2(" in x.statement]
    assert left == []


_INTERPRET = """
import torch
from tests.schedule.test_chunk import EXAMPLES, tensors
from attncc.reference import evaluate
import attncc
for name, dtype, sizes in (
    ("simple_gla", torch.float32, dict(M=37, N=40, D=16, E=100)),
    ("gla", torch.float32, dict(M=20, N=20, D=24, E=16)),
    ("performer", torch.float32, dict(M=40, N=40, D=16, E=16)),
    ("chela", torch.float32, dict(M=70, N=70, D=16, E=16)),
    ("linear_transformer", torch.float16, dict(M=70, N=70, D=16, E=16)),
    ("rwkv6", torch.float16, dict(M=33, N=33, D=16, E=16)),
):
    attention, given = tensors(EXAMPLES / f"{name}.attn", dtype, B=1, **sizes)
    results = []
    for call in (attncc.compile(EXAMPLES / f"{name}.attn", backend="interpret"), None):
        wide = {n: x.double() if call is None and x.is_floating_point() else x for n, x in given.items()}
        leaves = {n: x.clone().requires_grad_(x.is_floating_point()) for n, x in wide.items()}
        out = evaluate(attention._family.spec, leaves).out if call is None else call(**leaves)
        weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
        real = {n: x for n, x in leaves.items() if x.is_floating_point()}
        grads = torch.autograd.grad((out * weight).sum(), list(real.values()))
        results.append({"out": out.detach(), **dict(zip(real, grads))})
    got, wanted = results
    bar = 1e-5 if dtype == torch.float32 else 4e-3
    for n, truth in wanted.items():
        error = float((got[n].double() - truth).norm() / truth.norm())
        assert error < bar, (name, n, error)
print("all near")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_interpreted_triton(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRET], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert done.stdout.endswith("all near\n"), done.stdout + done.stderr
