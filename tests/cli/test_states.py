"""State programs on the command line: their classes are shown, what has none is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from attncc.cli import commands

CORPUS = Path(__file__).parents[1] / "specs/corpus/recurrences"
OUTSIDE = """\
attention outside(W: real[h, d, f: D]):
    state S[d, e]
    S = outer(k, v) + W @ S[f]
    out = q @ S
"""


def attncc(*words: object) -> Result:
    return CliRunner().invoke(commands, [str(w) for w in words])


def test_check_shows_the_class() -> None:
    done = attncc("check", "--json", CORPUS / "gated_delta.attn", CORPUS / "linear_transformer.attn")
    assert done.exit_code == 0, done.output
    one, two = json.loads(done.output)["files"]
    (state,) = one["states"]["gated_delta"]
    assert state["changes"] == [
        {"class": "scalar", "rank": 1, "loop": "", "text": "token scalar, plus rank one along d tied to the write"}
    ]
    assert state["read"] == "inclusive" and state["axes"] == ["d", "e"] and not state["restarts"]
    assert [s["state"] for s in two["states"]["linear_transformer"]] == ["S", "z"]
    assert attncc("check", CORPUS / "gated_delta.attn").output.endswith("ok (gated_delta)\n")


def test_explain_and_dump() -> None:
    wanted = "state S[d, e]: key-channel diagonal; read before it"
    done = attncc("explain", CORPUS / "rwkv6.attn")
    assert done.exit_code == 0 and wanted in done.output and "u: real[h, d]" in done.output
    done = attncc("dump", CORPUS / "rwkv6.attn")
    assert done.exit_code == 0 and done.output.endswith(f"{wanted}\n") and "assign S[d, e] =" in done.output
    done = attncc("dump", "--json", "--after", "parse", CORPUS / "rwkv6.attn")
    assert "state S[d: D, e: E] = 0.0" in json.loads(done.output)["text"]


@pytest.mark.parametrize("command", ["check", "explain", "dump"])
def test_a_change_outside_every_class(tmp_path: Path, command: str) -> None:
    file = tmp_path / "outside.attn"
    file.write_text(OUTSIDE)
    done = attncc(command, file)
    assert done.exit_code == 1
    assert "outside.attn:3:23: error[E452]: this change of `S` mixes `d` by more than a diagonal" in done.output
    assert attncc("fmt", "--check", file).exit_code == 0


def test_what_has_no_chunks_runs_token_by_token(tmp_path: Path) -> None:
    done = attncc("run", CORPUS / "rwkv7.attn", "--shape", "B=1,H=2,N=8,D=8")
    assert done.exit_code == 0, done.output
    out = tmp_path / "printed.py"
    assert attncc("emit", CORPUS / "rwkv7.attn", "-o", out, "--target", "torch").exit_code == 0
    assert "one token after another" in out.read_text()


def test_what_is_not_compiled_says_so() -> None:
    done = attncc("dump", CORPUS / "rwkv7.attn", "--after", "tile")
    assert done.exit_code == 1
    assert "rwkv7.attn:3:5: error[E450]: a change of the class key-channel diagonal, plus rank one" in done.output
