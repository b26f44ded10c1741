"""Random Specs that keep every rule of the Spec IR: a few parameters, a `let` or two, any normaliser."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import strategies as st

from attncc.expr.build import TRUE, ivar, op, to_real
from attncc.expr.nodes import Const, Expr, Sort, Var
from attncc.ir.nodes import (
    Axis,
    Binder,
    ConstParam,
    Contract,
    Let,
    Load,
    Normaliser,
    Out,
    Param,
    Rebind,
    Reduce,
    S,
    Scan,
    Segment,
    Spec,
    Statement,
    Weights,
)

AXES = {"b": "B", "h": "H", "n": "N", "d": "D"}
READ_AT = {"b": "b", "h": "h", "n": "j", "d": "d"}
INT_OPS = ("add", "sub", "mul", "floordiv", "mod", "min", "max", "neg", "abs")
REAL_OPS = ("add", "sub", "mul", "div", "min", "max", "pow", "neg", "exp", "log", "tanh", "sigmoid", "relu", "square")
UNARY = {"neg", "abs", "exp", "log", "tanh", "sigmoid", "relu", "square", "not"}

ints = st.integers(-9, 99).map(lambda x: Const(x, "int"))
floats = st.sampled_from([-math.inf, -2.5, -1e-06, 0.0, 0.5, 1.0, 1e16, math.inf]) | st.floats(-10, 10)
reals = floats.map(lambda x: Const(x, "real"))


@dataclass
class World:
    """What expressions may use."""

    constants: list[ConstParam]
    tensors: list[tuple[str, Sort, tuple[str, ...]]] = field(default_factory=list)
    offsets: list[str] = field(default_factory=list)


@st.composite
def expressions(draw: st.DrawFn, world: World, sort: Sort, indices: tuple[str, ...], depth: int) -> Expr:
    """An expression of `sort` over `indices`."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(_leaves(world, sort, indices))

    def inner(kind: Sort) -> Expr:
        return draw(expressions(world, kind, indices, depth - 1))

    match sort:
        case "bool":
            name = draw(st.sampled_from(("lt", "le", "eq", "ne", "and", "or", "not")))
            kind: Sort = "bool" if name in ("and", "or", "not") else draw(st.sampled_from(("int", "real")))
        case "int":
            name = draw(st.sampled_from((*INT_OPS, "floor", "where")))
            kind = "real" if name == "floor" else "int"
        case _:
            name, kind = draw(st.sampled_from((*REAL_OPS, "real", "where"))), "real"
    if name == "where":
        return op("where", inner("bool"), inner(sort), inner(sort))
    if name in ("floor", "real"):
        return op(name, inner("real" if name == "floor" else "int"))
    return op(name, *(inner(kind) for _ in range(1 if name in UNARY else 2)))


def _leaves(world: World, sort: Sort, indices: tuple[str, ...]) -> st.SearchStrategy[Expr]:
    found: list[Expr] = [Var(c.name, c.sort) for c in world.constants if c.sort == sort]
    if sort == "int":
        found += [ivar(i) for i in (*indices, "N", "D")]
        found += [Segment(name, ivar(i)) for name in world.offsets for i in indices]
    for name, kind, axes in world.tensors:
        read = tuple(READ_AT[a] for a in axes)
        if kind == sort and set(read) <= set(indices):
            found.append(Load(name, tuple(map(ivar, read)), kind))
    literals: dict[Sort, st.SearchStrategy[Expr]] = {
        "int": ints,
        "real": reals,
        "bool": st.booleans().map(lambda x: Const(x, "bool")),
    }
    return st.sampled_from(found) | literals[sort] if found else literals[sort]


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """A Spec that verifies."""
    sorts: st.SearchStrategy[Sort] = st.sampled_from(("int", "real", "bool"))
    values = {"int": st.integers(-3, 300), "real": st.floats(-50, 50).map(lambda x: x + 0.0), "bool": st.booleans()}
    constants = []
    for name in _names("c", draw(st.integers(0, 2))):
        sort = draw(sorts)
        constants.append(ConstParam(name, draw(values[sort]), sort))
    world = World(constants)
    params = [draw(_params(name, world)) for name in _names("t", draw(st.integers(0, 3)))]
    statements: list[Statement] = [draw(_lets(name, world)) for name in _names("x", draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        variables = tuple(map(ivar, "bhid"))
        body = op("mul", Load("q", variables, "real"), draw(expressions(world, "real", ("b", "h", "i", "d"), 2)))
        statements.append(Rebind("q", variables, ivar("D"), body))
    return Spec("random", tuple(constants), tuple(params), tuple(statements), Out(draw(_outs(world))))


@st.composite
def _params(draw: st.DrawFn, name: str, world: World) -> Param:
    if draw(st.integers(0, 4)) == 0:
        world.offsets.append(name)
        return Param(name, "int", (), offsets=True)
    sort: Sort = draw(st.sampled_from(("int", "real", "bool")))
    axes = tuple(draw(st.lists(st.sampled_from(sorted(AXES)), unique=True, max_size=3)))
    world.tensors.append((name, sort, axes))
    bounds = (Const(-math.inf, "real"), Const(0.0, "real")) if sort == "real" and draw(st.booleans()) else None
    return Param(name, sort, tuple(Axis(a, ivar(AXES[a])) for a in axes), bounds)


@st.composite
def _lets(draw: st.DrawFn, name: str, world: World) -> Let:
    axes = ("b", "h", "n")
    body = draw(expressions(world, "real", ("b", "h", "j"), 3))
    if draw(st.booleans()):
        body = Scan("sum", body, Binder(ivar("j"), ivar("N")), draw(st.booleans()), draw(st.booleans()))
    made = Let(name, tuple(Axis(a, ivar(AXES[a])) for a in axes), tuple(map(ivar, "bhj")), body, draw(st.booleans()))
    world.tensors.append((name, "real", axes))
    return made


@st.composite
def _outs(draw: st.DrawFn, world: World) -> Expr:
    q, k = Load("q", tuple(map(ivar, "bhid")), "real"), Load("k", tuple(map(ivar, "bgjd")), "real")
    dot = Contract(q, k, ivar("d"), ivar("D"))
    pair = ("b", "h", "i", "j")
    score = op(draw(st.sampled_from(("add", "mul", "max"))), dot, draw(expressions(world, "real", pair, 3)))
    mask = draw(st.just(TRUE) | expressions(world, "bool", pair, 3))
    exp = op("exp", S)
    z = draw(st.none() | expressions(world, "real", ("b", "h", "i"), 2))
    normaliser = draw(
        st.sampled_from(
            (
                Normaliser("ratio", exp, exp, z),
                Normaliser("ratio", op("relu", S), op("add", op("abs", S), 1.0), z),
                Normaliser("none", op("sigmoid", S)),
                Normaliser("scan", op("sigmoid", S)),
                Normaliser("threshold", S, options=(("alpha", Const(1.5, "real")),)),
            )
        )
    )
    keys = (Binder(ivar("j"), ivar("N")),)
    dropout = draw(st.none() | st.just(Const(0.1, "real")))
    weights = Weights(score, mask, normaliser, keys, dropout)
    attended = Contract(weights, Load("v", tuple(map(ivar, "bgje")), "real"), ivar("j"), ivar("N"))
    outer = draw(expressions(world, "real", ("b", "h", "i", "e"), 2))
    count = Reduce("sum", to_real(op("mul", ivar("j"), ivar("i"))), keys, mask)
    return op("add", op("mul", attended, outer), draw(st.sampled_from((count, Const(1.0, "real")))))
