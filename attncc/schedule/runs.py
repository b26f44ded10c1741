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


@dataclass(frozen=True, slots=True)
class Run:
    """One scan over `source`: run_first, or run_last where `backwards`; `ordered` also says whether it is sorted."""

    source: str
    backwards: bool
    ordered: bool

    @property
    def out(self) -> str:
        return f"{self.source}_run_{'last' if self.backwards else 'first'}"

    @property
    def flag(self) -> str:
        return f"{self.source}_sorted"


def with_runs(p: Problem) -> tuple[Problem, tuple[Run, ...]]:
    """`p` with bounds that read runs alone, and the scans that make them."""
    by_row, by_key = _rewritten(p.by_row), _rewritten(p.by_key)
    runs = _scans(p)
    return replace(p, by_row=by_row, by_key=by_key, rising=rising(runs)), runs


def _scans(p: Problem) -> tuple[Run, ...]:
    wanted: dict[str, set[str]] = {}
    for d in (*p.by_row.aux, *p.by_key.aux):
        wanted.setdefault(d.tensor, set()).add(d.kind)
    runs: list[Run] = []
    for source, kinds in wanted.items():
        forwards, backwards = bool(kinds & {"first", "run_first"}), bool(kinds & {"last", "run_last"})
        runs += [Run(source, False, True)] if forwards else []
        runs += [Run(source, True, not forwards)] if backwards else []
    return tuple(runs)


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
    return frozenset(run.out for run in runs)


def tensors(run: Run, p: Problem) -> tuple[t.Tensor, ...]:
    """What the scan writes."""
    axes = p.params[run.source].axes
    names, sizes = tuple(a.index for a in axes), tuple(ROWS.get(a.index, a.size) for a in axes)
    out = t.Tensor(run.out, names, (*sizes[:-1], N), "i32")
    return (out, t.Tensor(run.flag, names[:-1], sizes[:-1], "i32")) if run.ordered else (out,)


def run_kernel(run: Run, p: Problem) -> t.Kernel:
    """The scan, from the first id on or from the last one back."""
    axes = p.params[run.source].axes[:-1]
    lead = tuple(ivar(a.index) for a in axes)
    b = Builder(p.real, ("n",), lambda _, e: e)
    for name in ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants), *(v.name for v in lead)):
        b.scalar(name, "int")
    b.reserve((run.source, run.out, run.flag, "rest", "tiles"))
    chunk = b.axis("n", CHUNK)
    zero, one = t.Full(Const(0, "int")), t.Full(Const(1, "int"))
    scalar = t.Type((), "i32")
    reached, rising = b.let("reached", scalar, zero), b.let("rising", scalar, one)
    chunks = op("floordiv", op("add", N, CHUNK - 1), CHUNK)
    with b.inner() as scope:
        turn = b.loop_index("chunk")
        (reaching, at), (keeping, so_far) = b.carry("reached", reached, 1), b.carry("rising", rising, 1)
        step = b.let("step", t.Type((chunk,), "i32"), t.Iota(b.value(op("mul", turn, CHUNK), "begin")))
        b.add(t.Yield(tuple(v.name for v in _chunk(b, run, p, lead, step, (at, so_far)))))
    carried = (reaching, keeping)
    b.add(t.For(turn.name, t.Count(Const(0, "int"), chunks), carried, tuple(scope.statements), "", "asc", 1, ""))
    names = [run.source, run.out]
    if run.ordered:
        names.append(run.flag)
        b.add(t.Store(run.flag, lead, keeping.name))
    grid = tuple(t.GridAxis(a.index, ROWS[a.index], "batch") for a in axes)
    scalars = ("B", "H", "G", "M", "N", *(c.name for c in p.spec.constants))
    name = f"{run.out}_kernel"
    return t.Kernel(name, grid, tuple(names), scalars, tuple(b.scope.statements), t.Config(8, 1))


def _chunk(
    b: Builder, run: Run, p: Problem, lead: tuple[Var, ...], step: Var, state: tuple[Var, Var]
) -> tuple[Var, Var]:
    """One chunk of the scan; (the start of the run it ends in, whether ids have kept their order)."""
    reached, rising = state
    place = b.value(op("sub", op("sub", N, 1), step), "place") if run.backwards else step
    before = b.value(op("add" if run.backwards else "sub", place, 1), "before")
    inside = op("lt", step, N)
    inner = conj(op("lt", 0, step), inside)
    kind = p.capture_dtype(run.source)
    own = b.load("id", kind, t.Load(run.source, (*lead, place), b.lower(inside)), "int")
    other = b.load("id", kind, t.Load(run.source, (*lead, before), b.lower(inner)), "int")
    starts = b.value(op("where", conj(inner, op("eq", own, other)), -1, step), "starts")
    scanned = b.let("scanned", b.type_of(starts.name), t.Scan("max", starts.name, "n"))
    first = b.value(op("max", scanned, reached), "first")
    value = b.value(op("sub", op("sub", N, 1), first), "last") if run.backwards else first
    b.add(t.Store(run.out, (*lead, place), value.name, b.lower(inside)))
    low, high = (own, other) if run.backwards else (other, own)
    kept = b.value(op("where", conj(inner, op("lt", high, low)), 0, 1), "kept")
    all_kept = b.let("all_kept", t.Type((), "i32"), t.Reduce("min", kept.name, "n"))
    end = b.let("end", t.Type((), "i32"), t.Reduce("max", first.name, "n"))
    return end, b.value(op("min", rising, all_kept), "rising")
