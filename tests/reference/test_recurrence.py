"""State programs token by token: order, restarts, frozen states, gradients, and what a call may bring along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attncc.grammar import parse
from attncc.ir.nodes import Spec
from attncc.reference import Result, evaluate, reference_callable
from attncc.runtime import mistakes

B, H, G, N, D, E = 2, 4, 2, 7, 3, 5


def program(*lines: str, header: str = "") -> Spec:
    return parse(f"attention a({header}):\n" + "".join(f"    {line}\n" for line in lines))


def roles(m: int = N, n: int = N) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    shapes = {"q": (B, H, m, D), "k": (B, G, n, D), "v": (B, G, n, E)}
    return {x: torch.randn(s, generator=rng, dtype=torch.float64) for x, s in shapes.items()}


def heads(x: Tensor) -> Tensor:
    return x.repeat_interleave(H // G, 1)


SUM = program("state S[d, e]", "S = S + outer(k, v)", "out = q @ S")


def sums(r: dict[str, Tensor]) -> Tensor:
    """The sum of k v^T up to and with each token."""
    return (heads(r["k"])[..., :, None] * heads(r["v"])[..., None, :]).cumsum(2)


def test_a_sum() -> None:
    r = roles()
    got = evaluate(SUM, r)
    torch.testing.assert_close(got.out, torch.einsum("bhid,bhide->bhie", r["q"], sums(r)))
    torch.testing.assert_close(got.states["S"], sums(r)[:, :, -1])


def test_out_reads_what_stands_above_it() -> None:
    r = roles()
    got = evaluate(program("state S[d, e]", "out = q @ S", "S = S + outer(k, v)"), r)
    before = torch.cat([torch.zeros_like(sums(r)[:, :, :1]), sums(r)[:, :, :-1]], 2)
    torch.testing.assert_close(got.out, torch.einsum("bhid,bhide->bhie", r["q"], before))


def test_a_let_keeps_what_the_state_was() -> None:
    r = roles()
    one = evaluate(program("state S[d, e]", "let u = q @ S", "S = S + outer(k, v)", "out = u + 0 * (q @ S)"), r)
    two = evaluate(program("state S[d, e]", "out = q @ S", "S = S + outer(k, v)"), r)
    torch.testing.assert_close(one.out, two.out)


def test_the_last_rows_are_kept() -> None:
    r = roles(m=3)
    torch.testing.assert_close(evaluate(SUM, r).out, torch.einsum("bhid,bhide->bhie", r["q"], sums(r)[:, :, -3:]))
    assert evaluate(SUM, roles(m=0)).out.shape == (B, H, 0, E)
    assert evaluate(SUM, roles(m=0, n=0)).states["S"].eq(0).all()
    with pytest.raises(mistakes.WrongSize, match="M = 8 is more than 7"):
        evaluate(SUM, roles(m=8))


def test_a_change_by_a_query_needs_all_queries() -> None:
    spec = program("state S[d, e]", "S = S + outer(q, v)", "out = k @ S")
    assert evaluate(spec, roles()).out.shape == (B, H, N, E)
    with pytest.raises(mistakes.OutOfRange, match="q is read out of range"):
        evaluate(spec, roles(m=3))


def halves(spec: Spec, r: dict[str, Tensor], at: int) -> tuple[Result, Result]:
    first = {n: x[:, :, :at] for n, x in r.items()}
    one = evaluate(spec, first)
    return one, evaluate(spec, {n: x[:, :, at:] for n, x in r.items()}, states=one.states)


def test_states_go_from_call_to_call() -> None:
    r = roles()
    spec = program(
        "state S[d, e], z[d]", "S = 0.5 * S + outer(k, v)", "z = z + relu(k)", "out = (q @ S) / (1 + relu(q) @ z)"
    )
    whole = evaluate(spec, r)
    for at in (0, 1, 4, N):
        one, two = halves(spec, r, at)
        torch.testing.assert_close(torch.cat([one.out, two.out], 2), whole.out)
        torch.testing.assert_close(two.states, whole.states)


def test_the_call_checks_states() -> None:
    call = reference_callable(SUM)
    pair: Any = call(**roles(), state={"S": torch.zeros(B, H, D, E)}, return_state=True)
    out, states = pair
    torch.testing.assert_close(out, call(**roles()))
    assert set(states) == {"S"}
    with pytest.raises(mistakes.UnknownTensor, match="there is no state T"):
        call(**roles(), state={"T": torch.zeros(B, H, D, E)})
    with pytest.raises(mistakes.WrongSize, match="the state S must be of shape"):
        call(**roles(), state={"S": torch.zeros(B, H, E, D)})
    with pytest.raises(mistakes.NoSingleLse, match="is a state program"):
        call(**roles(), return_lse=True)


def test_an_initial_state_and_its_gradient() -> None:
    spec = program("state S[d, e] = S0", "S = 0.5 * S + outer(k, v)", "out = q @ S", header="S0: real[h, d, e]")
    s0 = torch.randn(H, D, E, dtype=torch.float64, requires_grad=True)
    got = evaluate(spec, {**roles(), "S0": s0})
    (grad,) = torch.autograd.grad(got.out.sum() + got.states["S"].sum(), [s0])
    q = roles()["q"]
    decay = 0.5 ** torch.arange(1, N + 1, dtype=torch.float64)
    wanted = torch.einsum("bhid,i->hd", q, decay)[..., None] + B * 0.5**N
    torch.testing.assert_close(grad, wanted.expand(H, D, E))


def test_a_restart_by_documents() -> None:
    header = "doc: int[b, n], S0: real[t: 4, h, d, e]"
    spec = program(
        "state S[d, e] = S0[doc[b, i]] per doc[b, i]", "S = 0.5 * S + outer(k, v)", "out = q @ S", header=header
    )
    r, s0 = roles(), torch.randn(4, H, D, E, dtype=torch.float64)
    doc = torch.tensor([[0, 0, 1, 1, 1, 3, 3], [2, 0, 0, 0, 0, 0, 0]])
    got = evaluate(spec, {**r, "doc": doc, "S0": s0})
    plain = program("state S[d, e]", "S = 0.5 * S + outer(k, v)", "out = q @ S")
    for batch in range(B):
        for first, last in ((0, 2), (2, 5), (5, 7)) if batch == 0 else ((0, 1), (1, 7)):
            own = {n: x[batch : batch + 1, :, first:last] for n, x in r.items()}
            alone = evaluate(plain, own, states={"S": s0[doc[batch, first]][None]})
            torch.testing.assert_close(got.out[batch, :, first:last], alone.out[0])
    torch.testing.assert_close(got.states["S"][0], alone_last(plain, r, s0[3], 5))


def alone_last(spec: Spec, r: dict[str, Tensor], s0: Tensor, first: int) -> Tensor:
    own = {n: x[:1, :, first:] for n, x in r.items()}
    return evaluate(spec, own, states={"S": s0[None]}).states["S"][0]


def test_a_restart_by_offsets() -> None:
    spec = program("state z[d] per segment(cu, i)", "z = z + k", "out = (q @ z) * v", header="cu: offsets")
    r = roles()
    got = evaluate(spec, {**r, "cu": torch.tensor([0, 2, 2, 6, 7])})
    k = heads(r["k"])
    z = torch.cat([k[:, :, a:c].cumsum(2) for a, c in ((0, 2), (2, 6), (6, 7))], 2)
    torch.testing.assert_close(got.out, (r["q"] * z).sum(-1, keepdim=True) * heads(r["v"]))


def test_a_gate_of_minus_infinity_forgets() -> None:
    spec = program(
        "state S[d, e]", "S = exp(w[b, h, i]) * S + outer(k, v)", "out = q @ S", header="w: real[b, h, n] in [-inf, 0]"
    )
    w = -torch.rand(B, H, N, dtype=torch.float64)
    w[:, :, 3] = -torch.inf
    w[:, :, 5] = -1e4
    tensors = {**roles(), "w": w}
    leaves = {n: x.clone().requires_grad_() for n, x in tensors.items()}
    got = evaluate(spec, leaves)
    late = {n: x[:, :, 3:] for n, x in tensors.items()}
    torch.testing.assert_close(got.out[:, :, 3:], evaluate(spec, late).out)
    for grad in torch.autograd.grad(got.out.sum(), list(leaves.values())):
        assert grad.isfinite().all()


def test_a_frozen_state() -> None:
    spec = program("state z[d]", "frozen F = z every 3", "z = z + k * (1 + sum(F over d))", "out = (q @ z) * v")
    r = roles()
    k, z, rows = heads(r["k"]), torch.zeros(B, H, D, dtype=torch.float64), []
    for i in range(N):
        held = z if i % 3 == 0 else held  # type: ignore[has-type]  # noqa: F821
        z = z + k[:, :, i] * (1 + held.sum(-1, keepdim=True))
        rows.append((r["q"][:, :, i] * z).sum(-1, keepdim=True) * heads(r["v"])[:, :, i])
    torch.testing.assert_close(evaluate(spec, r).out, torch.stack(rows, 2))


def test_a_frozen_state_starts_anew_too() -> None:
    lines = ("frozen F = z every 3", "z = z + k * (1 + sum(F over d))", "out = (q @ z) * v")
    spec = program("state z[d] per doc[b, i]", *lines, header="doc: int[b, n]")
    r = roles()
    doc = torch.tensor([[0] * 4 + [1] * 3] * B)
    got = evaluate(spec, {**r, "doc": doc})
    late = {n: x[:, :, 4:] for n, x in r.items()}
    shifted = program("state z[d]", *lines)
    two = evaluate(shifted, {n: torch.cat([torch.zeros_like(x[:, :, :1]), x], 2) for n, x in late.items()})
    torch.testing.assert_close(got.out[:, :, 4:], two.out[:, :, 1:])


def test_loops_within_a_token() -> None:
    r = roles()
    x, y = torch.randn(2, N, D, dtype=torch.float64), torch.randn(2, N, E, dtype=torch.float64)
    spec = program(
        "state S[d, e]",
        "for t in steps:",
        "    let miss = y[t, i] - x[t, i] @ S",
        "    S = S + outer(x[t, i], miss)",
        "out = q @ S",
        header="steps = 2, x: real[steps, n, d], y: real[steps, n, e]",
    )
    state, rows = torch.zeros(D, E, dtype=torch.float64), []
    for i in range(N):
        for t in range(2):
            state = state + torch.outer(x[t, i], y[t, i] - x[t, i] @ state)
        rows.append(r["q"][:, :, i] @ state)
    torch.testing.assert_close(evaluate(spec, {**r, "x": x, "y": y}).out, torch.stack(rows, 2))


@pytest.mark.parametrize("needs", [True, False])
def test_the_gradient_of_a_squared_error_is_the_delta_rule(needs: bool) -> None:
    one = program("state S[d, e]", "S = S - 0.5 * grad(0.5 * sum((k @ S - v) ** 2 over e), S)", "out = q @ S")
    two = program("state S[d, e]", "S = S + 0.5 * outer(k, v - k @ S)", "out = q @ S")
    r = {n: x.requires_grad_(needs) for n, x in roles().items()}
    a, b = evaluate(one, r), evaluate(two, r)
    torch.testing.assert_close(a.out, b.out)
    assert a.out.requires_grad == needs
    if needs:
        found = [torch.autograd.grad(x.out.square().sum(), list(r.values())) for x in (a, b)]
        torch.testing.assert_close(*found)


def test_rows_of_earlier_tokens() -> None:
    spec = program(
        "let before = k[b, g, max(i - 1, 0)] if i > 0 else 0 * k",
        "state z[d]",
        "z = z + k * before",
        "out = (q @ z) * v",
    )
    r = roles()
    k = heads(r["k"])
    shifted = torch.cat([torch.zeros_like(k[:, :, :1]), k[:, :, :-1]], 2)
    z = (k * shifted).cumsum(2)
    torch.testing.assert_close(evaluate(spec, r).out, (r["q"] * z).sum(-1, keepdim=True) * heads(r["v"]))
