"""What the simplifier knows while it works, and the normal forms of logic and choices.

The normal form of a node is made by `Algebra.make(name, *args)` from arguments in normal form. Each family of
operations has a module: `products` (real mul, div, neg, recip, square), `sums` (real add and sub), `integers` (linear
forms), this one (and, or) and the table of single rules in `rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from attncc.expr import interval
from attncc.expr.build import FALSE, TRUE, lift
from attncc.expr.evaluate import UNDEFINED, apply
from attncc.expr.interval import Interval
from attncc.expr.nodes import Const, Expr, Op, Var, children
from attncc.expr.ops import OPS, result_sort
from attncc.expr.order import missing, operands, sort_key
from attncc.expr.products import in_range

Part = TypeVar("Part", bound=tuple[Any, ...])
_PRODUCTS = frozenset({"mul", "div", "square", "recip"})
SIZES = frozenset("BHGMNDE")
SCORE = "s"
"""The real variable that isn't a run-time scalar: a normaliser's phi and psi are functions of it."""


def by_convention(v: Var) -> bool:
    """Whether a variable is a run-time scalar: a size, or a real constant of a spec."""
    return v.name in SIZES or (v.sort == "real" and v.name != SCORE)


def _operands_of(name: str, e: Expr) -> list[tuple[Expr]]:
    return [(a,) for a in e.args] if isinstance(e, Op) and e.name == name else []


class Algebra:
    """Memo tables of one run: which nodes are run-time scalars, and what interval they lie in."""

    def __init__(self, scalars: Collection[str] | None = None, size: int = 0) -> None:
        self.budget = 5_000 + 2 * size
        names = None if scalars is None else frozenset(scalars)
        self._is_scalar: Callable[[Var], bool] = by_convention if names is None else (lambda v: v.name in names)
        self._free: dict[Expr, bool] = {}
        self._bounds: dict[Expr, Interval] = {}

    def index_free(self, e: Expr) -> bool:
        """Whether `e` is one number per launch: all variables under it, also inside atoms, are run-time scalars."""
        for node in missing(e, self._free):
            self._free[node] = self._is_free(node)
        return self._free[e]

    def _is_free(self, node: Expr) -> bool:
        if isinstance(node, Var):
            return self._is_scalar(node)
        return all(self._free[c] for c in children(node))

    def parents_first(self, e: Expr, parts: Callable[[Expr], list[Part]]) -> list[tuple[Expr, list[Part]]]:
        """The nodes of one family under `e` with their `parts`, each before its parts; a leaf has none.

        Past the run's budget all but the topmost nodes are leaves: where thousands of nested products are each used
        elsewhere too, gathering the factors of each would take quadratic time.
        """
        limit = max(self.budget, 16)  # what small families need
        opened: dict[Expr, list[Part]] = {}
        order: list[Expr] = []
        stack: list[tuple[Expr, bool]] = [(e, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
            elif node not in opened:
                opened[node] = parts(node) if len(opened) < limit else []
                stack.append((node, True))
                stack.extend((part[0], False) for part in opened[node])
        self.budget -= len(order) if len(order) > 16 else 0
        return [(node, opened[node]) for node in reversed(order)]

    def bounds(self, e: Expr) -> Interval:
        """The interval of `e`, knowing nothing of its leaves."""
        for node in missing(e, self._bounds, operands):
            self._bounds[node] = interval.step(node, self._bounds)
        return self._bounds[e]

    def finite(self, e: Expr) -> bool:
        """Whether `e` is never infinite; integers never are."""
        return e.sort != "real" or self.bounds(e).finite

    def make(self, name: str, *args: Expr) -> Expr:
        """The normal form of `name` applied to arguments in normal form."""
        from attncc.expr import integers, products, rules, sums

        sort = result_sort(name, tuple(a.sort for a in args))
        folded = fold(name, args)
        if folded is not None:
            return folded
        if name in ("and", "or"):
            return self._logic(name, args)
        if sort == "int" and name in integers.FAMILY:
            return integers.normal(self, Op(name, args, sort))
        if sort == "real" and name in products.FAMILY:
            return products.normal(self, Op(name, args, sort))
        if sort == "real" and name in sums.FAMILY:
            return sums.normal(self, name, *args)
        for rule in rules.RULES.get(name, ()):
            found = rule(self, *args)
            if found is not None:
                return found
        if OPS[name].commutative:
            args = tuple(sorted(args, key=sort_key))
        return Op(name, args, sort)

    def build(self, name: str, *args: Expr | float) -> Expr:
        """`make` with literals lifted."""
        return self.make(name, *(lift(a) for a in args))

    def _logic(self, name: str, args: tuple[Expr, ...]) -> Expr:
        """rewrite: (b and a) and a --> a and b;  a and not a --> False"""
        neutral, absorbing = (TRUE, FALSE) if name == "and" else (FALSE, TRUE)
        nodes = self.parents_first(Op(name, args, "bool"), lambda e: _operands_of(name, e))
        parts = {p for p, opened in nodes if not opened and p is not neutral}
        if absorbing in parts or any(isinstance(p, Op) and p.name == "not" and p.args[0] in parts for p in parts):
            return absorbing
        ordered = sorted(parts, key=sort_key)
        result = ordered[0] if ordered else neutral
        for p in ordered[1:]:
            result = Op(name, (result, p), "bool")
        return result


def fold(name: str, args: tuple[Expr, ...]) -> Expr | None:
    """The constant that an operation on constants is; None where it doesn't exist or overflows.

    rewrite: sqrt(64.0) --> 8.0
    """
    values = [a.value for a in args if isinstance(a, Const)]
    if len(values) != len(args):
        return None
    sort = result_sort(name, tuple(a.sort for a in args))
    value = apply(name, tuple(values), sort)
    if value is UNDEFINED or (sort == "real" and not _foldable(value, values)):
        return None
    if sort == "real" and name in _PRODUCTS and not (in_range(value) or (value == 0 and 0 in values)):
        return None
    return Const(value, sort)


def _foldable(value: float, args: list[int | float | bool]) -> bool:
    """No NaN, and no infinity that the arguments don't have."""
    if math.isinf(value):
        return any(isinstance(a, float) and math.isinf(a) for a in args)
    return not math.isnan(value)
