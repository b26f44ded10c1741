"""Calls under Triton's interpreter, in processes of their own: it must be chosen before Triton is imported."""

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
from attncc.reference import evaluate

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_compiler = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets Triton")


def all_near(script: str, folder: Path, **environment: str) -> None:
    """Runs a script in `folder`; it fails, or prints that all is near."""
    root = str(Path(__file__).parents[2])
    full = {**os.environ, "PYTHONPATH": root, "TRITON_INTERPRET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=full, cwd=folder, timeout=300
    )
    assert done.stdout.endswith("all near\n"), done.stdout + done.stderr


def errors(spec: Path, given: dict[str, Tensor]) -> dict[str, float]:
    """How far out and every gradient are from the reference in float64, relative; called by such scripts."""
    attention: Any = attncc.compile(spec, backend="interpret")
    results = []
    for wide in (False, True):
        leaves = {n: (x.double() if wide else x.clone()).requires_grad_() for n, x in given.items()}
        out = evaluate(attention._family.spec, leaves).out if wide else attention(**leaves)
        weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), list(leaves.values()))))
    return {
        n: float((got.double() - truth).norm() / truth.norm().clamp(min=1e-3))
        for n, got, truth in zip(("out", *given), *results, strict=True)
    }
