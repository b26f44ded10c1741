"""The printed Triton kernels under Triton's interpreter: a process for every spec, and one for strides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.specs import SEVEN

SUITE = Path(__file__).with_name("interpreted.py")


def _run(wanted: str, seed: int) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    env = {n: x for n, x in env.items() if not n.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(SUITE)]
    command += ["--seed", str(seed), "-k", wanted]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=SUITE.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", SEVEN)
def test_cells(name: str, seed: int) -> None:
    _run(f"test_results_and_gradients and {name}", seed)


@pytest.mark.parametrize("part", ["test_views", "not test_views and not test_results_and_gradients"])
def test_strides(part: str, seed: int) -> None:
    _run(part, seed)
