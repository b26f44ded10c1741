"""State programs in chunks: printed PyTorch and interpreted Triton equal the token loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attncc
from attncc import driver
from attncc.expr.nodes import Expr, Op, walk
from attncc.grammar import parse
from attncc.passes.mistakes import NotCompiled
from attncc.reference import evaluate
from attncc.runtime.inputs import made_up
from attncc.runtime.warmup import full_sizes
from attncc.schedule.variant import Target, Variant
from attncc.tile import nodes as t
from attncc.tile.nodes import Dtype
from attncc.tile.verify import unproved
from tests.support.compare import error
from tests.support.interpreted import all_near, needs_triton

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
COMPILED = (
    "based", "chela", "cosformer", "gla", "gsa", "hgrn2", "lightning", "linear_transformer", "mamba2", "metala",
    "mlstm", "performer", "rebased", "retnet", "rodimus", "rwkv5", "rwkv6", "simple_gla",
)  # fmt: skip
SUMMED = ("linformer", "qt_vit", "sana", "sla")
"""Sums over all keys, and rows that read them."""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", "off")


def tensors(spec: str | Path, dtype: torch.dtype = torch.float64, **sizes: int) -> tuple[Any, dict[str, Tensor]]:
    """A compiled spec and inputs that fit it."""
    attention = attncc.compile(spec, backend="torch", form="chunk")
    full = full_sizes({"B": 2, "H": 4, "G": 2, "M": 45, "N": 45, "D": 6, "E": 5} | sizes)
    made = made_up(attention._family.spec, attention.constants, full, dtype=dtype, device=CPU)
    return attention, {n: x.detach().to(dtype) if x.is_floating_point() else x for n, x in made.items()}


def distance(spec: str | Path, sizes: dict[str, int] | None = None, dtype: torch.dtype = torch.float64) -> float:
    """How far the torch backend is from the token loop: the worst of out and every gradient."""
    attention, given = tensors(spec, dtype, **(sizes or {}))
    results = []
    for call in (attention, lambda **x: evaluate(attention._family.spec, x).out):
        wide = call is not attention
        leaves = {n: (x.double() if wide and x.is_floating_point() else x).clone() for n, x in given.items()}
        real = {n: x.requires_grad_() for n, x in leaves.items() if x.is_floating_point()}
        out = call(**leaves)
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
        total = (out * weight).sum() + 0 * leaves["q"].sum()  # out may have no rows
        grads = torch.autograd.grad(total, list(real.values()), allow_unused=True)
        zeros = (torch.zeros_like(x) if g is None else g for g, x in zip(grads, real.values(), strict=True))
        results.append({"out": out.detach(), **{f"d_{n}": g for n, g in zip(real, zeros, strict=True)}})
    got, wanted = results
    assert got["out"].dtype == dtype
    return max(error(got[n].double(), wanted[n], wanted[n] if n == "out" else wanted["d_v"]) for n in wanted)


def test_every_example_is_compiled() -> None:
    assert {*COMPILED, *SUMMED} == {p.stem for p in EXAMPLES.glob("*.attn")}


@pytest.mark.parametrize("sizes", [{}, {"M": 50, "N": 13}, {"M": 3, "N": 65}, {"M": 0, "N": 20}])
@pytest.mark.parametrize("name", SUMMED)
def test_sums_over_all_keys(name: str, sizes: dict[str, int]) -> None:
    """Rows before the first key are rows like others, but where they read a key at their own place."""
    if name != "sla" or sizes.get("M", 0) <= sizes.get("N", 0):
        assert distance(EXAMPLES / f"{name}.attn", sizes) < 1e-12


@pytest.mark.parametrize("name", COMPILED)
def test_examples(name: str) -> None:
    assert distance(EXAMPLES / f"{name}.attn") < 1e-12
    assert distance(EXAMPLES / f"{name}.attn", {"M": 40, "N": 70, "D": 16, "E": 24}, torch.float32) < 1e-5


@pytest.mark.parametrize(
    "sizes", [{"N": 1, "M": 1}, {"N": 16, "M": 3}, {"N": 33, "M": 0}, {"B": 0}, {"N": 130, "M": 65}]
)
@pytest.mark.parametrize("name", ["gla", "gsa", "mlstm", "linear_transformer"])
def test_lengths(name: str, sizes: dict[str, int]) -> None:
    assert distance(EXAMPLES / f"{name}.attn", sizes) < 1e-12


@pytest.mark.parametrize("value", [0.0, -1e4, -torch.inf])
@pytest.mark.parametrize("name", ["gla", "simple_gla", "rwkv6", "gsa", "metala"])
def test_extreme_gates(name: str, value: float) -> None:
    attention, given = tensors(EXAMPLES / f"{name}.attn")
    gate = "w" if name == "rwkv6" else "decay"
    given[gate][:, :, ::7] = value
    given[gate][:, 1] = value
    leaves = {n: x.clone().requires_grad_() for n, x in given.items()}
    truth = evaluate(attention._family.spec, leaves).out
    out = attention(**leaves)
    torch.testing.assert_close(out, truth, atol=1e-12, rtol=1e-12)
    for mine, true in zip(*(grads(x, leaves) for x in (out, truth)), strict=True):
        torch.testing.assert_close(mine, true, atol=1e-11, rtol=1e-11)


def grads(out: Tensor, leaves: dict[str, Tensor]) -> list[Tensor]:
    """The gradients of its sum; of what it does not depend on, 0."""
    found = torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves.values(), strict=True)]


def chunked(*lines: str, header: str = "") -> str:
    return f"attention a({header}):\n" + "".join(f"    {line}\n" for line in lines)


WRITTEN = {
    "an initial state": chunked(
        "state S[d, e] = S0", "S = 0.5 * S + outer(k, v)", "out = q @ S", header="S0: real[b, h, d, e]"
    ),
    "documents as a gate": chunked(
        "let same = doc[b, i] == doc[b, max(i - 1, 0)]",
        "state S[d, e]",
        "S = (S if same else 0) + outer(k, v)",
        "out = q @ S",
        header="doc: int[b, n]",
    ),
    "two writes": chunked("state S[d, e]", "S = S + outer(k, v) - 0.5 * outer(k ** 2, relu(v))", "out = q @ S"),
    "a gate in two factors": chunked(
        "state S[d, e]",
        "S = sigmoid(x[b, h, i]) * exp(y[h]) * S",
        "S = S + outer(k, v)",
        "out = q @ S",
        header="x: real[b, h, n], y: real[h] in [-inf, 0]",
    ),
    "a vector of values": chunked(
        "state z[e]", "z = exp(a[h]) * z + v", "out = z * q[e]", header="a: real[h] in [-1, 0]"
    ),
    "a number": chunked("state c", "c = 0.9 * c + k @ k", "out = v * c"),
    "a growing state": chunked("state S[d, e]", "S = exp(a[h]) * S + outer(k, v)", "out = q @ S", header="a: real[h]"),
    "a loop within a token": chunked(
        "state S[d, e]",
        "for t in 3:",
        "    S = sigmoid(a[b, h, i, t]) * S + outer(k * x[t], v)",
        "out = q @ S",
        header="a: real[b, h, n, 3], x: real[3]",
    ),
    "a read between two changes": chunked(
        "state S[d, e]", "S = 0.5 * S", "let u = q @ S", "S = S + outer(k, v)", "out = u + 0.1 * (q @ S)"
    ),
    "a state read along its values": chunked("state S[d, e]", "S = 0.9 * S + outer(k, v)", "out = (S @ v) @ q * v"),
    "both gates": chunked(
        "state S[d, e]",
        "S = outer(sigmoid(x[b, h, i, d]), sigmoid(y[b, h, i, e])) * S + outer(k, v)",
        "out = q @ S",
        header="x: real[b, h, n, d], y: real[b, h, n, e]",
    ),
    "slots, some of them empty": chunked(
        "state A[d, r], C[r, e]",
        "A = 0.9 * A + outer(k, x[b, h, i, r])",
        "C = C + outer(x[b, h, i, r], v)",
        "out = softmax(q @ A over r where r < i % 5) @ C",
        header="x: real[b, h, n, r: 5]",
    ),
    "a state that another one writes": chunked(
        "state S[d, e], T[d, e]", "S = 0.9 * S + outer(k, v)", "T = T + outer(k, tanh(q @ S))", "out = q @ T"
    ),
    "a gate by another state": chunked(
        "state z[d], S[d, e]", "z = 0.5 * z + k", "S = sigmoid(q @ z) * S + outer(k, v)", "out = q @ S"
    ),
    "no token yet": chunked("state z[d]", "out = v * (q @ z) / (abs(q @ z) + 0.1)", "z = z + k"),
    "a write of any size": chunked(
        "state S[d, e], z[d]",
        "S = S + exp(u[b, h, i]) * outer(k, v)",
        "z = z + exp(u[b, h, i] + 3) * relu(k)",
        "out = (q @ S) / (relu(q) @ z + 1e-3)",
        header="u: real[b, h, n]",
    ),
    "a kept value": chunked("state S[d, e]", "let u = q @ S", "S = 0.5 * S + outer(k, v)", "out = tanh(u) + v"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_programs(name: str) -> None:
    assert distance(WRITTEN[name], {"D": 6, "E": 6}) < 1e-12


REFUSED = {
    "one product": (
        chunked("state S[d, e]", "S = S + outer(k, v - k @ S)", "out = q @ S"),
        "a change of the class identity, plus rank one",
    ),
    "an unbounded gate": (
        chunked("state S[d, e]", "S = exp(a[h, d]) * S + outer(k, v)", "out = q @ S", header="a: real[h, d]"),
        "this gate is not proved to be at most 1",
    ),
    "a gate that may be negative": (
        chunked("state S[d, e]", "S = a[h] * S + outer(k, v)", "out = q @ S", header="a: real[h] in [-1, 1]"),
        "this gate is not proved to be at least 0",
    ),
    "a gate that may be 0 beside writes of any size": (
        chunked(
            "state S[d, e]",
            "S = a[h] * S + exp(u[h]) * outer(k, v)",
            "out = q @ S",
            header="a: real[h] in [0, 1], u: real[h]",
        ),
        "a gate that may be 0, of a state whose gate or writes may be of any size",
    ),
    "two channels in a gate": (
        chunked("state S[d, e]", "S = sigmoid(outer(k, v)) * S + outer(k, v)", "out = q @ S"),
        "a change of the class full elementwise",
    ),
    "no product": (
        chunked("state S[d, e]", "S = S + sin(outer(k, v))", "out = q @ S"),
        "a write that is no product of a key and a value",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_chunk_form_is_refused(name: str) -> None:
    text, message = REFUSED[name]
    spec = parse(text)
    with pytest.raises(NotCompiled, match=message) as caught:
        driver.programs(spec, Variant("torch", 6, 6, "f64", tuple((p.name, "f64") for p in spec.params)))
    assert caught.value.diagnostic.span is not None


@pytest.mark.parametrize("name", ["retnet", "hold"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gates_at_their_bounds(name: str, value: float) -> None:
    """Where a gate itself is given, a gate of 0 has a derivative."""
    text = chunked(
        "state S[d, e]", "S = x[b, h, i] * S + outer(k, v)", "out = q @ S", header="x: real[b, h, n] in [0, 1]"
    )
    attention, given = tensors(EXAMPLES / "retnet.attn" if name == "retnet" else text)
    if name == "retnet":
        given["gamma"][1:] = value
    else:
        given["x"][:, :, 3::5] = value
        given["x"][:, :, 20:24] = value
    close(attention, given, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_resets_cost_no_digits(dtype: torch.dtype) -> None:
    """Many gates of nothing in a chunk: what is behind the last of them fades as exactly as if there were none."""
    attention, given = tensors(EXAMPLES / "simple_gla.attn", dtype)
    given["decay"][:, :, ::3] = -torch.inf
    given["decay"][:, :, 1::3] = -0.01
    close(attention, given, 1e-12 if dtype == torch.float64 else 1e-6)


def close(attention: Any, given: dict[str, Tensor], bar: float) -> None:
    """Asserts out and every gradient to be near the token loop's."""
    results = []
    for call in (attention, lambda **x: evaluate(attention._family.spec, x).out):
        leaves = {n: (x if call is attention else x.double()).clone().requires_grad_() for n, x in given.items()}
        out = call(**leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))])
    for mine, true in zip(*results, strict=True):
        assert error(mine.double(), true, results[1][3]) < bar


# --- writes of any size -----------------------------------------------------------------------------------------------


def in_logarithms(q: Tensor, k: Tensor, v: Tensor, f: Tensor, u: Tensor) -> Tensor:
    """The same as mlstm.attn, each token relative to the largest exponent so far."""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    s, z = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]), q.new_zeros(*q.shape[:2], q.shape[3])
    m, rows = q.new_full(q.shape[:2], -1e9), []
    for at in range(q.shape[2]):
        left = torch.nn.functional.logsigmoid(f[:, :, at])
        n = torch.maximum(left + m, u[:, :, at]).detach()
        old, new = torch.exp(left + m - n), torch.exp(u[:, :, at] - n)
        s = old[..., None, None] * s + new[..., None, None] * k[:, :, at, :, None] * v[:, :, at, None]
        z = old[..., None] * z + new[..., None] * k[:, :, at]
        m, top = n, n.clamp(min=0)
        above = torch.einsum("bhd,bhde->bhe", q[:, :, at], s) * torch.exp(n - top)[..., None]
        below = (q[:, :, at] * z).sum(-1).abs() * torch.exp(n - top)
        rows.append(above / torch.maximum(below, torch.exp(-top))[..., None])
    return torch.stack(rows, 2)


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exponents_of_any_size(dtype: torch.dtype, size: float) -> None:
    """No overflow where the quotient is finite, and no digit less."""
    attention, given = tensors(EXAMPLES / "mlstm.attn", dtype, N=70, M=70)
    rng = torch.Generator().manual_seed(3)
    given["u"] = size * (2 * torch.rand(given["u"].shape, generator=rng, dtype=torch.float64) - 1).to(dtype)
    given["q"], given["k"] = given["q"].abs(), given["k"].abs()  # so that nothing cancels
    given["f"][:, :, ::9], given["f"][:, :, 4::11] = 1e4, -1e4
    results = []
    for call in (attention, in_logarithms):
        leaves = {n: (x if call is attention else x.double()).clone().requires_grad_() for n, x in given.items()}
        out = call(**leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))])
    bar = 1e-12 if dtype == torch.float64 else 1e-5
    assert error(results[0][0].double(), results[1][0]) < bar
    size = max(x.norm() for x in results[1][1:])  # where one token outweighs all others, most gradients are 0
    for mine, true in zip(*results, strict=True):
        assert (mine.double() - true).norm() < bar * size


@pytest.mark.parametrize("value", [-torch.inf, -1e4])
def test_nothing_is_written(value: float) -> None:
    attention, given = tensors(EXAMPLES / "mlstm.attn")
    given["u"].fill_(value)
    leaves = {n: x.clone().requires_grad_() for n, x in given.items()}
    out = attention(**leaves)
    assert (out.abs() < 1e-300).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), list(leaves.values())))


# --- exponents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted((*COMPILED, *SUMMED)))
@pytest.mark.parametrize("target", ["torch", "triton"])
def test_every_exponent_is_proved(name: str, target: Target) -> None:
    """No exponential has an argument of which nothing is known: it is bounded, anchored, or its proof is noted."""
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))
    captured: tuple[tuple[str, Dtype], ...] = tuple((p.name, "f32") for p in spec.params)
    pair = driver.programs(spec, Variant(target, 16, 32, "f32", captured, gradients=("q", "k", "v")))
    for program in (pair.forward, pair.backward):
        assert program is not None
        lets = [s for k in program.kernels for s in within(k.body) if isinstance(s, t.Let) and isinstance(s.op, t.Map)]
        own = [s for s in lets if any(isinstance(n, Op) and n.name in ("exp", "exp2") for n in walk(bodies(s)))]
        assert own or name in ("chela", "cosformer", "based", "rebased", "linear_transformer", "qt_vit", "sana", "sla")
        found = [x for x in unproved(program) if x.what.startswith("the argument of exp")]
        left = {x.statement.split(":")[0] for x in found}
        noted = {s.name for s in own if s.note.startswith("at most 0: ")}
        assert left <= noted, left - noted


def bodies(s: t.Let) -> Expr:
    assert isinstance(s.op, t.Map)
    return s.op.body


def within(statements: tuple[t.Stmt, ...]) -> Iterator[t.Stmt]:
    """Every statement, those of loops too."""
    for s in statements:
        yield s
        if isinstance(s, t.For):
            yield from within(s.body)


_INTERPRET = """
import torch
from tests.schedule.test_chunk import EXAMPLES, tensors
from attncc.reference import evaluate
import attncc
for name, dtype, sizes in (
    ("simple_gla", torch.float32, dict(M=37, N=40, D=16, E=100)),
    ("gla", torch.float32, dict(M=20, N=20, D=24, E=16)),
    ("performer", torch.float32, dict(M=40, N=40, D=16, E=16)),
    ("gsa", torch.float32, dict(M=40, N=40, D=16, E=16)),
    ("mlstm", torch.float16, dict(M=70, N=70, D=16, E=16)),
    ("rebased", torch.float32, dict(M=40, N=40, D=16, E=16)),
    ("chela", torch.float32, dict(M=70, N=70, D=16, E=16)),
    ("linear_transformer", torch.float16, dict(M=70, N=70, D=16, E=16)),
    ("rwkv6", torch.float16, dict(M=33, N=33, D=16, E=16)),
):
    attention, given = tensors(EXAMPLES / f"{name}.attn", dtype, B=1, **sizes)
    results = []
    for call in (attncc.compile(EXAMPLES / f"{name}.attn", backend="interpret"), None):
        wide = {n: x.double() if call is None and x.is_floating_point() else x for n, x in given.items()}
        leaves = {n: x.clone().requires_grad_(x.is_floating_point()) for n, x in wide.items()}
        out = evaluate(attention._family.spec, leaves).out if call is None else call(**leaves)
        weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
        real = {n: x for n, x in leaves.items() if x.is_floating_point()}
        grads = torch.autograd.grad((out * weight).sum(), list(real.values()))
        results.append({"out": out.detach(), **dict(zip(real, grads))})
    got, wanted = results
    bar = 1e-5 if dtype == torch.float32 else 4e-3
    for n, truth in wanted.items():
        error = float((got[n].double() - truth).norm() / truth.norm())
        assert error < bar, (name, n, error)
print("all near")
"""


@needs_triton
def test_interpreted_triton(tmp_path: Path) -> None:
    all_near(_INTERPRET, tmp_path)


def test_sizes_of_states_are_literals() -> None:
    """A constant of the header has its value at a call; its default must not stand for it."""
    text = """attention x(slots = 4, f: real[b, h, n] in [-inf, 0]):
    state A[d, r: slots]
    A = exp(f[b, h, i]) * A + outer(k, cos(r))
    out = sum(q @ A over r) * v[b, g, i, e]
"""
    with pytest.raises(NotCompiled, match="known at a call only"):
        attncc.compile(text, backend="torch", form="chunk", slots=8)(
            *(torch.zeros(1, 1, 4, 8) for _ in range(3)), f=torch.zeros(1, 1, 4)
        )
