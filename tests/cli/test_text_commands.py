"""check, fmt and the frame around all commands."""

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

Cli = Callable[..., Result]
GOOD = "attention x:\n    out = softmax(q @ k) @ v\n"
BAD = "attention x:\n    out = softmax(q @ kk) @ v\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    good, bad = tmp_path / "good.attn", tmp_path / "bad.attn"
    good.write_text(GOOD)
    bad.write_text(BAD)
    return good, bad


def test_check_says_ok_and_where_not(cli: Cli, files: tuple[Path, Path]) -> None:
    good, bad = files
    assert (cli("check", good).exit_code, cli("check", good).output) == (0, f"{good}: ok (x)\n")
    found = cli("check", good, bad)
    assert found.exit_code == 1
    assert f"{bad}:2:23: error[E201]" in found.stderr and "      ^^" in found.stderr


def test_check_of_every_example(cli: Cli) -> None:
    assert cli("check", *sorted(EXAMPLES.glob("*.attn"))).exit_code == 0


def test_check_as_json(data: Callable[..., Any], files: tuple[Path, Path]) -> None:
    good, bad = files
    found = data("check", good, bad, good.parent / "none.attn")
    assert [f["ok"] for f in found["files"]] == [True, False, False] and found["ok"] is False
    (error,) = found["files"][1]["errors"]
    assert (error["code"], error["line"], error["column"], error["file"]) == ("E201", 2, 23, str(bad))


@pytest.mark.parametrize("command", ["check", "fmt", "run", "emit", "dump", "explain"])
def test_help_and_usage(cli: Cli, command: str) -> None:
    assert cli(command, "--help").exit_code == 0
    assert cli(command).exit_code == 2
    assert cli(command, "--no-such-option", "x").exit_code == 2


def test_the_frame(cli: Cli) -> None:
    assert "check" in cli("--help").output and cli("--version").output.startswith("attncc 0.")
    assert "ATTNCC_CACHE" in cli("--environment").output
    assert cli("nonsense").exit_code == 2


def test_fmt_writes_and_checks(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "x.attn"
    path.write_text("attention x:\n    out=softmax( q@k )@v   # why\n")
    path.chmod(0o640)
    assert cli("fmt", "--check", path).exit_code == 1
    assert "out=softmax" in path.read_text()
    assert cli("fmt", path).exit_code == 0
    assert path.read_text() == "attention x:\n    out = softmax(q @ k) @ v  # why\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert (cli("fmt", "--check", path).exit_code, cli("fmt", path).output) == (0, "")


def test_fmt_leaves_what_does_not_parse(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "x.attn"
    path.write_text("attention x\n")
    assert cli("fmt", path).exit_code == 1
    assert path.read_text() == "attention x\n"


def python(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=cwd, env=os.environ, timeout=120)


HEAVY = """
import sys
from attncc.cli import commands
try:
    commands(sys.argv[1:])
finally:
    assert not {"torch", "triton", "sympy", "networkx", "numpy"} & set(sys.modules)
"""


def test_nothing_heavy_is_imported() -> None:
    path = str(EXAMPLES / "gemma2.attn")
    found = python("-c", HEAVY, "check", path)
    assert (found.returncode, found.stdout) == (0, f"{path}: ok (gemma2)\n"), found.stderr
    assert python("-c", HEAVY, "fmt", "--check", path).returncode == 0
    assert python("-c", HEAVY, "--help").returncode == 0


def test_as_a_module_without_traceback(files: tuple[Path, Path]) -> None:
    found = python("-m", "attncc", "check", str(files[1]))
    assert found.returncode == 1 and "Traceback" not in found.stderr and "error[E201]" in found.stderr


def test_the_bare_source_folder_says_what_to_do(tmp_path: Path) -> None:
    """As after `pip install .`, with Python started in the sources: attncc/ is found first, without its parts."""
    (tmp_path / "attncc").symlink_to(Path(__file__).parents[2] / "attncc")
    block = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
    for use in ("import attncc; attncc.compile('x.attn')", "from attncc.__main__ import main; main()"):
        found = python("-c", block + use, cwd=tmp_path)
        assert found.returncode == 1
        last = found.stderr.strip().splitlines()[-1]
        assert "attncc.grammar is missing" in last and "pip install -e ." in last, found.stderr
