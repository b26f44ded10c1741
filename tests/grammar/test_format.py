"""Canonical formatting: the same meaning, the same comments, a fixed point."""

import re
from pathlib import Path

import pytest

from attncc.errors import SpecError
from attncc.grammar import format_source
from attncc.grammar.reader import read_tree

ROOT = Path(__file__).parents[2]
SPECS = sorted([*(ROOT / "tests/specs/corpus").rglob("*.attn"), *(ROOT / "examples").rglob("*.attn")])


def comments(text: str) -> list[str]:
    return [c.rstrip() for c in re.findall(r"#.*", text)]


@pytest.mark.parametrize("path", SPECS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_round_trip(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    once = format_source(text)
    assert read_tree(once) == read_tree(text)
    assert comments(once) == comments(text)
    assert format_source(once) == once


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.attn")), ids=lambda p: p.stem)
def test_examples_are_formatted(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert format_source(text) == text


UNTIDY = """
# before
attention a( λ:real[h],w=2 ) :
  # inside
  let y[b,h,i,j]= q·k/√D+ -2**-w*√(λ[h])   # after
      # deep

  score=y;


  mask=j≤i;
  out=softmax(score where (j
        <=i and not(i  >=w
  )))·v[e]+√√w
  # last of a
# end"""

TIDY = """\
# before
attention a(λ: real[h], w = 2):
    # inside
    let y[b, h, i, j] = q @ k / sqrt(D) + -2 ** -w * sqrt(λ[h])  # after
    # deep

    score = y

    mask = j <= i
    out  = softmax(score where (j
                                <= i and not (i >= w
                                              ))) @ v[e] + sqrt(sqrt(w))
    # last of a
# end
"""


def test_untidy_text() -> None:
    assert format_source(UNTIDY) == TIDY
    assert format_source(TIDY) == TIDY
    assert read_tree(UNTIDY) == read_tree(TIDY)


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("attention a: out=q[ : D//2 ]@k[:D//2]", "attention a: out = q[:D // 2] @ k[:D // 2]\n"),
        ("attention a: out=k[D//2 :]", "attention a: out = k[D // 2:]\n"),
        ("attention a(x:real[t:4,d] in[-1,0]): out=x", "attention a(x: real[t: 4, d] in [-1, 0]): out = x\n"),
        ("attention a: let x[c:N//4,b]=q;out=x", "attention a: let x[c: N // 4, b] = q; out = x\n"),
        ("attention a: out=sum(q over d,j where i in{0,1})", "attention a: out = sum(q over d, j where i in {0, 1})\n"),
        ("attention a: axes i,j=(y:n,x:n);out=i.y", "attention a: axes i, j = (y: n, x: n); out = i.y\n"),
        ("attention a: out=f(\n  x,\n  y\n)", "attention a: out = f(\n    x,\n    y\n)\n"),
    ],
)
def test_spacing(text: str, tidy: str) -> None:
    assert format_source(text) == tidy
    assert format_source(tidy) == tidy


def test_malformed_text_is_refused_with_its_source() -> None:
    with pytest.raises(SpecError) as caught:
        format_source("attention a:\n    out = (", "x.attn")
    assert str(caught.value).startswith("x.attn:2:11:")
