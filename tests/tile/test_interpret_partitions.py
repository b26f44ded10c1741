"""Partitions, barriers, bulk copies and asynchronous dots under the interpreter, and every way to get them wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attncc.expr.build import ivar, op
from attncc.tile import interpret_faults as faults
from attncc.tile import nodes as t
from attncc.tile.interpret import run_program
from attncc.tile.interpret_faults import InterpretError
from attncc.tile.interpret_kernel import Walker
from tests.tile.programs.alter import altered, statements, swap
from tests.tile.programs.causal import int_

LENGTH, TILE, DEPTH = 48, 8, 2
"""Six tiles through a ring of two slots."""


def ring() -> t.Program:
    """y = 2 x: one partition copies tiles of x into a ring, the other doubles them by a dot and stores them."""
    n, slot = ivar("n"), op("mod", ivar("n"), DEPTH)
    m, held = ivar("m"), op("mod", ivar("m"), DEPTH)
    j, e = t.Axis("j", TILE), t.Axis("e", TILE)
    square = t.Type((j, e), "f32")
    fill: tuple[t.Stmt, ...] = (
        t.BarWait(t.Bar("empty", slot), op("sub", 1, op("mod", op("floordiv", n, DEPTH), 2))),
        t.BarExpect(t.Bar("full", slot), TILE * TILE * 4),
        t.CopyIn(t.Slot("x_s", slot), "x", (op("mul", n, TILE), int_(0)), t.Bar("full", slot)),
    )
    use: tuple[t.Stmt, ...] = (
        t.BarWait(t.Bar("full", held), op("mod", op("floordiv", m, DEPTH), 2)),
        t.Let(
            "late", t.Type((t.Axis("f", TILE), j), "f32"), t.Dot("twice", t.Slot("x_s", held), "e", asynchronous=True)
        ),
        t.Let("done", t.Type((t.Axis("f", TILE), j), "f32"), t.DotWait("late", 0)),
        t.BarArrive(t.Bar("empty", held)),
        t.Let("at", t.Type((j,), "i32"), t.Iota(op("mul", m, TILE))),
        t.Store("y", (ivar("at"), ivar("f")), "done"),
    )
    count = t.Count(int_(0), int_(LENGTH // TILE))
    e_of, f_of = t.Type((e,), "i32"), t.Type((t.Axis("f", TILE),), "i32")
    doubling = op("where", op("eq", ivar("e"), ivar("f")), 2.0, 0.0)
    consumer: tuple[t.Stmt, ...] = (
        t.Let("e", e_of, t.Iota(int_(0))),
        t.Let("f", f_of, t.Iota(int_(0))),
        t.Let("twice", t.Type((t.Axis("f", TILE), e), "f32"), t.Map(doubling)),
        t.For("m", count, (), use, order="asc"),
    )
    body = (
        t.AllocShared("x_s", square, DEPTH),
        t.AllocBar("full", DEPTH),
        t.AllocBar("empty", DEPTH),
        t.Partitions(
            (
                t.Partition("load", 1, 24, (t.For("n", count, (), fill, order="asc"),)),
                t.Partition("double", 4, 0, consumer),
            )
        ),
    )
    x = t.Tensor("x", ("j", "e"), (int_(LENGTH), int_(TILE)), "f32")
    y = replace(x, name="y")
    kernel = t.Kernel("ring", (t.GridAxis("b", int_(1), "batch"),), ("x", "y"), (), body)
    return t.Program("ring", (x,), (), (kernel,), (t.Alloc(y), t.Launch("ring")), ("y",))


X = np.arange(LENGTH * TILE, dtype=np.float32).reshape(LENGTH, TILE)


def test_the_ring_doubles_in_a_hundred_interleavings() -> None:
    for seed in range(100):
        assert (run_program(ring(), {"x": X}, seed=seed).outputs["y"] == 2 * X).all()


def test_a_seed_decides_the_interleaving(monkeypatch: pytest.MonkeyPatch) -> None:
    def order(seed: int) -> tuple[str, ...]:
        """Which partition took each step."""
        taken: list[str] = []
        true = Walker._statement

        def noted(self: Walker, s: t.Stmt, env: Any, thread: Any) -> Any:
            taken.append(thread.name)
            return true(self, s, env, thread)

        with monkeypatch.context() as m:
            m.setattr(Walker, "_statement", noted)
            run_program(ring(), {"x": X}, seed=seed)
        return tuple(taken)

    orders = [order(seed) for seed in range(20)]
    assert order(3) == orders[3] and len(set(orders)) > 15


def broken(drop: type[t.Stmt], index: int = 0) -> t.Program:
    """The ring without its `index`-th statement of a class."""
    victims = [s for s in statements(ring().kernels[0].body) if isinstance(s, drop)]
    return altered(ring(), lambda s: None if s == victims[index] else s)


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (broken(t.BarWait, 0), (faults.RaceFault, faults.BarrierFault)),
        (broken(t.BarWait, 1), (faults.RaceFault, faults.UnwrittenFault)),
        (broken(t.BarArrive), faults.DeadlockFault),
        (broken(t.BarExpect), faults.DeadlockFault),
        (broken(t.CopyIn), faults.DeadlockFault),
        (altered(ring(), lambda s: replace(s, count=2) if isinstance(s, t.AllocBar) else s), faults.DeadlockFault),
        (altered(ring(), lambda s: replace(s, parity=int_(1)) if isinstance(s, t.BarWait) else s), InterpretError),
        (altered(ring(), lambda s: replace(s, parity=int_(2)) if isinstance(s, t.BarWait) else s), faults.BarrierFault),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_every_missing_piece_is_found_in_any_order(program: t.Program, fault: Any, seed: int) -> None:
    with pytest.raises(fault, match="kernel ring"):
        run_program(program, {"x": X}, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_a_slot_released_before_the_dot_has_read_it(seed: int) -> None:
    def early(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
        at = [isinstance(s, t.BarArrive) for s in body].index(True)
        return (*body[: at - 1], body[at], body[at - 1], *body[at + 1 :])

    program = altered(
        ring(), lambda s: replace(s, body=early(s.body)) if isinstance(s, t.For) and s.index == "m" else s
    )
    with pytest.raises(faults.RaceFault):
        run_program(program, {"x": X}, seed=seed)


def test_a_dot_read_before_its_wait() -> None:
    program = altered(ring(), lambda s: swap(s, op=t.DotWait("late", 1)) if getattr(s, "name", "") == "done" else s)
    with pytest.raises(faults.TypeFault, match="does not finish late"):
        run_program(program, {"x": X})


# --- shared stores, fences, copies out -------------------------------------------------------------------------------


def through_shared(*, fence: bool = True, wait: bool = True, again: bool = False) -> t.Program:
    """y = x by way of shared memory and a bulk copy out of range on both ends."""
    j, e = t.Axis("j", TILE), t.Axis("e", TILE)
    square, row = t.Type((j, e), "f32"), t.Type((j,), "i32")
    j0, inside = ivar("j0"), op("lt", ivar("j"), LENGTH - 4)
    body: list[t.Stmt] = [
        t.AllocShared("y_s", square),
        t.Let("j", row, t.Iota(j0)),
        t.Let("e", t.Type((e,), "i32"), t.Iota(int_(0))),
        t.Let("tile", square, t.Load("x", (ivar("j"), ivar("e")), inside)),
        t.SharedStore(t.Slot("y_s", int_(0)), "tile"),
        *([t.Fence()] if fence else []),
        t.CopyOut(t.Slot("y_s", int_(0)), "y", (j0, int_(0))),
        *([t.SharedStore(t.Slot("y_s", int_(0)), "tile")] if again else []),
        *([t.CopyWait(0)] if wait else []),
    ]
    x = t.Tensor("x", ("j", "e"), (int_(LENGTH - 4), int_(TILE)), "f32")
    grid = (t.GridAxis("j0", int_(LENGTH - 4), "tile", TILE, "j"),)
    kernel = t.Kernel("copy", grid, ("x", "y"), (), tuple(body))
    steps = (t.Alloc(replace(x, name="y")), t.Launch("copy"))
    return t.Program("copy", (x,), (), (kernel,), steps, ("y",))


def test_copies_out_drop_what_is_out_of_range() -> None:
    assert (run_program(through_shared(), {"x": X[:-4]}).outputs["y"] == X[:-4]).all()


def test_copies_out_need_a_fence_and_a_wait() -> None:
    with pytest.raises(faults.RaceFault, match="not fenced"):
        run_program(through_shared(fence=False), {"x": X[:-4]})
    with pytest.raises(faults.BarrierFault, match="ends before its 1 bulk copies"):
        run_program(through_shared(wait=False), {"x": X[:-4]})
    with pytest.raises(faults.RaceFault, match="written"):
        run_program(through_shared(again=True), {"x": X[:-4]})
