"""Weights under gates of channels, by halves, and the parallel backward: interpreted Triton equals the token loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attncc import driver
from attncc.expr.build import ivar, op
from attncc.expr.nodes import Expr
from attncc.grammar import parse
from attncc.schedule.chunk_forward import RUN
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from attncc.tile.interpret import run_program
from attncc.tile.interpret_host import extents_of
from attncc.tile.verify import unproved, verify
from attncc.tile.verify_faults import OwnershipError
from attncc.tile.walks import every
from tests.support.interpreted import all_near, needs_triton

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"

_INTERPRET = """
import torch
from tests.schedule.test_chunk import EXAMPLES, tensors
from attncc.reference import evaluate
from attncc.schedule import chunk_segments
import attncc
chunk_segments.LEAST = 1  # few heads: many segments
for name, ends, sizes in (
    ("gla", -torch.inf, dict(M=140, N=140, D=16, E=16)),
    ("gla", "some", dict(M=140, N=150, D=16, E=16)),
    ("rwkv6", "some", dict(M=140, N=140, D=80, E=16)),  # sums along channels, part by part
    ("gla", "none", dict(M=70, N=70, D=64, E=16)),
    ("rwkv6", -1e4, dict(M=70, N=75, D=20, E=16)),
    ("rodimus", None, dict(M=70, N=70, D=16, E=24)),
    ("simple_gla", None, dict(M=70, N=70, D=80, E=100)),  # programs for parts of the channels
    ("gla", None, dict(M=70, N=70, D=96, E=80)),
    ("simple_gla", -torch.inf, dict(M=600, N=610, D=16, E=16)),  # gates' gradients by runs of chunks
):
    attention, given = tensors(EXAMPLES / f"{name}.attn", torch.float16, B=1, H=2, G=1, **sizes)
    if isinstance(ends, str):  # chunks whose gates leave much, and others
        gate = given["w" if name == "rwkv6" else "decay"]
        gate *= 0.01
        if ends == "some":
            gate[:, :, 64:128] *= 100.0
    elif ends is not None:
        gate = given["w" if name == "rwkv6" else "decay"]
        gate[:, :, ::7] = ends
        gate[:, 1] = 0.0
    results = []
    for call in (attncc.compile(EXAMPLES / f"{name}.attn", backend="interpret"), None):
        wide = {n: x.double() if call is None else x for n, x in given.items()}
        leaves = {n: x.clone().requires_grad_() for n, x in wide.items()}
        out = evaluate(attention._family.spec, leaves).out if call is None else call(**leaves)
        weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), list(leaves.values()))))
        if name == "rwkv6" and call is not None:  # as torch.compile sees it: weights are made again
            again = call._ops.forward(*leaves.values())
            assert torch.equal(out, again)
            anew = torch.autograd.grad((again * weight).sum(), list(leaves.values()))
            assert all(map(torch.equal, results[-1][1:], anew))
            behind = [h for h in call._family.halves if h.which == "backward"][-2:]
            assert [any(n.startswith("kept_") for n in h.inputs) for h in behind] == [True, False]
            assert ["weights_kernel" in h.text.split("def backward(")[1] for h in behind] == [False, True]
    for n, got, truth in zip(("out", *given), *results, strict=True):
        error = float((got.double() - truth).norm() / truth.norm().clamp(min=1e-3))
        assert error < 2e-3, (name, n, error)
print("all near")
"""


@needs_triton
def test_interpreted_triton(tmp_path: Path) -> None:
    all_near(_INTERPRET, tmp_path, ATTNCC_CACHE="off")


@pytest.mark.parametrize("name", ["gla", "rwkv6", "hgrn2"])
def test_exponents_are_bounded_and_no_pair_has_one(name: str) -> None:
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))
    captured: tuple[tuple[str, t.Dtype], ...] = tuple((p.name, "f32") for p in spec.params)
    gradients = ("q", "k", "v", *(p.name for p in spec.params))
    pair = driver.programs(spec, Variant("triton", 64, 128, "bf16", captured, gradients=gradients))
    assert pair.backward is not None
    for program in (pair.forward, pair.backward):
        assert [k.name for k in program.kernels[:2]] == ["sums_kernel", "weights_kernel"]
        assert [x for x in unproved(program) if x.check == "exponents_anchored" and "factor" in x.statement] == []
        assert [x for x in unproved(program) if x.check == "exponents_anchored" and "rise" in x.statement] == []
        for kernel in program.kernels:
            assert all(len(s.type.axes) < 3 for s in _lets(kernel.body))


@pytest.mark.parametrize(("name", "channels", "tokens"), [("gla", 64, 70), ("rwkv6", 128, 75)])
def test_every_access_is_inside(name: str, channels: int, tokens: int) -> None:
    """The last chunk has few rows; the interpreter of the Tile IR refuses what lies outside a tensor."""
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))
    captured: tuple[tuple[str, t.Dtype], ...] = tuple((p.name, "f32") for p in spec.params)
    gradients = ("q", "k", "v", *(p.name for p in spec.params))
    pair = driver.programs(spec, Variant("triton", channels, channels, "f16", captured, gradients=gradients))
    assert pair.backward is not None
    draw = np.random.default_rng(0)
    sizes = {"B": 1, "H": 1, "G": 1, "M": tokens, "N": tokens}
    known: dict[str, np.ndarray] = {}
    for program in (pair.forward, pair.backward):
        for x in program.inputs:
            made = -0.1 * np.abs(draw.standard_normal(extents_of(x, sizes)))
            known.setdefault(x.name, made.astype(np.float16 if x.dtype == "f16" else np.float32))
        known |= run_program(program, {x.name: known[x.name] for x in program.inputs}).outputs
    assert all(np.isfinite(known[n]).all() for n in ("out", *(f"d_{n}" for n in gradients)))


@pytest.mark.parametrize("name", ["gla", "rwkv6", "hgrn2"])
def test_weights_are_a_product_or_go_by_levels(name: str) -> None:
    """Each chunk stores them once: under the condition that its gates leave enough, or under the opposite one."""
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))
    captured: tuple[tuple[str, t.Dtype], ...] = tuple((p.name, "bf16") for p in spec.params)
    kernels = driver.programs(spec, Variant("triton", 128, 128, "bf16", captured, capability=90)).forward.kernels
    (weights,) = (k for k in kernels if k.name == "weights_kernel")
    far, near = (s for s in weights.body if isinstance(s, t.If))
    assert far.condition != near.condition
    assert [[x.tensor for x in s.then if isinstance(x, t.Store)] for s in (far, near)] == [["kept_3"], ["kept_3"]]
    assert not [s for s in weights.body if isinstance(s, t.For | t.Store)]
    assert [s.note for s in every(far.then) if isinstance(s, t.For)] == ["some channels after others", "level by level"]
    products = [s for s in every(near.then) if isinstance(s, t.Let) and isinstance(s.op, t.Dot)]
    assert len(products) == 1 and not [s for s in every(near.then) if isinstance(s, t.For)]


@pytest.mark.parametrize("channels", [64, 128])
def test_levels_go_back_for_few_channels(channels: int) -> None:
    """A program has 32 of them, in a kernel of its own: tiles of more would not stay in registers."""
    spec = parse((EXAMPLES / "gla.attn").read_text(encoding="utf-8"))
    gradients = ("q", "k", "v", "decay")
    variant = Variant("triton", channels, channels, "bf16", (("decay", "bf16"),), gradients=gradients, capability=90)
    pair = driver.programs(spec, variant)
    assert pair.backward is not None
    (kernel,) = (k for k in pair.backward.kernels if any(isinstance(s, t.For) for s in k.body) and k.config.registers)
    assert {a.extent for s in _lets(kernel.body) for a in s.type.axes if a.name == "d"} == {32}
    assert sorted(_stored(kernel.body)) == ["d_decay", "d_k__2", "d_q"]


def test_gates_of_tokens_go_with_queries() -> None:
    """Their gradient is made of those of queries and keys, in their kernel; what follows only sums it up."""
    spec = parse((EXAMPLES / "simple_gla.attn").read_text(encoding="utf-8"))
    variant = Variant("triton", 128, 128, "bf16", (("decay", "bf16"),), gradients=("q", "k", "v", "decay"))
    pair = driver.programs(spec, variant)
    assert pair.backward is not None
    (kernel,) = (k for k in pair.backward.kernels if "d_q" in _stored(k.body))
    assert "run_0" in _stored(kernel.body)
    assert [k.name for k in pair.backward.kernels if "d_decay" in _stored(k.body)] == ["gates_kernel"]


@pytest.mark.parametrize("name", ["gla", "rwkv6"])
def test_levels_share_a_multiprocessor(name: str) -> None:
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))
    captured: tuple[tuple[str, t.Dtype], ...] = tuple((p.name, "bf16") for p in spec.params)
    gradients = ("q", "k", "v", *(p.name for p in spec.params))
    pair = driver.programs(spec, Variant("triton", 128, 128, "bf16", captured, gradients=gradients))
    assert pair.backward is not None
    leveled = [k for k in pair.backward.kernels if k.config.registers]
    assert [k.name for k in leveled] == ["gradients_kernel"]
    assert all(2 * 32 * k.config.warps * k.config.registers <= 65536 for k in leveled)


@pytest.mark.parametrize(
    ("name", "kernels", "warps"), [("simple_gla", 1, 4), ("mamba2", 3, 4), ("retnet", 1, 4), ("", 1, 4)]
)
def test_few_gradients_share_a_kernel(name: str, kernels: int, warps: int) -> None:
    """One state of inputs as they lie; four warps are enough for it, so that two programs share a multiprocessor."""
    plain = "attention plain:\n    state S[d, e]\n    S = S + outer(k, v)\n    out = q @ S / sqrt(D)\n"
    spec = parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8") if name else plain)
    captured: tuple[tuple[str, t.Dtype], ...] = tuple((p.name, "bf16") for p in spec.params)
    gradients = ("q", "k", "v", *(p.name for p in spec.params))
    variant = Variant("triton", 128, 128, "bf16", captured, gradients=gradients, capability=90)
    pair = driver.programs(spec, variant)
    assert pair.backward is not None
    found = [k for k in pair.backward.kernels if k.name.startswith("gradients")]
    assert len(found) == kernels
    assert max(k.config.warps for k in (*found, *pair.forward.kernels)) == warps


def kernels_of_token_gates() -> dict[str, t.Kernel]:
    """All kernels of one state with a gate of the token, those of the backward over those of the forward."""
    spec = parse((EXAMPLES / "simple_gla.attn").read_text(encoding="utf-8"))
    gradients = ("q", "k", "v", "decay")
    variant = Variant("triton", 128, 128, "bf16", (("decay", "bf16"),), gradients=gradients, capability=90)
    pair = driver.programs(spec, variant)
    assert pair.backward is not None
    return {k.name: k for k in (*pair.forward.kernels, *pair.backward.kernels)}


def test_products_take_inputs_as_they_lie() -> None:
    """A factor of rows scales what a product gives, not what it takes; sums of two products are one's start."""
    kernels = kernels_of_token_gates()
    for name, products, begun in (("forward_kernel", 4, 2), ("gradients_kernel", 8, 3)):
        kernel = kernels[name]
        lets = {s.name: s for s in every(kernel.body) if isinstance(s, t.Let)}
        dots = [s.op for s in lets.values() if isinstance(s.op, t.Dot)]
        assert len(dots) == products
        assert sum(x.start is not None for x in dots) == begun
        scaled = [x for x in dots for n in (x.a, x.b) if isinstance(n, str) and isinstance(lets[n].op, t.Cast)]
        assert len(scaled) <= 3  # the state and the weights; what is written, along the tokens


def test_sums_of_tiles_wait_for_no_other_tile() -> None:
    """Operands of products are loaded once more for all else, and tiles are stored before vectors."""
    kernel = kernels_of_token_gates()["gradients_kernel"]
    order = {s.name: n for n, s in enumerate(kernel.body) if isinstance(s, t.Let)}
    stores = [(n, s) for n, s in enumerate(kernel.body) if isinstance(s, t.Store)]
    assert [s.tensor.split("__")[0] for _, s in stores] == ["d_q", "d_k", "d_v", "run_0"]
    again = [
        s.name for s in kernel.body if isinstance(s, t.Let) and isinstance(s.op, t.Load) and s.name.endswith("again")
    ]
    assert again and all(order[n] < stores[0][0] for n in again)
    products = [n for n, s in enumerate(kernel.body) if isinstance(s, t.Let) and isinstance(s.op, t.Dot)]
    tiles = [s for s in kernel.body[products[-1] + 1 :] if isinstance(s, t.Let) and isinstance(s.op, t.Reduce)]
    assert not tiles  # every sum was made before


def test_running_sums_of_tokens_are_made_once() -> None:
    """No kernel that walks sums gates up: they are read as one kernel left them."""
    spec = parse((EXAMPLES / "simple_gla.attn").read_text(encoding="utf-8"))
    variant = Variant("triton", 128, 128, "bf16", (("decay", "bf16"),), gradients=("q", "k", "v", "decay"))
    pair = driver.programs(spec, variant)
    assert pair.backward is not None
    for program in (pair.forward, pair.backward):
        scanning = [k.name for k in program.kernels if any(isinstance(s.op, t.Scan) for s in _lets(k.body))]
        assert scanning[0] == "sums_kernel" and set(scanning[1:]) <= {"gates_kernel"}


def test_programs_own_the_runs_of_chunks_whose_gates_they_sum() -> None:
    """A run longer than a program's own, and two chunks stored as one, are refused."""
    spec = parse((EXAMPLES / "simple_gla.attn").read_text(encoding="utf-8"))
    program = driver.programs(spec, Variant("triton", 64, 64, "bf16", (("decay", "bf16"),))).forward
    sums, *rest = program.kernels
    (loop,) = (s for s in sums.body if isinstance(s, t.For))
    assert isinstance(loop.over, t.Count) and [a.tile for a in sums.grid if a.role == "tile"] == [64 * RUN]
    longer = replace(loop, over=replace(loop.over, hi=op("add", loop.over.lo, RUN + 1)))
    stored = {s.tensor: s for s in loop.body if isinstance(s, t.Store)}
    b, h, _, row = stored["kept_0"].index
    half = op("floordiv", op("mul", ivar(loop.index), 32), 64)
    same = replace(loop, body=swapped(loop.body, stored["kept_0"], index=(b, h, half, row)))
    for wrong in (longer, same):
        body = tuple(wrong if s is loop else s for s in sums.body)
        with pytest.raises(OwnershipError, match="differ in first"):
            verify(replace(program, kernels=(replace(sums, body=body), *rest)))


def swapped(body: tuple[t.Stmt, ...], old: t.Store, index: tuple[Expr, ...]) -> tuple[t.Stmt, ...]:
    """The statements, with another place for what one of them stores."""
    return tuple(replace(old, index=index) if s is old else s for s in body)


def _stored(body: tuple[t.Stmt, ...]) -> list[str]:
    return [s.tensor for s in body if isinstance(s, t.Store)]


def _lets(body: tuple[t.Stmt, ...]) -> list[t.Let]:
    inner = [x for s in body if isinstance(s, t.For) for x in _lets(s.body)]
    return [s for s in body if isinstance(s, t.Let)] + inner
