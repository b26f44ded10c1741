"""What the streaming schedules take, what they refuse and where, and what moves to a table by offset."""

from __future__ import annotations

import pytest

from attncc.driver import analyse
from attncc.expr.build import ivar
from attncc.expr.evaluate import evaluate
from attncc.grammar import parse
from attncc.ir.nodes import Contract, Load
from attncc.passes.mistakes import NotCompiled, TakenName
from tests.support.specs import SPECS

REFUSED = {
    "stick": "out = stick(q @ k where j < i) @ v",
    "entmax": "out = entmax(q @ k where j <= i, alpha = 1.5) @ v",
    "dropout": "out = dropout(softmax(q @ k where j <= i), 0.1) @ v",
    "two weights": "let a = softmax(q @ k where j <= i)\n    let c = softmax(2 * q @ k)\n    out = (a - c) @ v",
    "two products": "out = softmax(q[:8] @ k[:8] + 2 * (q[8:] @ k[8:])) @ v",
    "a factor behind": "out = 2 * (softmax(q @ k) @ v)",
    "a new key": "k = k * 2\n    out = softmax(q @ k) @ v",
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_refusals_name_their_place(body: str) -> None:
    spec = parse(f"attention x:\n    {body}\n")
    with pytest.raises(NotCompiled) as caught:
        analyse(spec, 16, 16)
    assert caught.value.diagnostic.span is not None
    assert caught.value.diagnostic.code == "E450"


@pytest.mark.parametrize("name", sorted(SPECS))
def test_the_product_is_found(name: str) -> None:
    found = analyse(SPECS[name], 64, 64).attend
    assert found is not None
    match found.product:
        case Contract(Load("q"), Load("k")):
            pass
        case other:
            pytest.fail(repr(other))


def test_buckets_of_a_distance_become_a_table() -> None:
    found = analyse(SPECS["t5"], 64, 64).attend
    assert found is not None
    (table,) = found.tables
    assert (table.source, table.axes) == ("table", ("h",))
    assert [x.tensor for x in found.captured] == [table.name]


AHEAD = (
    "j > i",
    "i < j",
    "j - i > 0",
    "not (j <= i)",
    "j + 3 - i > 3",
    "2 * j >= 2 * i + 1",
    "-i + j + 1 != min(j - i, 0) + 1",
)
OFFSET, LENGTH = ivar("o"), ivar("N")


@pytest.mark.parametrize("ahead", AHEAD)
def test_however_a_distance_is_spelt_it_is_one(ahead: str) -> None:
    index = f"min(abs(i - j), 3) + (4 if {ahead} else 0)"
    found = analyse(
        parse(f"attention x(t: real[8, h]):\n    out = softmax(q @ k + t[{index}, h]) @ v\n"), 16, 16
    ).attend
    assert found is not None
    (table,) = found.tables
    for distance in range(-6, 7):
        told = evaluate(table.index[0], {OFFSET: distance + 9, LENGTH: 10})
        assert told == min(abs(distance), 3) + (4 if distance > 0 else 0)


@pytest.mark.parametrize(
    "index", ["3 if i + j > 4 else 0", "3 if 2 * j > i else 0", "min(i * j, 3)", "min(j, 3) + (1 if i > 2 else 0)"]
)
def test_what_depends_on_more_than_a_distance_stays(index: str) -> None:
    found = analyse(
        parse(f"attention x(t: real[8, h]):\n    out = softmax(q @ k + t[{index}, h]) @ v\n"), 16, 16
    ).attend
    assert found is not None and found.tables == ()


def test_other_reads_stay_where_they_are() -> None:
    found = analyse(SPECS["alibi"], 64, 64).attend
    assert found is not None
    assert found.tables == () and [x.tensor for x in found.captured] == ["slope"]


@pytest.mark.parametrize("name", ["lse", "d_q", "d_out", "d_slope"])
def test_names_of_results_are_taken(name: str) -> None:
    text = f"attention x(slope: real[h], {name}: real[h]):\n    out = softmax(q @ k + slope[h] + {name}[h]) @ v\n"
    with pytest.raises(TakenName, match="name of a result"):
        analyse(parse(text), 16, 16)
