"""Runs of equal ids, by kernels: the derived arrays that the bounds of packed documents read.

rewrite: x_first[.., n]      --> x_run_first[.., n] where x is sorted, else 0
rewrite: x_last[.., n]       --> x_run_last[.., n] where x is sorted, else N - 1
rewrite: x_run_first[.., n]  --> x_run_first[.., n] where x is sorted, else N
rewrite: x_run_last[.., n]   --> x_run_last[.., n] where x is sorted, else -1

In sorted ids a value's positions are one run, so one scan along the axis gives all that the bounds need, and what it
gives never falls: a tile's extremes are its values at the tile's ends. Ids that are not sorted keep sound bounds: every
tile is visited and none is taken to need no predicate. A program scans one row of ids from one end to the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from attncc.expr.build import conj, ivar, op
from attncc.expr.nodes import Const, Expr, Var, rewrite
from attncc.ir.nodes import Load
from attncc.passes.bounds import Alternative, Bounds
from attncc.passes.bounds.derived import Kind
from attncc.schedule.builder import Builder
from attncc.schedule.stream import B, G, H, N, Problem
from attncc.tile import nodes as t

CHUNK = 2048
ROWS: dict[str, Expr] = {"b": B, "h": H, "g": G}
Side = Literal["first", "last"]


@dataclass(frozen=True, slots=True)
class Run:
    """One scan over `source`: the `sides` of every id's run, and whether ids are sorted."""

    source: str
    sides: tuple[Side, ...]

    def out(self, side: Side) -> str:
        return f"{self.source}_run_{side}"

    @property
    def flag(self) -> str:
        return f"{self.source}_sorted"

    def read(self, names: set[str]) -> Run | None:
        """What of it kernels need that read the tensors `names`, if anything."""
        sides = tuple(x for x in self.sides if self.out(x) in names)
        return Run(self.source, sides) if sides else None


def with_runs(p: Problem) -> tuple[Problem, tuple[Run, ...]]:
    """`p` with bounds that read runs alone, and the scans that make them."""
    by_row, by_key = _rewritten(p.by_row), _rewritten(p.by_key)
    runs = _scans(p)
    return replace(p, by_row=by_row, by_key=by_key, rising=rising(runs)), runs


def _scans(p: Problem) -> tuple[Run, ...]:
    wanted: dict[str, set[str]] = {}
    for d in (*p.by_row.aux, *p.by_key.aux):
        wanted.setdefault(d.tensor, set()).add(d.kind)
    sides: tuple[Side, ...] = ("first", "last")
    return tuple(Run(x, tuple(y for y in sides if {y, f"run_{y}"} & kinds)) for x, kinds in wanted.items())


def _rewritten(bounds: Bounds) -> Bounds:
    names = {d.name: d for d in bounds.aux}

    def rule(e: Expr) -> Expr | None:
        match e:
            case Load(tensor, index, sort) if tensor in names:
                d = names[tensor]
                last = d.kind.endswith("last")
                run = Load(f"{d.tensor}_run_{'last' if last else 'first'}", index, sort)
                flag = Load(f"{d.tensor}_sorted", index[:-1], "int")
                return op("where", op("lt", 0, flag), run, _otherwise(d.kind))
            case _:
                return None

    def one(a: Alternative) -> Alternative:
        ends = (a.lower, a.upper, a.rows, a.full_lower, a.full_upper)
        lower, upper, rows, full_lower, full_upper = (rewrite(x, rule) for x in ends)
        return replace(a, lower=lower, upper=upper, rows=rows, full_lower=full_lower, full_upper=full_upper)

    return replace(bounds, alternatives=tuple(one(a) for a in bounds.alternatives), aux=())


def _otherwise(kind: Kind) -> Expr:
    """What ids without an order give: the widest outer and the emptiest inner interval."""
    match kind:
        case "first":
            return Const(0, "int")
        case "last":
            return op("sub", N, 1)
        case "run_first":
            return N
        case "run_last":
            return Const(-1, "int")


def rising(runs: tuple[Run, ...]) -> frozenset[str]:
    """The arrays whose values never fall, as far as they are read."""
    return frozenset(run.out(side) for run in runs for side in run.sides)


def tensors(run: Run, p: Problem) -> tuple[t.Tensor, ...]:
    """What the scan writes."""
    axes = p.params[run.source].axes
    names, sizes = tuple(a.index for a in axes), tuple(ROWS.get(a.index, a.size) for a in axes)
    outs = (t.Tensor(run.out(side), names, (*sizes[:-1], N), "i32") for side in run.sides)
    return (*outs, t.Tensor(run.flag, names[:-1], sizes[:-1], "i32"))


def run_kernel(run: Run, p: Problem) -> t.Kernel:
    """The scan: of the first ids of runs from the first id on, of the last ones from the last id back."""
    axes = p.params[run.source].axes[:-1]
    lead = tuple(ivar(a.index) for a in axes)
    b = Builder(p.real, ("n",), lambda _, e: e)
    for name in ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants), *(v.name for v in lead)):
        b.scalar(name, "int")
    outs = tuple(map(run.out, run.sides))
    b.reserve((run.source, *outs, run.flag, "rest", "tiles"))
    chunk = b.axis("n", CHUNK)
    zero, one = t.Full(Const(0, "int")), t.Full(Const(1, "int"))
    scalar = t.Type((), "i32")
    starts = (*(b.let("reached", scalar, zero) for _ in run.sides), b.let("rising", scalar, one))
    chunks = op("floordiv", op("add", N, CHUNK - 1), CHUNK)
    with b.inner() as scope:
        turn = b.loop_index("chunk")
        carried, names = zip(*(b.carry(v.name.split("_")[0], v, 1) for v in starts), strict=True)
        step = b.let("step", t.Type((chunk,), "i32"), t.Iota(b.value(op("mul", turn, CHUNK), "begin")))
        ends = [_chunk(b, run, side, p, lead, step, at) for side, at in zip(run.sides, names[:-1], strict=True)]
        rising = b.value(op("min", names[-1], ends[0][1]), "rising")
        b.add(t.Yield((*(end.name for end, _ in ends), rising.name)))
    b.add(t.For(turn.name, t.Count(Const(0, "int"), chunks), carried, tuple(scope.statements), "", "asc", 1, ""))
    b.add(t.Store(run.flag, lead, carried[-1].name))
    grid = tuple(t.GridAxis(a.index, ROWS[a.index], "batch") for a in axes)
    scalars = ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants))
    read = (run.source, *outs, run.flag)
    name = f"{run.source}_run_{'_'.join(run.sides)}_kernel"
    return t.Kernel(name, grid, read, scalars, tuple(b.scope.statements), t.Config(8, 1))


def _chunk(
    b: Builder, run: Run, side: Side, p: Problem, lead: tuple[Var, ...], step: Var, reached: Var
) -> tuple[Var, Var]:
    """One chunk of the scan; (the start of the run it ends in, whether its ids have kept their order)."""
    back = side == "last"
    place = b.value(op("sub", op("sub", N, 1), step), "place") if back else step
    before = b.value(op("add" if back else "sub", place, 1), "before")
    inside = op("lt", step, N)
    inner = conj(op("lt", 0, step), inside)
    kind = p.capture_dtype(run.source)
    own = b.load("id", kind, t.Load(run.source, (*lead, place), b.lower(inside)), "int")
    other = b.load("id", kind, t.Load(run.source, (*lead, before), b.lower(inner)), "int")
    starts = b.value(op("where", conj(inner, op("eq", own, other)), -1, step), "starts")
    scanned = b.let("scanned", b.type_of(starts.name), t.Scan("max", starts.name, "n"))
    first = b.value(op("max", scanned, reached), "first")
    value = b.value(op("sub", op("sub", N, 1), first), "last") if back else first
    b.add(t.Store(run.out(side), (*lead, place), value.name, b.lower(inside)))
    low, high = (own, other) if back else (other, own)
    kept = b.value(op("where", conj(inner, op("lt", high, low)), 0, 1), "kept")
    all_kept = b.let("all_kept", t.Type((), "i32"), t.Reduce("min", kept.name, "n"))
    return b.let("end", t.Type((), "i32"), t.Reduce("max", first.name, "n")), all_kept
