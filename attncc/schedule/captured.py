"""Gradients of captured tensors: what each read adds to them, and where it is summed.

A read x[index] of the score gets dS * (d score / d x) at every pair. The indices it lacks pick the reduction:

    neither i nor j   a row sum per program of the dQ kernel, then over its tile: one number per (b, h, tile)
    i alone           the row sum itself, one number per (b, h, row)
    j alone           the column sum of the dK/dV kernel, one number per (b, h, key)
    both              an addition at the read's own index, in memory; where sums have one order, a number per pair

Where that derivative is q @ k times a number of the row, the row's sum is that number times q . sum_j dS k_j: kernels
that own rows and have that sum for dQ get it from there (see `along_queries`).

A table by offset that has one index beyond some offsets (see attncc.schedule.nearby) is summed by diagonals: a number
per offset and tile of rows. One with an index of its own on each side of them gets the sums of all pairs of each side,
too, where most tiles lie on one side as a whole (see attncc.schedule.beyond); else every pair would be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars, substitute, walk
from attncc.ir.nodes import Load
from attncc.passes.attend import Table
from attncc.passes.differentiate import derivative, gradients
from attncc.schedule.beyond import beyond
from attncc.schedule.config import diagonal_tiles
from attncc.schedule.nearby import Nearby, index_of, nearby
from attncc.schedule.stream import ZERO, B, G, H, M, N, Problem, varies
from attncc.tile import nodes as t

CONSUMERS = 2
"""That a program of the partitioned backward has; each stores a sum, or one for each side."""
Place = Literal["tile", "row", "key", "pair", "diagonal", "side"]


@dataclass(frozen=True, slots=True)
class Capture:
    """One read and its share of the gradient. `factor` = d score / d x (of z: d z / d x); `buffer` collects it.

    Of a table by offset, `near` says which offsets are told apart.
    """

    load: Load
    factor: Expr
    place: Place
    of_z: bool
    buffer: str
    near: Nearby | None = None
    along: Expr | None = None
    """What q . sum_j dS k_j is multiplied by, where it is summed up from there."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Of what a table tells apart: 0 where pairs lie before it, 1 where some lie behind it."""
        return () if self.near is None else tuple(n for n, there in enumerate(self.near.sides) if there)


def captures(p: Problem) -> tuple[Capture, ...]:
    """Every read whose tensor's gradient is wanted."""
    tables = {x.name: x.source for x in p.attend.tables}
    loads = [x for x in p.attend.captured if tables.get(x.tensor, x.tensor) in p.variant.gradients]
    z = p.attend.normaliser.z
    out: list[Capture] = []
    for root, of_z in ((p.attend.score, False), (z, True)):
        if root is None:
            continue
        for load, factor in zip(loads, gradients(root, loads), strict=True):
            if factor is not ZERO and not (root is p.attend.score and _cancels(p, load, factor)):
                name = f"d_{load.tensor}_{'z' if of_z else 's'}{len(out)}"
                c = Capture(load, factor, _place(load), of_z, name)
                out.append(_by_distance(p, along_queries(p, c) if "q" in p.variant.gradients else c))
    return tuple(out)


def _by_distance(p: Problem, c: Capture) -> Capture:
    """A read of a table by offset as sums of the diagonals that it tells apart, where these are known and enough."""
    table = next((x for x in p.attend.tables if x.name == c.load.tensor), None)
    if table is None or p.variant.target == "torch":
        return c
    near = nearby(table, p.by_row, balanced(p) and not varies(c.factor))
    return c if near is None or near.beyond else replace(c, place="diagonal", near=near)


def by_sides(p: Problem, c: Capture) -> tuple[Capture, ...]:
    """A read of a table that has one index on each side of those it tells apart, as sums of two kinds.

    Pairs before them and pairs behind them are summed by the kernel that walks all tiles, the others by diagonals.
    """
    table = next((x for x in p.attend.tables if x.name == c.load.tensor), None)
    if table is None or c.place != "pair" or c.of_z or varies(c.factor) or beyond(p) is None:
        return (c,)
    near = nearby(table, p.by_row, False)
    if near is None or not near.beyond:
        return (c,)
    near = replace(near, beyond=())
    return replace(c, place="diagonal", near=near), replace(c, place="side", near=near, buffer=f"{c.buffer}_side")


def along_queries(p: Problem, c: Capture) -> Capture:
    """A capture without j as what q and the sum of dQ give it, where its factor is q @ k times a row's own."""
    product = p.attend.product
    if c.of_z or c.place not in ("row", "tile") or not _multiple(c.factor, product):
        return c
    found = derivative(p.attend.score, product), derivative(c.factor, product)
    return c if any(_by_key(p, e) for e in found) else replace(c, along=found[1])


def _multiple(e: Expr, x: Expr) -> bool:
    """Whether `e` is `x` times what has none of it, in every case, as it is written."""
    match e:
        case Op("mul", (a, rest)) | Op("div", (a, rest)) if x in set(walk(a)):
            return _multiple(a, x) and x not in set(walk(rest))
        case Op("mul", (_, a)) | Op("neg", (a,)):
            return _multiple(a, x)
        case Op("where", (either, a, other)):
            return x not in set(walk(either)) and _multiple(a, x) and _multiple(other, x)
        case _:
            return e is x or e is ZERO


def balanced(p: Problem) -> bool:
    """Whether dS adds up to 0 in every row: weights whose sum is 1, and no gradient of lse."""
    return p.exponential and p.attend.normaliser.z is None and not p.variant.lse_gradient


def _cancels(p: Problem, load: Load, factor: Expr) -> bool:
    """Whether a read adds the same to all scores of a row, so that the weights are the same without it."""
    return balanced(p) and not any(_by_key(p, x) for x in (factor, *load.index))


def _by_key(p: Problem, e: Expr) -> bool:
    """Whether an expression differs from key to key in a row."""
    return "j" in free_vars(e) or p.attend.product in set(walk(e))


def _place(load: Load) -> Place:
    names = frozenset(v for x in load.index for v in free_vars(x))
    if "j" in names:
        return "pair" if "i" in names else "key"
    return "row" if "i" in names else "tile"


def split_coefficient(e: Expr) -> tuple[Expr | None, Expr | None]:
    """(factor that is the same for every pair, the rest); None stands for 1."""
    if not varies(e):
        return (None if _is_one(e) else e), None
    match e:
        case Op("mul", (a, rest)) if not varies(a):
            return a, rest
        case Op("mul", (rest, a)) if not varies(a):
            return a, rest
        case _:
            return None, e


def by_product(p: Problem) -> tuple[Expr | None, Expr | None]:
    """What dS is multiplied by for the gradient of q @ k, so split."""
    return split_coefficient(derivative(p.attend.score, p.attend.product))


def _is_one(e: Expr) -> bool:
    return e is Const(1.0, "real")


def buffer(c: Capture, p: Problem, rows: int) -> t.Tensor:
    """The tensor a capture's share is collected in."""
    real = p.real
    tiles = op("floordiv", op("add", M, rows - 1), rows)
    match c.place:
        case "tile":
            return t.Tensor(c.buffer, ("b", "h", "t"), (B, H, tiles), real)
        case "row":
            return t.Tensor(c.buffer, ("b", "h", "r"), (B, H, M), real)
        case "key":
            return t.Tensor(c.buffer, ("b", "h", "j"), (B, H, N), real)
        case "diagonal":
            assert c.near is not None
            side = diagonal_tiles(p.variant).rows
            tiles, width = op("floordiv", op("add", M, side - 1), side), diagonals(c.near, side)[1]
            more = 0 if c.near.rest is None else side
            return t.Tensor(c.buffer, ("b", "h", "t", "o"), (B, H, tiles, Const(width + more, "int")), real)
        case "side":
            return consumers_buffer(c, p, rows, len(c.sides))
        case "pair" if apart(c, p):
            return t.Tensor(c.buffer, ("b", "h", "r", "j"), (B, H, M, N), real)
        case "pair":
            return _pair_buffer(c, p)


def consumers_buffer(c: Capture, p: Problem, keys: int, numbers: int = 1) -> t.Tensor:
    """So many numbers for each consumer of a program that owns a tile of keys."""
    programs = op("floordiv", op("add", N, keys - 1), keys)
    return t.Tensor(c.buffer, ("b", "h", "t", "x"), (B, H, programs, Const(CONSUMERS * numbers, "int")), p.real)


def diagonals(near: Nearby, side: int) -> tuple[int, int]:
    """(the least offset, how many) of the diagonals of the square tiles that hold those which are told apart."""
    first, last = -(-(near.first - side + 1) // side), (near.last + side - 1) // side
    return (first - 1) * side, (last - first + 2) * side


def _offset(c: Capture, side: int) -> Expr:
    """The offset that a number of the buffer belongs to."""
    near = c.near
    assert near is not None
    if c.place == "side":
        ends = [(near.first - 1, near.last + 1)[side] for side in c.sides]
        return Const(ends[0], "int") if len(ends) == 1 else op("where", op("lt", ivar("x"), CONSUMERS), *ends)
    least, width = diagonals(near, side)
    between = op("max", op("min", op("add", ivar("o"), least), near.last), near.first)
    return between if near.rest is None else op("where", op("lt", ivar("o"), width), between, near.rest)


def apart(c: Capture, p: Problem) -> bool:
    """Whether every pair keeps its share for itself, so that batches and heads are summed in one order afterwards.

    That is a tensor as large as one with all axes; the capture itself has those of the queries and the keys.
    """
    names = [at.name if isinstance(at, Var) else "" for at in c.load.index]
    rows = all(_axis(p, c, n) == "m" for n, name in enumerate(names) if name == "i")
    plain = len(names) == len(set(names)) and {"i", "j"} <= set(names) <= {"b", "h", "i", "j"}
    return p.variant.ordered and c.place == "pair" and plain and rows


def _pair_buffer(c: Capture, p: Problem) -> t.Tensor:
    table = next((x for x in p.attend.tables if x.name == c.load.tensor), None)
    if table is not None:
        return t.Tensor(c.buffer, (*table.axes, "o"), table_extents(table), p.real)
    axes = p.params[c.load.tensor].axes
    names = tuple(f"{a.index or 'x'}{n}" for n, a in enumerate(axes))
    return t.Tensor(c.buffer, names, tuple(a.size for a in axes), p.real)


def table_extents(table: Table) -> tuple[Expr, ...]:
    """Sizes of a table by offset."""
    sizes = {"b": B, "h": H, "g": G}
    return (*(sizes[a] for a in table.axes), op("sub", op("add", N, M), 1))


def collect(c: Capture, p: Problem, source: t.Tensor, out: t.Tensor, add: bool) -> tuple[t.Step, ...]:
    """The host steps that bring a buffer to the parameter's own shape.

    Indices stay as written: a floor of reals may not be rearranged, or a bucket's edge would move.
    """
    table = next((x for x in p.attend.tables if x.name == c.load.tensor), None)
    index = table.index if table is not None else c.load.index
    if table is not None and c.near is not None:
        index = index_of(table, _offset(c, diagonal_tiles(p.variant).rows))
    if c.place == "pair" and table is None and not apart(c, p):
        index = tuple(ivar(a) for a in source.axes)
    shift = op("sub", N, M)
    heads = op("floordiv", ivar("h"), op("floordiv", H, G)) if p.variant.grouped else ivar("h")
    places: dict[Expr, Expr] = {ivar("i"): op("max", op("add", ivar("r"), shift), 0)}
    if "h" in source.axes:
        places[ivar("g")] = heads
    fixed = tuple(
        ivar("r") if at is ivar("i") and _axis(p, c, n) == "m" else substitute(at, places) for n, at in enumerate(index)
    )
    plain = tuple(at.name for at in fixed if isinstance(at, Var))
    if not add and len(plain) == len(fixed) == len(set(plain)) and set(plain) <= set(source.axes):
        return (t.SumAxes(t.Tensor(out.name, plain, out.extents, out.dtype), source.name, _missing(source, plain)),)
    if c.near is None:
        return (t.ScatterAdd(out, source.name, fixed, add),)
    read = {n for at in fixed for n in free_vars(at)}
    kept = [n for n, a in enumerate(source.axes) if a in read]
    axes, extents = tuple(source.axes[n] for n in kept), tuple(source.extents[n] for n in kept)
    total = t.Tensor(f"{c.buffer}_sum", axes, extents, source.dtype)
    return t.SumAxes(total, source.name, _missing(source, axes)), t.ScatterAdd(out, total.name, fixed, add)


def _missing(source: t.Tensor, kept: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(a for a in source.axes if a not in kept)


def _axis(p: Problem, c: Capture, n: int) -> str:
    param = p.params.get(c.load.tensor)
    return param.axes[n].index if param is not None else ""
