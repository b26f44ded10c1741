"""What only a store under a condition of the program reads moves under it."""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import TRUE, ivar, op
from attncc.expr.nodes import Const, Var
from attncc.schedule.sink import sink
from attncc.tile import nodes as t

NUMBER = t.Type((), "f32")
TILE = t.Type((t.Axis("i", 16),), "f32")
B = ivar("b")


def load(name: str, tensor: str) -> t.Let:
    return t.Let(name, TILE, t.Load(tensor, (Var("i", "int"),), TRUE))


def total(name: str, of: str) -> t.Let:
    return t.Let(name, NUMBER, t.Reduce("sum", of, "i"))


def store(value: str, guard: bool) -> t.Store:
    return t.Store("out", (B,), value, op("eq", B, 0) if guard else TRUE)


def kernel(*body: t.Stmt) -> t.Kernel:
    return t.Kernel("k", (t.GridAxis("b", ivar("B"), "batch"),), ("x", "y", "out"), ("B",), body, t.Config(4, 1))


def names(body: tuple[t.Stmt, ...]) -> list[str]:
    return [s.name if isinstance(s, t.Let) else type(s).__name__ for s in body]


def test_what_nothing_else_reads_moves() -> None:
    lane = t.Let("i", t.Type(TILE.axes, "i32"), t.Iota(Const(0, "int")))
    body = (lane, load("x", "x"), load("y", "y"), total("a", "x"), total("c", "y"), store("a", True), store("c", False))
    found = sink(kernel(*body)).body
    assert names(found) == ["i", "y", "c", "If", "Store"]
    (branch,) = (s for s in found if isinstance(s, t.If))
    assert names(branch.then) == ["x", "a", "Store", "Yield"] and names(branch.orelse) == ["Yield"]
    assert branch.condition == op("eq", B, 0)
    assert [s.guard for s in branch.then if isinstance(s, t.Store)] == [TRUE]


def test_what_others_read_or_the_condition_reads_stays() -> None:
    lane = t.Let("i", t.Type(TILE.axes, "i32"), t.Iota(Const(0, "int")))
    at = t.Let("at", t.Type((), "i32"), t.Map(op("add", B, 1)))
    guarded = replace(store("a", True), guard=op("eq", Var("at", "int"), 0), index=(Var("at", "int"),))
    found = sink(kernel(lane, at, load("x", "x"), total("a", "x"), total("c", "x"), store("c", False), guarded)).body
    assert names(found) == ["i", "at", "x", "c", "Store", "If"]


def test_stores_without_conditions_stay() -> None:
    body = (load("x", "x"), total("a", "x"), store("a", False))
    assert sink(kernel(*body)).body == body
