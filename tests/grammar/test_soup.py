"""Whatever the text, the front end answers with a Spec or a SpecError."""

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from attncc.errors import SpecError
from attncc.grammar import format_source, parse_all, read
from attncc.grammar.reader import read_tree

WORDS = """
attention def let emit select state frozen axes quantize cache for in if else and or not over where by of including
plus every per set softmax ratio stick entmax sum mean max min any argmax cumsum concat outer dropout segment grad rope
rmsnorm normalize exp abs relu sqrt floor q k v b h g i j n m d e B H G M N D E out score mask x y w t real int bool
offsets inf true false all 0 1 2 0.5 1e-6 32 ( ) [ ] { } , : ; = == != < <= > >= + - * / // % ** @ · ≤ ≥ √ . # λ
""".split()
LAYOUT = ["\n", "\n    ", "\n        ", " ", "", "\t", "\r\n"]
SETTINGS = settings(max_examples=60, deadline=None)


def survives(text: str) -> None:
    try:
        specs = parse_all(text)
    except SpecError as error:
        assert str(error) and error.code != "E000"
    else:
        assert specs
    try:
        once = format_source(text)
    except SpecError:
        return
    assert read_tree(once) == read_tree(text)
    assert format_source(once) == once


@SETTINGS
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", " ", " ", *LAYOUT])), max_size=60))
@example([("attention", " "), ("x", ""), (":", "\n    "), ("out", ""), ("=", ""), ("(", "\n")])
def test_token_soup(parts: list[tuple[str, str]]) -> None:
    survives("".join(word + space for word, space in parts))


@SETTINGS
@given(st.text(max_size=80))
def test_any_text(text: str) -> None:
    survives(text)
    survives("attention a:\n    out = " + text)


@SETTINGS
@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    try:
        read(data)
    except SpecError as error:
        assert error.code == "E102"


ATOMS = "q k v i j h D N 1 0.5 w s[h] t[b,j] score inf true x[i,j] e n".split()
SHAPES = """
    ({} + {}); ({} - {}); {} * {}; {} / {}; {} // {}; {} % {}; {} ** 2; ({} @ {}); {} @ {} @ {}; -{};
    {} <= {}; {} == {}; ({} and {}); not {}; ({} if {} else {}); {} in {{0, 1}}; exp({}); relu({} where {});
    softmax({}); softmax({} where {}); softmax({} over j); softmax({}, sink = {});
    sum({} over j); max({} over d where {}); max({}, {}); mean({} over e);
    cumsum({} over n); ratio(exp({}), exp({}), eps = {}); stick({}); entmax({}, alpha = {}); dropout({}, 0.1);
    outer({}, {}); rmsnorm({}); rope({}, at = {}); k[{}]; q[{}:]; s[{}]; t[{}, {}]; f({}); layernorm({}, eps = 0.5);
    argmax({} over j); any({} over j); normalize({}); floor({}); p[b, h, i, {}]
""".split(";")
HEADER = """
def f(x) = x * x + (x if x < 1 else 0)
attention a(w = 4, s: real[h], t: int[b, n]):
    let p[b, h, i, j] = q @ k + s[h]
    score = q @ k
"""


@st.composite
def expression(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(ATOMS))
    shape = draw(st.sampled_from(SHAPES))
    return shape.format(*(draw(expression(depth - 1)) for _ in range(shape.count("{}"))))


BODIES = [
    "let y = {}\n    mask = {}\n    out = {}\n",
    "mask = j <= i\n    let y = {}\n    out = y @ v + {} @ v * {}\n",
    "k = k[e]\n    v = {}\n    out = softmax({} where {}) @ v\n",
]


@settings(max_examples=150, deadline=None)
@given(expression(), expression(), expression(), st.sampled_from(BODIES))
def test_random_programs(a: str, b: str, c: str, body: str) -> None:
    survives(HEADER + "    " + body.format(a, b, c))


def test_random_edits_of_a_good_text() -> None:
    good = HEADER + "    mask = j <= i and i - j < w\n    out = softmax(score + p, sink = s[h]) @ v\n"
    assert parse_all(good)
    rng = random.Random(0)
    for _ in range(100):
        at = rng.randrange(len(good))
        survives(good[:at] + rng.choice(WORDS + LAYOUT + ["\0", "²", "ª"]) + good[at + rng.randrange(4) :])
