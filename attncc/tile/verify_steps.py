"""Checks 12 to 14: steps in order, every output written; the backward reads what the forward reads; grids fit."""

from __future__ import annotations

import math

from attncc.expr.nodes import Const, Expr, free_vars
from attncc.tile import nodes as t
from attncc.tile.verify_faults import GridError, PairError, StoreError
from attncc.tile.verify_scope import Checked

LARGEST_GRID = 2**31 - 1


def bodies(stmts: tuple[t.Stmt, ...]) -> list[t.Stmt]:
    """Every statement, at any depth."""
    found: list[t.Stmt] = []
    for s in stmts:
        found.append(s)
        match s:
            case t.For(_, _, _, body):
                found += bodies(body)
            case t.If(_, then, orelse):
                found += bodies(then) + bodies(orelse)
            case t.Partitions(parts):
                found += [x for p in parts for x in bodies(p.body)]
            case _:
                pass
    return found


def reads(kernel: t.Kernel) -> set[str]:
    """Tensors whose elements a kernel reads."""
    found: set[str] = set()
    for s in bodies(kernel.body):
        match s:
            case t.Let(_, _, t.Load(tensor)) | t.CopyIn(_, tensor):
                found.add(tensor)
            case t.For(_, t.Ranges(_, _, pieces)):
                found |= {p.tensor for p in pieces if isinstance(p, t.Listed)}
            case _:
                pass
    return found


def adds(kernel: t.Kernel) -> set[str]:
    """Tensors a kernel adds to: they hold a value before."""
    return {s.tensor for s in bodies(kernel.body) if isinstance(s, t.ReduceAdd) or (isinstance(s, t.CopyOut) and s.add)}


def stores(kernel: t.Kernel) -> set[str]:
    """Tensors a kernel stores to."""
    return {s.tensor for s in bodies(kernel.body) if isinstance(s, t.Store) or (isinstance(s, t.CopyOut) and not s.add)}


def steps_in_order(c: Checked) -> None:
    """12. Tensors are allocated once and written before they are read; one step stores each output."""
    kernels = {k.name: k for k in c.program.kernels}
    inputs = {x.name for x in c.program.inputs}
    known, written, storers = set(inputs), set(inputs), dict.fromkeys(c.program.outputs, 0)

    def made(name: str) -> None:
        if name in known:
            raise StoreError(f"program {c.program.name}: {name} is allocated a second time")
        known.add(name)

    def read(name: str, by: str) -> None:
        if name not in written:
            raise StoreError(f"program {c.program.name}: {by} reads {name} before any step wrote it")

    for step in c.program.steps:
        match step:
            case t.Alloc(tensor, fill):
                made(tensor.name)
                if step.kept and fill != 0:
                    raise StoreError(f"program {c.program.name}: {tensor.name} is kept, and is not zeros")
                written |= {tensor.name} if fill is not None else set()
            case t.Launch(name):
                if name not in kernels:
                    raise StoreError(f"program {c.program.name}: launch of {name}, which is no kernel of it")
                _launch(c, kernels[name], known, written, storers)
            case t.Gather(out, source) | t.ScatterAdd(out, source) | t.SumAxes(out, source) | t.FirstLast(out, source):
                read(source, type(step).__name__)
                if isinstance(step, t.ScatterAdd) and step.add:
                    read(out.name, "ScatterAdd")
                else:
                    made(out.name)
                written.add(out.name)
    for name, count in storers.items():
        if name not in written or name in inputs:
            raise StoreError(f"program {c.program.name}: no step writes the output {name}")
        if count > 1:
            raise StoreError(f"program {c.program.name}: {count} launches store the output {name}")


def _launch(c: Checked, kernel: t.Kernel, known: set[str], written: set[str], storers: dict[str, int]) -> None:
    missing = [n for n in kernel.tensors if n not in known]
    if missing:
        raise StoreError(f"program {c.program.name}: {kernel.name} is launched before {', '.join(missing)} exists")
    mine = stores(kernel)
    for name in sorted((reads(kernel) | adds(kernel)) - mine):
        if name not in written:
            raise StoreError(f"program {c.program.name}: {kernel.name} reads {name} before any step wrote it")
    written |= mine
    for name in mine & set(storers):
        storers[name] += 1


def used_scalars(program: t.Program) -> set[str]:
    """Constants without a value that a program's kernels, scalars or steps read, directly or through other scalars."""
    values = {s.name: s.value for s in program.scalars}
    todo: list[Expr] = []
    for k in program.kernels:
        todo += [a.extent for a in k.grid]
        todo += [v for n in k.scalars if (v := values.get(n)) is not None]
    found = {n for k in program.kernels for n in k.scalars}
    for step in program.steps:
        todo += step.index if isinstance(step, t.Gather | t.ScatterAdd) else ()
    while todo:
        for n in free_vars(todo.pop()) - found:
            found.add(n)
            todo += [v] if (v := values.get(n)) is not None else []
    return {n for n in found if n in values and values[n] is None}


def used_inputs(program: t.Program) -> set[str]:
    """Inputs that a program's kernels and steps read."""
    found = {n for k in program.kernels for n in reads(k)}
    for step in program.steps:
        if isinstance(step, t.Gather | t.ScatterAdd | t.SumAxes | t.FirstLast):
            found.add(step.source)
    return found & {x.name for x in program.inputs}


def backward_reads_all(forward: t.Program, backward: t.Program) -> None:
    """13. Every input and constant that the forward reads, the backward reads, where it returns d_q, d_k and d_v.

    Of fewer gradients some need less: d_v alone reads no v, and a captured real without a gradient may act through
    lse alone, as a term of the softmax's sum does.
    """
    if not {"d_q", "d_k", "d_v"} <= set(backward.outputs):
        return
    in_lse = set[str]()
    if any(x.name == "lse" for x in backward.inputs):
        reals = {x.name for x in forward.inputs if x.dtype in ("bf16", "f16", "f32", "f64")}
        in_lse = {n for n in reals if f"d_{n}" not in backward.outputs}
    for what, mine, other in (
        ("tensor", used_inputs(forward) - in_lse, used_inputs(backward)),
        ("constant", used_scalars(forward), used_scalars(backward)),
    ):
        lost = sorted(mine - other)
        if lost:
            raise PairError(f"the backward of {forward.name} never reads the {what} {', '.join(lost)}")


def grids_fit(c: Checked, kernel: t.Kernel) -> None:
    """14. A grid has distinct axes with tiles of at least 1, host extents, and at most 2**31 - 1 programs."""
    sizes = set(c.scalars)
    seen: set[str] = set()
    for a in kernel.grid:
        if a.name in seen or a.name in kernel.scalars:
            raise GridError(f"kernel {kernel.name}: grid axis {a.name} has the name of another one or of a scalar")
        seen.add(a.name)
        if a.tile < 1 or (a.role == "tile") != bool(a.axis):
            raise GridError(f"kernel {kernel.name}: grid axis {a.name}: only tile axes have a tile and a value axis")
        if a.extent.sort != "int" or free_vars(a.extent) - sizes:
            raise GridError(f"kernel {kernel.name}: grid axis {a.name}: its extent is no host expression")
    known = [-(-int(a.extent.value) // a.tile) for a in kernel.grid if isinstance(a.extent, Const)]
    if not kernel.grid or math.prod(known) > LARGEST_GRID or any(n < 0 for n in known):
        raise GridError(f"kernel {kernel.name}: a grid of {math.prod(known) if kernel.grid else 'no'} programs")
