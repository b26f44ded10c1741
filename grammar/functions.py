"""Built-in functions: elementwise maps, reductions, normalisers, channel norms."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Literal, cast

from attncc.diagnostics import Span, did_you_mean
from attncc.expr.build import conj, lift, op, to_real
from attncc.expr.nodes import Const, Expr, Var, walk
from attncc.grammar import tree as ast
from attncc.grammar.expressions import Elaborator
from attncc.grammar.mistakes import (
    BadCall,
    ChannelMismatch,
    NoSuchDependence,
    NotARatio,
    NotAValue,
    NotAWeight,
    NotBoolean,
    NotCompiled,
    UnknownOption,
)
from attncc.grammar.names import CHANNELWISE, ELEMENTWISE, FUNCTIONS, NORMALISERS, REDUCTIONS, Named, Tensor
from attncc.grammar.states import gradient
from attncc.grammar.values import Value, align, given, rename
from attncc.grammar.weights import ZERO, dropped, ratio_parts, softmax
from attncc.ir.nodes import Binder, Normaliser, Reduce, S, Scan, Segment, Weights

OPTIONS = {
    "softmax": ("sink",), "ratio": ("eps",), "entmax": ("alpha",), "normalize": ("eps",), "rmsnorm": ("eps",),
    "layernorm": ("eps",), "rope": ("at", "dims", "base"),
}  # fmt: skip
ReduceOp = Literal["sum", "mean", "max", "min", "any", "argmax"]


def call(self: Elaborator, node: ast.Call) -> Value:
    """A call of a built-in function."""
    name = node.function
    if name not in FUNCTIONS:
        raise self.scope.unknown_function(ast.Name(node.place, name))
    _options(node)
    if name in ("max", "min") and len(node.arguments) > 1:
        return _extreme(self, node)
    if name in REDUCTIONS:
        return _reduction(self, node)
    if name in ELEMENTWISE:
        return _elementwise(self, node)
    if name in NORMALISERS:
        return _normaliser(self, node)
    if name in CHANNELWISE:
        return _channelwise(self, node)
    match name:
        case "cumsum":
            return _cumsum(self, node)
        case "dropout":
            return _dropout(self, node)
        case "segment":
            return _segment(self, node)
        case "outer":
            return _outer(self, node)
        case "grad":
            return gradient(self, node)
    raise NotCompiled(f"`{name}` is not compiled yet", node.place)


def expect(node: ast.Call, count: int, clauses: Iterable[str] = ("over", "where")) -> None:
    """BadCall unless the call has `count` arguments and no other clauses than these."""
    if len(node.arguments) != count:
        wanted = f"{count} argument{'' if count == 1 else 's'}"
        raise BadCall(f"`{node.function}` takes {wanted}, and is given {len(node.arguments)}", node.span)
    if node.over and "over" not in clauses:
        raise BadCall(f"`{node.function}` takes no `over`", node.over[0].span)
    if node.where is not None and "where" not in clauses:
        raise BadCall(f"`{node.function}` takes no `where`", node.where.span)
    if node.options and node.function not in OPTIONS:
        raise BadCall(f"`{node.function}` takes no options", node.options[0].span)


def _options(node: ast.Call) -> None:
    known = OPTIONS.get(node.function, ())
    seen: set[str] = set()
    for option in node.options:
        if option.name not in known:
            takes = f"; it takes {', '.join(f'`{k}`' for k in known)}" if known else ""
            message = f"`{node.function}` has no option `{option.name}`{takes}"
            raise UnknownOption(message, option.span, hint=did_you_mean(option.name, known))
        if option.name in seen:
            raise UnknownOption(f"`{option.name}` is given twice", option.span)
        seen.add(option.name)


def _option(self: Elaborator, node: ast.Call, name: str, default: float | None = None) -> Value | None:
    for option in node.options:
        if option.name == name:
            return self.number(option.value, f"`{name}`")
    return None if default is None else Value(lift(default))


def _where(self: Elaborator, node: ast.Call) -> Value | None:
    return None if node.where is None else self.boolean(node.where, "`where`")


def _guarded(self: Elaborator, value: Value, where: Value | None, place: Span) -> Value:
    """0 where the clause does not hold."""
    if where is None:
        return value
    choice = op("where", where.expr, value.expr, lift(0) if value.sort == "int" else ZERO)
    self.guards.add(choice)
    return align((where, value), place).of(choice)


# --- elementwise ----------------------------------------------------------------------------------------------------


def _elementwise(self: Elaborator, node: ast.Call) -> Value:
    expect(node, 1, clauses=("where",))
    value = self.number(node.arguments[0], f"the argument of `{node.function}`")
    same = node.function in ("floor", "ceil") and value.sort == "int"
    made = value if same else value.of(op(node.function, value.expr))
    return _guarded(self, made, _where(self, node), node.span)


def _extreme(self: Elaborator, node: ast.Call) -> Value:
    expect(node, len(node.arguments), clauses=("where",))
    values = [self.number(a, f"an argument of `{node.function}`") for a in node.arguments]
    folded = reduce(lambda a, b: op(node.function, a, b), (v.expr for v in values))
    return _guarded(self, align(values, node.span).of(folded), _where(self, node), node.span)


def _outer(self: Elaborator, node: ast.Call) -> Value:
    expect(node, 2, clauses=())
    left, right = (self.number(a, "an argument of `outer`") for a in node.arguments)
    shared = left.channels & right.channels
    if shared:
        raise ChannelMismatch(f"both arguments of `outer` have channel `{min(shared)}`", node.span)
    sizes = {**left.sizes, **right.sizes}
    return Value(op("mul", left.expr, right.expr), given(left.free | right.free), sizes)


def _segment(self: Elaborator, node: ast.Call) -> Value:
    expect(node, 2, clauses=())
    ends, at = node.arguments
    tensor = self.scope.meanings.get(ends.id) if isinstance(ends, ast.Name) else None
    if not (isinstance(ends, ast.Name) and isinstance(tensor, Tensor) and tensor.offsets):
        hint = "declare it in the header: `cu: offsets`"
        raise NotAValue("`segment` wants a parameter of type offsets first", ends.span, hint=hint)
    value = self.integer(at, "the position of `segment`")
    return value.of(Segment(ends.id, value.expr, span=node.span))


# --- reductions and scans -------------------------------------------------------------------------------------------


def _over(self: Elaborator, node: ast.Call, full: frozenset[str], sizes: dict[str, Expr]) -> tuple[Binder, ...]:
    """The indices of `over`, each one that the value depends on."""
    found: list[Binder] = []
    for name in node.over:
        if name.id not in self.scope.indices:
            raise self.scope.unknown(name)
        if any(b.index.name == name.id for b in found):
            raise BadCall(f"`{name.id}` is listed twice", name.span)
        if name.id in ("b", "h", "g", "i"):
            raise NotCompiled(f"`{node.function}` over `{name.id}` is not compiled yet", name.span)
        if name.id not in full:
            hint = "it depends on " + (", ".join(f"`{x}`" for x in sorted(full)) or "no index")
            raise NoSuchDependence(f"the value does not depend on `{name.id}`", name.span, hint=hint)
        found.append(Binder(Var(name.id, "int"), sizes.get(name.id) or self.scope.indices[name.id]))
    return tuple(found)


def _reduction(self: Elaborator, node: ast.Call) -> Value:
    name = node.function
    expect(node, 1)
    if not node.over:
        hint = f"`{name}(x over j)` says along which index"
        raise BadCall(f"`{name}` needs `over`", node.span, hint=hint)
    body = self.eval(node.arguments[0])
    if name == "any" and body.sort != "bool":
        raise NotBoolean("`any` asks whether a condition holds, and this is a number", node.arguments[0].span)
    if name != "any" and body.sort == "bool":
        body = self.number(node.arguments[0], f"the argument of `{name}`")
    where = _where(self, node)
    full = align((where, body) if where else (body,), node.span)
    binders = _over(self, node, full.free, dict(full.sizes))
    if name == "argmax" and len(binders) > 1:
        raise BadCall("`argmax` works over one index", node.span)
    gone = {b.index.name for b in binders}
    expr = to_real(body.expr) if name == "mean" else body.expr
    sort = "bool" if name == "any" else "int" if name == "argmax" else expr.sort
    made = Reduce(cast(ReduceOp, name), expr, binders, conj(where.expr) if where else conj(), sort, node.span)
    return Value(made, full.free - gone, {k: v for k, v in full.sizes.items() if k not in gone})


def _cumsum(self: Elaborator, node: ast.Call) -> Value:
    expect(node, 1)
    if len(node.over) != 1:
        raise BadCall("`cumsum` works over one index", node.span, hint="`cumsum(x over n)`")
    body = self.number(node.arguments[0], "the argument of `cumsum`")
    where = _where(self, node)
    body = _guarded(self, body, where, node.span)
    (binder,) = _over(self, node, body.free, dict(body.sizes))
    made = body.of(Scan("sum", body.expr, binder, sort=body.sort, span=node.span))
    return _guarded(self, made, where, node.span)


# --- normalisers ----------------------------------------------------------------------------------------------------


def _normaliser(self: Elaborator, node: ast.Call) -> Value:
    expect(node, 2 if node.function == "ratio" else 1)
    values = [self.number(a, f"the argument of `{node.function}`") for a in node.arguments]
    where = _where(self, node)
    full = align((*([where] if where else []), *values), node.span)
    keys = _over(self, node, full.free, dict(full.sizes)) if node.over else _default_keys(self, node, full)
    names = [k.index.name for k in keys]
    if where:
        mask = where.expr
        free = full.free
    else:
        mask = self.take_mask(keys, node.span)
        free = full.free | (self.mask_free() if "j" in names else frozenset())
    score, normaliser, extra = _normalised(self, node, [v.expr for v in values], names)
    made = Weights(to_real(score), mask, normaliser, keys, span=node.span)
    return Value(made, given(free | extra), full.sizes)


def _default_keys(self: Elaborator, node: ast.Call, full: Value) -> tuple[Binder, ...]:
    if "j" not in full.free:
        hint = "normalisers work over j; `over` names another index"
        raise NoSuchDependence(f"the argument of `{node.function}` does not depend on `j`", node.span, hint=hint)
    return (Binder(Var("j", "int"), self.scope.indices["j"]),)


def _normalised(
    self: Elaborator, node: ast.Call, parts: list[Expr], keys: list[str]
) -> tuple[Expr, Normaliser, frozenset[str]]:
    """The score, the normaliser, and the indices its z adds."""
    match node.function:
        case "softmax":
            sink = _option(self, node, "sink")
            extra = _per_row(node, "sink", sink, keys)
            return parts[0], softmax(op("exp", sink.expr) if sink else None), extra
        case "stick":
            return parts[0], Normaliser("scan", op("sigmoid", S)), frozenset()
        case "entmax":
            alpha = _option(self, node, "alpha", 1.5)
            assert alpha is not None
            extra = _per_row(node, "alpha", alpha, keys)
            return parts[0], Normaliser("threshold", S, options=(("alpha", to_real(alpha.expr)),)), extra
    named = self.scope.meanings.get("score")
    known = to_real(named.value.expr) if isinstance(named, Named) else None
    found = ratio_parts(to_real(parts[0]), to_real(parts[1]), keys, known)
    if found is None:
        hint = "give the score a name, `score = ...`, and write both parts with it"
        raise NotARatio("the two parts of `ratio` are not functions of one score", node.span, hint=hint)
    score, phi, psi = found
    eps = _option(self, node, "eps")
    extra = _per_row(node, "eps", eps, keys)
    return score, Normaliser("ratio", phi, psi, to_real(eps.expr) if eps else None), extra


def _per_row(node: ast.Call, name: str, value: Value | None, keys: list[str]) -> frozenset[str]:
    """The indices of an option that is one number for each row of weights."""
    if value is None:
        return frozenset()
    wrong = value.free & {*keys, "d", "e"}
    if wrong:
        place = next(o.span for o in node.options if o.name == name)
        raise NoSuchDependence(f"`{name}` is one number for each row, and this varies with `{min(wrong)}`", place)
    return value.free


def _dropout(self: Elaborator, node: ast.Call) -> Value:
    expect(node, 2, clauses=())
    weights = self.number(node.arguments[0], "the weights of `dropout`")
    probability = self.number(node.arguments[1], "the probability of `dropout`")
    if isinstance(probability.expr, Const) and not 0 <= probability.expr.value < 1:
        raise BadCall("a probability of dropping lies in [0, 1)", node.arguments[1].span)
    if probability.free:
        raise BadCall("the probability of dropping is one number", node.arguments[1].span)
    if not any(isinstance(n, Weights) for n in walk(weights.expr)):
        if not {"i", "j"} <= weights.free or weights.channels:
            hint = "as in `dropout(softmax(score), 0.1)`"
            raise NotAWeight("`dropout` takes attention weights", node.arguments[0].span, hint=hint)
        weights = self.weigh(weights, (Binder(Var("j", "int"), self.scope.indices["j"]),), node.span)
    return weights.of(dropped(weights.expr, to_real(probability.expr)))


# --- channels -------------------------------------------------------------------------------------------------------


def _channelwise(self: Elaborator, node: ast.Call) -> Value:
    """normalize, rmsnorm, layernorm, rope."""
    expect(node, 1)
    value = self.number(node.arguments[0], f"the argument of `{node.function}`")
    if node.where is not None:
        raise NotCompiled(f"`where` in `{node.function}` is not compiled yet", node.where.span)
    if node.over:
        binders = _over(self, node, value.free, dict(value.sizes))
    elif len(value.channels) == 1:
        (axis,) = value.channels
        binders = (Binder(Var(axis, "int"), value.sizes.get(axis) or self.scope.indices[axis]),)
    else:
        many = "none" if not value.channels else "several"
        raise BadCall(f"`{node.function}` works over the only channel, and there is {many}", node.span)
    x = to_real(value.expr)
    if node.function == "rope":
        return _rope(self, node, value.of(x), binders)
    eps = _option(self, node, "eps", {"layernorm": 1e-5}.get(node.function, 1e-6))
    assert eps is not None
    return align((eps, value), node.span).of(_norm(node, x, binders, eps.expr))


def _norm(node: ast.Call, x: Expr, binders: tuple[Binder, ...], eps: Expr) -> Expr:
    if node.function == "normalize":
        total = Reduce("sum", op("square", x), binders, span=node.span)
        return op("mul", x, op("rsqrt", op("add", total, eps)))
    if node.function == "layernorm":
        x = op("sub", x, Reduce("mean", x, binders, span=node.span))
    mean = Reduce("mean", op("square", x), binders, span=node.span)
    return op("mul", x, op("rsqrt", op("add", mean, eps)))


def _rope(self: Elaborator, node: ast.Call, x: Value, binders: tuple[Binder, ...]) -> Value:
    """Channel c < dims/2 turns with channel c + dims/2 by the angle at * base ** (-2c / dims)."""
    if len(binders) != 1:
        raise BadCall("`rope` turns pairs of one channel", node.span)
    given_at = next((o for o in node.options if o.name == "at"), None)
    if given_at is None:
        raise BadCall("`rope` needs a position", node.span, hint="`rope(q, at = i)`")
    at = self.number(given_at.value, "`at`")
    dims, base = _option(self, node, "dims"), _option(self, node, "base", 10000.0)
    assert base is not None
    (binder,) = binders
    c, count = binder.index, dims.expr if dims else binder.size
    half = op("floordiv", count, 2)
    pair = op("where", op("lt", c, half), op("add", c, half), op("sub", c, half))
    inside = op("lt", c, op("mul", 2, half))
    exponent = op("div", op("mul", -2, op("mod", c, half)), op("mul", 2, half))
    angle = op("mul", at.expr, op("pow", base.expr, exponent))
    other = rename(x.expr, {c.name: op("where", inside, pair, c)}, node.span)
    turned = op("where", op("lt", c, half), op("neg", other), other)
    rotated = op("add", op("mul", x.expr, op("cos", angle)), op("mul", turned, op("sin", angle)))
    return align((at, base, x), node.span).of(op("where", inside, rotated, x.expr))
