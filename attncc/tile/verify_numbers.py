"""Checks 6 and 10: exponentials that are anchored, and sums that are wide."""

from __future__ import annotations

import math

from attncc.expr.build import op
from attncc.expr.interval import Interval, bounds
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars, rewrite, walk
from attncc.tile import nodes as t
from attncc.tile.verify_faults import PrecisionError, UnanchoredError
from attncc.tile.verify_scope import Checked, Origins, Place, operands

_LARGEST = {"exp": 88.0, "exp2": 127.0, "expm1": 88.0}
"""Where f32 overflows."""
_POSITIVE = {"log": 0.0, "log2": 0.0, "sqrt": 0.0, "rsqrt": 0.0}

# --- 6 ---------------------------------------------------------------------------------------------------------------


def exponents_anchored(c: Checked, kernel: t.Kernel) -> None:
    """6. No exponential meets -inf minus -inf: what is subtracted from an exponent starts at a finite number.

    An exponent is proved bounded by its interval or by an anchor, a statistic of fewer axes that is subtracted.
    Others are left open: an exponential of the spec itself may be as large as its author wants. So are divisors and
    arguments of logarithms and roots whose sign is not proved.
    """
    origins = Origins(c, kernel)
    for place in c.places(kernel):
        s = place.stmt
        if not isinstance(s, t.Let) or not isinstance(s.op, t.Map):
            continue
        for node in walk(s.op.body):
            if isinstance(node, Op) and node.name in _LARGEST:
                _exponential(c, origins, place, node)
            elif isinstance(node, Op) and s.type.axes:
                _domain(c, origins, place, node, s.op.body)


def _exponential(c: Checked, origins: Origins, place: Place, node: Op) -> None:
    anchors = _subtracted(node.args[0])
    for _, a in anchors:
        if _may_be_lowest(origins, a):
            raise place.error(
                UnanchoredError, f"{', '.join(sorted(free_vars(a)))} may still be -inf where it is subtracted"
            )
    whole = rewrite(origins.expand(node.args[0]), _kept_within)
    if any(free_vars(rest) for rest, _ in anchors) or bounds(whole, _sums(origins, whole)).hi <= _LARGEST[node.name]:
        return
    c.leave_open("exponents_anchored", place, f"the argument of {node.name} has no bound")


def _kept_within(e: Expr) -> Expr | None:
    """rewrite: where(high < x, high, x)  -->  min(x, high), and likewise below: the intervals of those are known."""
    match e:
        case Op("where", (Op("lt", (a, b)), c, x)) if c is a and x is b:
            return op("min", x, c)
        case Op("where", (Op("lt", (a, b)), c, x)) if c is b and x is a:
            return op("max", x, c)
        case _:
            return None


def _sums(origins: Origins, e: Expr) -> dict[Expr, Interval]:
    """What is known of sums under `e`: those of numbers that are at most 0 are at most 0."""
    return {v: Interval(hi=0.0) for v in walk(e) if isinstance(v, Var) and _falls(origins, v.name)}


def _falls(origins: Origins, name: str) -> bool:
    match origins.op(name):
        case t.Rename(value):
            return _falls(origins, value)
        case t.Scan("sum", value) | t.Reduce("sum", value):
            return bounds(origins.expand(Var(value, "real"))).hi <= 0
        case _:
            return False


def _subtracted(e: Expr) -> list[tuple[Expr, Expr]]:
    """What is taken away from an exponent at the outermost level, and from what (0 of a bare negation)."""
    match e:
        case Op("sub", (a, b), _):
            return [*_subtracted(a), (a, b)]
        case Op("neg", (a,), _):
            return [(Const(0.0, "real"), a)]
        case Op("add" | "mul", (a, b), _) | Op("where", (_, a, b), _):
            return [*_subtracted(a), *_subtracted(b)]
        case _:
            return []


def _may_be_lowest(origins: Origins, e: Expr, depth: int = 16) -> bool:
    """Whether an expression may be -inf by what the program writes: loads and dots are taken to be finite.

    A choice on a value's own test, as in where(m == -inf, 0, m), takes it as tested. A maximum that moves only by more
    than a margin, where(m + c < x, x, m), is as low as one that always does.
    """
    if depth == 0:
        return False
    match e:
        case Const(value):
            return value == -math.inf
        case Var(name):
            return _name_may_be_lowest(origins, name, depth - 1)
        case Op("neg", (Const(value),), _):
            return value == math.inf
        case Op("max", args, _):
            return all(_may_be_lowest(origins, a, depth - 1) for a in args)
        case Op("where", (Op("lt", (Op("add", (x, Const())), y)), a, b), _) if a is y and b is x:
            return all(_may_be_lowest(origins, z, depth - 1) for z in (x, y))
        case Op("where", (test, a, b), _):
            return any(_may_be_lowest(origins, x, depth - 1) for x in (a, b) if not _tested(origins, x, test))
        case Op("add" | "sub" | "mul" | "min", args, _):
            return any(_may_be_lowest(origins, a, depth - 1) for a in args)
        case _:
            return False


def _tested(origins: Origins, x: Expr, test: Expr) -> bool:
    names = free_vars(origins.expand(x))
    return bool(names) and names <= free_vars(origins.expand(test))


def _name_may_be_lowest(origins: Origins, name: str, depth: int) -> bool:
    match origins.of.get(name):
        case t.Let(_, _, t.Full(e) | t.Map(e)):
            return _may_be_lowest(origins, e, depth)
        case t.Let(_, _, t.Reduce("max" | "min", value) | t.Convert(value) | t.Cast(value)):
            return _name_may_be_lowest(origins, value, depth - 1) if depth > 0 else False
        case (t.For() as s, int(n)):
            return _name_may_be_lowest(origins, s.carried[n].start, depth - 1) if depth > 0 else False
        case _:
            return False


def _domain(c: Checked, origins: Origins, place: Place, node: Op, body: Expr) -> None:
    if node.name in ("div", "recip"):
        divisor = origins.expand(node.args[-1])
        inside = 0.0 not in bounds(divisor)
    elif node.name in _POSITIVE:
        divisor = origins.expand(node.args[0])
        inside = bounds(divisor).lo >= _POSITIVE[node.name]
    else:
        return
    chosen = any(isinstance(n, Op) and n.name in ("where", "max") for n in walk(divisor))
    under = any(isinstance(n, Op) and n.name == "where" and node in n.args for n in walk(body))
    scalars = all(not place.types[n].axes for n in free_vars(node.args[-1]))
    if not (inside or chosen or under or scalars):
        c.leave_open("exponents_anchored", place, f"{node.name} of what may be 0 or less")


# --- 10 --------------------------------------------------------------------------------------------------------------

_MAY_NARROW = t.Dot | t.Convert | t.Cast | t.SplitAxis | t.JoinAxis | t.Rename | t.DotWait | t.Pack


def sums_are_wide(c: Checked, kernel: t.Kernel) -> None:
    """10. Dots, sums and states are f32 or f64; a value cast to 16 bits goes to dots and stores only."""
    narrow: set[str] = set()
    for place in c.places(kernel):
        match place.stmt:
            case t.Let(name, type, op):
                if isinstance(op, t.Dot | t.Reduce | t.Scan) and type.dtype in ("f16", "bf16"):
                    raise place.error(PrecisionError, f"{name} is accumulated in {type.dtype}")
                if isinstance(op, t.Dot) and op.start in narrow:
                    raise place.error(PrecisionError, f"{op.start} was narrowed and is added to")
                _narrowed(place, name, type, op, narrow)
            case t.For(_, _, carried) | t.If(_, _, _, carried):
                narrow |= {x.name for x in carried if x.type.dtype in ("f16", "bf16")}
            case _:
                pass


def _narrowed(place: Place, name: str, type: t.Type, op: t.Op, narrow: set[str]) -> None:
    used = sorted(operands(op) & narrow)
    if used and not isinstance(op, _MAY_NARROW):
        raise place.error(PrecisionError, f"{', '.join(used)} was narrowed and is calculated with")
    if type.dtype in ("f16", "bf16") and (isinstance(op, t.Cast | t.Map) or used):
        narrow.add(name)
