"""rewrite: conjuncts of isolated literals  -->  alternatives: one interval each, as expressions of the other index"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

from attncc.expr.build import FALSE, TRUE, conj, op
from attncc.expr.nodes import Const, Expr
from attncc.passes.bounds.affine import Affine, at_least_zero
from attncc.passes.bounds.facts import Facts
from attncc.passes.bounds.formula import Bound, Conjunct, Fact, Opaque, Row

Side = Literal["lower", "upper"]
NOWHERE = Const(0, "int")


@dataclass(frozen=True)
class Alternative:
    """Where index lies in [lower, upper), `rows` holds and every `residue` holds. All bounds lie in the index's range.

    For one row: outside [lower, upper), or with `rows` false, the alternative is certainly false; inside
    [full_lower, full_upper), with `rows` true, it is certainly true. `exact` says that the two intervals agree and
    nothing is left over. Where nothing is certainly true, the full interval is [0, 0). `upper` may lie below `lower`:
    the row is empty then. Where `rows` is false the bounds mean nothing. A read out of range, in `rows` too, may give
    anything: another condition makes the row false, or it does not matter.
    """

    lower: Expr
    upper: Expr
    rows: Expr
    full_lower: Expr
    full_upper: Expr
    exact: bool
    residue: tuple[Expr, ...] = ()


def alternative(c: Conjunct, index: str, facts: Facts) -> Alternative | None:
    """The alternative of one conjunct; None where it is provably empty."""
    rows = _rows(c, facts)
    if rows is FALSE:
        return None
    lowers, uppers = _bounds(c, "lower", index, facts), _bounds(c, "upper", index, facts)
    if any(facts.is_nonneg(lo - up) for lo in lowers for up in uppers):
        return None
    lower, upper = _strictest(lowers, "lower", facts), _strictest(uppers, "upper", facts)
    residue = tuple(dict.fromkeys(x.source for x in c if not isinstance(x, Fact) and x.source is not None))
    if not residue:
        return Alternative(lower, upper, rows, lower, upper, True)
    full_lower, full_upper = _full(c, index, facts)
    return Alternative(lower, upper, rows, full_lower, full_upper, False, residue)


def _rows(c: Conjunct, facts: Facts) -> Expr:
    parts: dict[Expr, None] = {}
    for x in c:
        match x:
            case Row(outer, _, _):
                if facts.is_nonneg(outer.times(-1) - 1):
                    return FALSE
                if not facts.is_nonneg(outer):
                    parts[at_least_zero(outer)] = None
            case Fact(condition, holds):
                parts[condition if holds else op("not", condition)] = None
            case _:
                pass
    return conj(*parts)


def _bounds(
    c: Conjunct, side: Literal["lower", "upper"], index: str, facts: Facts, inner: bool = False
) -> list[Affine]:
    first, last = facts.ranges[index]
    own = [x.inner if inner else x.outer for x in c if isinstance(x, Bound) and x.side == side]
    return list(dict.fromkeys([*own, first if side == "lower" else last + 1]))


def _strictest(bounds: list[Affine], side: Side, facts: Facts) -> Expr:
    """The max of lower bounds or the min of upper ones, without those that another implies."""
    sign = 1 if side == "lower" else -1
    kept: list[Affine] = []
    for n, a in enumerate(bounds):
        others = kept + bounds[n + 1 :]
        if not any(facts.is_nonneg((b - a).times(sign)) for b in others):
            kept.append(a)
    name = "max" if side == "lower" else "min"
    return reduce(lambda x, y: op(name, x, y), [a.expr() for a in kept])


def _full(c: Conjunct, index: str, facts: Facts) -> tuple[Expr, Expr]:
    """The interval in which every literal certainly holds; rows where one of them may not hold have none."""
    if any(isinstance(x, Opaque) for x in c):
        return NOWHERE, NOWHERE
    lowers, uppers = _bounds(c, "lower", index, facts, True), _bounds(c, "upper", index, facts, True)
    unsure = [x.inner for x in c if isinstance(x, Row) and not facts.is_nonneg(x.inner) and x.source is not None]
    never = any(facts.is_nonneg(a.times(-1) - 1) for a in unsure)
    if never or any(facts.is_nonneg(lo - up) for lo in lowers for up in uppers):
        return NOWHERE, NOWHERE
    lower, upper = _strictest(lowers, "lower", facts), _strictest(uppers, "upper", facts)
    sure = conj(*(at_least_zero(a) for a in unsure))
    return lower, upper if sure is TRUE else op("where", sure, upper, lower)
