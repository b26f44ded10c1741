"""Expressions of the Spec IR, evaluated densely: every index becomes a dimension of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from attncc.errors import InternalError
from attncc.expr.nodes import Const, Expr, Op, Var, walk
from attncc.ir.nodes import Binder, Contract, Gradient, Load, Reduce, Scan, Segment, Weights
from attncc.reference.operations import COMPARISONS, DELICATE, TABLE
from attncc.reference.scope import Ranges, Scope, scalar
from attncc.reference.tensors import Stored, gather
from attncc.reference.values import (
    Value,
    apply,
    inverse,
    join_strays,
    limit_strays,
    reduce_strays,
    reduced,
    spread,
    union,
)
from attncc.reference.weights import normalised
from attncc.runtime.mistakes import OutOfRange, RandomWeights


class Evaluator:
    """Evaluates expressions over `tensors`; keeps the lse of each Weights it met in `lse`."""

    def __init__(self, tensors: dict[str, Stored], ranges: Ranges, magnitudes: bool = False) -> None:
        self.tensors, self.ranges, self.magnitudes = tensors, ranges, magnitudes
        self.lse: dict[Weights, Value] = {}

    def value(self, e: Expr, scope: Scope) -> Value:
        """`e` over its free indices."""
        if e not in scope.memo:
            found = self._value(e, scope)
            if scope.mask and e.sort == "bool" and isinstance(e, Op | Load) and (_compares(e) or isinstance(e, Load)):
                found = _false_where_astray(found)
            scope.memo[e] = found
        return scope.memo[e]

    def _value(self, e: Expr, scope: Scope) -> Value:
        match e:
            case Const(value, sort):
                return scalar(value, sort, self.ranges.device)
            case Var(name, _):
                if name not in scope.names:
                    raise InternalError(f"{name} is not bound")
                return scope.names[name]
            case Op():
                return self._op(e, scope)
            case Load(tensor, index, _):
                return self._load(tensor, index, scope)
            case Contract():
                return self._contract(e, scope)
            case Reduce():
                return self._reduce(e, scope)
            case Scan():
                return self._scan(e, scope)
            case Segment(tensor, at, _):
                return self._segment(tensor, at, scope)
            case Weights():
                return self._weights(e, scope)
            case Gradient():
                return self._gradient(e, scope)
            case _:
                raise InternalError(f"the reference does not know {type(e).__name__}")

    def integer(self, e: Expr, scope: Scope) -> int:
        """A size."""
        return int(self.value(e, scope).data.item())

    # --- scalar operations ------------------------------------------------------------------------------------------

    def _op(self, e: Op, scope: Scope) -> Value:
        match e.name:
            case "where":
                return self._where(e, scope)
            case "real":
                arg = self.value(e.args[0], scope)
                kind = scope.dtype if arg.axes else torch.float64
                return Value(arg.data.to(kind), arg.axes, arg.strays)
            case "floor" | "ceil" if not any(isinstance(n, Load | Contract | Reduce | Scan) for n in walk(e)):
                scope = scope.exact()
        args = [self.value(a, scope) for a in e.args]
        if e.name in DELICATE and scope.live is not None and args[DELICATE[e.name]].axes:
            at = DELICATE[e.name]
            args[at] = apply(lambda x, live: torch.where(live, x, 1), args[at], scope.live)
        return apply(TABLE[e.name], *args)

    def _where(self, e: Op, scope: Scope) -> Value:
        """The branch not taken is not evaluated where that could give inf or NaN."""
        condition = self.value(e.args[0], scope)
        taken = Value(condition.data, condition.axes)
        branches = []
        for branch, used in zip(e.args[1:], (taken, inverse(taken)), strict=True):
            delicate = any(isinstance(n, Op) and n.name in DELICATE for n in walk(branch))
            found = self.value(branch, scope.under(used) if delicate and not scope.mask else scope)
            branches.append(Value(found.data, found.axes, limit_strays(found.strays, used)))
        chosen = apply(torch.where, taken, *branches)
        return Value(chosen.data, chosen.axes, join_strays(condition.strays, chosen.strays))

    # --- memory -----------------------------------------------------------------------------------------------------

    def _load(self, tensor: str, index: tuple[Expr, ...], scope: Scope) -> Value:
        if tensor not in self.tensors:
            raise InternalError(f"tensor {tensor} is not known")
        places = [self.value(x, scope) for x in index]
        names = [x.name if isinstance(x, Var) else "" for x in index]
        return gather(tensor, self.tensors[tensor], names, places, self.ranges)

    def _segment(self, tensor: str, at: Expr, scope: Scope) -> Value:
        """How many documents end at or before the position; positions below 0 are astray."""
        position = self.value(at, scope)
        ends = self.tensors[tensor].data[1:].contiguous()
        number = torch.searchsorted(ends, position.data.contiguous(), right=True)
        strays = {tensor: Value(position.data < 0, position.axes)} if bool((position.data < 0).any()) else {}
        return Value(number, position.axes, join_strays(position.strays, strays))

    def _gradient(self, e: Gradient, scope: Scope) -> Value:
        """Autograd's derivative by the state, through reads of it by that name only."""
        held = self.tensors[e.of]
        wanted = torch.is_grad_enabled() and any(t.data.requires_grad for t in self.tensors.values())
        with torch.enable_grad():
            own = held.data.clone() if held.data.requires_grad else held.data.detach().requires_grad_()
            inner = Evaluator({**self.tensors, e.of: Stored(own, held.kinds)}, self.ranges)
            total = inner.value(e.body, scope.anew()).data.sum()
            (slope,) = torch.autograd.grad(total, own, create_graph=True)
        found = Stored(slope if wanted else slope.detach(), held.kinds)
        names = ["b", "h", *(x.name if isinstance(x, Var) else "" for x in e.index)]
        places = [scope.names["b"], scope.names["h"], *(self.value(x, scope) for x in e.index)]
        return gather(e.of, found, names, places, self.ranges)

    # --- along an axis ----------------------------------------------------------------------------------------------

    def bound(self, scope: Scope, binders: tuple[Binder, ...]) -> Scope:
        """`scope` with the binders' indices; binding h makes g a function of it."""
        new = {b.index.name: self.ranges.of(b.index.name, self.integer(b.size, scope)) for b in binders}
        if "h" in new:
            new["g"] = self.ranges.group_of_head()
        return scope.with_names(new)

    def _contract(self, e: Contract, scope: Scope) -> Value:
        inside = self.bound(scope.as_values(), (Binder(e.axis, e.extent),))
        axis = e.axis.name
        a, b = (
            self._over(x, union(x.axes, (axis,)), inside) for x in (self.value(e.a, inside), self.value(e.b, inside))
        )
        axes = union(a.axes, b.axes)
        place = {name: p for p, name in enumerate(axes)}
        kept = tuple(x for x in axes if x != axis)
        x, y = _same_kind(a.data, b.data, scope.dtype)
        data = torch.einsum(x, [place[n] for n in a.axes], y, [place[n] for n in b.axes], [place[n] for n in kept])
        return Value(data, kept, reduce_strays(join_strays(a.strays, b.strays), (axis,)))

    def _over(self, x: Value, axes: tuple[str, ...], scope: Scope) -> Value:
        """`x` over `axes`, in that order, repeated along those that it lacks."""
        sizes = dict(zip(x.axes, x.data.shape, strict=True))
        shape = [sizes[a] if a in sizes else scope.names[a].data.shape[0] for a in axes]
        return Value(spread(x, axes).expand(shape), axes, x.strays)

    def _together(self, x: Value, mask: Value, axes: tuple[str, ...], scope: Scope) -> tuple[Value, Value]:
        """Both over the same axes, at full size, the reduced ones included."""
        full = union(x.axes, mask.axes, axes)
        return self._over(x, full, scope), self._over(mask, full, scope)

    def _reduce(self, e: Reduce, scope: Scope) -> Value:
        inside = self.bound(scope.as_values() if scope.mask else scope, e.binders)
        axes = tuple(b.index.name for b in e.binders)
        where = self.value(e.where, inside.as_mask())
        body = self.value(e.body, inside.as_mask() if e.sort == "bool" else inside.under(where))
        refuse_astray(body, where)
        body, where = (self._grouped(x, axes, scope) for x in self._together(body, where, axes, inside))
        return _reduction(e.op, Value(body.data, body.axes), where, axes)

    def _grouped(self, x: Value, axes: tuple[str, ...], scope: Scope) -> Value:
        """A reduction over h within an array over g is over the heads of each group."""
        if "h" not in axes or scope.names["g"].axes != ("g",):
            return x
        at = x.axes.index("h")
        heads, groups = self.ranges.sizes["H"], self.ranges.sizes["G"]
        shape = (*x.data.shape[:at], groups, heads // max(groups, 1), *x.data.shape[at + 1 :])
        data = x.data.reshape(shape)
        return Value(data, (*x.axes[:at], "g", *x.axes[at:]), x.strays)

    def _scan(self, e: Scan, scope: Scope) -> Value:
        inside = self.bound(scope.as_values(), (e.binder,))
        x = self.value(e.body, inside)
        x = self._over(x, union(x.axes, (e.binder.index.name,)), inside)
        dim = x.axes.index(e.binder.index.name)
        data = x.data.flip(dim) if e.reverse else x.data
        total = data.cumsum(dim)
        if e.exclusive:
            total = torch.cat([torch.zeros_like(total.narrow(dim, 0, min(1, total.shape[dim]))), total], dim)
            total = total.narrow(dim, 0, x.data.shape[dim])
        return Value(total.flip(dim) if e.reverse else total, x.axes, x.strays)

    # --- weights ----------------------------------------------------------------------------------------------------

    def _weights(self, e: Weights, scope: Scope) -> Value:
        scope = scope.as_values()
        if e.dropout is not None and float(self.value(e.dropout, scope).data) != 0:
            raise RandomWeights("the reference has no dropout", e.span, hint="set its probability to 0")
        inside = self.bound(scope, e.keys)
        mask = self.value(e.mask, inside.as_mask())
        score = self.value(e.score, inside.under(mask))
        refuse_astray(score, mask)
        score, mask = self._together(score, mask, tuple(k.index.name for k in e.keys), inside)
        held = Value(torch.where(mask.data, score.data, 0), score.axes)
        if self.magnitudes and held.data.requires_grad:
            held.data.register_hook(torch.abs)  # type: ignore[no-untyped-call]
        weights, lse = normalised(self, e, held, mask, scope)
        if lse is not None:
            self.lse[e] = lse
        return weights


def refuse_astray(x: Value, used: Value | None = None) -> None:
    """OutOfRange if an element of `x` that is used depends on a read out of range."""
    for name, where in (x.strays if used is None else limit_strays(x.strays, used)).items():
        count = int(where.data.sum())
        if count:
            axes = ", ".join(where.axes)
            first = ", ".join(str(int(n)) for n in where.data.nonzero()[0])
            raise OutOfRange(
                f"{name} is read out of range at {count} places the mask allows, first at ({axes}) = ({first})",
                hint="mask those pairs, or clamp the subscript",
            )


def _compares(e: Expr) -> bool:
    return isinstance(e, Op) and e.name in COMPARISONS


def _false_where_astray(x: Value) -> Value:
    bare = Value(x.data, x.axes)
    for where in x.strays.values():
        bare = apply(lambda t, out: t & ~out, bare, where)
    return bare


def _same_kind(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both as the promoted type; where an operand has no dimensions its float64 yields."""
    kinds = [t.dtype for t in (a, b) if t.is_floating_point() and t.dtype != torch.float64] or [dtype]
    return a.to(kinds[0]), b.to(kinds[0])


def _reduction(op: str, x: Value, where: Value, axes: tuple[str, ...]) -> Value:
    def over(fn: object, filler: float | bool) -> Value:
        return reduced(fn, Value(torch.where(where.data, x.data, filler), x.axes), axes)  # type: ignore[arg-type]

    match op:
        case "sum":
            return over(torch.sum, 0)
        case "mean":
            count = reduced(torch.sum, where, axes)
            return apply(lambda total, n: total / n.clamp(min=1), over(torch.sum, 0), count)
        case "max":
            return over(_extreme(torch.amax, -torch.inf), -torch.inf)
        case "min":
            return over(_extreme(torch.amin, torch.inf), torch.inf)
        case "any":
            return over(torch.any, False)
        case "argmax":
            return over(lambda t, dim: torch.argmax(t, dim), -torch.inf)
        case _:
            raise InternalError(f"the reference does not know the reduction {op}")


def _extreme(fn: object, of_nothing: float) -> object:
    def extreme(t: Tensor, dim: int) -> Tensor:
        if t.shape[dim]:
            return fn(t, dim)  # type: ignore[operator,no-any-return]
        return t.new_full(t.shape[:dim] + t.shape[dim + 1 :], of_nothing)

    return extreme
