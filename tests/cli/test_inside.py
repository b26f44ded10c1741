"""dump and explain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from attncc.cli_inside import mistakes
from attncc.ir.text import read_spec
from attncc.passes import PIPELINE
from tests.cli.conftest import EXAMPLES

Cli = Callable[..., Result]


def test_dump_after_each_pass(cli: Cli) -> None:
    for stage in ("parse", *(p.name for p in PIPELINE)):
        found = cli("dump", EXAMPLES / "gpt_oss.attn", "--after", stage)
        assert found.exit_code == 0 and found.output.startswith("spec gpt_oss\n"), found.output
    assert read_spec(cli("dump", EXAMPLES / "gpt_oss.attn", "--after", "parse").output).name == "gpt_oss"
    assert "<= j <" in cli("dump", EXAMPLES / "gpt_oss.attn").output


def test_dump_of_tiles_and_source(cli: Cli) -> None:
    tiles = cli("dump", EXAMPLES / "causal.attn", "--after", "tile", "--dims", "D=32").output
    assert tiles.startswith("program forward") and "\nprogram backward" in tiles and "d: 32" in tiles
    assert "def forward(q, k, v)" in cli("dump", EXAMPLES / "causal.attn", "--after", "print").output


def test_dump_of_an_unknown_pass(cli: Cli) -> None:
    found = cli("dump", EXAMPLES / "causal.attn", "--after", "fuze")
    assert found.exit_code == 2 and "known: parse, canonicalize" in found.stderr


def test_explain_a_spec(cli: Cli) -> None:
    found = cli("explain", EXAMPLES / "gemma2.attn", "--const", "window=12").output
    rows = [line.split() for line in found.splitlines() if set(line) <= set("#. ") and line.strip()]
    assert rows[0] == ["#", *["."] * 23] and rows[-1] == [*["."] * 12, *["#"] * 12]
    assert "max(i - window + 1, 0) <= j < i + 1" in found and "keys_kernel" in found
    documents = cli("explain", EXAMPLES / "packed_documents.attn").output
    assert "doc_first[b, i] <= j < i + 1" in documents and "? ?" in documents


def test_explain_tells_what_is_partitioned_and_what_not(cli: Cli) -> None:
    split = cli("explain", EXAMPLES / "causal.attn", "--dims", "D=128").output
    assert "partitioned: consumer0 4, consumer1 4" in split and "not partitioned" not in split
    plain = cli("explain", EXAMPLES / "causal.attn", "--dims", "D=100").output
    assert plain.count("not partitioned: rows of q are not 16-byte aligned") == 2


def test_explain_every_code(cli: Cli) -> None:
    for code, kind in mistakes().items():
        found = cli("explain", code.lower())
        assert found.exit_code == 0 and found.output.startswith(f"{code}  {kind.__name__}\n\n")
    assert cli("explain", "E999").exit_code == 2


def test_a_spec_that_is_not_compiled_shows_its_place(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "two.attn"
    path.write_text("attention two:\n    out = softmax(q @ k) @ v + softmax(q @ k / 2) @ v\n")
    for command in (["explain", path], ["dump", path], ["run", path, "--shape", "H=1,N=4,D=8"]):
        found = cli(*command)
        assert found.exit_code == 1 and f"{path}:" in found.stderr and "error[E4" in found.stderr, found.stderr


@pytest.mark.parametrize("what", ["explain", "dump"])
def test_a_missing_file(cli: Cli, what: str) -> None:
    found = cli(what, "none.attn")
    assert found.exit_code == 1 and "error[E101]" in found.stderr
