"""Attention weights, densely: every normaliser written out over the full (i, keys) array."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from attncc.expr.nodes import Const, Expr, Op, walk
from attncc.ir.nodes import Normaliser, S, Weights
from attncc.reference.operations import TABLE
from attncc.reference.scope import Scope
from attncc.reference.values import Value, apply, common_shape, reduced, spread


class Evaluates(Protocol):
    """What the normalisers need of the evaluator."""

    def value(self, e: Expr, scope: Scope) -> Value:
        """`e` in `scope`."""
        ...


def normalised(ev: Evaluates, w: Weights, score: Value, mask: Value, scope: Scope) -> tuple[Value, Value | None]:
    """The weights and, of a ratio, the log of its denominator. `score` and `mask` stand over the same axes.

    `score` must be finite where the mask is false.
    """
    keys = tuple(k.index.name for k in w.keys)
    inside = scope.with_names({S.name: score}).under(mask)
    match w.normaliser.kind:
        case "none":
            return _kept(ev.value(w.normaliser.phi, inside), mask), None
        case "ratio":
            return _ratio(ev, w.normaliser, score, mask, keys, scope, inside)
        case "scan":
            return _stick(score, mask, keys), None
        case "threshold":
            return _entmax(score, mask, keys, _alpha(w.normaliser)), None


def _kept(x: Value, mask: Value) -> Value:
    return apply(lambda t, m: torch.where(m, t, 0), x, mask)


def _sum(x: Value, axes: tuple[str, ...]) -> Value:
    return reduced(torch.sum, x, axes)


def _largest(x: Value, mask: Value, keys: tuple[str, ...]) -> Value:
    """The largest allowed score of each row, -inf where there is none; not differentiated."""
    held = apply(lambda t, m: torch.where(m, t.detach(), -torch.inf), x, mask)

    def amax(t: Tensor, dim: int) -> Tensor:
        return t.amax(dim) if t.shape[dim] else t.new_full(t.shape[:dim] + t.shape[dim + 1 :], -torch.inf)

    return reduced(amax, held, keys)


# --- ratio ----------------------------------------------------------------------------------------------------------


def _ratio(
    ev: Evaluates, n: Normaliser, score: Value, mask: Value, keys: tuple[str, ...], scope: Scope, inside: Scope
) -> tuple[Value, Value | None]:
    """phi / (sum psi + z). All three are scaled by exp(-shift) where phi and psi are homogeneous in exp(score)."""
    assert n.psi is not None
    shift = _shift(ev, n, score, mask, keys, scope)
    try:
        phi, psi = (_scaled(ev, f, inside, shift) for f in (n.phi, n.psi))
    except _NotHomogeneous:
        shift = apply(torch.zeros_like, shift)
        phi, psi = (ev.value(f, inside) for f in (n.phi, n.psi))
    total = _sum(_kept(apply(_full, psi, mask), mask), keys)
    if n.z is not None:
        total = apply(torch.add, total, _scaled_z(ev, n.z, scope, shift))
    some = reduced(torch.any, mask, keys)
    usable = apply(lambda alive, t: alive & (t != 0), some, total)
    divisor = apply(lambda t, ok: torch.where(ok, t, 1), total, usable)
    weights = _kept(apply(torch.div, phi, divisor), apply(torch.logical_and, mask, usable))
    lse = apply(lambda m, t, ok: torch.where(ok, m + t.log(), -torch.inf), shift, divisor, usable)
    return weights, lse


def _full(x: Tensor, like: Tensor) -> Tensor:
    return x.expand(common_shape(x, like))


def _shift(ev: Evaluates, n: Normaliser, score: Value, mask: Value, keys: tuple[str, ...], scope: Scope) -> Value:
    """The largest of the scores and of log z, so that no scaled term exceeds its unscaled size or 1."""
    shift = _largest(score, mask, keys)
    match n.z:
        case None:
            pass
        case Op("exp", (log_z,), _):
            shift = apply(lambda m, z: torch.maximum(m, z.detach().to(m.dtype)), shift, ev.value(log_z, scope))
        case _:
            shift = apply(lambda m: m.clamp(min=0), shift)
    if any(isinstance(f, Expr) and f is not Op("exp", (S,), "real") for f in (n.phi, n.psi)):
        shift = apply(lambda m: m.clamp(min=0), shift)
    return apply(lambda m: torch.where(m.isinf(), 0, m), shift)


def _scaled_z(ev: Evaluates, z: Expr, scope: Scope, shift: Value) -> Value:
    if isinstance(z, Op) and z.name == "exp":
        return apply(lambda t, m: torch.exp(t - m), ev.value(z.args[0], scope), shift)
    return apply(lambda t, m: t * torch.exp(-m), ev.value(z, scope), shift)


class _NotHomogeneous(Exception):
    """The expression is no first-degree form in exp(score) and constants."""


def _scaled(ev: Evaluates, e: Expr, scope: Scope, shift: Value) -> Value:
    """The value of e * exp(-shift), computed from exp(score - shift)."""
    if not _has_score(e):
        return apply(lambda t, m: t * torch.exp(-m), ev.value(e, scope), shift)
    match e:
        case Op("exp", (arg,), _) if _score_plus_constant(arg):
            assert scope.live is not None
            return apply(lambda t, m, ok: torch.where(ok, t - m, 0).exp(), ev.value(arg, scope), shift, scope.live)
        case Op("add" | "sub" | "neg" | "abs" | "relu" | "min" | "max" as name, args, _):
            return apply(TABLE[name], *(_scaled(ev, a, scope, shift) for a in args))
        case Op("mul", (a, b), _) if not (_has_score(a) and _has_score(b)):
            with_score, factor = (a, b) if _has_score(a) else (b, a)
            return apply(torch.mul, _scaled(ev, with_score, scope, shift), ev.value(factor, scope))
        case Op("div", (a, b), _) if not _has_score(b):
            return apply(torch.div, _scaled(ev, a, scope, shift), ev.value(b, scope))
        case _:
            raise _NotHomogeneous


def _has_score(e: Expr) -> bool:
    return any(node is S for node in walk(e))


def _score_plus_constant(e: Expr) -> bool:
    match e:
        case Op("add", (a, b), _):
            return (a is S and not _has_score(b)) or (b is S and not _has_score(a))
        case Op("sub", (a, b), _):
            return a is S and not _has_score(b)
        case _:
            return e is S


# --- scan and threshold ---------------------------------------------------------------------------------------------


def _stick(score: Value, mask: Value, keys: tuple[str, ...]) -> Value:
    """Stick breaking from the last key down: w_j = sigmoid(s_j) * product over allowed k > j of (1 - sigmoid(s_k))."""
    (key,) = keys
    dim = score.axes.index(key)
    left = torch.where(mask.data, functional.logsigmoid(-score.data), 0)
    after = left.flip(dim).cumsum(dim).flip(dim) - left
    weight = torch.where(mask.data, torch.exp(functional.logsigmoid(score.data) + after), 0)
    return Value(weight, score.axes)


def _alpha(n: Normaliser) -> float:
    alpha = dict(n.options).get("alpha", Const(1.5, "real"))
    if not isinstance(alpha, Const) or float(alpha.value) <= 1:
        raise NotImplementedError("entmax takes a literal alpha above 1")
    return float(alpha.value)


def _entmax(score: Value, mask: Value, keys: tuple[str, ...], alpha: float) -> Value:
    """w = (x - tau)_+ ** (1 / (alpha - 1)) with x = (alpha - 1) s and the tau at which a row's weights sum to 1.

    tau is bisected without autograd; one Newton step then makes it exact and gives it its gradient.
    """
    axes = tuple(a for a in score.axes if a not in keys) + keys
    shape = score.data.shape
    rows = [n for a, n in zip(score.axes, shape, strict=True) if a not in keys]
    flat, allowed = (spread(v, axes).reshape(*rows, -1) for v in (score, mask))
    if not flat.shape[-1]:
        return apply(torch.zeros_like, score)
    power = 1 / (alpha - 1)
    some = allowed.any(-1, keepdim=True)
    x = torch.where(allowed, (alpha - 1) * flat, -torch.inf)
    x = torch.where(some, x, 0)

    def excess(t: Tensor) -> Tensor:
        return torch.relu(torch.where(allowed | ~some, x - t, 0))

    with torch.no_grad():
        high = x.amax(-1, keepdim=True)
        low = high - 1
        for _ in range(70):
            middle = (low + high) / 2
            above = (excess(middle) ** power).sum(-1, keepdim=True) >= 1
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        inside = excess(low)
        slope = torch.where(inside > 0, power * inside.clamp(min=1e-300) ** (power - 1), 0).sum(-1, keepdim=True)
    tau = low + ((_power(excess(low), power)).sum(-1, keepdim=True) - 1) / slope
    weight = torch.where(allowed & some, _power(excess(tau), power), 0)
    sizes = dict(zip(score.axes, shape, strict=True))
    return Value(weight.reshape([sizes[a] for a in axes]), axes)


def _power(x: Tensor, power: float) -> Tensor:
    """x ** power for x >= 0 with derivative 0 at 0."""
    return torch.where(x > 0, torch.where(x > 0, x, 1) ** power, 0)
