"""Constructors that check sorts against the op table and insert the int -> real promotions. They never simplify."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.expr.ops import OPS, result_sort

TRUE = Const(True, "bool")
FALSE = Const(False, "bool")

Operand = Expr | int | float | bool


def lift(x: Operand) -> Expr:
    """A Python number as a constant of its own sort."""
    if isinstance(x, Expr):
        return x
    if isinstance(x, bool):
        return Const(x, "bool")
    return Const(x, "int") if isinstance(x, int) else Const(float(x), "real")


def op(name: str, *args: Operand) -> Expr:
    """`name` applied to `args`; ints are promoted where a real is wanted. TypeError on a sort mismatch."""
    xs = tuple(lift(a) for a in args)
    sort = result_sort(name, tuple(x.sort for x in xs))
    rule = OPS[name].rule
    first = 1 if rule == "where" else 0
    if rule == "real" or (rule in ("join", "where", "compare") and "real" in {x.sort for x in xs[first:]}):
        xs = xs[:first] + tuple(to_real(x) for x in xs[first:])
    return Op(name, xs, sort)


def to_real(x: Operand) -> Expr:
    """`x` promoted to real; a literal is converted in place."""
    e = lift(x)
    if e.sort == "real":
        return e
    return Const(float(e.value), "real") if isinstance(e, Const) else Op("real", (e,), "real")


def ivar(name: str) -> Var:
    """A variable of sort int."""
    return Var(name, "int")


def rvar(name: str) -> Var:
    """A variable of sort real."""
    return Var(name, "real")


def conj(*parts: Expr) -> Expr:
    """The `and` of all parts; TRUE of none."""
    kept = [p for p in parts if p is not TRUE]
    return reduce(lambda a, b: op("and", a, b), kept) if kept else TRUE


def conjuncts(e: Expr) -> Iterator[Expr]:
    """The parts of an `and`, or `e` itself."""
    match e:
        case Op("and", args):
            for a in args:
                yield from conjuncts(a)
        case _:
            yield e


def disj(*parts: Expr) -> Expr:
    """The `or` of all parts; FALSE of none."""
    kept = [p for p in parts if p is not FALSE]
    return reduce(lambda a, b: op("or", a, b), kept) if kept else FALSE
