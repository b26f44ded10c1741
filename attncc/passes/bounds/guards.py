"""rewrite: c(t[x])  -->  0 <= x and x < extent and c(t[x])

A comparison in a mask whose tensor read is out of range is false, and so is a flag read out of range. The pass says so
in the mask itself, at the innermost comparison; what the ranges of i and j prove is left out. In what it returns, a
read out of range stands only beside a guard that is false, so it may give any value.
"""

from __future__ import annotations

from collections.abc import Mapping

from attncc.expr.build import conj
from attncc.expr.nodes import Expr, Op, Var, free_vars, walk, with_children
from attncc.ir.nodes import Axis, Load, Segment
from attncc.passes.bounds.affine import affine, at_least_zero
from attncc.passes.bounds.facts import Facts, N

COMPARISONS = frozenset({"lt", "le", "eq", "ne"})
CONNECTIVES = frozenset({"and", "or", "not", "where"})


def guard_reads(mask: Expr, axes: Mapping[str, tuple[Axis, ...]], facts: Facts) -> Expr:
    """`mask` with a guard at each comparison or flag that reads a tensor at i or j.

    `axes` are those of captured tensors and `let`s; along an axis it does not name, N positions are assumed.
    """
    done: dict[Expr, Expr] = {}
    for node in walk(mask):
        if node.sort != "bool":
            continue
        if isinstance(node, Op) and node.name in CONNECTIVES:
            new = tuple(done.get(a, a) for a in node.args)
            done[node] = node if new == node.args else with_children(node, new)
        else:
            done[node] = conj(*_guards(node, axes, facts), node)
    return done[mask]


def _guards(literal: Expr, axes: Mapping[str, tuple[Axis, ...]], facts: Facts) -> list[Expr]:
    found: dict[Expr, None] = {}
    for node in walk(literal):
        match node:
            case Load(tensor, index, _):
                known = axes.get(tensor)
                for n, x in enumerate(index):
                    found.update(dict.fromkeys(_inside(x, known[n] if known else None, facts)))
            case Segment(_, at, _):
                found.update(dict.fromkeys(_inside(at, None, facts)))
            case _:
                pass
    return list(found)


def _inside(x: Expr, axis: Axis | None, facts: Facts) -> list[Expr]:
    if not free_vars(x) & facts.ranges.keys():
        return []
    if axis is not None and axis.index == "m" and x is Var("i", "int"):
        return []  # a query row is always there
    position = affine(x)
    last = affine(N if axis is None else axis.size) - 1
    return [at_least_zero(a) for a in (position, last - position) if not facts.is_nonneg(a)]
