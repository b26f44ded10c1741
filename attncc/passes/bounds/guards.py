"""rewrite: c(t[x])  -->  0 <= x and x < extent and c(t[x])

A comparison in a mask whose tensor read is out of range is false, and so is a flag read out of range. The pass says so
in the mask itself, at the innermost comparison; what the ranges of i and j prove is left out. In what it returns, a
read out of range stands only beside a guard that is false, so it may give any value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attncc.expr.build import conj
from attncc.expr.nodes import Expr, Op, Var, free_vars, walk, with_children
from attncc.expr.order import scalar_walk
from attncc.ir.nodes import Axis, Load, Segment
from attncc.passes.bounds.affine import affine, at_least_zero
from attncc.passes.bounds.facts import Facts, N

CONNECTIVES = frozenset({"and", "or", "not", "where"})


@dataclass(frozen=True)
class Guards:
    """`axes` are those of captured tensors and `let`s; a tensor it does not name is taken to have N positions."""

    axes: Mapping[str, tuple[Axis, ...]]
    facts: Facts

    def inserted(self, mask: Expr) -> Expr:
        """`mask` with a guard at each comparison or flag that reads a tensor at i or j."""
        done: dict[Expr, Expr] = {}
        for node in walk(mask):
            if node.sort != "bool":
                continue
            if isinstance(node, Op) and node.name in CONNECTIVES:
                new = tuple(done.get(a, a) for a in node.args)
                done[node] = node if new == node.args else with_children(node, new)
            else:
                done[node] = conj(*self.of(node), node)
        return done[mask]

    def of(self, literal: Expr) -> tuple[Expr, ...]:
        """That every read in `literal` is in range, as far as it is not proved."""
        found: dict[Expr, None] = {}
        pending = [literal]
        while pending:
            for node in scalar_walk(pending.pop()):
                match node:
                    case Load(tensor, index, _):
                        known = self.axes.get(tensor)
                        for n, x in enumerate(index):
                            found.update(dict.fromkeys(_inside(x, known[n] if known else None, self.facts)))
                        pending.extend(index)
                    case Segment(_, at, _):
                        found.update(dict.fromkeys(_inside(at, None, self.facts)))
                        pending.append(at)
                    case _:
                        pass
        return tuple(found)


def _inside(x: Expr, axis: Axis | None, facts: Facts) -> list[Expr]:
    if not free_vars(x) & facts.ranges.keys():
        return []
    if axis is not None and axis.index == "m" and x is Var("i", "int"):
        return []  # a query row is always there
    position = affine(x)
    last = affine(N if axis is None else axis.size) - 1
    return [at_least_zero(a) for a in (position, last - position) if not facts.is_nonneg(a)]
