"""Every spec under examples/ runs, forward and backward, close to the reference; every script has its test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from attncc.cli import commands

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(f.relative_to(ROOT) for f in (ROOT / "examples").rglob("*") if f.is_file() and f.suffix != ".pyc")
NOT_YET = {"based", "gsa", "linformer", "qt_vit", "rebased", "sana", "sla"}
REFUSED = [f for f in FILES if f.suffix == ".attn" and f.stem in NOT_YET]
SPECS = [f for f in FILES if f.suffix == ".attn" and f not in REFUSED]


@pytest.mark.parametrize("spec", REFUSED, ids=lambda f: f.stem)
def test_what_is_not_compiled_yet_is_refused_by_name(spec: Path) -> None:
    shape = "B=1,H=2,G=1,N=8,D=8,E=8"
    done = CliRunner().invoke(commands, ["run", str(ROOT / spec), "--shape", shape, "--device", "cpu", "--json"])
    assert done.exit_code == 1, done.output
    (error,) = json.loads(done.output)["errors"]
    assert error["code"] == "E450" and error["line"] > 1, error


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
