"""Splits a score into what depends on the key alone, on the query alone, and on the pair.

rewrite: a * s + c * (j - i)  -->  pair: a * s,  key: c * (j - j0),  query: c * (j0 - i)

so that an addition per pair becomes one per key and one per query. Integers are split around a key j0 of the tile:
their parts stay as small as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.build import op
from attncc.expr.nodes import Expr, Op, Var, substitute, walk
from attncc.ir.nodes import Contract
from attncc.schedule.stream import ZERO, i, j


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
        found = (None if x is None else op("mul", factor, x) for x in (self.pair, self.key, self.query))
        return Parts(*found)

    def whole(self) -> Expr:
        """The sum again."""
        return _sum(_sum(self.pair, self.key), self.query) or ZERO


def _sum(a: Expr | None, b: Expr | None) -> Expr | None:
    return a if b is None else b if a is None else op("add", a, b)


def separate(e: Expr, key: Var) -> Parts:
    """`e` as a sum of parts; `key` is the first key of the tile. What no rule splits is a term of pairs."""
    at_key, at_query, at_pair = _reads(e)
    if not at_pair and not (at_key and at_query):
        return Parts(query=e) if at_query else Parts(key=e)
    match e:
        case Op("add", (a, b)):
            return separate(a, key) + separate(b, key)
        case Op("sub", (a, b)):
            return separate(a, key) + separate(op("neg", b), key)
        case Op("neg", (Op("real", (a,)),)):
            return separate(op("real", op("neg", a)), key)
        case Op("mul", (a, b)) if not any(_reads(a)):
            return separate(b, key).times(a)
        case Op("mul", (a, b)) if not any(_reads(b)):
            return separate(a, key).times(b)
        case Op("div", (a, b)) if not any(_reads(b)):
            return separate(a, key).times(op("div", 1.0, b))
        case Op("real", (a,)) if (split := _integers(a)) is not None:
            first = substitute(split[0], {j: key})
            return Parts(None, op("real", op("sub", split[0], first)), op("real", op("add", first, split[1])))
        case _:
            return Parts(pair=e)


def _integers(e: Expr) -> tuple[Expr, Expr] | None:
    """An integer sum as (a function of the key, a function of the query)."""
    match e:
        case Op("sub", (a, b)) if _alone(a, b):
            return (a, op("neg", b)) if _reads(a)[0] else (op("neg", b), a)
        case Op("add", (a, b)) if _alone(a, b):
            return (a, b) if _reads(a)[0] else (b, a)
        case Op("neg", (Op("sub", (a, b)),)):
            return _integers(op("sub", b, a))
        case _:
            return None


def _alone(a: Expr, b: Expr) -> bool:
    """Whether one reads the key alone and the other the query alone."""
    return {_reads(a), _reads(b)} == {(True, False, False), (False, True, False)}


def _reads(e: Expr) -> tuple[bool, bool, bool]:
    """Whether an expression reads the key, the query, the product."""
    seen = set(walk(e))
    return j in seen, i in seen, any(isinstance(n, Contract) for n in seen)
