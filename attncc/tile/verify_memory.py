"""Checks 5, 7 and 8: indices inside their tensors, offsets that fit, elements owned by one program."""

from __future__ import annotations

from attncc.expr.build import conjuncts, op
from attncc.expr.interval import Interval, bounds
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars, walk
from attncc.tile import nodes as t
from attncc.tile.verify_faults import ExtentError, OffsetError, OwnershipError
from attncc.tile.verify_scope import Checked, Origins


def touched(s: t.Stmt) -> tuple[str, tuple[Expr, ...], Expr] | None:
    """Tensor, indices and guard of a load, store or addition."""
    match s:
        case t.Let(_, _, t.Load(tensor, index, guard)):
            return tensor, index, guard
        case t.Store(tensor, index, _, guard) | t.ReduceAdd(tensor, index, _, _, guard):
            return tensor, index, guard
        case _:
            return None


# --- 5 ---------------------------------------------------------------------------------------------------------------


def indices_inside(c: Checked, kernel: t.Kernel) -> None:
    """5. Every index is inside its extent: by its own nature, by a full range, or by the guard."""
    origins = Origins(c, kernel)
    for place in c.places(kernel):
        access = touched(place.stmt)
        if access is None:
            continue
        tensor, index, guard = access
        known = set(conjuncts(origins.expand(guard)))
        for axis, extent, e in zip(c.tensors[tensor].axes, c.tensors[tensor].extents, index, strict=True):
            at = origins.expand(e)
            if _below(origins, at, origins.expand(extent), known) and _at_least_zero(origins, at, known):
                continue
            if not _mentioned(origins, at, known):
                raise place.error(ExtentError, f"nothing bounds the index on axis {axis} of {tensor}")
            c.leave_open("indices_inside", place, f"axis {axis} of {tensor}")


def _mentioned(origins: Origins, at: Expr, known: set[Expr]) -> bool:
    """Whether a guard, a clamp or a load from a table has a say on an index."""
    names = free_vars(at)
    if any(names & free_vars(k) for k in known):
        return True
    clamped = any(isinstance(n, Op) and n.name in ("min", "max", "mod", "where", "floordiv") for n in walk(at))
    return clamped or any(isinstance(origins.op(n), t.Load | t.Reduce | t.GatherAxis | t.TopK) for n in names)


def _extent_of(origins: Origins, name: str) -> tuple[Expr, int] | None:
    """What a grid axis or a loop runs over: its extent and the size of a step, for names that begin a tile."""
    match origins.of.get(name):
        case t.GridAxis(_, extent, _, tile):
            return origins.expand(extent), tile
        case t.For(_, t.Ranges(tile, extent)):
            return origins.expand(extent), tile
        case t.For(_, t.Count(lo, hi)) if isinstance(lo, Const) and int(lo.value) >= 0:
            return origins.expand(hi), 1
        case _:
            return None


def _below(origins: Origins, at: Expr, extent: Expr, known: set[Expr]) -> bool:
    """Whether at < extent."""
    if op("lt", at, extent) in known:
        return True
    if isinstance(extent, Const) and bounds(at, _env(origins, at)).hi < extent.value:
        return True
    match at:
        case Var(name):
            own = origins.op(name)
            if isinstance(own, t.Iota):
                return _tile_inside(origins, name, own, extent)
            span = _extent_of(origins, name)
            return span is not None and span[0] is extent
        case Op("floordiv", (a, Op("floordiv", (total, parts), _)), _) if parts is extent:
            return _below(origins, a, total, known)
        case Op("add", (Op("mul", (a, n), _), b), _) | Op("add", (b, Op("mul", (a, n), _)), _):
            outer = _extent_of(origins, a.name) if isinstance(a, Var) else None
            split = outer is not None and n is op("floordiv", extent, outer[0])
            return split and _below(origins, b, n, known)
        case Op("min", args, _):
            return any(_below(origins, a, extent, known) or a is op("sub", extent, 1) for a in args)
        case Op("max", args, _):
            return all(_below(origins, a, extent, known) for a in args)
        case Op("mod", (_, n), _):
            return n is extent
        case Op("floordiv", (Var(name), Const() as n), _):  # the number of a tile
            span = _extent_of(origins, name)
            tiles = {op("floordiv", op("add", span[0], n.value - 1), n)} if span is not None else set()
            return span is not None and span[1] % n.value == 0 and extent in tiles
        case _:
            return False


def _tile_inside(origins: Origins, name: str, iota: t.Iota, extent: Expr) -> bool:
    """Whether a whole tile of positions lies inside: at a constant place, or in a range promised full."""
    let = origins.of[name]
    assert isinstance(let, t.Let)
    length = let.type.axes[0].extent
    base = origins.expand(iota.base)
    if isinstance(extent, Const) and isinstance(base, Const):
        return int(base.value) + length <= int(extent.value)
    loop = origins.of.get(base.name) if isinstance(base, Var) else None
    if isinstance(loop, t.For) and isinstance(loop.over, t.Ranges):
        return loop.over.full and loop.over.tile >= length and origins.expand(loop.over.extent) is extent
    return False


def _env(origins: Origins, e: Expr) -> dict[Expr, Interval]:
    """What is known of the names in `e`: positions and sizes are not negative."""
    found: dict[Expr, Interval] = {}
    for node in walk(e):
        if not isinstance(node, Var) or node.sort != "int":
            continue
        match origins.of.get(node.name):
            case t.GridAxis(_, Const(value=int(n)), "tile", tile) if n % tile == 0:
                found[node] = Interval(0, n - tile)
            case t.GridAxis() | t.For(_, t.Ranges()):
                found[node] = Interval(0)
            case t.For(_, t.Count(lo, hi)):
                inner = bounds(origins.expand(lo), _env(origins, origins.expand(lo)))
                outer = bounds(origins.expand(hi), _env(origins, origins.expand(hi)))
                found[node] = Interval(inner.lo, max(inner.lo, outer.hi - 1))
            case t.Let(_, type, t.Iota(base)):
                start = bounds(origins.expand(base), _env(origins, origins.expand(base)))
                found[node] = Interval(start.lo, start.hi + type.axes[0].extent - 1)
            case t.Scalar(name, _, None) if name in _sizes(origins.checked.program):
                found[node] = Interval(0)
            case _:
                pass
    return found


def _sizes(program: t.Program) -> set[str]:
    return {e.name for x in program.inputs for e in x.extents if isinstance(e, Var)}


def _at_least_zero(origins: Origins, at: Expr, known: set[Expr]) -> bool:
    if op("le", 0, at) in known or bounds(at, _env(origins, at)).lo >= 0:
        return True
    match at:
        case Op("floordiv", (a, Op("floordiv", (x, y), _)), _):  # a head's kv head: H and G are sizes
            return all(_at_least_zero(origins, e, known) for e in (a, x, y))
        case Op("add" | "mul" | "min", args, _):
            return all(_at_least_zero(origins, e, known) for e in args)
        case Op("floordiv", args, _):
            return all(_at_least_zero(origins, e, known) for e in args)
        case Op("mod", (_, n), _):
            return _at_least_zero(origins, n, known)
        case _:
            return False


# --- 7 ---------------------------------------------------------------------------------------------------------------


def offsets_fit(c: Checked, kernel: t.Kernel) -> None:
    """7. No index multiplies two run-time positions or sizes of long axes in 32 bits.

    Offsets in elements are the printers' work and int64 there; what is checked here is the index on one axis.
    """
    origins = Origins(c, kernel)
    long = {e.name for a in kernel.grid if a.role == "tile" and isinstance(e := a.extent, Var)}
    for place in c.places(kernel):
        if isinstance(place.stmt, t.For) and isinstance(place.stmt.over, t.Ranges):
            long |= free_vars(place.stmt.over.extent)
    for place in c.places(kernel):
        access = touched(place.stmt)
        for e in access[1] if access is not None else ():
            for node in walk(origins.expand(e)):
                if isinstance(node, Op) and node.name == "mul" and all(_is_long(origins, a, long) for a in node.args):
                    if not _wide(origins, e):
                        raise place.error(OffsetError, "a product of two positions in 32 bits; make it i64")


def _is_long(origins: Origins, e: Expr, long: set[str]) -> bool:
    for name in free_vars(e):
        match origins.of.get(name):
            case t.GridAxis(_, _, "tile") | t.For(_, t.Ranges()):
                return True
            case t.Let(_, _, t.Iota(base)) if free_vars(base):
                return True
            case _ if name in long:
                return True
            case _:
                pass
    return False


def _wide(origins: Origins, e: Expr) -> bool:
    """Whether an index is the name of a value declared i64."""
    d = origins.of.get(e.name) if isinstance(e, Var) else None
    return isinstance(d, t.Let) and d.type.dtype == "i64"


# --- 8 ---------------------------------------------------------------------------------------------------------------


def one_owner(c: Checked, kernel: t.Kernel) -> None:
    """8. Every grid axis picks its own elements of what is stored, or added to as "owned"; atomics only if allowed."""
    origins = Origins(c, kernel)
    for place in c.places(kernel):
        s = place.stmt
        if isinstance(s, t.ReduceAdd) and s.how == "atomic":
            if c.deterministic:
                raise place.error(OwnershipError, "an atomic addition in a program that must be deterministic")
            continue
        match s:
            case t.Store(tensor, index, _, guard) | t.ReduceAdd(tensor, index, _, _, guard):
                picked = {n for e in index for n in _picks(origins, origins.expand(e))}
                picked |= {n for k in conjuncts(origins.expand(guard)) for n in _pinned(k)}
                missing = [a.name for a in kernel.grid if a.name not in picked and a.extent is not Const(1, "int")]
                if missing:
                    what = f"programs that differ in {', '.join(missing)} write the same elements of {tensor}"
                    raise place.error(OwnershipError, what)
            case _:
                pass


def _picks(origins: Origins, e: Expr) -> set[str]:
    """Grid axes of which different values give different indices: alone, plus others, or times a factor."""
    match e:
        case Var(name):
            own = origins.op(name)
            if isinstance(own, t.Iota):
                return _picks(origins, origins.expand(own.base))
            loop = origins.of.get(name)
            if isinstance(loop, t.For) and isinstance(loop.over, t.Count):
                return _picks_of_run(origins, origins.expand(loop.over.lo), origins.expand(loop.over.hi))
            return {name} if isinstance(origins.of.get(name), t.GridAxis) else set()
        case Op("add" | "sub", args, _):
            return {n for a in args for n in _picks(origins, a)}
        case Op("mul", (a, b), _):
            return _picks(origins, a) | _picks(origins, b)
        case Op("floordiv", (Var(name), Const(n)), _):
            d = origins.of.get(name)
            return {name} if isinstance(d, t.GridAxis) and d.tile % int(n) == 0 else set()
        case Op("floordiv", (Op("mul", (a, Const(n)), _), Const(m)), _):
            return _picks(origins, a) if int(n) % int(m) == 0 else set()
        case _:
            return set()


def _picks_of_run(origins: Origins, lo: Expr, hi: Expr) -> set[str]:
    """The same for a loop's number, where the loop is over a run that is a program's own: a * n up to (a + 1) * n."""
    match lo:
        case Op("mul", (a, n), _):
            ends = hi.args if isinstance(hi, Op) and hi.name == "min" else (hi,)
            return _picks(origins, a) if op("add", lo, n) in ends else set()
        case _:
            return set()


def _pinned(k: Expr) -> set[str]:
    """Names that a guard holds at one value."""
    match k:
        case Op("eq", (Var(name), Const()), _) | Op("eq", (Const(), Var(name)), _):
            return {name}
        case _:
            return set()
