"""What a spec is to a library: one scaled inner product, a map of it, a mask, a softmax. Peers are derived from this.

All constants and sizes are numbers here, so that a form belongs to one call's sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attncc.expr.build import TRUE, conjuncts, op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite, substitute, walk
from attncc.ir.nodes import Contract, Load, S, Spec, Weights

Number = int | float | bool
I, J = Var("i", "int"), Var("j", "int")


@dataclass(frozen=True)
class Form:
    """out = softmax(score(scale * q . k) where mask) @ v, with `sink` added to the softmax's sum.

    `score` is over the variable `s`, which stands for the scaled product; index variables are those of the Spec IR.
    """

    scale: float
    score: Expr
    mask: Expr
    sink: Expr | None

    @property
    def plain(self) -> bool:
        """Whether the score is the scaled product itself."""
        return self.score is S

    @property
    def cap(self) -> float | None:
        """c where the score is c * tanh(s / c) of the plainly scaled product."""
        match self.score:
            case Op("mul", (Const(c, _), Op("tanh", (inner,), _)), _) if inner is S:
                return float(c)
            case Op("mul", (Op("tanh", (inner,), _), Const(c, _)), _) if inner is S:
                return float(c)
        return None

    @property
    def band(self) -> tuple[int | None, int | None] | None:
        """(l, r) where the mask is i - l <= j <= i + r; None in it is no bound, None of it another mask."""
        return _band(self.mask)


def weights_of(spec: Spec) -> tuple[Weights, ...]:
    """Every kind of weights in the spec, each once."""
    roots = [*(s.body for s in spec.statements), spec.out.body]
    return tuple(dict.fromkeys(n for root in roots for n in walk(root) if isinstance(n, Weights)))


def form_of(spec: Spec, known: Mapping[str, Number]) -> Form | str:
    """The form of `spec` with its constants and sizes in `known`; else, in words, why it has none."""
    body = spec.out.body
    if spec.statements:
        return "it defines arrays"
    if not isinstance(body, Contract) or not isinstance(body.a, Weights) or not _is_load(body.b, "v", "bgje"):
        return "its output is not weights @ v"
    weights = body.a
    n = weights.normaliser
    if n.kind != "ratio" or n.phi is not n.psi or n.phi is not op("exp", S) or weights.dropout is not None:
        return "its weights are not a softmax"
    if [k.index.name for k in weights.keys] != ["j"]:
        return "its softmax is not over the keys alone"
    dots = [x for x in walk(weights.score) if isinstance(x, Contract)]
    if len(dots) != 1 or not (_is_load(dots[0].a, "q", "bhid") and _is_load(dots[0].b, "k", "bgjd")):
        return "its score is not of one product q @ k"
    score = folded(substitute(weights.score, {dots[0]: S}), known)
    scale, score = _unscaled(score)
    sink = None if n.z is None else folded(n.z, known)
    return Form(scale, score, folded(weights.mask, known), sink)


def _is_load(e: Expr, tensor: str, indices: str) -> bool:
    """Whether `e` reads q, k or v at its own indices; the channel's name is bound where it stands."""
    return isinstance(e, Load) and e.tensor == tensor and [getattr(x, "name", "") for x in e.index] == list(indices)


def folded(e: Expr, known: Mapping[str, Number]) -> Expr:
    """`e` with the numbers of `known` for its constants and sizes, and everything that only takes numbers computed."""
    table: dict[Expr, Expr] = {}
    for node in walk(e):
        if isinstance(node, Var) and node.name in known:
            value = known[node.name]
            table[node] = Const(float(value) if node.sort == "real" else value, node.sort)

    def fold(node: Expr) -> Expr | None:
        if isinstance(node, Op) and all(isinstance(a, Const) for a in node.args):
            return Const(evaluate(node), node.sort)
        return None

    return rewrite(substitute(e, table), fold)


def _unscaled(score: Expr) -> tuple[float, Expr]:
    """rewrite: cap * tanh(s / (8 * cap)) --> 1 / (8 * cap), cap * tanh(s)"""
    above = [n for n in walk(score) if isinstance(n, Op) and S in n.args]
    if len(above) == 1:
        match above[0]:
            case Op("mul", (Const(c, _), x), _) | Op("mul", (x, Const(c, _)), _) if x is S:
                return float(c), substitute(score, {above[0]: S})
            case Op("div", (x, Const(c, _)), _) if x is S and c != 0:
                return 1.0 / float(c), substitute(score, {above[0]: S})
    return 1.0, score


def _band(mask: Expr) -> tuple[int | None, int | None] | None:
    left: int | None = None
    right: int | None = None
    for part in (x for x in conjuncts(mask) if x is not TRUE):
        bound = _one_side(part)
        if bound is None:
            return None
        a, c = bound  # a * (j - i) <= c
        if a > 0:
            right = c if right is None else min(right, c)
        else:
            left = c if left is None else min(left, c)
    return left, right


def _one_side(e: Expr) -> tuple[int, int] | None:
    """(a, c) where `e` says a * (j - i) <= c, a being 1 or -1."""
    if not isinstance(e, Op) or e.name not in ("le", "lt"):
        return None
    low, high = (_affine(x) for x in e.args)
    if low is None or high is None:
        return None
    i, j, c = (x - y for x, y in zip(low, high, strict=True))
    if i != -j or abs(j) != 1:
        return None
    return j, -c - (1 if e.name == "lt" else 0)


def _affine(e: Expr) -> tuple[int, int, int] | None:
    """(a, b, c) of a * i + b * j + c."""
    match e:
        case Const(int(c), "int"):
            return 0, 0, c
        case Var():
            return (1, 0, 0) if e is I else (0, 1, 0) if e is J else None
        case Op("neg", (x,), "int") if (found := _affine(x)) is not None:
            return -found[0], -found[1], -found[2]
        case Op("add" | "sub" as name, (x, y), "int"):
            one, two = _affine(x), _affine(y)
            if one is None or two is None:
                return None
            sign = 1 if name == "add" else -1
            return one[0] + sign * two[0], one[1] + sign * two[1], one[2] + sign * two[2]
    return None
