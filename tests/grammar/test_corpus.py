"""The corpus: every spec parses; what is compiled lowers, the rest is refused by the construct it needs."""

from pathlib import Path

import pytest

from attncc.errors import SpecError
from attncc.grammar import parse
from attncc.grammar.mistakes import NotCompiled
from attncc.grammar.reader import read_tree

ROOT = Path(__file__).parents[2]
CORPUS = sorted((ROOT / "tests/specs/corpus").rglob("*.attn"))
EXAMPLES = sorted((ROOT / "examples").rglob("*.attn"))

REFUSED = {  # spec: construct and place of the refusal
    "neighbourhood": ("`axes`", 2),
    "moba": ("`select`", 3),
    "native_sparse": ("`sum` over `h`", 6),
    "vertical_slash": ("`sum` over `i`", 3),
    "quest": ("`select`", 4),
    "heavy_hitter": ("`state`", 2),
    "lsh": ("`concat`", 3),
    "sage": ("`quantize`", 5),
    "kivi": ("`cache`", 2),
    "mla_absorbed": ("`cache`", 3),
}


def test_the_corpus_is_whole() -> None:
    assert len(CORPUS) == 41
    assert {p.stem for p in CORPUS} >= set(REFUSED)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_corpus(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [a.name.id for a in read_tree(text).attentions] == [path.stem]
    refused = REFUSED.get(path.stem)
    if refused is None:
        assert parse(text).name == path.stem
        return
    construct, line = refused
    with pytest.raises(NotCompiled) as caught:
        parse(text, path.name)
    diagnostic = caught.value.diagnostic
    assert diagnostic.message == f"{construct} is not compiled yet"
    assert diagnostic.span is not None and diagnostic.span.line == line


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples(path: Path) -> None:
    try:
        spec = parse(path.read_text(encoding="utf-8"), str(path))
    except SpecError as error:
        pytest.fail(str(error))
    assert spec.out.span is not None
