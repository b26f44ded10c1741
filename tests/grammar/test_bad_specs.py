"""Every malformed spec is refused with the code, the place and the message its first line tells."""

import re
from pathlib import Path

import pytest

from attncc.errors import SpecError
from attncc.grammar import mistakes, parse

BAD = sorted((Path(__file__).parents[1] / "specs/bad").glob("*.attn"))
EXPECT = re.compile(r"# expect: (E\d{3}) (\d+):(\d+) (.+)")
CLASSES = {
    c for c in vars(mistakes).values() if isinstance(c, type) and issubclass(c, SpecError) and c is not SpecError
}
NO_FILE = {"E101", "E102", "E104", "E403"}  # unreadable files, bytes, generated texts: tested in test_reading.py


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_bad_spec(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = EXPECT.match(text)
    assert found, "the first line tells what is expected"
    code, line, column, message = found.groups()
    with pytest.raises(SpecError) as caught:
        parse(text, path.name)
    diagnostic = caught.value.diagnostic
    assert diagnostic.span is not None
    got = (diagnostic.code, diagnostic.span.line, diagnostic.span.column)
    assert got == (code, int(line), int(column)), str(caught.value)
    assert message in diagnostic.message
    assert diagnostic.code == type(caught.value).code
    shown = str(caught.value)
    assert shown.startswith(f"{path.name}:{line}:{column}: error[{code}]:") and "^" in shown


def test_there_are_enough() -> None:
    assert len(BAD) >= 30


def test_every_mistake_has_a_code_a_page_and_a_bad_spec() -> None:
    codes = [c.code for c in CLASSES]
    assert len(set(codes)) == len(codes)
    provoked = {m.group(1) for p in BAD if (m := EXPECT.match(p.read_text(encoding="utf-8")))}
    assert set(codes) - provoked == NO_FILE
    for c in CLASSES:
        assert c.__doc__ and "Broken:" in c.__doc__ and "Mended:" in c.__doc__, c
