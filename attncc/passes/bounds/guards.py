"""rewrite: c(t[x])  -->  0 <= x and x < extent and c(t[x])

A comparison in a mask whose tensor read is out of range is false, and so is a flag read out of range; a read in the
branch of a `where` that is not taken does not count. The pass says so in the mask itself, at the innermost comparison;
what the ranges of i and j prove is left out. In what it returns, a
read out of range stands only beside a guard that is false, so it may give any value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attncc.expr.build import FALSE, TRUE, conj, disj, op
from attncc.expr.nodes import Const, Expr, Op, Var, children, free_vars, walk, with_children
from attncc.ir.nodes import Axis, Load, Segment
from attncc.passes.bounds.affine import affine, at_least_zero
from attncc.passes.bounds.facts import Facts, N


@dataclass(frozen=True)
class Guards:
    """`axes` are those of captured tensors and `let`s; a tensor it does not name is taken to have N positions."""

    axes: Mapping[str, tuple[Axis, ...]]
    facts: Facts

    def inserted(self, mask: Expr) -> Expr:
        """`mask` with a guard at each comparison or flag that reads a tensor at i or j."""
        done: dict[Expr, Expr] = {}
        for node in walk(mask):
            new = tuple(done[c] for c in children(node))
            done[node] = node
            if isinstance(node, Op | Load | Segment) and new != children(node):
                done[node] = with_children(node, new)
            if node.sort == "bool" and not _joins(node):
                done[node] = conj(*self.of(node), done[node])
        return done[mask]

    def of(self, e: Expr) -> tuple[Expr, ...]:
        """That every read the value of `e` depends on is in range, as far as it is not proved."""
        match e:
            case Op("where", (c, a, b), _):
                c = self.inserted(c)
                else_ = negation(c)
                found = [disj(else_, g) for g in self.of(a) if g is not c]
                found += [disj(c, g) for g in self.of(b) if g is not else_]
            case Load(tensor, index, _):
                known = self.axes.get(tensor)
                found = [g for n, x in enumerate(index) for g in _inside(x, known[n] if known else None, self.facts)]
                found = [g for x in index for g in self.of(x)] + found
            case Segment(_, at, _):
                found = [*self.of(at), *_inside(at, None, self.facts)]
            case Op(_, args, _):
                found = [g for x in args if x.sort != "bool" for g in self.of(x)]
            case _:
                found = []
        return tuple(dict.fromkeys(found))


def _joins(e: Expr) -> bool:
    """Made of truth values, whose reads are guarded where they stand."""
    return isinstance(e, Op) and (e.name in ("and", "or", "not", "where") or e.args[0].sort == "bool")


def negation(e: Expr) -> Expr:
    """`not e`, pushed into a constant, a `not` or a comparison of integers (a NaN is neither < nor >=)."""
    match e:
        case Const(value, _):
            return FALSE if value else TRUE
        case Op("not", (x,), _):
            return x
        case Op(("lt" | "le") as name, (a, b), _) if a.sort == "int":
            return op("le" if name == "lt" else "lt", b, a)
        case Op(("eq" | "ne") as name, (a, b), _):
            return op("ne" if name == "eq" else "eq", a, b)
        case _:
            return op("not", e)


def _inside(x: Expr, axis: Axis | None, facts: Facts) -> list[Expr]:
    if not free_vars(x) & facts.ranges.keys():
        return []
    if axis is not None and axis.index == "m" and x is Var("i", "int"):
        return []  # a query row is always there
    position = affine(x)
    last = affine(N if axis is None else axis.size) - 1
    return [at_least_zero(a) for a in (position, last - position) if not facts.is_nonneg(a)]
