"""rewrite: a mask  -->  its negation normal form, each literal isolated or named as one that can't be"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Op
from attncc.ir.nodes import Load
from attncc.passes.bounds.affine import affine
from attncc.passes.bounds.derived import Derived
from attncc.passes.bounds.facts import Facts
from attncc.passes.bounds.formula import And, Fact, Formula, Opaque, Or
from attncc.passes.bounds.guards import Guards, negation
from attncc.passes.bounds.isolate import Isolator


def isolated(mask: Expr, index: str, guards: Guards) -> tuple[Formula, tuple[Derived, ...], Facts]:
    """The formula of `mask` with `index` isolated, the derived arrays its bounds read, and what is known of them."""

    def condition(e: Expr, negate: bool) -> Formula:
        return _formula(e, negate, iso)

    iso = Isolator(index, guards.facts, guards, condition)
    formula = condition(mask, False)
    return formula, tuple(iso.aux), replace(guards.facts, terms=iso.reads)


def _formula(e: Expr, negate: bool, iso: Isolator) -> Formula:
    source = negation(e) if negate else e
    match e:
        case Const(value, _):
            return And((), e) if value != negate else Or((), e)
        case Op("not", (x,), _):
            return _formula(x, not negate, iso)
        case Op(("and" | "or") as name, _, _):
            kind = And if (name == "and") != negate else Or
            return kind(tuple(_formula(x, negate, iso) for x in flattened(e, name)), source)
        case Op("where", (c, a, b), _):
            yes = And((_formula(c, False, iso), _formula(a, negate, iso)), source)
            return Or((yes, And((_formula(c, True, iso), _formula(b, negate, iso)), source)), source)
        case Op(("eq" | "ne") as name, (a, b), _) if a.sort == "bool" and iso.mentions(e):
            same = (name == "eq") != negate
            pairs = ((False, not same), (True, same))
            return Or(
                tuple(And((_formula(a, x, iso), _formula(b, y, iso)), source) for x, y in pairs),
                source,
            )
        case Op("lt" | "le" | "eq" | "ne", (a, _), _) if a.sort == "int":
            assert isinstance(source, Op)
            return _comparison(source, iso)
        case _:
            return Opaque(source) if iso.mentions(e) else Fact(e, not negate)


def flattened(e: Expr, name: str) -> list[Expr]:
    """The operands of nested `name`s, left to right."""
    out: list[Expr] = []
    stack = [e]
    while stack:
        x = stack.pop()
        if isinstance(x, Op) and x.name == name:
            stack.extend(reversed(x.args))
        else:
            out.append(x)
    return out


def _comparison(e: Op, iso: Isolator) -> Formula:
    a, b = e.args
    for n, side in enumerate((a, b)):
        if isinstance(side, Op) and side.name == "where" and iso.mentions(e) and iso.split():
            return _chosen(e, side, n, iso)
    x, y = affine(a), affine(b)
    gap = y - x
    equality = e.name in ("eq", "ne")
    if equality and isinstance(a, Load) and isinstance(b, Load) and a.tensor == b.tensor:
        found = iso.same_value(a, b, e, e.name == "eq")
        if found is not None:
            return found
    if equality and gap.terms and not any(iso.mentions(t) for t, _ in gap.terms):
        return Fact(op("eq", a, b), e.name == "eq")
    match e.name:
        case "le":
            return iso.at_least_zero(gap, e)
        case "lt":
            return iso.at_least_zero(gap - 1, e)
        case "eq":
            return And((iso.at_least_zero(gap, e), iso.at_least_zero(gap.times(-1), e)), e)
        case _:
            return Or((iso.at_least_zero(gap - 1, e), iso.at_least_zero(gap.times(-1) - 1, e)), e)


def _chosen(e: Op, side: Op, n: int, iso: Isolator) -> Formula:
    """where(c, x, y) == z  -->  c and x == z or not c and y == z"""
    c, yes, no = side.args
    rest = e.args[1 - n]
    taken, skipped = (op(e.name, *((x, rest) if n == 0 else (rest, x))) for x in (yes, no))
    with_c = And((_formula(c, False, iso), _formula(taken, False, iso)), e)
    return Or((with_c, And((_formula(c, True, iso), _formula(skipped, False, iso)), e)), e)
