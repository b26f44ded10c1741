"""emit: the written modules work where attncc is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli.conftest import EXAMPLES
from tests.support.interpreted import needs_triton

Cli = Callable[..., Result]
SEVEN = ("causal", "gemma2", "alibi", "packed_documents", "gpt_oss", "sigmoid_attention", "t5")

_SAVE = """
import sys, torch
from pathlib import Path
from attncc.grammar import parse, read
from attncc.runtime.inputs import made_up
from attncc.reference import evaluate
"""

_USE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "attncc":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib.util
import torch
for name in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("emitted", name)
    emitted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(emitted)
    case = torch.load(name.rsplit("_", 1)[0] + ".pt")
    tensors = {n: t.requires_grad_(t.is_floating_point()) for n, t in case["tensors"].items()}
    q, k, v = (tensors.pop(n) for n in "qkv")
    lse = {"return_lse": True} if "lse" in case else {}
    out = emitted.attention(q, k, v, **tensors, **case["constants"], **lse)
    if lse:
        out, lse = out
        torch.testing.assert_close(lse.double(), case["lse"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.double(), case["out"], atol=1e-4, rtol=1e-4)
    leaves = [q, k, v, *(t for t in tensors.values() if t.requires_grad)]
    for grad, true in zip(torch.autograd.grad(out.sin().sum(), leaves), case["grads"], strict=True):
        torch.testing.assert_close(grad.double(), true, atol=1e-4, rtol=1e-4)
    print("agrees", name)
"""


_IMPORT = """
from types import SimpleNamespace
import x as emitted
seen = []
emitted._launch = lambda kernel, programs, args, **how: seen.append((kernel, args))
torch.cuda.device_of = lambda tensor: torch.no_grad()
torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)
q = torch.zeros(1, 2, 100, 68, dtype=torch.bfloat16)[..., :64]
out = emitted.attention(q, q, q, slope=torch.zeros(2))
(kernel, args), = seen
described = [a for a in args if hasattr(a, "block_shape")]
print(kernel.__name__, described[0].block_shape, all(d.base.stride(-1) == 1 for d in described))
"""


def save_case(name: str, path: Path) -> None:
    """Inputs of an example and what the dense reference makes of them."""
    import torch

    from attncc.grammar import parse, read
    from attncc.reference import evaluate
    from attncc.runtime.inputs import made_up
    from attncc.runtime.warmup import full_sizes

    spec = parse(read(EXAMPLES / f"{name}.attn").text)
    constants: dict[str, Any] = {c.name: c.value for c in spec.constants}
    constants |= {"window": 9} if "window" in constants else {}
    sizes = full_sizes({"B": 2, "H": 4, "G": 2, "M": 20, "N": 33, "D": 16})
    tensors = made_up(spec, constants, sizes, dtype=torch.float32, device=torch.device("cpu"))
    exact: dict[str, Any] = {
        n: t.detach().double().requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()
    }
    result = evaluate(spec, exact, constants, return_lse=name != "sigmoid_attention")
    grads = torch.autograd.grad(result.out.sin().sum(), [t for t in exact.values() if t.is_floating_point()])
    case = {"tensors": {n: t.detach() for n, t in tensors.items()}, "constants": constants, "grads": list(grads)}
    case |= {"out": result.out.detach()} | ({} if result.lse is None else {"lse": result.lse.detach()})
    torch.save(case, path)


def use(paths: list[Path], tmp_path: Path, **environment: str) -> None:
    """Runs the emitted modules in a process that can't import attncc."""
    (tmp_path / "use.py").write_text(_USE)
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "use.py", *map(str, paths)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("agrees") == len(paths)


def test_torch_modules_work_alone(cli: Cli, tmp_path: Path) -> None:
    paths = []
    for name in SEVEN:
        paths.append(tmp_path / f"{name}_torch.py")
        result = cli("emit", EXAMPLES / f"{name}.attn", "-o", paths[-1], "--target", "torch", "--dims", "D=16")
        assert (result.exit_code, result.output) == (0, f"{paths[-1]}\n"), result.output
        assert "attncc." not in paths[-1].read_text()
        save_case(name, tmp_path / f"{name}.pt")
    use(paths, tmp_path)


@needs_triton
def test_triton_modules_work_alone(cli: Cli, tmp_path: Path) -> None:
    paths = []
    for name in SEVEN:
        paths.append(tmp_path / f"{name}_triton.py")
        options = ["--target", "triton,torch", "--dims", "D=16", "--dtype", "f32"]
        assert cli("emit", EXAMPLES / f"{name}.attn", "-o", tmp_path / f"{name}.py", *options).exit_code == 0
        assert paths[-1].exists() and (tmp_path / f"{name}_torch.py").exists()
        save_case(name, tmp_path / f"{name}.pt")
    use(paths, tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_ptx_needs_no_gpu(tmp_path: Path) -> None:
    args = ["emit", str(EXAMPLES / "causal.attn"), "-o", "x.py", "--target", "ptx", "--forward-only", "--arch", "sm_80"]
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-m", "attncc", *args], cwd=tmp_path, check=True, env=environment, timeout=300)
    assert ".target sm_80" in (tmp_path / "x_forward_kernel.ptx").read_text()


@needs_triton
def test_gluon_modules_can_be_imported_alone(cli: Cli, tmp_path: Path) -> None:
    """Partitioned kernels run on Hopper only: here the module is imported, and its host function reached."""
    assert cli("emit", EXAMPLES / "alibi.attn", "-o", tmp_path / "x.py", "--target", "gluon").exit_code == 0
    text = (tmp_path / "x.py").read_text()
    assert "@gluon.jit" in text and "@triton.jit" in text and "attncc." not in text
    (tmp_path / "use.py").write_text(_USE.partition("for name in")[0] + _IMPORT)
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "use.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=100)
    assert found.stdout.split() == ["forward_kernel", "[1,", "1,", "64,", "64]", "True"], found.stderr


def test_gradient_of_lse_and_forward_only(cli: Cli) -> None:
    with_lse = cli("emit", EXAMPLES / "causal.attn", "-o", "-", "--target", "torch", "--lse-gradient").output
    assert "d_lse.contiguous()" in with_lse and "mark_non_differentiable" not in with_lse
    forward = cli("emit", EXAMPLES / "causal.attn", "-o", "-", "--target", "torch", "--forward-only").output
    assert "backward" not in forward and "outputs = forward(q, k, v)" in forward
    for text in (with_lse, forward):
        compile(text, "emitted", "exec")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "cuda"], "there is no target 'cuda'"),
        (["--arch", "hopper"], "'hopper' is no architecture"),
        (["--dims", "E=4"], "--dims needs D"),
        (["--target", ","], "no target is given"),
    ],
)
def test_usage(cli: Cli, options: list[str], message: str) -> None:
    found = cli("emit", EXAMPLES / "causal.attn", "-o", "-", *options)
    assert found.exit_code == 2 and message in found.stderr


def test_nothing_is_written_for_a_bad_spec(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.attn").write_text("attention x:\n    out = w @ v\n")
    assert cli("emit", tmp_path / "bad.attn", "-o", tmp_path / "x.py").exit_code == 1
    assert not (tmp_path / "x.py").exists()
