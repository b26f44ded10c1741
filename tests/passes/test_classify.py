"""The class of every state: published systems, random programs of a known class, and changes in no class."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from attncc.grammar import parse
from attncc.passes.classify import classify
from attncc.passes.mistakes import NoTransition
from attncc.reference import evaluate
from tests.passes.state_systems import OUTSIDE, SYSTEMS, System


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems(name: str) -> None:
    system = SYSTEMS[name]
    found = classify(parse(system.text()))
    assert {c.state: c.kinds for c in found} == system.kinds
    orders = {c.order for c in found} - {"unread"}
    assert orders == {system.order}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside(name: str) -> None:
    header, lines = OUTSIDE[name]
    lines = lines if "out =" in lines else f"{lines}; out = q @ S"
    text = System(header, lines, {}).text()
    with pytest.raises(NoTransition) as caught:
        print(*classify(parse(text)), sep="\n")
    assert caught.value.diagnostic.span is not None
    assert caught.value.code == "E452"


def test_there_are_enough() -> None:
    assert len(OUTSIDE) >= 20
    assert len(SYSTEMS) >= 40


# --- random programs of a known class -------------------------------------------------------------------------------

GATES = {
    "identity": ("1", "2 * 0.5", "(x[h] - x[h] + 1)"),
    "constant": ("x[h]", "0.5", "exp(-x[h])", "sigmoid(x[h]) / 2", "(1 - x[h])"),
    "scalar": (
        "exp(s[b, h, i])",
        "sigmoid(s[b, h, i]) * x[h]",
        "(1 - s[b, h, i])",
        "(s[b, h, i] if i % 2 == 0 else 1)",
    ),
    "key": ("exp(u[b, h, i])", "exp(u[b, h, i] + s[b, h, i])", "(1 - u[b, h, i]) * x[h]", "exp(-exp(y[h]))", "k"),
    "value": ("exp(w[b, h, i])", "sigmoid(w[b, h, i] * s[b, h, i])", "(1 - v)"),
    "separable": ("outer(exp(u[b, h, i]), exp(w[b, h, i]))", "outer(k, sigmoid(v))"),
    "elementwise": ("exp(outer(u[b, h, i], w[b, h, i]))", "(1 - outer(k, v))", "z[b, i]"),
}
HEADER = (
    "x: real[h], y: real[h, d], s: real[b, h, n], u: real[b, h, n, d], w: real[b, h, n, e], z: real[b, n, d, e], "
    "steps = 2, kk: real[b, h, n, steps, d]"
)
WRITES = ("outer(k, v)", "s[b, h, i] * outer(k, v)", "outer(u[b, h, i] * k, v)", "outer(k, v) - outer(k, w[b, h, i])")
READS = ("q @ S", "q @ (S + outer(k, v))", "(q @ S) / (1 + abs(q @ k))")


def drawn(rng: random.Random) -> tuple[System, str]:
    """A program, and its read order."""
    gate = rng.choice(sorted(GATES))
    factor = rng.choice(GATES[gate])
    side = rng.choice(["", "", "key", "value"])
    if (
        gate in ("separable", "elementwise")
        or (gate == "value" and side == "key")
        or (gate == "key" and side == "value")
    ):
        side = ""
    sign, amount = rng.choice("+-"), rng.choice(("s[b, h, i] * ", "x[h] * ", "2 * ", ""))
    a, b = rng.choice(["k", "u[b, h, i]", "normalize(k)"]), rng.choice(["k", "u[b, h, i]", "(x[h] * k)"])
    product = {
        "": "",
        "key": f" {sign} {amount}outer({a}, {b} @ S)",
        "value": f" {sign} {amount}outer(S @ {b.replace('k', 'v').replace('u', 'w')}, v)",
    }[side]
    write = rng.choice(WRITES)
    decayed = rng.choice([f"{factor} * S", f"S * {factor}", f"S - (1 - {factor}) * S"])
    shape = rng.randrange(4)
    if shape == 0:
        changes = [f"S = {decayed}{product} + {write}"]
    elif shape == 1:
        changes = [f"S = {decayed}", f"S = S{product} + {write}"]
    elif shape == 2:
        changes = [f"S = {decayed}", f"S = S{product}", f"S = S + {write}"] if side else [f"S = {write} + {decayed}"]
    else:
        changes = [f"let old = S * {factor}", f"let more = {write}", f"S = old{product} + more"]
    exclusive = rng.random() < 0.4
    out = f"out = {rng.choice(READS)}"
    lines = ["state S[d, e]", *([out, *changes] if exclusive else [*changes, out])]
    return System(
        HEADER, "; ".join(lines), {"S": ((gate, int(bool(side))),)}
    ), "exclusive" if exclusive else "inclusive"


@pytest.mark.parametrize("number", range(100))
def test_random_programs(number: int) -> None:
    system, order = drawn(random.Random(number))
    (found,) = classify(parse(system.text()))
    assert found.kinds == system.kinds["S"], system.text()
    assert found.order == order


def test_random_programs_reach_every_class() -> None:
    found = {drawn(random.Random(n))[0].kinds["S"][0] for n in range(100)}
    wanted = {(g, r) for g in GATES for r in (0, 1)} - {("separable", 1), ("elementwise", 1)}
    assert found == wanted
    assert {drawn(random.Random(n))[1] for n in range(100)} == {"inclusive", "exclusive"}


def test_classes_in_words() -> None:
    shown = {name: [str(c) for c in classify(parse(SYSTEMS[name].text()))] for name in SYSTEMS}
    assert shown["gated delta"] == [
        "state S[d, e]: token scalar, plus rank one along d tied to the write; read after it"
    ]
    assert shown["static channel decay"] == [
        "state S[d, e]: key-channel diagonal, the same for every token; read before it"
    ]
    assert shown["a learner in chunks"] == ["state W[d, e]: identity while W0 is frozen; read after it"]
    assert shown["momentum in chunks"][1] == "state W[d, e]: token scalar while W0 is frozen; read after it; after P"
    assert shown["a squashed state"] == ["state S[d, e]: non-linear; read after it"]


def test_the_term_that_breaks_it_is_shown() -> None:
    header, lines = OUTSIDE["a full matrix"]
    with pytest.raises(NoTransition) as caught:
        classify(parse(System(header, f"{lines}; out = q @ S", {}).text()))
    span = caught.value.diagnostic.span
    assert span is not None and (span.line, span.column, span.width) == (3, 9, 8)  # W @ S[f]


def measured(text: str) -> Tensor:
    """The derivative of the state after one token by the state before, [4, 4, 4, 4], by autograd in the reference."""
    spec = parse(text)
    rng = torch.Generator().manual_seed(1)
    sizes = {"d": 4, "e": 4, "": 2}
    tensors: dict[str, tuple[int, ...]] = {"q": (1, 1, 1, 4), "k": (1, 1, 1, 4), "v": (1, 1, 1, 4)}
    tensors |= {p.name: tuple(sizes.get(a.index, 1) for a in p.axes) for p in spec.params}
    given = {n: 2 * torch.rand(s, generator=rng, dtype=torch.float64) - 1 for n, s in tensors.items()}

    def step(state: Tensor) -> Tensor:
        return evaluate(spec, given, states={"S": state[None, None]}).states["S"][0, 0]

    state = torch.rand(4, 4, generator=rng, dtype=torch.float64)
    return torch.autograd.functional.jacobian(step, state)  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize("number", range(0, 100, 4))
def test_autograd_finds_the_same_class(number: int) -> None:
    system, _ = drawn(random.Random(number))
    ((gate, rank),) = system.kinds["S"]
    j = measured(system.text())
    diagonal = torch.einsum("dede->de", j)
    same = torch.eye(4, dtype=torch.float64)
    apart = 1 - torch.einsum("ac,bd->abcd", same, same)
    if rank == 0:
        assert (j * apart).abs().max() < 1e-12
        along = {n for n in (0, 1) if (diagonal - diagonal.select(n, 0).unsqueeze(n)).abs().max() > 1e-12}
        wanted = {"identity": set(), "constant": set(), "scalar": set(), "key": {0}, "value": {1}}
        assert along == wanted.get(gate, {0, 1})
        assert gate != "identity" or bool((diagonal == 1).all())
        return
    by_key = torch.stack([j[:, e, :, e] for e in range(4)])
    by_value = torch.stack([j[d, :, d, :] for d in range(4)])
    across = any((x - x[:1]).abs().max() < 1e-12 and _product_off_the_diagonal(x[0]) for x in (by_key, by_value))
    assert across


def _product_off_the_diagonal(a: Tensor) -> bool:
    pairs = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)), ((2, 3), (0, 1))]
    return bool(all(abs(a[list(r)][:, list(c)].det()) < 1e-12 for r, c in pairs)) and bool(
        (a - a.diag().diag()).abs().max() > 0
    )
