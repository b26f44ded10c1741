"""examples/train.py: the loss curves of the compiled attention and of PyTorch's own agree."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--steps=40", "--context=96", "--batch=8", "--width=64", "--layers=2", "--device=cpu")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/train.py", *SMALL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_the_curves_agree_and_fall() -> None:
    done = _run()
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^ +(\d+) +(\d+\.\d+) +(\d+\.\d+) +(\S+)$", done.stdout, re.MULTILINE)
    assert rows[0][0] == "1" and rows[-1][0] == "40"
    assert float(rows[-1][1]) < float(rows[0][1]) - 1
    found = re.search(r"largest difference of 40 steps: (\S+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= 1e-4


@pytest.mark.slow
def test_another_attention_gives_another_curve(tmp_path: Path) -> None:
    spec = tmp_path / "strict.attn"
    spec.write_text("attention strict:\n    mask = j < i\n    out  = softmax(q @ k / sqrt(D)) @ v\n")
    done = _run("--steps=10", "--spec", str(spec))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "largest difference of 10 steps" in done.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None and not os.environ.get("CI"),
    reason="needs the extra: pip install -e '.[models]'",
)
def test_the_plot_is_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "losses.png"
    done = _run("--steps=3", "--plot", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 10_000
