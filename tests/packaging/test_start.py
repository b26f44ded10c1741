"""How long `attncc check` takes, and what happens where attncc is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = "examples/softmax/gemma2.attn"
BAR = 0.3
STARTS = 25


def test_check_takes_at_most_three_tenths_of_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quickest of several whole processes: what others do on this machine only ever adds time."""
    command = [sys.executable, "-m", "attncc", "check", str(ROOT / SPEC)]
    environment = {**os.environ, "ATTNCC_CACHE": str(tmp_path)}
    times = []
    for _ in range(STARTS):
        begun = time.perf_counter()
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
        if len(times) > 4 and min(times[1:]) <= BAR:
            break
    with capsys.disabled():
        print(f"\nattncc check: first {times[0]:.3f} s, then {min(times[1:]):.3f} s at best of {len(times) - 1}")
    assert min(times[1:]) <= BAR


def _bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python without site-packages, started in the sources: there attncc is the bare folder."""
    return subprocess.run([sys.executable, "-S", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_bare_folder_says_in_one_sentence_what_is_wrong() -> None:
    done = _bare("-c", f"import attncc; attncc.compile({SPEC!r})")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: attncc was imported from the source folder ")
    assert last.endswith("start Python from another folder, or install the sources with `pip install -e .`")


def test_the_bare_command_line_shows_no_traceback() -> None:
    done = _bare("-m", "attncc", "check", SPEC)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("attncc: attncc was imported from the source folder ")
    assert len(done.stderr.strip().splitlines()) == 1
