"""The op table's column of intervals: from the ends of the arguments to the ends of the result.

Sums, products and comparisons round as the evaluated operation does, which is monotone, so their ends enclose every
evaluation in double. The other functions are widened by a few units in the last place and clipped to their range.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from attncc.expr.evaluate import FUNCTIONS, apply

Bound = int | float
Ends = tuple[Bound, Bound]

ALL: Ends = (-math.inf, math.inf)
_ULPS = 4 * 2.0**-52


def is_infinite(x: Bound) -> bool:
    """math.isinf for ints of any size."""
    return x in (math.inf, -math.inf)


def hull(x: Ends, limits: Ends) -> Ends:
    """`x` clipped to `limits`; an end that came out as NaN is not known."""
    lo = limits[0] if x[0] != x[0] else max(x[0], limits[0])
    hi = limits[1] if x[1] != x[1] else min(x[1], limits[1])
    return lo, hi


def _around(points: list[Bound]) -> Ends:
    return (-math.inf, math.inf) if any(p != p for p in points) else (min(points), max(points))


def _add(a: Bound, b: Bound, unknown: float) -> Bound:
    """a + b, where an end of `unknown` sign infinity wins over the other."""
    if is_infinite(a) or is_infinite(b):
        infinite = {x for x in (a, b) if is_infinite(x)}
        return infinite.pop() if len(infinite) == 1 else unknown
    return a + b


def _mul(a: Bound, b: Bound) -> Bound:
    if a == 0 or b == 0:
        return 0
    if is_infinite(a) or is_infinite(b):
        return math.inf if (a > 0) == (b > 0) else -math.inf
    return a * b


def _sum(a: Ends, b: Ends) -> Ends:
    return _add(a[0], b[0], -math.inf), _add(a[1], b[1], math.inf)


def _negative(a: Ends) -> Ends:
    return -a[1], -a[0]


def _product(a: Ends, b: Ends) -> Ends:
    return _around([_mul(x, y) for x in a for y in b])


def _reciprocal(b: Ends) -> Ends:
    if b[0] < 0 < b[1] or b == (0, 0):
        return ALL
    lo = 1.0 / b[1] if b[1] != 0 else -math.inf
    hi = 1.0 / b[0] if b[0] != 0 else math.inf
    return lo, hi


def _quotient(a: Ends, b: Ends) -> Ends:
    if b[0] <= 0 <= b[1]:
        return _product(a, _reciprocal(b)) if b[0] == 0 or b[1] == 0 else ALL
    return _around([_ratio(x, y) for x in a for y in b])


def _ratio(x: Bound, y: Bound) -> Bound:
    if is_infinite(y):
        return 0.0
    return float(apply("div", (float(x), float(y)), "real"))


def _whole_quotient(a: Ends, b: Ends) -> Ends:
    """Floor division, on the negative and on the positive divisors."""
    parts = []
    if b[1] >= 1:
        lo, hi = max(b[0], 1), b[1]
        parts += [_floordiv(x, y) for x in a for y in (lo, hi)]
    if b[0] <= -1:
        lo, hi = -min(b[1], -1), -b[0]
        parts += [_floordiv(-x, y) for x in a for y in (lo, hi)]
    return _around(parts) if parts else ALL


def _floordiv(x: Bound, y: Bound) -> Bound:
    """x // y of y > 0; an infinite end stands for all large numbers."""
    if is_infinite(y):
        return 0 if x >= 0 else -1
    return x if is_infinite(x) else x // y


def _modulus(a: Ends, b: Ends) -> Ends:
    """The sign is the divisor's; a dividend below the divisor, or within one period of it, stays what it is."""
    parts: list[Bound] = []
    if b[1] >= 1:
        parts += _modulus_of_positive(a, (max(b[0], 1), b[1]))
    if b[0] <= -1:
        parts += [-x for x in _modulus_of_positive(_negative(a), (-min(b[1], -1), -b[0]))]
    return _around(parts) if parts else ALL


def _modulus_of_positive(a: Ends, b: Ends) -> Ends:
    if a[0] >= 0 and a[1] < b[0]:
        return a
    if b[0] == b[1] and not is_infinite(a[0]) and not is_infinite(a[1]) and a[0] // b[0] == a[1] // b[0]:
        return a[0] % b[0], a[1] % b[0]
    top = b[1] if is_infinite(b[1]) else b[1] - 1
    return 0, (min(a[1], top) if a[0] >= 0 else top)


def _absolute(a: Ends) -> Ends:
    lo = 0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))
    return lo, max(abs(a[0]), abs(a[1]))


def _squared(a: Ends) -> Ends:
    lo, hi = _absolute(a)
    return _mul(lo, lo), _mul(hi, hi)


def _power(a: Ends, b: Ends) -> Ends:
    """Of a base that is not negative, extremes are at corners; else the exponent must be one whole number."""
    if a[0] >= 0:
        return _widen(_around([apply("pow", (float(x), float(y)), "real") for x in a for y in b]), 0.0, math.inf)
    if b[0] != b[1] or is_infinite(b[0]) or b[0] % 1 != 0:
        return ALL
    n = float(b[0])
    if n < 0:
        return _power_of_reciprocal(a, n)
    low, high = _absolute(a) if n % 2 == 0 else a
    return _widen(tuple(apply("pow", (float(x), n), "real") for x in (low, high)))


def _power_of_reciprocal(a: Ends, n: float) -> Ends:
    if a[0] <= 0 <= a[1]:
        return (0.0, math.inf) if n % 2 == 0 else ALL
    return _widen(_around([apply("pow", (float(x), n), "real") for x in a]))


def _widen(x: Ends, low: float = -math.inf, high: float = math.inf) -> Ends:
    """A few units in the last place outwards, but not past the function's range nor from exactly 0 or 1."""

    def out(v: Bound, sign: int) -> Bound:
        return v if v in (0, 1) or is_infinite(v) else v + sign * (abs(v) * _ULPS + 5e-324)

    lo, hi = out(x[0], -1), out(x[1], 1)
    return max(lo, low), min(max(hi, low), high)


def _rising(name: str, low: float = -math.inf, high: float = math.inf, start: float = -math.inf) -> Callable[..., Ends]:
    """A function that never falls, defined from `start` on."""

    def rule(a: Ends) -> Ends:
        if a[1] < start:
            return low, high
        lo = low if a[0] < start else apply(name, (float(a[0]),), "real")
        return _widen((lo, apply(name, (float(a[1]),), "real")), low, high)

    return rule


def _inverse_root(a: Ends) -> Ends:
    if a[1] <= 0:
        return 0.0, math.inf
    hi = math.inf if a[0] <= 0 else apply("rsqrt", (float(a[0]),), "real")
    return _widen((apply("rsqrt", (float(a[1]),), "real"), hi), 0.0)


def _dipping(name: str, turn: float, bottom: float) -> Callable[..., Ends]:
    """A function that falls up to about `turn` and rises from there; `bottom` is just below its minimum."""

    def rule(a: Ends) -> Ends:
        left, right = (apply(name, (float(x),), "real") for x in a)
        if a[0] >= turn + 1e-3:
            return _widen((left, right))
        if a[1] <= turn - 1e-3:
            return _widen((right, left), high=0.0)
        return bottom, max(_widen((left, left))[1], _widen((right, right))[1])

    return rule


def _whole(rounding: Callable[[float], int]) -> Callable[..., Ends]:
    return lambda a: (a[0] if is_infinite(a[0]) else rounding(a[0]), a[1] if is_infinite(a[1]) else rounding(a[1]))


def _not(a: Ends) -> Ends:
    return 1 - a[1], 1 - a[0]


def _less(a: Ends, b: Ends) -> Ends:
    return (1, 1) if a[1] < b[0] else (0, 0) if a[0] >= b[1] else (0, 1)


def _equal(a: Ends, b: Ends) -> Ends:
    if a[1] < b[0] or b[1] < a[0]:
        return 0, 0
    return (1, 1) if a[0] == a[1] == b[0] == b[1] else (0, 1)


def _wave(a: Ends) -> Ends:
    return -1.0, 1.0


INTERVALS: dict[str, Callable[..., Ends]] = {
    "add": _sum,
    "sub": lambda a, b: _sum(a, _negative(b)),
    "mul": _product,
    "div": _quotient,
    "floordiv": _whole_quotient,
    "mod": _modulus,
    "neg": _negative,
    "abs": _absolute,
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "pow": _power,
    "square": _squared,
    "recip": _reciprocal,
    "exp": _rising("exp", 0.0),
    "exp2": _rising("exp2", 0.0),
    "expm1": _rising("expm1", -1.0),
    "log": _rising("log", start=0.0),
    "log2": _rising("log2", start=0.0),
    "log1p": _rising("log1p", start=-1.0),
    "sqrt": _rising("sqrt", 0.0, start=0.0),
    "rsqrt": _inverse_root,
    "sin": _wave,
    "cos": _wave,
    "tanh": _rising("tanh", -1.0, 1.0),
    "erf": _rising("erf", -1.0, 1.0),
    "sigmoid": _rising("sigmoid", 0.0, 1.0),
    "softplus": _rising("softplus", 0.0),
    "relu": lambda a: (FUNCTIONS["relu"](a[0]), FUNCTIONS["relu"](a[1])),
    "elu": _rising("elu", -1.0),
    "silu": _dipping("silu", -1.2784645, -0.2784646),
    "gelu": _dipping("gelu", -0.7517915, -0.1699713),
    "floor": _whole(math.floor),
    "ceil": _whole(math.ceil),
    "real": lambda a: (apply("real", (a[0],), "real"), apply("real", (a[1],), "real")),
    "lt": _less,
    "le": lambda a, b: _not(_less(b, a)),
    "eq": _equal,
    "ne": lambda a, b: _not(_equal(a, b)),
    "and": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "or": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "not": _not,
}
"""Ends of the result from the ends of the arguments; `where` is in attncc.expr.interval."""
