"""States in and out: the forms of a state program agree with each other and with the token loop in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attncc
from attncc.driver import load
from attncc.reference import evaluate
from attncc.runtime import attention, mistakes
from attncc.runtime.attention import Attention
from attncc.runtime.inputs import made_up
from attncc.runtime.warmup import full_sizes
from tests.support.compare import error
from tests.support.random_states import far, program

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
CORPUS = Path(__file__).parents[1] / "specs" / "corpus" / "recurrences"
STATEFUL = sorted(p.stem for p in EXAMPLES.glob("*.attn") if load(p)[0].recurrence is not None)
OUTSIDE = ("gated_delta", "rwkv7", "mamba1", "ttt_linear", "delta_product")
"""Of classes that chunks don't have."""
NO_BACKWARD = {"recurrent": {"delta_product"}, "chunk": {"mlstm", "performer"}}
"""Refused: loops within a token, and gradients from scaled final states."""
BAR = 1e-9
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", "off")


def file(name: str) -> Path:
    return next(p / f"{name}.attn" for p in (EXAMPLES, CORPUS) if (p / f"{name}.attn").exists())


def text(*lines: str, header: str = "") -> str:
    return f"attention a({header}):\n" + "".join(f"    {line}\n" for line in lines)


def given(attn: Attention, dtype: torch.dtype = torch.float64, **sizes: int) -> dict[str, Tensor]:
    """Inputs, with several documents where there are documents."""
    full = full_sizes({"B": 2, "H": 2, "G": 1, "M": 19, "N": 19, "D": 6, "E": 6} | sizes)
    made = made_up(attn._family.spec, attn.constants, full, dtype=dtype, device=CPU)
    found = {n: x.detach().to(dtype) if x.is_floating_point() else x for n, x in made.items()}
    if "doc" in found:
        steps = torch.rand(full["B"], full["N"], generator=torch.Generator().manual_seed(5)) < 0.2
        found["doc"] = (steps.cumsum(1) % 4).int()
    if "cu" in found:
        found["cu"] = torch.tensor([0, 2, 2, 7, full["N"]], dtype=torch.int32)
    return found


def some_states(attn: Attention, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """States to start with: those that other tokens lead to, so that what divides by them is not near 0."""
    rng, found = torch.Generator().manual_seed(3), None
    for _ in range(-(-16 // max(inputs["k"].shape[2], 1))):
        noise = {n: torch.randn(inputs[n].shape, generator=rng) for n in ("q", "k", "v")}
        others = {n: x + noise[n] if n in noise else x for n, x in wide(inputs).items()}
        found = evaluate(attn._family.spec, others, states=found).states
    assert found is not None
    dtype = torch.float64 if inputs["q"].dtype == torch.float64 else torch.float32
    return {n: x.to(dtype) for n, x in found.items()}


def wide(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in x.items()}


def results(
    call: Any, inputs: Mapping[str, Tensor], states: Mapping[str, Tensor], gradients: bool = True
) -> dict[str, Tensor]:
    """out, the last states, and every gradient of a number that all of them enter."""
    leaves = {n: x.clone() for n, x in inputs.items()}
    first = {n: x.clone() for n, x in states.items()}
    real = {n: x for n, x in [*leaves.items(), *((f"first {n}", x) for n, x in first.items())] if x.is_floating_point()}
    for x in real.values():
        x.requires_grad_(gradients)
    out, last = call(leaves, first)
    found = {"out": out.detach()} | {f"last {n}": x.detach() for n, x in last.items()}
    if gradients:
        ends = (out, *last.values())
        weights = [exact(x.shape).to(x) for x in ends]
        total = sum((x * w).sum() for x, w in zip(ends, weights, strict=True))
        grads = torch.autograd.grad(total, list(real.values()), allow_unused=True)
        found |= {
            f"d {n}": torch.zeros_like(x) if g is None else g for (n, x), g in zip(real.items(), grads, strict=True)
        }
    return found


def exact(shape: torch.Size) -> Tensor:
    """Numbers from -1 to 1 that every element type holds as they are: both sides of a comparison get the same."""
    return ((torch.arange(shape.numel(), dtype=torch.float64) * 37 % 129 - 64) / 64).view(shape)


def compiled(attn: Attention) -> Any:
    return lambda leaves, first: attn(**leaves, state=first or None, return_state=True)


def loop(attn: Attention) -> Any:
    def call(leaves: dict[str, Tensor], first: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        found = evaluate(attn._family.spec, leaves, attn.constants, states=first)
        return found.out, found.states

    return call


def worst(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[float, str]:
    assert set(got) == set(wanted)
    return max((error(got[n].double(), wanted[n], wanted[n]), n) for n in wanted)


def check(spec: str | Path, form: str, *, gradients: bool = True, states: bool = True, **sizes: Any) -> Attention:
    attn = attncc.compile(spec, backend="torch", form=form)
    inputs = given(attn, **sizes)
    first = some_states(attn, inputs) if states else {}
    mine = results(compiled(attn), inputs, first, gradients)
    distance, name = worst(mine, results(loop(attn), inputs, first, gradients))
    assert distance < BAR, (name, distance)
    return attn


def forms(attn: Attention) -> set[str]:
    """The forms of the forwards that `attn` has called."""
    return {plan.half.variant.form for plan in attn._plans.values()}


# --- every example, in every form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_examples(name: str, form: str) -> None:
    attn = check(file(name), form, gradients=name not in NO_BACKWARD[form])
    assert forms(attn) == {form}


@pytest.mark.parametrize("name", OUTSIDE)
def test_classes_without_chunks(name: str) -> None:
    sizes: dict[str, Any] = {"H": 1, "G": 1} if name == "mamba1" else {}
    attn = check(file(name), "auto", gradients=name not in NO_BACKWARD["recurrent"], **sizes)
    assert forms(attn) == {"recurrent"}


@pytest.mark.parametrize("name", ["simple_gla", "gla", "linear_transformer", "based"])
def test_auto_takes_few_tokens_one_by_one_and_their_gradients_in_chunks(name: str) -> None:
    attention._attention.cache_clear()
    assert forms(check(file(name), "auto", M=1, N=1)) == {"recurrent"}
    attn = check(file(name), "auto", M=3, N=20)
    assert forms(attn) == {"recurrent", "chunk"}
    backwards = {half.variant.form for plan in attn._plans.values() for half in plan.backwards.values()}
    assert backwards == {"chunk"}


@pytest.mark.parametrize("name", ["gla", "gsa", "lightning", "linear_transformer", "mamba2", "retnet", "rwkv6"])
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_narrow_inputs_and_wide_states(name: str, form: str, dtype: torch.dtype, bar: float) -> None:
    attn = attncc.compile(file(name), backend="torch", form=form)
    inputs = given(attn, dtype)
    first = some_states(attn, inputs)
    mine = results(compiled(attn), inputs, first)
    assert mine["out"].dtype == mine["d q"].dtype == dtype
    assert all(x.dtype == torch.float32 for n, x in mine.items() if n.startswith(("last", "d first")))
    distance, where = worst(mine, results(loop(attn), wide(inputs), wide(first)))
    assert distance < bar, (where, distance)


@pytest.mark.parametrize("sizes", [{"N": 1, "M": 0}, {"N": 0, "M": 0}, {"B": 0}, {"N": 21, "M": 4}, {"N": 5, "M": 5}])
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_lengths(form: str, sizes: dict[str, Any]) -> None:
    check(file("gla"), form, **sizes)


WRITTEN = {
    "nothing linear": text("state S[d, e]", "S = tanh(S + outer(k, v))", "out = q @ S"),
    "a number": text("state c", "c = 0.9 * c + k @ k", "out = v * c"),
    "frozen": text("state z[d]", "frozen F = z every 3", "z = z + k * (1 + sum(F over d))", "out = (q @ z) * v"),
    "a kept value": text("state S[d, e]", "let u = q @ S", "S = 0.5 * S + outer(k, v)", "out = tanh(u) + v"),
    "full mixing": text(
        "state S[d, e]", "S = outer(k, v) + W @ S[f]", "out = q @ S", header="W: real[h, d, f: D]"
    ),
    "two states, one from the other": text(
        "state z[d], S[d, e]", "z = 0.9 * z + k", "S = 0.5 * S + outer(z, v)", "out = q @ S"
    ),
    "a loop within a token": text(
        "state S[d, e]",
        "for t in 2:",
        "    let miss = y[b, h, i, t] - x[b, h, i, t] @ S",
        "    S = S + rate[h, t] * outer(x[b, h, i, t], miss)",
        "out = q @ S",
        header="x: real[b, h, n, 2, d], y: real[b, h, n, 2, e], rate: real[h, 2]",
    ),
    "largest and least": text(
        "state a[d], z[d]", "a = max(a, k)", "z = min(z, k)", "out = v * (max(q * a over d) + min(q * z over d))"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_programs_outside_the_algebra(name: str) -> None:
    check(WRITTEN[name], "recurrent", gradients=name != "largest and least")


def test_random_programs_token_by_token() -> None:
    for seed in range(24):
        attn = attncc.compile(program(seed), backend="torch", form="recurrent")
        found = far(attn, seed, torch.float64, "cpu", gradients=seed % 4 == 0)
        assert not {n: e for n, e in found.items() if not e < 1e-11}, program(seed)


# --- calls that go on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in STATEFUL if n not in ("cosformer", "retnet")])  # these read i itself
def test_prefix_and_continuation_equal_the_whole(name: str) -> None:
    attn: Any = attncc.compile(file(name), backend="torch")
    inputs = given(attn)
    axes = {p.name: [a.index for a in p.axes] for p in attn._family.face.params}
    with torch.no_grad():
        whole, last = attn(**inputs, return_state=True)
        rows, state = [], None
        for first, count in ((0, 7), (7, 1), (8, 2), (10, 9)):
            out, state = attn(**cut(inputs, axes, first, count), state=state, return_state=True)
            rows.append(out)
    torch.testing.assert_close(torch.cat(rows, 2), whole, atol=BAR, rtol=BAR)
    torch.testing.assert_close(state, last, atol=BAR, rtol=BAR)


def cut(inputs: dict[str, Tensor], axes: dict[str, list[str]], first: int, count: int) -> dict[str, Tensor]:
    found = {}
    for n, x in inputs.items():
        at = next((d for d, a in enumerate(axes.get(n, ["b", "h", "n", "d"])) if a in ("m", "n")), None)
        found[n] = x if at is None else x.narrow(at, first, count)
    return found


@pytest.mark.parametrize("name", ["gla", "linear_transformer", "gsa", "gated_delta", "ttt_linear"])
def test_a_step_writes_over_the_states(name: str) -> None:
    attn: Any = attncc.compile(file(name), backend="torch")
    inputs = given(attn, torch.float32, M=1, N=1)
    state = some_states(attn, inputs)
    with torch.no_grad():
        out, last = attn(**inputs, state=state, return_state=True)
    places = {n: x.data_ptr() for n, x in state.items()}
    versions = {n: x._version for n, x in state.items()}
    torch.testing.assert_close(attn.step(**inputs, state=state), out)
    torch.testing.assert_close(state, last)
    assert places == {n: x.data_ptr() for n, x in state.items()}
    assert all(x._version > versions[n] for n, x in state.items())


def test_strided_states() -> None:
    attn: Any = attncc.compile(file("gla"), backend="torch", form="recurrent")
    inputs = given(attn, M=1, N=1)
    plain = some_states(attn, inputs)
    turned = {"S": plain["S"].mT.contiguous().mT}
    with torch.no_grad():
        wanted = attn(**inputs, state=plain, return_state=True)
        got = attn(**inputs, state=turned, return_state=True)
        torch.testing.assert_close(got, wanted)
        attn.step(**inputs, state=turned)
    torch.testing.assert_close(turned["S"], wanted[1]["S"])


def test_warmup_compiles_what_a_call_with_states_needs() -> None:
    attention._attention.cache_clear()
    attn: Any = attncc.compile(text("state S[d, e]", "S = 0.25 * S + outer(k, v)", "out = q @ S"), backend="torch")
    sizes = {"B": 1, "H": 2, "N": 4, "D": 8}
    attn.warmup(**sizes, states="new")
    attn.warmup(**sizes, states="over")
    builds = attn.builds
    q, k, v = torch.randn(3, 1, 2, 4, 8).requires_grad_()
    out, state = attn(q, k, v, state={"S": torch.zeros(1, 2, 8, 8, requires_grad=True)}, return_state=True)
    (out.sum() + state["S"].sum()).backward()
    held = {"S": state["S"].detach().clone()}
    attn.step(q, k, v, state=held)
    attn.warmup(q, k, v, state=held, states="over")
    assert attn.builds == builds
    assert "state    S: real[b, h, d, e]" in attn.explain() and "token by token" in attn.explain()


def test_some_states_may_be_missing() -> None:
    attn = attncc.compile(file("linear_transformer"), backend="torch")
    inputs = given(attn)
    full = some_states(attn, inputs)
    part = {"z": full["z"]}
    zeros = part | {"S": torch.zeros_like(full["S"])}
    call: Any = attn
    torch.testing.assert_close(call(**inputs, state=part), call(**inputs, state=zeros))
    assert isinstance(call(**inputs, state=part), Tensor)


def test_under_torch_compile() -> None:
    attn = attncc.compile(file("gla"), backend="torch")
    inputs = given(attn)
    first = some_states(attn, inputs)

    def total(leaves: dict[str, Tensor], first: dict[str, Tensor]) -> Tensor:
        call: Any = attn
        out, last = call(**leaves, state=first, return_state=True)
        return out.square().sum() + last["S"].pow(3).sum()  # type: ignore[no-any-return]

    found = []
    for run in (total, torch.compile(total, backend="aot_eager", fullgraph=True)):
        leaves = {n: x.clone().requires_grad_() for n, x in inputs.items()}
        start = {n: x.clone().requires_grad_() for n, x in first.items()}
        run(leaves, start).backward()  # type: ignore[no-untyped-call]
        found.append([x.grad for x in (*leaves.values(), *start.values())])
    torch.testing.assert_close(*found)


def test_a_step_under_torch_compile() -> None:
    attn: Any = attncc.compile(file("gla"), backend="torch")
    inputs = given(attn, torch.float32, M=1, N=1)
    one, two = ({n: x.clone() for n, x in some_states(attn, inputs).items()} for _ in range(2))
    run = torch.compile(lambda state: attn.step(**inputs, state=state), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(one), attn.step(**inputs, state=two))
    torch.testing.assert_close(one, two)


# --- states that start anew -------------------------------------------------------------------------------------------

DOCUMENTS = {
    "after": text("state S[d, e] per doc[b, i]", "S = 0.5 * S + outer(k, v)", "out = q @ S", header="doc: int[b, n]"),
    "before": text("state S[d, e] per doc[b, i]", "out = q @ S", "S = 0.5 * S + outer(k, v)", header="doc: int[b, n]"),
    "channels": text(
        "state S[d, e] per doc[b, i]",
        "out = q @ (S + u[h, d] * outer(k, v))",
        "S = exp(w[b, h, i, d]) * S + outer(k, v)",
        header="doc: int[b, n], w: real[b, h, n, d] in [-inf, 0], u: real[h, d]",
    ),
    "sums": text(
        "state S[d, e], z[d] per doc[b, i]",
        "S = S + outer(k, v)",
        "z = z + k",
        "out = (q @ S) / (1 + (q @ z) ** 2)",
        header="doc: int[b, n]",
    ),
    "offsets": text(
        "state S[d, e] per segment(cu, i)",
        "S = exp(a[b, h, i]) * S + outer(k, v)",
        "out = q @ S",
        header="cu: offsets, a: real[b, h, n] in [-inf, 0]",
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize("states", [False, True])
def test_documents(name: str, form: str, states: bool) -> None:
    check(DOCUMENTS[name], form, states=states, N=45, M=45)
    check(DOCUMENTS[name], form, gradients=False, N=45, M=40)


def test_documents_that_start_with_something() -> None:
    spec = text(
        "state S[d, e] = S0 per doc[b, i]",
        "S = exp(a[b, h, i]) * S + outer(k, v)",
        "out = q @ S",
        header="doc: int[b, n], S0: real[h, d, e], a: real[b, h, n] in [-inf, 0]",
    )
    assert forms(check(spec, "auto")) == {"recurrent"}  # no chunk has such a write
    by_document = spec.replace("= S0 per", "= S0[doc[b, i]] per").replace("S0: real[h", "S0: real[t: 4, h")
    check(by_document, "recurrent", gradients=False)
    frozen = text(
        "state z[d] per doc[b, i]",
        "frozen F = z every 3",
        "z = z + k * (1 + sum(F over d))",
        "out = (q @ z) * v",
        header="doc: int[b, n]",
    )
    check(frozen, "auto")


@pytest.mark.parametrize("value", [0.0, -1e4, -torch.inf])
@pytest.mark.parametrize("name", ["gla", "simple_gla", "rwkv6", "gsa", "mamba2"])
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_extreme_gates(name: str, form: str, value: float) -> None:
    attn = attncc.compile(file(name), backend="torch", form=form)
    inputs = given(attn)
    first = some_states(attn, inputs)
    gate = {"rwkv6": "w", "mamba2": "A"}.get(name, "decay")
    inputs[gate][..., 0] = value
    if gate != "A":
        inputs[gate][:, :, ::3] = value
    mine, truth = (results(call(attn), inputs, first) for call in (compiled, loop))
    assert all(x.isfinite().all() for x in mine.values())
    distance, where = worst(mine, truth)
    assert distance < BAR, (where, distance)


# --- what is refused --------------------------------------------------------------------------------------------------


@contextmanager
def refused(kind: type[Exception], message: str) -> Iterator[None]:
    with pytest.raises(kind, match=message):
        yield


def test_mistakes() -> None:
    attn: Any = attncc.compile(file("gla"), backend="torch")
    inputs = given(attn)
    good = some_states(attn, inputs)
    with refused(mistakes.UnknownTensor, "gla has no state T"):
        attn(**inputs, state={"T": good["S"]})
    with refused(mistakes.WrongSize, "S has 5 on axis d where 6 is expected"):
        attn(**inputs, state={"S": good["S"][:, :, :5]})
    with refused(mistakes.WrongRank, "S must be real"):
        attn(**inputs, state={"S": good["S"][0]})
    with refused(mistakes.WrongKind, "the state S must hold floating-point numbers"):
        attn(**inputs, state={"S": good["S"].int()})
    with refused(mistakes.NotATensor, "the state S must be a torch tensor"):
        attn(**inputs, state={"S": 0.0})
    with refused(mistakes.NotATensor, "state must be a dictionary"):
        attn(**inputs, state=good["S"])
    with refused(mistakes.NoStates, "S is missing"):
        attn.step(**inputs, state={})
    with refused(mistakes.WrongKind, "it must be torch.float64"):
        attn.step(**inputs, state={"S": good["S"].float()})
    with refused(mistakes.WrongSize, "it can't be an expanded tensor"):
        attn.step(**inputs, state={"S": good["S"][:1].expand(2, -1, -1, -1)})
    with refused(mistakes.NoSingleLse, "has no lse"):
        attn(**inputs, return_lse=True)
    with refused(mistakes.WrongSize, "M = 19 is more than N = 7"):
        attn(**{n: x[:, :, :7] if n != "q" else x for n, x in inputs.items()})
    with refused(mistakes.WrongForm, "there is no form 'chunks'"):
        attncc.compile(file("gla"), form="chunks")
    plain: Any = attncc.compile(text("out = softmax(q @ k) @ v"), backend="torch")
    with refused(mistakes.NoStates, "a has no states"):
        plain(inputs["q"], inputs["k"], inputs["v"], return_state=True)


def test_a_form_that_is_asked_for_is_the_one_that_runs() -> None:
    attn: Any = attncc.compile(file("rwkv7"), backend="torch", form="chunk")
    with pytest.raises(attncc.SpecError, match="plus rank one"):
        attn(**given(attn))
