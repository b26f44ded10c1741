"""Specs of the softmax family built node by node, so that later stages are tested without the parser."""

from __future__ import annotations

from collections.abc import Callable

from attncc.expr.build import TRUE, ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Sort, Var
from attncc.ir.nodes import (
    Axis,
    Binder,
    ConstParam,
    Contract,
    Load,
    Normaliser,
    Out,
    Param,
    S,
    Spec,
    Weights,
)

b, h, g, i, j, d, e = (ivar(n) for n in "bhgijde")
n, m = ivar("n"), ivar("m")
B, H, G, M, N, D, E = (ivar(x) for x in "BHGMNDE")
SIZES: dict[str, Var] = {"b": B, "h": H, "g": G, "m": M, "n": N, "d": D, "e": E}

Q = Load("q", (b, h, i, d), "real")
K = Load("k", (b, g, j, d), "real")
V = Load("v", (b, g, j, e), "real")
QK = Contract(Q, K, d, D)
SCALED = op("div", QK, op("sqrt", D))
CAUSAL = op("le", j, i)
EXP = op("exp", S)
KEYS = (Binder(j, N),)


def softmax(score: Expr, mask: Expr = TRUE, sink: Expr | None = None) -> Weights:
    """Softmax over j."""
    z = None if sink is None else op("exp", sink)
    return Weights(score, mask, Normaliser("ratio", EXP, EXP, z), KEYS)


def elementwise(score: Expr, mask: Expr = TRUE) -> Weights:
    """Weights without a denominator."""
    return Weights(score, mask, Normaliser("none", S), KEYS)


def attend(weights: Expr) -> Out:
    """weights @ v."""
    return Out(Contract(weights, V, j, N))


def param(name: str, sort: Sort, *axes: str | int) -> Param:
    """A captured tensor on named axes, or plain numbers."""
    made = (Axis("", Const(a, "int")) if isinstance(a, int) else Axis(a, SIZES[a]) for a in axes)
    return Param(name, sort, tuple(made))


def spec(name: str, out: Out, *params: Param, constants: tuple[ConstParam, ...] = ()) -> Spec:
    """A spec without statements."""
    return Spec(name, constants, params, (), out)


def _windowed() -> Expr:
    return op("and", CAUSAL, op("lt", op("sub", i, j), ivar("window")))


def _full() -> Spec:
    return spec("full", attend(softmax(SCALED)))


def _causal() -> Spec:
    return spec("causal", attend(softmax(SCALED, CAUSAL)))


def _window() -> Spec:
    constants = (ConstParam("window", 1024, "int"),)
    return spec("sliding_window", attend(softmax(SCALED, _windowed())), constants=constants)


def _gemma2() -> Spec:
    cap = rvar("cap")
    score = op("mul", cap, op("tanh", op("div", QK, op("mul", op("sqrt", D), cap))))
    constants = (ConstParam("cap", 50.0, "real"), ConstParam("window", 4096, "int"))
    return spec("gemma2", attend(softmax(score, _windowed())), constants=constants)


def _alibi() -> Spec:
    score = op("add", SCALED, op("mul", Load("slope", (h,), "real"), op("sub", j, i)))
    return spec("alibi", attend(softmax(score, CAUSAL)), param("slope", "real", "h"))


def _packed_documents() -> Spec:
    same = op("eq", Load("doc", (b, i), "int"), Load("doc", (b, j), "int"))
    return spec("packed_documents", attend(softmax(SCALED, op("and", same, CAUSAL))), param("doc", "int", "b", "n"))


def _gpt_oss() -> Spec:
    weights = softmax(SCALED, _windowed(), sink=Load("sink", (h,), "real"))
    constants = (ConstParam("window", 128, "int"),)
    return spec("gpt_oss", attend(weights), param("sink", "real", "h"), constants=constants)


def _sigmoid_attention() -> Spec:
    score = op("sigmoid", op("add", SCALED, Load("bias", (h,), "real")))
    return spec("sigmoid_attention", attend(elementwise(score, CAUSAL)), param("bias", "real", "h"))


def _t5_half(x: Expr) -> Expr:
    log = op("div", op("log", op("div", op("mul", 2, x), 16)), op("log", op("div", 256, 16)))
    far = op("min", 15, op("add", 8, op("floor", op("mul", log, 8))))
    return op("where", op("lt", x, 8), x, far)


def _t5() -> Spec:
    distance = op("sub", j, i)
    bucket = op("add", _t5_half(op("abs", distance)), op("where", op("lt", 0, distance), 16, 0))
    score = op("add", QK, Load("table", (bucket, h), "real"))
    return spec("t5", attend(softmax(score)), param("table", "real", 32, "h"))


def _padding() -> Spec:
    return spec("padding", attend(softmax(SCALED, Load("keep", (b, j), "bool"))), param("keep", "bool", "b", "n"))


def _prefix_lm() -> Spec:
    mask = op("or", CAUSAL, op("lt", j, Load("prefix", (b,), "int")))
    return spec("prefix_lm", attend(softmax(SCALED, mask)), param("prefix", "int", "b"))


def _softpick() -> Spec:
    lift = op("sub", EXP, 1.0)
    ratio = Normaliser("ratio", op("relu", lift), op("abs", lift), Const(1e-6, "real"))
    return spec("softpick", attend(Weights(SCALED, CAUSAL, ratio, KEYS)))


_BUILDERS: tuple[Callable[[], Spec], ...] = (
    _full,
    _causal,
    _window,
    _gemma2,
    _alibi,
    _packed_documents,
    _gpt_oss,
    _sigmoid_attention,
    _t5,
    _padding,
    _prefix_lm,
    _softpick,
)

SPECS: dict[str, Spec] = {s.name: s for s in (build() for build in _BUILDERS)}
SEVEN = ("causal", "gemma2", "alibi", "packed_documents", "gpt_oss", "sigmoid_attention", "t5")
"""The specs that every stage and backend is tested on."""
