"""Every spec under examples/ runs, forward and backward, close to the reference; every script has its test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from attncc.cli import commands

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(f.relative_to(ROOT) for f in (ROOT / "examples").rglob("*") if f.is_file() and f.suffix != ".pyc")
SPECS = [f for f in FILES if f.suffix == ".attn"]


@pytest.mark.parametrize("spec", SPECS, ids=lambda f: f.stem)
def test_a_spec_runs_and_agrees(spec: Path) -> None:
    shape = "B=2,H=4,G=2,M=70,N=70,D=24,E=40"
    done = CliRunner().invoke(
        commands, ["run", str(ROOT / spec), "--shape", shape, "--device", "cpu", "--backend", "torch", "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    assert result["ok"]
    assert {"out", "d_q", "d_k", "d_v"} <= set(result["errors"])
    assert all(e <= 1e-5 for e in result["errors"].values())


def test_every_script_has_a_test() -> None:
    scripts = [f for f in FILES if f.suffix != ".attn"]
    assert scripts and all(f.suffix == ".py" for f in scripts), scripts
    for script in scripts:
        own = Path(__file__).with_name(f"test_{script.stem}.py")
        assert f'"{script.as_posix()}"' in own.read_text(), f"{own.name} does not run {script}"
