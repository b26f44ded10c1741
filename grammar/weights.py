"""Attention weights: which part of an expression is a weight, what its mask is, what its normaliser's score is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from attncc.expr.build import conj, op, to_real
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite, substitute, walk
from attncc.ir.nodes import Binder, Normaliser, S, Weights

ZERO = Const(0.0, "real")
LINEAR = {"add", "sub", "neg"}
KEEPS_ZERO = {"neg", "abs", "square", "relu", "real"}


def softmax(z: Expr | None) -> Normaliser:
    """exp over the sum of exp, plus z."""
    e = op("exp", S)
    return Normaliser("ratio", e, e, z)


ELEMENTWISE = Normaliser("none", S)


def has_weights(e: Expr, index: str) -> bool:
    """Whether weights over that index stand somewhere in `e`."""
    return any(isinstance(n, Weights) and any(k.index.name == index for k in n.keys) for n in walk(e))


def as_weights(e: Expr, keys: tuple[Binder, ...], mask_for: Callable[[], Expr], guards: set[Expr]) -> Expr:
    """f(score) as a weight --> Weights(f(score), mask, "none"), term by term; parts with weights stay as they are.

    `guards` are the choices made by a `where` clause: such a term has a mask of its own and takes no other.
    """
    index = keys[0].index.name
    if has_weights(e, index):
        if isinstance(e, Op) and e.name in LINEAR:
            return Op(e.name, tuple(as_weights(a, keys, mask_for, guards) for a in e.args), e.sort)
        return e
    body, conditions = _unguard(e)
    own = any(choice in guards for choice, _ in conditions)
    mask = conj(*([] if own else [mask_for()]), *(c for _, c in conditions))
    return Weights(to_real(body), mask, ELEMENTWISE, keys)


def _unguard(e: Expr) -> tuple[Expr, list[tuple[Expr, Expr]]]:
    """f(x if c else 0) --> f(x), [(the choice, c)], for f that keep zero."""
    if isinstance(e, Op):
        match e.name, e.args:
            case "where", (c, x, Const(value=0)):
                inner, more = _unguard(x)
                return inner, [(e, c), *more]
            case "mul", (a, b):
                (x, one), (y, two) = _unguard(a), _unguard(b)
                return Op("mul", (x, y), e.sort), [*one, *two]
            case "div", (a, b):
                x, one = _unguard(a)
                return Op("div", (x, b), e.sort), one
            case "pow", (a, Const(value=power)) if power > 0:
                x, one = _unguard(a)
                return Op("pow", (x, e.args[1]), e.sort), one
            case name, (a,) if name in KEEPS_ZERO:
                x, one = _unguard(a)
                return Op(name, (x,), e.sort), one
    return e, []


def dropped(e: Expr, probability: Expr) -> Expr:
    """Every weight under `e` with that probability of being dropped."""

    def rule(node: Expr) -> Expr | None:
        if isinstance(node, Weights):
            return Weights(node.score, node.mask, node.normaliser, node.keys, probability, node.sort, node.span)
        return None

    return rewrite(e, rule)


def ratio_parts(phi: Expr, psi: Expr, keys: Iterable[str], named: Expr | None) -> tuple[Expr, Expr, Expr] | None:
    """(score, phi(s), psi(s)) of a ratio's two halves, or None where they share no score.

    The score is what the author called so where that fits, else the argument of an exponential, else the smallest
    part that all dependence on the keys goes through.
    """
    names = frozenset(keys)
    parts = list(_operands(phi))
    exponents = [n.args[0] for n in parts if isinstance(n, Op) and n.name == "exp"]
    for score in [*([named] if named is not None else []), *exponents, *parts]:
        if score.sort != "real" or not _depends(score, names):
            continue
        new = (substitute(phi, {score: S}), substitute(psi, {score: S}))
        if not any(_depends(part, names) for part in new):
            return score, *new
    return None


def _operands(e: Expr) -> Iterator[Expr]:
    """What elementwise operations are made of, smallest first; nothing inside sums."""
    seen: set[Expr] = set()
    stack = [(e, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((a, False) for a in (node.args if isinstance(node, Op) else ()))


def _depends(e: Expr, names: frozenset[str]) -> bool:
    return any(isinstance(n, Var) and n.name in names for n in walk(e))
