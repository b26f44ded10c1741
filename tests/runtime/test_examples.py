"""The whole road on this machine: real specs, the torch backend, Triton's interpreter, torch.compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import attncc
from attncc.runtime.inputs import made_up
from attncc.runtime.trial import attempt
from attncc.runtime.warmup import full_sizes
from tests.support.interpreted import needs_compiler, needs_triton

EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"
SEVEN = ("causal", "gemma2", "alibi", "packed_documents", "gpt_oss", "sigmoid_attention", "t5")
CPU = torch.device("cpu")


def inputs(attn: attncc.Attention, dtype: torch.dtype = torch.float64, **sizes: int) -> dict[str, Any]:
    full = full_sizes({"B": 2, "H": 4, "G": 2, "M": 30, "N": 37, "D": 16} | sizes)
    return made_up(attn._family.spec, attn.constants, full, dtype=dtype, device=CPU)


@pytest.mark.parametrize("name", SEVEN)
def test_float64_on_the_torch_backend(fresh: Path, name: str) -> None:
    attn = attncc.compile(EXAMPLES / f"{name}.attn")
    trial = attempt(attn, inputs(attn), repeats=1)
    assert trial.errors is not None and trial.good, trial.errors
    assert len(attn.variants) <= 3


def test_reference_is_called_the_same_way(fresh: Path) -> None:
    path = EXAMPLES / "gemma2.attn"
    attn, true = attncc.compile(path, window=5), attncc.reference(path, window=5)
    tensors = inputs(attn)
    for a, b in zip(attn(**tensors, return_lse=True), true(**tensors, return_lse=True), strict=True):
        torch.testing.assert_close(a, b)


def test_constants_and_sizes_compile_nothing(fresh: Path) -> None:
    path = EXAMPLES / "gemma2.attn"
    attn = attncc.compile(path)
    attn(**inputs(attn)).sum().backward()
    assert attn.builds == 2
    for n, window in enumerate((1, 7, 100)):
        other = attncc.compile(path, window=window, cap=10.0 + n)
        changes: list[dict[str, Any]] = [{"B": 1}, {"M": 1}, {"N": 90}, {"H": 8, "G": 1}, {"M": 0}, {"N": 0}, {"B": 0}]
        for sizes in changes:
            other(**inputs(other, **sizes)).sum().backward()
    assert attn.builds == 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile(fresh: Path, backend: str) -> None:
    attn = attncc.compile(EXAMPLES / "gpt_oss.attn", window=9)
    tensors = inputs(attn, torch.float32)

    @torch.compile(fullgraph=True, backend=backend)
    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = attn(q * 2, k, v, sink=sink)
        return out.relu()

    leaves = list(tensors.values())
    came = model(**tensors)
    eager = attn(**tensors | {"q": tensors["q"] * 2}).relu()
    torch.testing.assert_close(came, eager)
    for a, b in zip(
        torch.autograd.grad(came.sin().sum(), leaves), torch.autograd.grad(eager.sin().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


_INTERPRET = """
import sys, warnings
warnings.simplefilter("error", RuntimeWarning)
import torch
import attncc
from tests.runtime.test_examples import EXAMPLES, inputs
from attncc.runtime.trial import attempt
for dtype in (torch.float32, torch.float16):
    attn = attncc.compile(EXAMPLES / "gpt_oss.attn", backend="interpret", window=9)
    trial = attempt(attn, inputs(attn, dtype), repeats=1)
    assert trial.errors is not None and trial.good, trial.errors
try:
    attn(**inputs(attn, torch.bfloat16))
except attncc.BackendError as error:
    print(error)
"""


@needs_triton
def test_the_interpreter(tmp_path: Path) -> None:
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment |= {"ATTNCC_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(
        [sys.executable, "-c", _INTERPRET], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert "error[E603]: Triton's interpreter does not compute in torch.bfloat16" in found.stdout


_TOO_LATE = """
import triton, torch
import attncc
q = torch.zeros(1, 1, 4, 16)
try:
    attncc.compile("attention x:\\n    out = softmax(q @ k) @ v\\n", backend="interpret")(q, q, q)
except attncc.BackendError as error:
    print(error)
"""


@needs_triton
def test_the_interpreter_can_be_too_late(tmp_path: Path) -> None:
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment |= {"ATTNCC_CACHE": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", _TOO_LATE], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert "error[E602]" in found.stdout and "set TRITON_INTERPRET=1" in found.stdout, found.stderr


@needs_triton
@needs_compiler
def test_a_cubin_entry_comes_back_without_triton(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward for sm_90 is built here, and loaded from its entry as a machine with a GPU would."""
    from attncc.runtime import family as families
    from attncc.runtime.cuda import Kernel
    from attncc.runtime.family import Place
    from attncc.runtime.printing import usual_variant

    def forward() -> families.Half:
        compiled = attncc.compile(EXAMPLES / "causal.attn")._family
        variant = usual_variant(compiled.face, "triton", D=32, E=32)
        return compiled.half(variant, "forward", Place("cuda", 90))

    monkeypatch.setattr("attncc.runtime.cuda.driver", lambda: type("Driver", (), {"cuLaunchKernel": None}))
    built = forward()
    monkeypatch.setattr(families, "_families", {})
    attncc.runtime.attention._attention.cache_clear()
    monkeypatch.setattr(families, "compile_all", None)
    monkeypatch.setattr(families.Family, "programs", None)
    again = forward()
    (kernel,) = again.kernels
    assert isinstance(kernel, Kernel) and kernel.binary == built.kernels[0].binary
    assert kernel.binary.image[:4] == b"\x7fELF" and "import triton" not in again.function.__globals__
    assert "triton" not in again.function.__globals__
