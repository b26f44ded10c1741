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
STARTS, ROUNDS = 12, 4


def test_check_takes_at_most_three_tenths_of_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several whole processes the best, by processor time: on an idle machine that is the time by the clock, and
    on a busy one it leaves out the waiting. Both are printed. Neighbours on a shared core make it slower for seconds:
    a round that takes too long is followed by others, some seconds apart."""
    command = [sys.executable, "-m", "attncc", "check", str(ROOT / SPEC)]
    environment = {**os.environ, "ATTNCC_CACHE": str(tmp_path)}
    first = _timed(command, tmp_path, environment)
    work = clock = float("inf")
    for turn in range(ROUNDS):
        time.sleep(3.0 * turn)
        later = [_timed(command, tmp_path, environment) for _ in range(STARTS)]
        work, clock = (min(known, *(t[n] for t in later)) for n, known in enumerate((work, clock)))
        if work <= BAR:
            break
    with capsys.disabled():
        print(f"\nattncc check: {work:.3f} s of work, {clock:.3f} s by the clock; the first start {first[1]:.3f} s")
    assert work <= BAR


def _timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Processor time and wall time of one process."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime, time.perf_counter() - begun


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
