"""The interpreter against dense attention, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attncc.expr.build import TRUE, ivar, op, rvar
from attncc.tile import interpret_faults as faults
from attncc.tile.interpret import run_kernel, run_program
from attncc.tile.interpret_values import round_bf16
from attncc.tile.nodes import (
    Axis,
    Dtype,
    Full,
    GridAxis,
    Interval,
    Iota,
    Kernel,
    Let,
    Load,
    Map,
    Ranges,
    ReduceAdd,
    Stmt,
    Store,
    Type,
)
from tests.tile.programs.alter import altered, swap
from tests.tile.programs.causal import causal, int_

SIZES = [
    (1, 2, 1, 40, 40),
    (2, 4, 2, 17, 33),
    (1, 1, 1, 33, 17),
    (1, 1, 1, 33, 20),
    (1, 2, 2, 1, 9),
    (2, 2, 1, 5, 0),
    (1, 1, 1, 0, 4),
]


def arrays(b: int, h: int, g: int, m: int, n: int, D: int = 8, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sizes = {"q": (b, h, m, D), "k": (b, g, n, D), "v": (b, g, n, D)}
    return {name: rng.standard_normal(size) for name, size in sizes.items()}


def dense(x: dict[str, Any], scale: float) -> tuple[Any, Any, Any]:
    """Causal softmax attention, its lse and its mask, in double precision."""
    h, g, m, n = x["q"].shape[1], x["k"].shape[1], x["q"].shape[2], x["k"].shape[2]
    k, v = (np.repeat(x[t].astype(np.float64), h // g, axis=1) for t in "kv")
    mask = np.arange(n)[None, :] <= np.arange(m)[:, None] + n - m
    s = np.where(mask, np.einsum("bhid,bhjd->bhij", x["q"].astype(np.float64), k) * scale, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = np.log(np.exp(s).sum(-1))
        p = np.where(mask, np.exp(s - lse[..., None]), 0.0)
    return np.einsum("bhij,bhje->bhie", p, v), lse, mask


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("f64", 1e-12), ("f32", 1e-5), ("f16", 2e-3), ("bf16", 2e-2)])
def test_causal_program_agrees_with_dense_attention(sizes: Any, dtype: Dtype, tolerance: float) -> None:
    x = arrays(*sizes)
    report = run_program(causal(dtype), x, {"scale": 0.3})
    out, lse, mask = dense(x, 0.3)
    np.testing.assert_allclose(report.outputs["out"], out, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(report.outputs["lse"], lse, rtol=tolerance, atol=tolerance)
    if sizes[3]:
        report.visits["forward"].check(np.broadcast_to(mask, (sizes[1], sizes[0], *mask.shape)))


def test_the_seed_changes_orders_only() -> None:
    x = arrays(1, 2, 1, 40, 40)
    runs = [run_program(causal("f64"), x, {"scale": 0.3}, seed=s).outputs["out"] for s in range(3)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-13)
    np.testing.assert_allclose(runs[0], runs[2], rtol=1e-13)


def test_visits_count_pairs_and_find_missed_ones() -> None:
    x = arrays(1, 1, 1, 32, 32)
    visits = run_program(causal(), x, {"scale": 1.0}).visits["forward"]
    count = visits.dense()[0, 0]
    assert visits.axes == ("i", "j") and visits.keys == ("h", "b")
    assert count.max() == 1 and count[0, :16].all() and not count[0, 16:].any() and count[16:].all()
    assert (visits.dense(("j", "i"))[0, 0] == count.T).all()
    with pytest.raises(faults.RangesFault, match="never visited"):
        visits.check(np.ones((1, 1, 32, 32), dtype=bool))


def test_bf16_rounds_to_nearest_even() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, 1.004, -1.00390625, 3.4e38, np.inf, -np.inf], dtype=np.float32)
    want = np.array([1.0, 1.0, 1.015625, 1.0078125, -1.0, np.inf, np.inf, -np.inf], dtype=np.float32)
    assert (round_bf16(x) == want).all()
    assert np.isnan(round_bf16(np.array([np.nan], dtype=np.float32)))[0]


def run_altered(change: Callable[[Stmt], Stmt | None]) -> None:
    run_program(altered(causal(), change), arrays(1, 2, 1, 40, 40), {"scale": 0.3})


def named(s: Stmt, name: str) -> bool:
    return getattr(s, "name", None) == name or (isinstance(s, Store) and s.tensor == name)


def test_unguarded_load_outside_a_tensor() -> None:
    def change(s: Stmt) -> Stmt:
        return swap(s, op=swap(s.op, guard=TRUE)) if isinstance(s, Let) and isinstance(s.op, Load) else s

    with pytest.raises(faults.IndexFault, match=r"forward \(.*\): qt = Load: q: index 40 on axis i of extent 40"):
        run_altered(change)


def test_output_that_nothing_stores() -> None:
    with pytest.raises(faults.UnwrittenFault, match="output lse"):
        run_altered(lambda s: None if named(s, "lse") else s)


def test_output_stored_by_two_programs() -> None:
    zero = (int_(0), ivar("h"), ivar("r"))
    with pytest.raises(faults.StoredTwiceFault):
        program = altered(causal(), lambda s: swap(s, index=zero) if isinstance(s, Store) and s.tensor == "lse" else s)
        run_program(program, arrays(2, 2, 1, 8, 8), {"scale": 0.3})


def test_reading_what_nothing_stored() -> None:
    with pytest.raises(faults.UnwrittenFault, match="read before"):
        run_altered(
            lambda s: (
                swap(s, op=Load("lse", (ivar("b"), ivar("h"), ivar("r")), op("lt", ivar("r"), ivar("M"))))
                if named(s, "m_")
                else s
            )
        )


def test_a_running_maximum_of_minus_infinity_makes_nan() -> None:
    with pytest.raises(faults.NotANumberFault):
        program = altered(causal(), lambda s: swap(s, op=Full(op("neg", float("inf")))) if named(s, "m_") else s)
        run_program(program, arrays(1, 1, 1, 33, 20), {"scale": 0.3})


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (Ranges(8, ivar("N"), (Interval(int_(0), int_(2)), Interval(int_(1), int_(3)))), "visited twice"),
        (Ranges(8, ivar("N"), (Interval(int_(0), int_(6)),)), "outside the axis"),
        (Ranges(16, ivar("N"), (Interval(int_(0), int_(3)),), full=True), "promised full"),
    ],
)
def test_ranges_that_break_their_promises(ranges: Ranges, message: str) -> None:
    with pytest.raises(faults.RangesFault, match=message):
        run_altered(lambda s: swap(s, over=ranges) if hasattr(s, "over") else s)


def test_types_are_checked() -> None:
    wrong = Type((Axis("i", 16), Axis("j", 4)), "f32")
    with pytest.raises(faults.TypeFault, match=r"qk = Dot"):
        run_altered(lambda s: swap(s, type=wrong) if named(s, "qk") else s)
    with pytest.raises(faults.TypeFault, match="not in scope"):
        run_altered(lambda s: None if named(s, "shift") else s)
    with pytest.raises(faults.TypeFault, match="read as"):
        run_altered(lambda s: swap(s, op=Map(op("add", rvar("r"), 1.0))) if named(s, "m_") else s)


def test_missing_inputs_and_scalars() -> None:
    x = arrays(1, 2, 1, 8, 8)
    with pytest.raises(faults.TypeFault, match="scale is neither"):
        run_program(causal(), x)
    with pytest.raises(faults.TypeFault, match="declared"):
        run_program(causal(D=16), x, {"scale": 1.0})


# --- kernels alone ---------------------------------------------------------------------------------------------------


def _kernel(*body: Stmt, extent: int = 8) -> Kernel:
    grid = (GridAxis("x0", int_(extent), "tile", 4, "x"),)
    lane = Let("x", Type((Axis("x", 4),), "i32"), Iota(ivar("x0")))
    return Kernel("k", grid, ("a", "y"), (), (lane, *body))


X = Type((Axis("x", 4),), "f32")
FRESH = np.full(8, np.nan, dtype=np.float32)


def test_race_between_programs() -> None:
    load = Let("old", X, Load("y", (op("sub", 7, ivar("x")),)))
    kernel = _kernel(load, Store("y", (ivar("x"),), "old"))
    with pytest.raises(faults.RaceFault, match="another program"):
        run_kernel(kernel, {"a": FRESH, "y": np.zeros(8, dtype=np.float32)}, {})


@pytest.mark.parametrize("how", ["owned", "atomic"])
def test_reduce_add(how: Any) -> None:
    one = Let("one", X, Full(op("real", 1)))
    kernel = _kernel(one, ReduceAdd("y", (op("mod", ivar("x"), 4),), "one", how))
    tensors = {"a": FRESH, "y": np.zeros(8, dtype=np.float32)}
    if how == "owned":
        with pytest.raises(faults.RaceFault, match="two programs"):
            run_kernel(kernel, tensors, {})
    else:
        assert run_kernel(kernel, tensors, {}).outputs["y"].tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
