"""run: compile, compare, time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from attncc.runtime import trial
from tests.cli.conftest import EXAMPLES

Cli = Callable[..., Result]
SHAPE = "B=1,H=4,G=2,M=33,N=40,D=16,E=24"
SEVEN = ("causal", "gemma2", "alibi", "packed_documents", "gpt_oss", "sigmoid_attention", "t5")


@pytest.mark.parametrize("name", SEVEN)
def test_the_examples_agree_with_the_reference(data: Callable[..., Any], name: str) -> None:
    found = data("run", EXAMPLES / f"{name}.attn", "--shape", SHAPE, "--device", "cpu")
    assert found["ok"] and found["dtype"] == "float32" and found["device"] == "cpu"
    assert {"out", "d_q", "d_k", "d_v"} <= set(found["errors"]) and ("lse" in found["errors"]) != (name == SEVEN[5])
    assert max(found["errors"].values()) <= 1e-5 and set(found["bars"].values()) == {1e-5}
    assert min(found["seconds"].values()) > 0


def test_as_text_with_a_constant(cli: Cli) -> None:
    found = cli("run", EXAMPLES / "gemma2.attn", "--shape", "H=2,N=20,D=16", "--const", "window=5", "--dtype", "f64")
    assert found.exit_code == 0, found.output
    assert "gemma2: B=1 H=2 G=2 M=20 N=20 D=16 E=16, float64" in found.output
    assert "constant window = 5" in found.output and "error" in found.output and "backward" in found.output


def test_a_wrong_result_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "BARS", dict.fromkeys(trial.BARS, 1e-30))
    found = cli("run", EXAMPLES / "causal.attn", "--shape", "H=2,N=20,D=16", "--device", "cpu")
    assert found.exit_code == 1 and "WRONG" in found.output


def test_a_shape_too_large_for_the_reference_is_not_compared(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_DENSE_ELEMENTS", 10)
    found = cli("run", EXAMPLES / "causal.attn", "--shape", "H=2,N=20,D=16", "--device", "cpu")
    assert found.exit_code == 0 and "not compared" in found.output


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--shape", "H=2,N=20,D"], 2, "'D' is not of the form NAME=VALUE"),
        (["--shape", "H=2,N=20,X=3"], 2, "there is no X; known: B, H, G"),
        (["--shape", "H=2,N=20,D=-3"], 2, "D must be a whole number, not '-3'"),
        (["--shape", "H=2,H=3"], 2, "H is given twice"),
        (["--shape", "H=2,N=20"], 1, "the size D is missing"),
        (["--shape", "H=2,G=3,N=20,D=16"], 1, "error[E505]: G = 3 does not divide H = 2"),
        (["--shape", "H=2,N=20,D=16", "--const", "windw=3"], 1, "hint: did you mean `window`?"),
        (["--shape", "H=2,N=20,D=16", "--const", "window=x"], 2, "window must be a number"),
        (["--shape", "H=2,N=20,D=16", "--device", "tpu9"], 2, "'tpu9' is no device"),
        (["--shape", "H=2,N=20,D=16", "--backend", "triton", "--device", "cpu"], 1, "error[E510]"),
    ],
)
def test_mistakes(cli: Cli, options: list[str], status: int, message: str) -> None:
    found = cli("run", EXAMPLES / "gemma2.attn", *options)
    assert found.exit_code == status and message in found.stderr, found.stderr


def test_errors_as_json(data: Callable[..., Any], tmp_path: Path) -> None:
    found = data("run", tmp_path / "none.attn", "--shape", "H=2,N=20,D=16")
    assert found["ok"] is False and found["errors"][0]["code"] == "E101"
