"""Single operations and host steps of the interpreter against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncc.expr.build import ivar, op
from attncc.expr.ops import OPS
from attncc.tile import interpret_faults as faults
from attncc.tile import nodes as t
from attncc.tile.interpret import run_kernel, run_program
from attncc.tile.interpret_host import first_last
from attncc.tile.interpret_ops import random
from attncc.tile.interpret_values import _TABLE
from tests.tile.programs.causal import int_

I, J = t.Axis("i", 4), t.Axis("j", 8)
X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def apply(operation: t.Op, type: t.Type, x: Any = X, axes: tuple[t.Axis, ...] = (I, J)) -> Any:
    """One operation on a value x over `axes`, stored whole."""
    kind: t.Dtype = "f32" if x.dtype.kind == "f" else "i32"
    lanes: list[t.Stmt] = [t.Let(a.name, t.Type((a,), "i32"), t.Iota(int_(0))) for a in axes]
    lanes += [t.Let(f"at_{a.name}", t.Type((a,), "i32"), t.Iota(int_(0))) for a in type.axes]
    load = t.Let("x", t.Type(axes, kind), t.Load("source", tuple(ivar(a.name) for a in axes)))
    store = t.Store("y", tuple(ivar(f"at_{a.name}") for a in type.axes), "y")
    body = (*lanes, load, t.Let("y", type, operation), store)
    kernel = t.Kernel("k", (t.GridAxis("p", int_(1), "batch"),), ("source", "y"), (), body)
    out = np.full([a.extent for a in type.axes], np.nan)
    return run_kernel(kernel, {"source": x, "y": out}, {}, dtypes={"source": kind, "y": type.dtype}).outputs["y"]


def test_every_scalar_operation_has_a_meaning() -> None:
    assert set(_TABLE) | {"real"} == set(OPS)


@pytest.mark.parametrize(
    ("operation", "type", "want"),
    [
        (t.Reduce("sum", "x", "j"), t.Type((I,), "f32"), X.sum(1)),
        (t.Reduce("min", "x", "i"), t.Type((J,), "f32"), X.min(0)),
        (t.Scan("sum", "x", "j"), t.Type((I, J), "f32"), X.cumsum(1)),
        (t.Scan("max", "x", "i"), t.Type((I, J), "f32"), np.maximum.accumulate(X, 0)),
        (t.Scan("mul", "x", "j", reverse=True), t.Type((I, J), "f32"), X[:, ::-1].cumprod(1)[:, ::-1]),
        (
            t.Scan("sum", "x", "j", exclusive=True),
            t.Type((I, J), "f32"),
            np.concatenate([np.zeros((4, 1)), X.cumsum(1)[:, :-1]], 1),
        ),
        (
            t.Scan("sum", "x", "j", reverse=True, exclusive=True),
            t.Type((I, J), "f32"),
            np.concatenate([X[:, ::-1].cumsum(1)[:, ::-1][:, 1:], np.zeros((4, 1))], 1),
        ),
        (
            t.SplitAxis("x", "j", t.Axis("a", 2), t.Axis("b", 4)),
            t.Type((I, t.Axis("a", 2), t.Axis("b", 4)), "f32"),
            X.reshape(4, 2, 4),
        ),
        (t.JoinAxis("x", "i", "j", t.Axis("n", 32)), t.Type((t.Axis("n", 32),), "f32"), X.reshape(32)),
        (t.TopK("x", "j", 3), t.Type((I, t.Axis("j", 3)), "i32"), np.argsort(-X, 1)[:, :3]),
        (t.Cast("x"), t.Type((J, I), "f32"), X.T),
        (t.Dot("x", "x", "j"), t.Type((I,), "f32"), (X * X).sum(1)),
    ],
)
def test_operations(operation: t.Op, type: t.Type, want: Any) -> None:
    np.testing.assert_allclose(apply(operation, type), want, rtol=2e-5, atol=1e-5)


def test_pack_and_unpack_are_inverse() -> None:
    nibbles = np.random.default_rng(0).integers(0, 16, (4, 8))
    packed = apply(t.Pack("x", 4, "j"), t.Type((I, t.Axis("j", 4)), "u8"), nibbles)
    assert (packed == nibbles[:, ::2] + 16 * nibbles[:, 1::2]).all()
    back = apply(t.Unpack("x", 16, "j"), t.Type((I, t.Axis("j", 16)), "i32"), np.arange(32).reshape(4, 8) * 65537)
    assert (back == np.arange(32).repeat(2).reshape(4, 16)).all()


def test_the_inverse_of_a_triangle() -> None:
    lower = np.tril(X[:, :4], -1)
    axes = (I, t.Axis("c", 4))
    got = apply(t.TriInverse("x", "i", "c"), t.Type(axes, "f32"), lower, axes)
    np.testing.assert_allclose(got @ (np.eye(4) + lower), np.eye(4), atol=1e-5)
    with pytest.raises(faults.TypeFault, match="strictly lower"):
        apply(t.TriInverse("x", "i", "c"), t.Type(axes, "f32"), X[:, :4], axes)


def test_random_is_philox() -> None:
    """The published first word for a zero counter and key, and spread over [0, 1)."""
    word = 0x6627E8D5
    type = t.Type((t.Axis("n", 4096),), "f64")
    got = random(0, np.arange(4096), type).data
    assert got[0] == pytest.approx(word / 2**31, rel=1e-7)
    assert got.min() >= 0 and got.max() < 1 and abs(got.mean() - 0.5) < 0.02


def test_integers_must_fit() -> None:
    with pytest.raises(faults.TypeFault, match="does not fit u8"):
        apply(t.Cast("x"), t.Type((I, J), "u8"), np.full((4, 8), 256))


# --- host steps ------------------------------------------------------------------------------------------------------


def host(step: t.Step, **inputs: Any) -> Any:
    """One host step on integer or real inputs over axes a, b."""
    sizes: dict[str, t.Tensor] = {}
    for n, x in inputs.items():
        kind: t.Dtype = "f64" if x.dtype.kind == "f" else "i64"
        sizes[n] = t.Tensor(n, ("a", "b")[: x.ndim], tuple(int_(s) for s in x.shape), kind)
    return run_program(t.Program("p", tuple(sizes.values()), (), (), (step,), ("y",)), inputs).outputs["y"]


def test_host_steps() -> None:
    x = np.arange(12.0).reshape(3, 4)
    y = t.Tensor("y", ("a", "b"), (int_(3), int_(4)), "f64")
    a, b = ivar("a"), ivar("b")
    assert (host(t.Gather(y, "x", (a, op("sub", 3, b))), x=x) == x[:, ::-1]).all()
    row = t.Tensor("y", ("b",), (int_(2),), "f64")
    assert (host(t.ScatterAdd(row, "x", (op("mod", b, 2),)), x=x) == [x[:, ::2].sum(), x[:, 1::2].sum()]).all()
    assert (host(t.SumAxes(t.Tensor("y", ("b",), (int_(4),), "f64"), "x", ("a",)), x=x) == x.sum(0)).all()
    with pytest.raises(faults.IndexFault):
        host(t.Gather(y, "x", (a, op("add", 1, b))), x=x)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("first", [0, 1, 0, 3, 3, 1]),
        ("last", [2, 5, 2, 4, 4, 5]),
        ("run_first", [0, 1, 2, 3, 3, 5]),
        ("run_last", [0, 1, 2, 4, 4, 5]),
    ],
)
def test_first_and_last(kind: str, want: list[int]) -> None:
    assert first_last(np.array([7, 2, 7, 5, 5, 2]), kind).tolist() == want
    assert first_last(np.zeros((2, 0), dtype=int), kind).shape == (2, 0)
