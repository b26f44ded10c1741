"""Which keys a query can see, and which queries a key: intervals of one index as expressions of the other.

rewrite: a mask over i and j  -->  at most eight alternatives `rows and lower <= j < upper and residue`

The schedule evaluates lower and upper for the rows of a tile as vectors and reduces them: the tiles from min lower to
max upper are visited, those from max full_lower to min full_upper need no predicate. No interval arithmetic over
the tile is needed, so floors, clamps and loads stay exact. Literals that don't isolate stay as `residue`; for them
`box_test` says, from a tile's corners alone, whether a predicate may or must hold.

Steps: guard reads (guards), negation normal form (logic), isolate each literal (isolate, affine), disjunctive normal
form of at most eight conjuncts (formula), merge bounds (build).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attncc.expr.nodes import Expr, walk
from attncc.ir.nodes import Axis, Load
from attncc.passes.bounds.box import BoxTest, box_test
from attncc.passes.bounds.build import Alternative, alternative
from attncc.passes.bounds.derived import Derived, NextFlag
from attncc.passes.bounds.facts import SIZES, Facts
from attncc.passes.bounds.formula import normal_form
from attncc.passes.bounds.guards import Guards
from attncc.passes.bounds.logic import isolated

__all__ = ["Alternative", "Bounds", "BoxTest", "Derived", "NextFlag", "bounds", "box_test"]

CAP = 8


@dataclass(frozen=True)
class Bounds:
    """The support of `mask` is the union of the alternatives; they may overlap. None at all: the mask is false.

    `mask` is the given one with a guard at every read that may be out of range. `aux` are the derived arrays that the
    bounds read.
    """

    index: str
    alternatives: tuple[Alternative, ...]
    aux: tuple[Derived, ...]
    mask: Expr


def bounds(
    mask: Expr,
    index: str,
    other: str,
    *,
    positive: frozenset[str] = SIZES,
    axes: Mapping[str, tuple[Axis, ...]] | None = None,
) -> Bounds:
    """`mask` as intervals of `index` ("j" for the forward pass and dQ, "i" for dK and dV) at each `other`.

    Every interval is already cut to the index's range: 0 <= j < N, N - M <= i < N. Vars in `positive` are taken to be
    at least 1 (sizes, and the constants that a caller checks at the call); a quotient by any other Var doesn't
    isolate. `axes` gives captured tensors' axes, for the guards.
    """
    if {index, other} != {"i", "j"}:
        raise ValueError(f"bounds of {index} by {other}: they are i and j, or j and i")
    guards = Guards(axes or {}, Facts(positive | SIZES))
    guarded = guards.inserted(mask)
    formula, aux, facts = isolated(guarded, index, guards)
    found = (alternative(c, index, facts) for c in normal_form(formula, CAP))
    alternatives = tuple(dict.fromkeys(a for a in found if a is not None))
    return Bounds(index, alternatives, _read(aux, alternatives), guarded)


def _read(aux: tuple[Derived, ...], alternatives: tuple[Alternative, ...]) -> tuple[Derived, ...]:
    """The derived arrays that a bound still reads."""
    ends = [e for a in alternatives for e in (a.lower, a.upper, a.full_lower, a.full_upper, a.rows)]
    names = {n.tensor for e in ends for n in walk(e) if isinstance(n, Load)}
    return tuple(d for d in aux if d.name in names)
