"""Splits a score into what depends on the key alone, on the query alone, and on the pair.

rewrite: a * s + c * (j - i)  -->  pair: a * s,  key: c * (j - j0),  query: c * (j0 - i)
rewrite: |j - i|, of the pair --> |(j - j0) + (j0 - i)|, converted to reals per key and per query

so that an addition per pair becomes one per key and one per query. Integers are split around a key j0 of the tile:
their parts are exact while a query and a tile of keys are less than 2**24 apart, and a term by key is rounded at the
size that one tile gives it, wherever the tile lies.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Op, Var, substitute, walk, with_children
from attncc.expr.order import scalar_walk
from attncc.ir.nodes import Contract
from attncc.passes.simplify import simplify

i, j = ivar("i"), ivar("j")
LANE = ivar("key of the tile")
"""j - j0 where that is a value of its own, the same for every tile."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Terms of a sum; None stands for none."""

    pair: Expr | None = None
    key: Expr | None = None
    query: Expr | None = None

    def __add__(self, other: Parts) -> Parts:
        return Parts(_sum(self.pair, other.pair), _sum(self.key, other.key), _sum(self.query, other.query))

    def times(self, factor: Expr) -> Parts:
        """Every term times `factor`."""
        found = (None if x is None else _product(factor, x) for x in (self.pair, self.key, self.query))
        return Parts(*found)

    def whole(self) -> Expr:
        """The sum again."""
        return _sum(_sum(self.pair, self.key), self.query) or Const(0.0, "real")


def _sum(a: Expr | None, b: Expr | None) -> Expr | None:
    return a if b is None else b if a is None else op("add", a, b)


def _product(factor: Expr, e: Expr) -> Expr:
    """rewrite: a * (b * x) --> (a * b) * x where neither a nor b reads an index"""
    match e:
        case Op("mul", (b, x)) if not any(reads(b)):
            return op("mul", _product(factor, b), x)
        case Const(b) if isinstance(factor, Const):
            return Const(factor.value * b, "real")
        case _:
            return op("mul", factor, e)


def separate(e: Expr, key: Var, lane: Expr | None = None) -> Parts:
    """`e` as a sum of parts; `key` is the first key of the tile, `lane` j - key. What no rule splits is of the pair."""
    at_key, at_query, at_pair = reads(e)
    if not at_pair and not (at_key and at_query):
        return Parts(key=e) if at_key else Parts(query=e)
    match e:
        case Op("add", (a, b)):
            return separate(a, key, lane) + separate(b, key, lane)
        case Op("sub", (a, b)):
            return separate(a, key, lane) + separate(op("neg", b), key, lane)
        case Op("neg", (Op("real", (a,)),)):
            return separate(op("real", op("neg", a)), key, lane)
        case Op("neg", (Op("mul" | "div" as name, (a, b)),)):
            return separate(op(name, a, op("neg", b)) if any(reads(a)) else op(name, _negative(a), b), key, lane)
        case Op("mul", (a, b)) if not any(reads(a)):
            return separate(b, key, lane).times(a)
        case Op("mul", (a, b)) if not any(reads(b)):
            return separate(a, key, lane).times(b)
        case Op("div", (a, b)) if not any(reads(b)):
            return separate(a, key, lane).times(op("div", 1.0, b))
        case Op("real", (a,)) if (split := _split(a, key, lane)) is not None:
            return Parts(None, split[0], op("real", split[1]))
        case _:
            return Parts(pair=_converted(e, key, lane))


def _split(e: Expr, key: Var, lane: Expr | None) -> tuple[Expr, Expr] | None:
    """An integer sum, linear in the key: (what a key adds to the tile's first, a real; what that and a query give)."""
    found = _integers(e)
    if found is None:
        return None
    of_key, of_query = found
    first = substitute(of_key, {j: key})
    since = simplify(op("sub", substitute(of_key, {j: op("add", key, LANE)}), first))
    step = simplify(substitute(since, {LANE: Const(1, "int")}))
    if not isinstance(step, Const) or since is not simplify(op("mul", step, LANE)):
        return None
    place = op("real", op("sub", j, key) if lane is None else lane)
    return place if step.value == 1 else op("mul", float(step.value), place), _minus(first, of_query)


def in_steps(e: Expr, near: Expr, far: Expr, zero: Expr) -> Expr:
    """A function of the tile's keys such that little of it can be kept from one turn to the next.

    rewrite: c * real(lane) --> c * real(near) + (c + real(zero)) * real(far), where lane = near + far

    Along the registers of a thread `near` takes few values and `far` is a constant, so that this is one operation a
    key; `zero` is 0 and changes with the turn.
    """
    lane = op("real", LANE)
    table: dict[Expr, Expr] = {lane: op("add", op("real", near), op("real", far))}
    for node in walk(e):
        match node:
            case Op("mul", (c, x)) if x is lane:
                steps = op("mul", op("add", c, op("real", zero)), op("real", far))
                table[node] = op("add", op("mul", c, op("real", near)), steps)
    return substitute(e, table)


def _negative(e: Expr) -> Expr:
    return Const(-e.value, e.sort) if isinstance(e, Const) else op("neg", e)


def _minus(a: Expr, b: Expr) -> Expr:
    """rewrite: a + (-b) --> a - b"""
    match b:
        case Op("neg", (c,)):
            return op("sub", a, c)
        case _:
            return op("add", a, b)


def _converted(e: Expr, key: Var, lane: Expr | None) -> Expr:
    """rewrite: real(j - i), real(|j - i|) --> x, |x| with x = real(j - j0) + real(j0 - i); atoms stay as they are"""
    done: dict[Expr, Expr] = {}
    for node in scalar_walk(e):
        match node:
            case Op("real", (Op("abs", (a,)),)) if _split(a, key, lane) is not None:
                done[node] = op("abs", separate(op("real", a), key, lane).whole())
            case Op("real", (a,)) if _split(a, key, lane) is not None:
                done[node] = separate(node, key, lane).whole()
            case Op(_, args):
                done[node] = with_children(node, tuple(done[a] for a in args))
            case _:
                done[node] = node
    return done[e]


def _integers(e: Expr) -> tuple[Expr, Expr] | None:
    """An integer sum as (a function of the key, a function of the query)."""
    match e:
        case Op("sub", (a, b)) if _alone(a, b):
            return (a, op("neg", b)) if reads(a)[0] else (op("neg", b), a)
        case Op("add", (a, b)) if _alone(a, b):
            return (a, b) if reads(a)[0] else (b, a)
        case Op("neg", (Op("sub", (a, b)),)):
            return _integers(op("sub", b, a))
        case _:
            return None


def _alone(a: Expr, b: Expr) -> bool:
    """Whether one reads the key alone and the other the query alone."""
    return {reads(a), reads(b)} == {(True, False, False), (False, True, False)}


def reads(e: Expr) -> tuple[bool, bool, bool]:
    """Whether an expression reads the key, the query, the product."""
    seen = set(walk(e))
    return j in seen, i in seen, any(isinstance(n, Contract) for n in seen)
