"""Numeric factors of a product: taken into it by the printed PyTorch."""

from __future__ import annotations

import torch

from attncc.expr.build import lift, op, rvar
from attncc.tile import nodes as t
from tests.codegen.test_torch_printer import (
    CHANNELS,
    LO,
    ROWS,
    SCORES,
    B,
    D,
    H,
    I,
    J,
    K,
    M,
    Q,
    X,
    Y,
    b,
    d,
    h,
    j,
    let,
    load,
    over,
    program,
    r,
    ranges,
    run,
    summed,
    tensor,
)


def test_scale_of_a_product_is_taken_in() -> None:
    """s * 0.25 costs no pass over the tile."""
    got, text = run(summed(ranges(t.Interval(lift(0), lift(2)))), X, Y, LO)
    assert "alpha=0.25" in text and "mul_(0.25)" not in text
    torch.testing.assert_close(got, SCORES.sum(-1))


def test_number_found_on_the_way_scales_a_product() -> None:
    factor = t.Let("c", over(), t.Map(op("div", 1.0, op("real", op("add", M, 1)))))
    dot = t.Let("s", over(I, J), t.Dot("x", "y", "d"))
    scaled = let("w", op("mul", rvar("s"), rvar("c")), I, J)
    body = (
        ROWS,
        CHANNELS,
        factor,
        t.Let("j", over(J, dtype="i32"), t.Iota(lift(0))),
        load("x", "q", b, h, r, d, type=over(I, D), guard=op("lt", r, M)),
        load("y", "k", b, h, j, d, type=over(J, D)),
        dot,
        scaled,
        t.Let("total", over(I), t.Reduce("sum", "w", "j")),
        t.Store("out", (b, h, r), "total", op("lt", r, M)),
    )
    got, text = run(program(body, Q, K, out=tensor("out", "bhi", B, H, M)), X, Y)
    torch.testing.assert_close(got, SCORES[..., :4].sum(-1) * 4 / 8)
    assert "alpha=c" in text
