"""What is known of the values of expressions without looking at tensors: positions lie in range, sizes are positive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attncc.expr.nodes import Const, Expr, Op, Var
from attncc.passes.bounds.affine import Affine, affine, leaf

SIZES = frozenset("BHGMNDE")
N, M = Var("N", "int"), Var("M", "int")


def positions() -> dict[str, tuple[Affine, Affine]]:
    """First and last value of the two positions: key j in [0, N), query i in [N - M, N), in key coordinates."""
    n, m = leaf(N), leaf(M)
    return {"j": (Affine(), n - 1), "i": (n - m, n - 1)}


@dataclass(frozen=True)
class Facts:
    """`ranges` are the first and last values of indices, `terms` of loads; Vars named in `positive` are at least 1."""

    positive: frozenset[str] = SIZES
    ranges: Mapping[str, tuple[Affine, Affine]] = field(default_factory=positions)
    terms: Mapping[Expr, tuple[tuple[Affine, ...], tuple[Affine, ...]]] = field(default_factory=dict)
    """What a load is at least, and what it is at most; of no use where its index is out of range."""

    def is_positive(self, e: Expr) -> bool:
        """Proved to be at least 1."""
        return self.is_nonneg(affine(e) - 1)

    def is_nonneg(self, a: Affine) -> bool:
        """Proved to be at least 0; False says nothing."""
        low = self._low(a, 8)
        return low is not None and low >= 0

    def _low(self, a: Affine, fuel: int) -> int | None:
        """A number that `a` never goes below; loads and quotients go first, then indices, so that terms can cancel."""
        if fuel == 0:
            return None
        for t, c in sorted(a.terms, key=lambda tc: isinstance(tc[0], Var)):
            bounds = self._bounds(t, c)
            if bounds:
                rest = a - leaf(t).times(c)
                lows = (self._low(rest + b.times(c), fuel - 1) for b in bounds)
                return max((x for x in lows if x is not None), default=None)
        total = a.const
        for t, c in a.terms:
            if c < 0 or not (isinstance(t, Var) and t.name in self.positive):
                return None
            total += c
        return total

    def _bounds(self, t: Expr, c: int) -> tuple[Affine, ...]:
        """What `t` is at least (c > 0) or at most (c < 0), in terms simpler than `t`."""
        if t in self.terms:
            return self.terms[t][0 if c > 0 else 1]
        match t:
            case Var(name, _) if name in self.ranges:
                return (self.ranges[name][0 if c > 0 else 1],)
            case Op("mod", (_, d), _) if self._divides(d):
                return (Affine() if c > 0 else affine(d) - 1,)
            case Op("floordiv", (x, d), _) if self._divides(d) and self.is_nonneg(affine(x)):
                return (Affine() if c > 0 else affine(x),)
            case Op("abs" | "square", _, _) if c > 0:
                return (Affine(),)
            case Op("min", (x, y), _) if c < 0:
                return affine(x), affine(y)
            case Op("max", (x, y), _) if c > 0:
                return affine(x), affine(y)
            case _:
                return ()

    def _divides(self, d: Expr) -> bool:
        if isinstance(d, Const):
            return d.value > 0
        return isinstance(d, Var) and d.name in self.positive
