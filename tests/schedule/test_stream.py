"""The streaming schedule's programs, executed by the Tile IR's interpreter, against the dense reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from attncc.driver import analyse
from attncc.expr.nodes import Const, Expr
from attncc.grammar import parse
from attncc.ir.nodes import Spec
from attncc.reference import evaluate
from attncc.schedule.programs import Pair, stream
from attncc.schedule.stream import Problem
from attncc.schedule.variant import Target, Variant
from attncc.tile.interpret import run_program
from attncc.tile.nodes import Dtype, For
from attncc.tile.verify import verify, verify_pair
from tests.support.specs import SPECS

SHAPES = [(2, 4, 2, 37, 37, 16, 16), (1, 2, 1, 70, 33, 24, 40), (1, 2, 2, 20, 90, 40, 24)]
"""B, H, G, M, N, D, E: square, more queries than keys, more keys than queries."""


KINDS: dict[str, Dtype] = {"real": "f64", "int": "i64", "bool": "bool"}


def build(spec: Spec, variant: Variant) -> Pair:
    """The programs of one variant, without the driver's verification."""
    unit = analyse(spec, variant.D, variant.E)
    assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
    return stream(Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, variant))


def constant(e: Expr) -> int:
    """The number a literal extent stands for."""
    assert isinstance(e, Const)
    return int(e.value)


def captured(spec: Spec, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Random captured tensors of `spec`."""
    out: dict[str, torch.Tensor] = {}
    for p in spec.params:
        shape = [sizes[a.index] if a.index in sizes else constant(a.size) for a in p.axes]
        match p.sort:
            case "real":
                out[p.name] = torch.randn(shape, dtype=torch.float64) * 0.5
            case "int":
                out[p.name] = torch.randint(0, 3, shape).sort(-1).values
            case "bool":
                out[p.name] = torch.rand(shape) < 0.7
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", ["triton", "torch"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_programs_match_the_reference(name: str, target: Target, shape: tuple[int, ...]) -> None:
    check(SPECS[name], target, shape, "softmax" not in name and name not in ("sigmoid_attention",))


def check(spec: Spec, target: Target, shape: tuple[int, ...], has_lse: bool = True) -> None:
    """Output, lse and every gradient of `spec` in double, as the interpreter and the reference have them."""
    B, H, G, M, N, D, E = shape
    torch.manual_seed(0)
    tensors = {
        "q": torch.randn(B, H, M, D, dtype=torch.float64),
        "k": torch.randn(B, G, N, D, dtype=torch.float64),
        "v": torch.randn(B, G, N, E, dtype=torch.float64),
        **captured(spec, {"b": B, "h": H, "g": G, "m": M, "n": N}),
    }
    reals = tuple(n for n, x in tensors.items() if x.is_floating_point())
    for n in reals:
        tensors[n].requires_grad_()
    constants = {c.name: 20 if c.name == "window" else c.value for c in spec.constants}
    want = evaluate(spec, tensors, constants, return_lse=has_lse)
    d_out = torch.randn_like(want.out)
    d_lse = torch.randn(B, H, M, dtype=torch.float64) if has_lse else None
    total = (want.out * d_out).sum()
    if want.lse is not None and d_lse is not None:
        total = total + torch.where(want.lse.isfinite(), want.lse * d_lse, 0.0).sum()
    grads = torch.autograd.grad(total, [tensors[n] for n in reals])
    kinds = tuple((p.name, KINDS[p.sort]) for p in spec.params)
    variant = Variant(
        target, D, E, "f64", kinds, gradients=reals, lse_gradient=has_lse, grouped=H != G or target == "torch"
    )
    pair = build(spec, variant)
    verify(pair.forward)
    assert pair.backward is not None
    verify_pair(pair.forward, pair.backward)
    arrays = {n: x.detach().numpy() for n, x in tensors.items()}
    forward = run_program(pair.forward, arrays, constants)
    _close("out", forward.outputs["out"], want.out)
    extra = {"out": forward.outputs["out"], "d_out": d_out.numpy()}
    if want.lse is not None and d_lse is not None:
        _close("lse", forward.outputs["lse"], want.lse)
        extra |= {"lse": forward.outputs["lse"], "d_lse": d_lse.numpy()}
    assert pair.backward is not None
    backward = run_program(pair.backward, {**arrays, **extra}, constants)
    for n, g in zip(reals, grads, strict=True):
        _close(f"d_{n}", backward.outputs[f"d_{n}"], g)


FAR = {
    "both sides": ("max(-3, min(3, j - i)) + 3", "j < N"),
    "one side": ("min(6, i - j)", "j <= i"),
    "both sides of some behind": ("max(40, min(46, j - i)) - 40", "j < N"),
}
"""Places of a table of 7 that are one number far from the diagonal, on each of its sides, and a mask."""


@pytest.mark.parametrize("place", FAR)
def test_tables_of_one_value_far_away(place: str) -> None:
    index, mask = FAR[place]
    spec = parse(
        f"attention far(table: real[7, h]):\n    score = q @ k / sqrt(D) + table[{index}, h]\n    mask  = {mask}\n"
        "    out   = softmax(score) @ v\n"
    )
    check(spec, "triton", (1, 2, 1, 390, 300, 16, 16))
    kinds: tuple[tuple[str, Dtype], ...] = (("table", "f64"),)
    pair = build(spec, Variant("triton", 16, 16, "f64", kinds, gradients=("q", "k", "v")))
    assert pair.backward is not None
    for program in (pair.forward, pair.backward):
        notes = [s.note for k in program.kernels for s in k.body if isinstance(s, For)]
        assert any(note.endswith("tiles where tables have one value") for note in notes), program.name


@pytest.mark.parametrize("target", ["triton", "torch"])
def test_documents_need_not_be_sorted(target: Target) -> None:
    spec = SPECS["packed_documents"]
    torch.manual_seed(1)
    tensors = {n: torch.randn(2, 1, 2300, 8, dtype=torch.float64) for n in ("q", "k", "v")}
    doc = torch.randint(0, 40, (2, 2300))
    doc[1] = doc[1].sort().values
    pair = build(spec, Variant(target, 8, 8, "f64", (("doc", "i64"),), gradients=("q", "k", "v")))
    arrays = {**{n: x.numpy() for n, x in tensors.items()}, "doc": doc.numpy()}
    out = run_program(pair.forward, arrays).outputs["out"]
    _close("out", out, evaluate(spec, {**tensors, "doc": doc}).out)


def _close(name: str, got: np.ndarray, want: torch.Tensor) -> None:
    expected = want.detach().numpy()
    np.testing.assert_allclose(
        got,
        expected,
        rtol=1e-9,
        atol=1e-9 * max(1.0, float(np.abs(np.nan_to_num(expected, neginf=0)).max(initial=0))),
        err_msg=name,
    )
