"""Checks 3, 4 and 9: ranges that don't overlap, loops whose order does not matter, bounds known from the grid."""

from __future__ import annotations

from attncc.expr.interval import bounds
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars
from attncc.tile import nodes as t
from attncc.tile.verify_faults import OrderError, OverlapError, SteeringError
from attncc.tile.verify_scope import Checked, Definition, Origins, Place, operands, range_names, yields

# --- 3 ---------------------------------------------------------------------------------------------------------------


def ranges_disjoint(c: Checked, kernel: t.Kernel) -> None:
    """3. Pieces of one walk do not overlap and begin at tile 0 or later.

    A walk is a loop over ranges and those that carry on with its results. Proved by structure: one piece ends where
    the other begins, or begins at a maximum with the other's end. Refuted where constants overlap or a piece stands
    twice. All else is left open, as is what no structure shows: that the ranges contain every true pair.
    """
    origins = Origins(c, kernel)
    places = {id(p.stmt): p for p in c.places(kernel) if isinstance(p.stmt, t.For)}
    for place in places.values():
        s = place.stmt
        if not isinstance(s, t.For) or not isinstance(s.over, t.Ranges):
            continue
        if s.over.tile < 1 or not s.axis:
            raise place.error(OverlapError, "a loop over ranges cuts a named axis into tiles of at least 1")
        pieces = [p for walked in _walk_before(origins, s) for p in walked.pieces]
        for n, piece in enumerate(s.over.pieces):
            _piece(c, origins, place, piece, [*pieces, *s.over.pieces[:n]])


def _walk_before(origins: Origins, s: t.For) -> list[t.Ranges]:
    """The ranges of the loops whose results this loop carries on with, over the same axis."""
    found: list[t.Ranges] = []
    starts = {x.start for x in s.carried}
    while starts:
        before = [d[0] for n in starts if isinstance(d := origins.of.get(n), tuple)]
        loops = [x for x in before if isinstance(x, t.For) and x.axis == s.axis and isinstance(x.over, t.Ranges)]
        if not loops or not isinstance(loops[0].over, t.Ranges):
            break
        found.append(loops[0].over)
        starts = {x.start for x in loops[0].carried}
    return found


def _piece(c: Checked, origins: Origins, place: Place, piece: t.Piece, others: list[t.Piece]) -> None:
    if not isinstance(piece, t.Interval):
        c.leave_open("ranges_disjoint", place, f"a {type(piece).__name__} piece")
        return
    if bounds(piece.lo).hi < 0:
        raise place.error(OverlapError, "a piece begins before tile 0")
    for other in others:
        if not isinstance(other, t.Interval):
            continue
        if _ends_before(origins, other, piece) or _ends_before(origins, piece, other) or _empty(piece) or _empty(other):
            continue
        if _certainly_overlap(piece, other):
            raise place.error(OverlapError, "two pieces overlap: pairs in both would count twice")
        c.leave_open("ranges_disjoint", place, "two pieces")


def _empty(p: t.Interval) -> bool:
    return isinstance(p.lo, Const) and isinstance(p.hi, Const) and p.hi.value <= p.lo.value


def _certainly_overlap(a: t.Interval, b: t.Interval) -> bool:
    if a == b:
        return True
    ends = (a.lo, a.hi, b.lo, b.hi)
    if all(isinstance(e, Const) for e in ends):
        lo_a, hi_a, lo_b, hi_b = (bounds(e).lo for e in ends)
        return lo_a < hi_b and lo_b < hi_a
    return a.lo is b.lo and a.hi is b.hi


def _ends_before(origins: Origins, a: t.Interval, b: t.Interval) -> bool:
    return at_most(origins, a.hi, b.lo)


def at_most(origins: Origins, a: Expr, b: Expr, depth: int = 24) -> bool:
    """Whether a <= b, by identity, constants, minima and maxima, looking through names."""
    if a is b:
        return True
    if isinstance(a, Const) and isinstance(b, Const):
        return bool(a.value <= b.value)
    if depth == 0:
        return False
    match b:
        case Op("max", args, _) if any(at_most(origins, a, x, depth - 1) for x in args):
            return True
        case Op("min", args, _) if all(at_most(origins, a, x, depth - 1) for x in args):
            return True
        case Op("where", (_, x, y), _) if at_most(origins, a, x, depth - 1) and at_most(origins, a, y, depth - 1):
            return True
        case _:
            pass
    match a:
        case Op("min", args, _) if any(at_most(origins, x, b, depth - 1) for x in args):
            return True
        case Op("max", args, _) if all(at_most(origins, x, b, depth - 1) for x in args):
            return True
        case _:
            pass
    seen = [(x, b) for x in _look(origins, a)] + [(a, y) for y in _look(origins, b)]
    return any(at_most(origins, x, y, depth - 1) for x, y in seen)


def _look(origins: Origins, e: Expr) -> list[Expr]:
    own = origins.op(e.name) if isinstance(e, Var) else None
    return [own.body] if isinstance(own, t.Map) else []


# --- 4 ---------------------------------------------------------------------------------------------------------------

_LATTICE = frozenset({"max", "min", "and", "or"})


def order_is_free(c: Checked, kernel: t.Kernel) -> None:
    """4. A loop of order `any` carries extremes, sums, and sums rescaled by factors of the extremes; nothing else."""
    origins = Origins(c, kernel)
    for place in c.places(kernel):
        s = place.stmt
        if not isinstance(s, t.For) or s.order != "any" or not s.carried or not yields(s):
            continue
        names = {x.name for x in s.carried}
        ends = dict(zip((x.name for x in s.carried), yields(s)[0].values, strict=True))
        extremes = {n for n, end in ends.items() if _is_extreme(origins, n, end, names)}
        for name, end in ends.items():
            others = names - extremes
            if name not in extremes and not _is_sum(origins, name, end, others, s):
                raise place.error(OrderError, f"the update of {name} depends on the order of the turns")


def _carried_under(origins: Origins, e: Expr | str, names: set[str]) -> set[str]:
    """Carried names that an expression or value of the body is computed from."""
    todo, found, seen = list(free_vars(e)) if isinstance(e, Expr) else [e], set(), set()
    while todo:
        n = todo.pop()
        if n in names:
            found.add(n)
        elif n not in seen:
            seen.add(n)
            d = origins.of.get(n)
            if isinstance(d, t.Let):
                todo += operands(d.op)
            elif isinstance(d, tuple):
                todo += [d[0].carried[d[1]].start, *(y.values[d[1]] for y in yields(d[0]))]
    return found


def _is_extreme(origins: Origins, name: str, end: str, names: set[str]) -> bool:
    """name' = max(name, what depends on no carried value)."""
    body = origins.op(end)
    if end == name:
        return True
    if isinstance(body, t.Map) and isinstance(body.body, Op) and body.body.name in _LATTICE:
        own = [a for a in body.body.args if isinstance(a, Var) and a.name == name]
        rest = [a for a in body.body.args if a not in own]
        return bool(own) and not any(_carried_under(origins, a, names) for a in rest)
    return False


def _is_sum(origins: Origins, name: str, end: str, others: set[str], loop: t.For) -> bool:
    """name' = name * factor + term, factor and term free of all sums; through nested loops and Ifs."""
    if end == name:
        return True
    d = origins.of.get(end)
    if isinstance(d, tuple):
        return _inner_sum(origins, name, d, others, loop)
    own = origins.op(end)
    match own:
        case t.Dot(a, b, _, start):
            factors = [x for x in (a, b) if isinstance(x, str)]
            clean = not any(_carried_under(origins, x, others) for x in factors)
            return clean and start is not None and _is_sum(origins, name, start, others, loop)
        case t.Map(body):
            return _sum_expr(origins, name, body, others, loop)
        case t.DotWait(value) | t.Convert(value, _):
            return _is_sum(origins, name, value, others, loop)
        case _:
            return False


def _sum_expr(origins: Origins, name: str, e: Expr, others: set[str], loop: t.For) -> bool:
    def free(x: Expr) -> bool:
        return not _carried_under(origins, x, others)

    match e:
        case Var(n):
            return _is_sum(origins, name, n, others, loop)
        case Op("add", (a, b), _):
            return any(free(y) and _sum_expr(origins, name, x, others, loop) for x, y in ((a, b), (b, a)))
        case Op("sub", (a, b), _):
            return free(b) and _sum_expr(origins, name, a, others, loop)
        case Op("mul", (a, b), _):
            return any(free(y) and _sum_expr(origins, name, x, others, loop) for x, y in ((a, b), (b, a)))
        case Op("where", (test, a, b), _):
            return free(test) and all(_sum_expr(origins, name, x, others, loop) for x in (a, b))
        case _:
            return False


def _inner_sum(origins: Origins, name: str, d: tuple[t.For | t.If, int], others: set[str], loop: t.For) -> bool:
    """A sum that goes on in a loop or If inside: it starts as the sum and stays one."""
    inner, n = d
    if inner is loop:
        return False
    carried = inner.carried[n]
    if isinstance(inner, t.If):
        return all(_is_sum(origins, name, y.values[n], others, loop) for y in yields(inner))
    if not _is_sum(origins, name, carried.start, others, loop):
        return False
    sums = others | {x.name for x in inner.carried}
    return all(_is_sum(origins, carried.name, y.values[n], sums, inner) for y in yields(inner))


# --- 9 ---------------------------------------------------------------------------------------------------------------


def steering_is_uniform(c: Checked, kernel: t.Kernel) -> None:
    """9. Bounds of loops and conditions follow from the place in the grid, scalars and loads: never from dots."""
    origins = Origins(c, kernel)
    for place in c.places(kernel):
        match place.stmt:
            case t.For(_, over):
                names = range_names(over)
            case t.If(condition):
                names = free_vars(condition)
            case _:
                continue
        wide = sorted(n for n in names if place.types[n].axes)
        if wide:
            raise place.error(SteeringError, f"{', '.join(wide)} steers it and is no scalar")
        for name, d in origins.reaches(names).items():
            if _computed(d):
                raise place.error(SteeringError, f"it depends on {name}, a computed value")


def _computed(d: Definition) -> bool:
    match d:
        case t.Let(_, _, op):
            return isinstance(op, t.Dot | t.SharedLoad | t.Random)
        case (t.For() | t.If() as s, int(n)):
            return s.carried[n].type.dtype not in ("i32", "i64", "bool")
        case _:
            return False


def steered_by(c: Checked, kernel: t.Kernel, e: Expr) -> frozenset[str]:
    """The grid axes and loops on which a scalar expression of a kernel depends."""
    found = Origins(c, kernel).reaches(free_vars(e))
    return frozenset(n for n, d in found.items() if isinstance(d, t.GridAxis | t.For))
