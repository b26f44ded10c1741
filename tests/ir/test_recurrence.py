"""State programs in the Spec IR: their text reads back, and every rule about them can be broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, walk
from attncc.grammar import parse
from attncc.ir.nodes import (
    Assign,
    Axis,
    Binder,
    Contract,
    Frozen,
    Gradient,
    Keep,
    Load,
    Micro,
    Out,
    Read,
    Recurrence,
    Spec,
    State,
)
from attncc.ir.steps import bodies, flat, reads
from attncc.ir.text import BadText, read_spec, spell_spec
from attncc.ir.verify import BadSpec, verify

CORPUS = sorted((Path(__file__).parents[1] / "specs/corpus/recurrences").glob("*.attn"))
b, h, i, d, e, t = (ivar(n) for n in "bhidet")
ONE = Const(1.0, "real")

SPEC = parse("""
attention whole(decay: real[b, h, n], cu: offsets, s0: real[b, h, d, e]):
    k = normalize(k)
    state S[d, e] = s0, z[d] per segment(cu, i)
    frozen F = S every 16
    let u = v - k @ S
    for t in 2:
        let w = (k @ F) * t
        S = exp(decay[b, h, i]) * S + outer(k, u + w)
    out = q @ S + q @ z
    z = z + k * sum(grad(sum((k @ F) ** 2 over e), F) over e)
""")
assert SPEC.recurrence is not None
R = SPEC.recurrence
S = Load("S", (b, h, d, e), "real")


def test_text() -> None:
    assert spell_spec(SPEC).splitlines()[4:] == [
        "%1 = reduce(sum, d < D, square(k[b, g, j, d]))",
        "rebind k[b, g, j, d: D] = k[b, g, j, d] * rsqrt(%1 + 1e-06)",
        "state S[d: D, e: E] = s0[b, h, d, e] per segment(cu, i)",
        "state z[d: D] = 0.0 per segment(cu, i)",
        "frozen F = S every 16",
        "%2 = contract(d < D, k[b, g, i, d], S[b, h, d, e])",
        "keep u[e: E] = v[b, g, i, e] - %2",
        "for t < 2",
        "%3 = contract(d < D, k[b, g, i, d], F[b, h, d, e])",
        "keep w[e: E] = %3 * real(t)",
        "assign S[d, e] = exp(decay[b, h, i]) * S[b, h, d, e] + k[b, g, i, d] * (u[b, h, e] + w[b, h, e])",
        "end",
        "%4 = contract(d < D, q[b, h, i, d], S[b, h, d, e])",
        "%5 = contract(d < D, q[b, h, i, d], z[b, h, d])",
        "out = %4 + %5",
        "%6 = reduce(sum, e < E, square(%3))",
        "%7 = gradient(F, %6, d, e)",
        "%8 = reduce(sum, e < E, %7)",
        "assign z[d] = z[b, h, d] + k[b, g, i, d] * %8",
    ]
    assert read_spec(spell_spec(SPEC)) == SPEC


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_round_trip_of_the_corpus(path: Path) -> None:
    spec = parse(path.read_text(encoding="utf-8"), path.name)
    verify(spec)
    assert spec.recurrence is not None
    assert read_spec(spell_spec(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state S[d: D] = 0.0\nfor t < 2\nout = 1.0", "the loop over t has no end"),
        ("state S[d: D] = 0.0\nend", "line 3: a loop is wanted"),
        ("frozen F = S", "line 2: `every` is wanted"),
        ("keep u = 1.0", "line 2: `\\[` is wanted"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(BadText, match=message):
        read_spec(f"spec x\n{text}\n")


def test_walks() -> None:
    assert R.carried == {"S", "z", "F"}
    assert [type(s) for s in flat(R.steps)] == [Keep, Micro, Keep, Assign, Read, Assign]
    assert sum(isinstance(n, Gradient) for body in bodies(SPEC) for n in walk(body)) == 1
    assert reads(R.steps[-1].body) == {"z", "k", "F"}  # type: ignore[union-attr]


def changed(steps: Callable[[Recurrence], Any] | None = None, **parts: Any) -> Spec:
    """SPEC with other parts of its recurrence."""
    if steps is not None:
        parts["steps"] = tuple(steps(R))
    return replace(SPEC, name="broken", recurrence=replace(R, **parts))


AXES = (Axis("d", ivar("D")), Axis("e", ivar("E")))
BROKEN = {
    "out is read twice": ("steps", changed(lambda r: (*r.steps, Read()))),
    "out is not read": ("steps", changed(lambda r: [s for s in r.steps if not isinstance(s, Read)])),
    "out in a loop": ("steps", changed(lambda r: (*r.steps, Micro(Binder(ivar("u2"), Const(2, "int")), (Read(),))))),
    "assigns what is no state": ("steps", changed(lambda r: (*r.steps, Assign("u", (e,), ONE)))),
    "assigns other axes": ("steps", changed(lambda r: (*r.steps, Assign("S", (e, d), S)))),
    "freezes what is no state": ("steps", changed(frozen=(Frozen("F", "u", Const(16, "int")),))),
    "a state over heads": ("steps", changed(states=(*R.states, State("y", (Axis("h", ivar("H")),), (h,), ONE)))),
    "a state over no variable": ("steps", changed(states=(*R.states, State("y", AXES, (d,), ONE)))),
    "gradient by a row": ("steps", changed(lambda r: (*r.steps, Assign("S", (d, e), Gradient(ONE, "k", (d, e)))))),
    "gradient with few axes": ("steps", changed(lambda r: (*r.steps, Assign("S", (d, e), Gradient(ONE, "S", (d,)))))),
    "gradient of a condition": (
        "sorts",
        changed(lambda r: (*r.steps, Assign("S", (d, e), Gradient(op("lt", S, 0.0), "S", (d, e))))),
    ),
    "read before it is kept": ("names", changed(lambda r: (r.steps[1], r.steps[0], *r.steps[2:]))),
    "kept under a known name": ("names", changed(lambda r: (*r.steps, Keep("u", AXES, (d, e), ONE)))),
    "another head's state": (
        "rank",
        changed(lambda r: (*r.steps, Assign("S", (d, e), Load("S", (b, op("sub", h, 1), d, e), "real")))),
    ),
    "a free channel": ("outputs", changed(lambda r: (*r.steps, Assign("z", (d,), S)))),
    "an index of a loop that is over": ("binding", changed(lambda r: (*r.steps, Assign("z", (d,), op("real", t))))),
    "an integer state": ("sorts", changed(lambda r: (*r.steps, Assign("z", (d,), d)))),
    "a real key": ("sorts", changed(states=(replace(R.states[0], per=ONE), R.states[1]))),
    "a key over channels": ("outputs", changed(states=(replace(R.states[0], per=d), R.states[1]))),
    "an integer to start with": ("sorts", changed(states=(replace(R.states[0], init=d), R.states[1]))),
    "frozen for a real time": ("sizes", changed(frozen=(Frozen("F", "S", ONE),))),
    "out reads too much": ("outputs", replace(changed(), out=Out(S))),
    "a statement reads a state": (
        "names",
        replace(changed(), statements=(replace(SPEC.statements[0], body=Contract(S, S, e, ivar("E"))),)),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    rule, broken = BROKEN[name]
    with pytest.raises(BadSpec) as caught:
        verify(broken)
    assert caught.value.rule == rule, str(caught.value)
    assert "broken" in str(caught.value)
