"""Every rule of the Spec IR has a Spec that breaks it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attncc.expr.build import ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Op, Var
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
    Weights,
)
from attncc.ir.verify import BadSpec, verify
from tests.support.specs import (
    CAUSAL,
    EXP,
    KEYS,
    QK,
    SCALED,
    SPECS,
    B,
    D,
    H,
    K,
    N,
    Q,
    V,
    attend,
    b,
    d,
    e,
    h,
    i,
    j,
    param,
    softmax,
)

RATIO = Normaliser("ratio", EXP, EXP)
SLOPE = param("slope", "real", "h")
DOC = param("doc", "int", "b", "n")
CU = Param("cu", "int", (), offsets=True)
OUT = attend(softmax(SCALED, CAUSAL))


def spec(out: Out | Expr = OUT, *params: Param, constants: Any = (), statements: Any = ()) -> Spec:
    return Spec("broken", constants, params, statements, out if isinstance(out, Out) else Out(out))


def let(body: Expr, *names: str, name: str = "x") -> Let:
    sizes = {"b": B, "h": H, "j": N, "d": D}
    return Let(name, tuple(Axis("n" if n == "j" else n, sizes[n]) for n in names), tuple(map(ivar, names)), body)


def scored(score: Expr, *params: Param) -> Spec:
    return spec(attend(softmax(score, CAUSAL)), *params)


def weighed(**changes: Any) -> Spec:
    return spec(attend(replace(Weights(SCALED, CAUSAL, RATIO, KEYS), **changes)))


ONE = Const(1.0, "real")

BROKEN: dict[str, tuple[str, Spec]] = {
    "constant twice": ("names", spec(constants=(ConstParam("c", 1, "int"), ConstParam("c", 2, "int")))),
    "constant named as an index": ("names", spec(constants=(ConstParam("i", 1, "int"),))),
    "parameter named as a size": ("names", spec(OUT, param("N", "real", "h"))),
    "parameter named q": ("names", spec(OUT, param("q", "real", "h"))),
    "let named as a parameter": ("names", spec(OUT, SLOPE, statements=(let(ONE, "b", name="slope"),))),
    "unknown tensor": ("names", scored(op("add", QK, Load("slope", (h,), "real")))),
    "let read above itself": (
        "names",
        spec(OUT, statements=(let(Load("y", (b,), "real"), "b"), let(ONE, "b", name="y"))),
    ),
    "let that reads itself": ("names", spec(OUT, statements=(let(Load("x", (b,), "real"), "b"),))),
    "segment of no offsets": ("names", spec(attend(softmax(QK, op("eq", Segment("doc", i), 0))), DOC)),
    "binder named as a size": ("names", spec(Reduce("sum", op("real", N), (Binder(N, N),)))),
    "unknown variable": ("binding", scored(op("add", QK, op("real", ivar("window"))))),
    "score outside a normaliser": ("binding", scored(op("add", QK, S))),
    "score in z": ("binding", weighed(normaliser=replace(RATIO, z=EXP))),
    "z over the keys": ("binding", weighed(normaliser=replace(RATIO, z=op("exp", op("real", j))))),
    "phi over the keys": ("binding", weighed(normaliser=replace(RATIO, phi=op("mul", EXP, op("real", j))))),
    "dropout by position": ("binding", weighed(dropout=op("real", i))),
    "bounds by position": ("binding", spec(OUT, replace(SLOPE, bounds=(op("real", i), ONE)))),
    "score over a channel": ("binding", scored(op("add", QK, op("real", ivar("t"))))),
    "keys left free": ("outputs", spec(softmax(SCALED, CAUSAL))),
    "channel of q in out": ("outputs", spec(op("mul", OUT.body, op("real", d)))),
    "let wider than its axes": ("outputs", spec(OUT, statements=(let(op("real", j), "b", "h"),))),
    "let with axes for no variable": (
        "outputs",
        spec(OUT, statements=(replace(let(ONE, "b", "h"), vars=(b,)),)),
    ),
    "let with one variable twice": ("outputs", spec(OUT, statements=(replace(let(ONE, "b", "h"), vars=(b, b)),))),
    "new q over the keys": ("outputs", spec(OUT, statements=(Rebind("q", (b, h, j, d), D, Q),))),
    "new k without a channel": ("outputs", spec(OUT, statements=(Rebind("k", (b, ivar("g"), j), D, K),))),
    "size by position": ("sizes", spec(OUT, Param("t", "real", (Axis("", i),)))),
    "real size": ("sizes", spec(OUT, Param("t", "real", (Axis("", ONE),)))),
    "extent by position": ("sizes", spec(Contract(softmax(SCALED, CAUSAL), V, j, op("add", i, 1)))),
    "channels by position": ("sizes", spec(OUT, statements=(Rebind("q", (b, h, i, d), i, Q),))),
    "too few subscripts": ("rank", scored(op("add", QK, Load("slope", (), "real")), SLOPE)),
    "real subscript": ("rank", scored(op("add", QK, Load("slope", (ONE,), "real")), SLOPE)),
    "query rows elsewhere": ("rank", spec(op("add", OUT.body, Load("q", (b, h, op("sub", i, 1), e), "real")))),
    "offsets read": ("rank", scored(op("add", QK, op("real", Load("cu", (i,), "int"))), CU)),
    "load of another sort": ("sorts", scored(op("add", QK, Load("doc", (b, j), "real")), DOC)),
    "constant of another sort": ("sorts", spec(constants=(ConstParam("c", 1, "real"),))),
    "variable of another sort": ("sorts", scored(op("add", QK, rvar("i")))),
    "unknown operation": ("sorts", scored(Op("sech", (QK,), "real"))),
    "operation on a wrong sort": ("sorts", scored(Op("tanh", (CAUSAL,), "real"))),
    "operation of a wrong sort": ("sorts", spec(attend(softmax(SCALED, Op("lt", (i, j), "int"))))),
    "unpromoted operand": ("sorts", scored(Op("add", (QK, i), "real"))),
    "unpromoted integer": ("sorts", scored(op("mul", QK, Op("exp", (i,), "real")))),
    "real mask": ("sorts", weighed(mask=SCALED)),
    "bool score": ("sorts", weighed(score=CAUSAL)),
    "real where": ("sorts", spec(Reduce("sum", op("real", j), KEYS, QK))),
    "any of numbers": ("sorts", spec(Reduce("any", op("real", j), KEYS, sort="bool"))),
    "argmax as real": ("sorts", spec(Reduce("argmax", op("real", j), KEYS))),
    "sum of bools": ("sorts", spec(Reduce("sum", CAUSAL, KEYS))),
    "scan of bools": ("sorts", spec(OUT, statements=(let(Scan("sum", CAUSAL, KEYS[0]), "b", "j"),))),
    "contraction of integers": ("sorts", spec(Contract(j, V, j, N))),
    "offsets of reals": ("sorts", spec(OUT, replace(CU, sort="real"))),
    "segment at a real": (
        "sorts",
        spec(attend(softmax(QK, op("eq", Segment("cu", ONE), 0))), CU),
    ),
    "bool out": ("sorts", spec(op("lt", OUT.body, 0.0))),
    "integer q": ("sorts", spec(OUT, statements=(Rebind("q", (b, h, i, d), D, i),))),
    "contraction over an axis of one side": ("atoms", spec(Contract(OUT.body, V, j, N))),
    "weights without keys": ("atoms", weighed(keys=())),
    "keys twice": ("atoms", weighed(keys=KEYS * 2)),
    "reduction over nothing": ("atoms", spec(Reduce("sum", OUT.body, ()))),
    "ratio without psi": ("atoms", weighed(normaliser=replace(RATIO, psi=None))),
    "none with psi": ("atoms", weighed(normaliser=replace(RATIO, kind="none"))),
    "none with z": ("atoms", weighed(normaliser=Normaliser("none", S, z=ONE))),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    rule, broken = BROKEN[name]
    with pytest.raises(BadSpec) as caught:
        verify(broken)
    assert caught.value.rule == rule, str(caught.value)
    assert "broken" in str(caught.value)


def test_every_rule_is_broken() -> None:
    assert verify.__doc__ is not None
    rules = {line.split()[0] for line in verify.__doc__.splitlines()[2:] if line.strip()}
    assert {rule for rule, _ in BROKEN.values()} == rules - {"steps"}  # broken in test_recurrence.py


@pytest.mark.parametrize("name", SPECS)
def test_good(name: str) -> None:
    verify(SPECS[name])


def test_a_constant_may_be_called_s() -> None:
    verify(spec(attend(softmax(SCALED, op("lt", j, Var("s", "int")))), constants=(ConstParam("s", 4, "int"),)))
