"""Bytes, files, depth, the cache of tables, the time of a check."""

import subprocess
import sys
from pathlib import Path

import pytest

from attncc.errors import SpecError
from attncc.grammar import parse, parse_all, read
from attncc.grammar.mistakes import EmptySpec, NotUtf8, SeveralSpecs, TooDeep, TooMuchInlining, Unreadable
from attncc.grammar.reader import GRAMMAR, tables

ROOT = Path(__file__).parents[2]
FULL = "attention full:\n    out = softmax(q @ k / sqrt(D)) @ v\n"


def test_read_gives_text_and_name(tmp_path: Path) -> None:
    path = tmp_path / "a.attn"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.encode())
    source = read(path)
    assert (source.text, source.name) == (FULL, str(path))
    assert read(FULL.encode(), "b.attn").name == "b.attn"


def test_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.attn", tmp_path, "a\0b"):
        with pytest.raises(Unreadable):
            read(path)


def test_bytes_that_are_not_utf8() -> None:
    with pytest.raises(NotUtf8) as caught:
        read(b"attention a:\n  \xff = 1\n", "x.attn")
    assert str(caught.value).startswith("x.attn:2:3: error[E102]: byte 0xFF at position 15")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "def f(x) = x\n", "\ufeff"])
def test_empty_texts(text: str) -> None:
    with pytest.raises(EmptySpec):
        parse(read(text.encode()).text)


def test_several() -> None:
    two = FULL + "attention other: out = softmax(q @ k) @ v"
    assert [s.name for s in parse_all(two)] == ["full", "other"]
    with pytest.raises(SeveralSpecs):
        parse(two)


@pytest.mark.parametrize(
    "inner",
    [
        "(" * 20_000 + "1" + ")" * 20_000,
        "(" * 20_000,
        "-" * 20_000 + "1",
        "not " * 20_000 + "1",
        "1" + " + 1" * 20_000,
        "1" + " ** 1" * 20_000,
        "abs(" * 20_000 + "1" + ")" * 20_000,
        "1 if 1 else " * 20_000 + "1",
        "x" + "[1]" * 20_000,
        "√" * 20_000 + "1",
    ],
    ids=lambda s: s[:4],
)
def test_depth_is_bounded(inner: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(f"attention a:\n    out = {inner}\n")
    assert isinstance(caught.value, TooDeep) or inner == "(" * 20_000


def test_depth_through_definitions_is_bounded() -> None:
    deep = "def f0(x) = x + 1\n" + "".join(f"def f{n}(x) = f{n - 1}(x + 1)\n" for n in range(1, 400))
    with pytest.raises(TooDeep):
        parse(deep + "attention a:\n    out = softmax(f399(q @ k)) @ v\n")
    wide = "def f0(x) = x + 1\n" + "".join(f"def f{n}(x) = f{n - 1}(x) + f{n - 1}(x)\n" for n in range(1, 40))
    with pytest.raises(TooMuchInlining):
        parse(wide + "attention a:\n    out = softmax(f39(q @ k)) @ v\n")


def test_long_chains_of_lets_are_no_problem() -> None:
    lets = "".join(f"    let s{n} = s{n - 1} + 1\n" for n in range(1, 3000))
    spec = parse(f"attention a:\n    let s0 = q @ k\n{lets}    mask = j <= i\n    out = softmax(s2999) @ v\n")
    assert spec.statements == ()


def test_line_ends_and_missing_last_newline() -> None:
    assert parse(FULL.replace("\n", "\r\n")) == parse(FULL) == parse(FULL.rstrip())


def test_a_damaged_cache_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path))
    tables.cache_clear()
    parse(FULL)
    (stored,) = tmp_path.iterdir()
    for damage in (b"", b"cut", stored.read_bytes()[:-100]):
        stored.write_bytes(damage)
        tables.cache_clear()
        assert parse(FULL).name == "full"
        tables.cache_clear()
        assert parse(FULL).name == "full"
    monkeypatch.setenv("ATTNCC_CACHE", "/proc/nowhere")
    tables.cache_clear()
    assert parse(FULL).name == "full"
    tables.cache_clear()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from attncc.grammar import parse; parse(sys.argv[1]);"
        "print([m for m in ('torch', 'triton', 'numpy', 'sympy', 'networkx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, FULL], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_grammar_lies_beside_the_package() -> None:
    assert GRAMMAR.is_file()
