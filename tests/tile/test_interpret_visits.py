"""The streaming programs visit each true pair once, and promise full tiles only where the mask holds everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from attncc.driver import analyse
from attncc.expr.nodes import Const, Expr, Op, Var, walk
from attncc.ir.nodes import Load
from attncc.schedule.programs import stream
from attncc.schedule.stream import Problem
from attncc.schedule.variant import Variant
from attncc.tile.interpret import run_program
from attncc.tile.interpret_values import evaluate
from attncc.tile.nodes import Dtype
from tests.support.specs import SPECS

SHAPES = [(2, 2, 1, 70, 70), (1, 2, 2, 150, 33), (1, 2, 1, 20, 190)]
"""B, H, G, M, N."""
KINDS: dict[str, Dtype] = {"real": "f64", "int": "i64", "bool": "bool"}


def dense(mask: Expr, names: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    """A mask's value on whole arrays; loads outside their tensors read the nearest element."""
    loads: dict[Expr, Var] = {}
    values = {n: np.asarray(x) for n, x in names.items()}

    def value(e: Expr) -> Any:
        done: dict[Expr, Expr] = {}
        for node in walk(e):
            if isinstance(node, Load):
                places = np.broadcast_arrays(*(value(c) for c in node.index))
                source = tensors[node.tensor]
                inside = tuple(np.clip(p, 0, n - 1) for p, n in zip(places, source.shape, strict=True))
                done[node] = loads.setdefault(node, Var(f"load {len(loads)}", node.sort))
                values[loads[node].name] = source[inside]
            elif isinstance(node, Op):
                done[node] = Op(node.name, tuple(done[a] for a in node.args), node.sort)
            else:
                assert isinstance(node, Const | Var)
                done[node] = node
        return evaluate(done[e], lambda v: values[v.name], np.float64)

    return value(mask)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_true_pair_is_visited_once(name: str, shape: tuple[int, ...]) -> None:
    B, H, G, M, N = shape
    spec, rng = SPECS[name], np.random.default_rng(0)
    sizes = {"b": B, "h": H, "g": G, "m": M, "n": N}
    tensors: dict[str, Any] = {}
    for p in spec.params:
        extents = [sizes[a.index] if a.index in sizes else int(getattr(a.size, "value", 1)) for a in p.axes]
        ids = np.sort(rng.integers(0, 3, extents), axis=-1)
        tensors[p.name] = {"real": rng.standard_normal(extents), "int": ids, "bool": rng.random(extents) < 0.7}[p.sort]
    unit = analyse(spec, 8, 8)
    assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
    kinds = tuple((p.name, KINDS[p.sort]) for p in spec.params)
    variant = Variant("triton", 8, 8, "f64", kinds, gradients=("q", "k", "v"))
    pair = stream(Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, variant))
    constants = {c.name: 20 if c.name == "window" else c.value for c in spec.constants}
    b, h, i, j = np.ogrid[:B, :H, :M, :N]
    names = {**dict(zip("BHGMN", shape, strict=True)), **constants, "b": b, "h": h, "g": h // (H // G), "i": i + N - M}
    mask = np.broadcast_to(dense(unit.attend.mask, {**names, "j": j}, tensors), (B, H, M, N))
    inputs = {
        **{x: rng.standard_normal((B, n, m, 8)) for x, n, m in (("q", H, M), ("k", G, N), ("v", G, N))},
        **tensors,
    }
    forward = run_program(pair.forward, inputs, constants)
    (seen,) = forward.visits.values()
    assert seen.keys == ("h", "b")
    seen.check(mask.swapaxes(0, 1), ("i", "j"))
    assert pair.backward is not None
    given = {"d_out": np.ones((B, H, M, 8)), **forward.outputs}
    for kernel, seen in run_program(pair.backward, {**inputs, **given}, constants).visits.items():
        of_keys = np.moveaxis(mask.reshape(B, G, H // G, M, N), 1, 0)
        seen.check(mask.swapaxes(0, 1) if seen.keys == ("h", "b") else of_keys, ("i", "j"))
        assert kernel in ("keys_kernel", "queries_kernel")


def test_the_mask_above_is_dense() -> None:
    """The helper agrees with torch on a causal window."""
    unit = analyse(SPECS["sliding_window"], 8, 8)
    assert unit.attend is not None
    i, j = np.ogrid[:9, :9]
    got = dense(unit.attend.mask, {"i": i, "j": j, "M": 9, "N": 9, "window": 4}, {})
    ones = torch.ones(9, 9, dtype=torch.bool)
    want = ones.tril().logical_and(ones.tril(-4).logical_not())
    assert (np.broadcast_to(got, (9, 9)) == want.numpy()).all()
