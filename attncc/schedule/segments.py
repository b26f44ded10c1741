"""Packed documents of a state program: the number of the document of every position, as an array.

rewrite: segment(cu, x), cu: offsets  -->  cu_of[x], cu_of: int[n], made by a kernel before all others
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import ivar, op
from attncc.expr.nodes import Const, Expr, Var, rewrite
from attncc.ir.nodes import Assign, Axis, Keep, Load, Micro, Param, Recurrence, Segment, Spec, Step
from attncc.schedule.programs import Pair
from attncc.tile import nodes as t

N = ivar("N")
TILE = 128


def _of(tensor: str) -> str:
    return f"{tensor}_of"


def with_numbers(spec: Spec) -> Spec:
    """`spec` that reads an array wherever it asked for the document of a position."""
    ends = [p for p in spec.params if p.offsets]
    r = spec.recurrence
    if not ends or r is None:
        return spec
    more = tuple(Param(_of(p.name), "int", (Axis("n", N),), span=p.span) for p in ends)
    statements = tuple(replace(s, body=_put(s.body)) for s in spec.statements)
    states = tuple(replace(s, init=_put(s.init), per=None if s.per is None else _put(s.per)) for s in r.states)
    changed = Recurrence(states, r.frozen, tuple(_step(s) for s in r.steps))
    out = replace(spec.out, body=_put(spec.out.body))
    return replace(spec, params=(*spec.params, *more), statements=statements, out=out, recurrence=changed)


def _step(s: Step) -> Step:
    match s:
        case Assign() | Keep():
            return replace(s, body=_put(s.body))
        case Micro():
            return replace(s, steps=tuple(_step(x) for x in s.steps))
        case _:
            return s


def _put(e: Expr) -> Expr:
    def rule(node: Expr) -> Expr | None:
        return Load(_of(node.tensor), (node.at,), "int", node.span) if isinstance(node, Segment) else None

    return rewrite(e, rule)


def with_kernels(pair: Pair, spec: Spec) -> Pair:
    """The programs with the kernels that number the positions first; `spec` as it was before `with_numbers`."""
    names = [p.name for p in spec.params if p.offsets]
    if not names:
        return pair
    return Pair(_numbered(pair.forward, names), None if pair.backward is None else _numbered(pair.backward, names))


def _numbered(program: t.Program, names: list[str]) -> t.Program:
    read = {tensor for k in program.kernels for tensor in k.tensors}
    kernels: list[t.Kernel] = []
    steps: list[t.Step] = []
    for name in names:
        array = next(x for x in program.inputs if x.name == _of(name))
        ends = next(x for x in program.inputs if x.name == name)
        if array.name in read:
            kernels.append(_kernel(name, ends.dtype))
            steps += [t.Alloc(t.Tensor(array.name, array.axes, array.extents, "i32")), t.Launch(kernels[-1].name)]
    inputs = tuple(_listed(x) if x.name in names else x for x in program.inputs if x.name not in map(_of, names))
    scalars = (*program.scalars, *(t.Scalar(_count(n), "int") for n in names))
    every = (*kernels, *program.kernels)
    return replace(program, inputs=inputs, scalars=scalars, kernels=every, steps=(*steps, *program.steps))


def _count(name: str) -> str:
    return f"{name}_ends"


def _listed(x: t.Tensor) -> t.Tensor:
    return replace(x, axes=("s",), extents=(ivar(_count(x.name)),))


def _kernel(name: str, dtype: t.Dtype) -> t.Kernel:
    """cu_of[n]: how many of the ends behind the first are at most n."""
    tile = t.Type((t.Axis("n", TILE),), "i32")
    at, end, total = ivar("n"), ivar("end"), ivar("total")
    added = op("add", total, op("where", op("le", end, at), 1, 0))
    turn: tuple[t.Stmt, ...] = (
        t.Let("given", t.Type((), dtype), t.Load(name, (ivar("s"),))),
        t.Let("end", t.Type((), "i32"), t.Cast("given")),
        t.Let("more", tile, t.Map(added)),
        t.Yield(("more",)),
    )
    over = t.Count(Const(1, "int"), ivar(_count(name)))
    body: tuple[t.Stmt, ...] = (
        t.Let("n", tile, t.Iota(ivar("n0")), "positions"),
        t.Let("none", tile, t.Full(Const(0, "int"))),
        t.For("s", over, (t.Carry("total", tile, "none"),), turn, order="asc", note="every end"),
        t.Store(_of(name), (Var("n", "int"),), "total", op("lt", at, N)),
    )
    grid = (t.GridAxis("n0", N, "tile", TILE, "n"),)
    return t.Kernel(f"{_of(name)}_kernel", grid, (name, _of(name)), ("N", _count(name)), body, t.Config(1, 1))
