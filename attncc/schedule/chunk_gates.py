"""The gradients of gates of tokens, in a kernel of their own that sums over several chunks at once.

A gate scales the whole state. With G its running sum, and a what the rows of a chunk give to G,

    the gradient of a chunk's last G  =  S . dS behind the chunk  =  that of the next chunk's, plus the sum of its a

The kernels of chunks store a. They multiply a state with its gradient, which is as much work as both are large, for
every RUN-th chunk and the last one; what lies between is a running sum from the last token on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from attncc.expr.build import TRUE, ivar, op
from attncc.expr.nodes import Expr, Var
from attncc.passes.chunk_form import OPEN
from attncc.schedule.chunk_fading import Maker, Sums
from attncc.schedule.chunk_kept import read_by
from attncc.schedule.chunk_problem import Problem
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

B, H, N = ivar("B"), ivar("H"), ivar("N")
RUN = 4
"""Chunks that a program of the kernel sums over."""


def apart(p: Problem) -> bool:
    """Whether gates get their gradients so: they are of tokens, and read for nothing else."""
    logs = read_by(*(s.gate.log for s in p.form.states if s.gate != OPEN))
    written = (x for s in p.form.states for w in s.writes for x in (w.key, w.value))
    rest = read_by(p.form.out, *written, *(r.x for r in p.form.reads), *(s.init for s in p.form.states))
    return p.of_tokens and bool(logs & set(p.variant.gradients)) and not logs & rest


@dataclass(frozen=True, slots=True)
class Run:
    """A gate's values in a chunk, and the tensors that take what they get."""

    one: Var
    sums: Sums
    number: int

    def gets(self, chunks: Expr, real: t.Dtype) -> tuple[tuple[Var, t.Tensor], ...]:
        """By row: of the running sum, and of the gate itself. By chunk: of the last running sum."""
        name = f"run_{self.number}"
        by_row = t.Tensor(name, ("b", "h", "t"), (B, H, N), real)
        own, last = replace(by_row, name=f"{name}_own"), t.Tensor(f"{name}_end", ("b", "h", "c"), (B, H, chunks), real)
        return (self.sums.upto, by_row), (self.one, own), (self.sums.last, last)


def names(count: int) -> tuple[str, ...]:
    """The names of all tensors of so many gates."""
    return tuple(f"run_{n}{x}" for n in range(count) for x in ("", "_own", "_end"))


def runs(p: Problem, m: Maker, ones: Mapping[str, Var]) -> tuple[Run, ...]:
    """The gates of a chunk; `ones` are their values at the rows, by the names of their running sums."""
    gates = dict.fromkeys(s.gate for s in p.form.states if s.gate != OPEN)
    found = (m.gates(x, None) for x in gates)
    sums = [x.parts[0] for x in found if x is not None]
    return tuple(Run(ones[x.upto.name], x, n) for n, x in enumerate(sums))


def end(chunk: Expr, chunks: Expr) -> Expr:
    """The last chunk of the run that a chunk is in."""
    last = op("add", op("mul", op("floordiv", chunk, RUN), RUN), RUN - 1)
    return op("min", last, op("sub", chunks, 1))


def store(k: Chunk, each: tuple[Run, ...], of: Mapping[str, Var], chunk: Expr, chunks: Expr) -> dict[str, t.Tensor]:
    """Stores what a chunk gives to its gates; the tensors, by name."""
    found: dict[str, t.Tensor] = {}
    for v, tensor in (pair for run in each for pair in run.gets(chunks, k.real)):
        if v.name not in of:
            continue
        found[tensor.name] = tensor
        if "t" in tensor.axes:
            k.store(tensor.name, (ivar("b"), ivar("h"), k.at["i"]), k.over(of[v.name], "i"), k.live, k.real)
        else:
            guard = op("eq", chunk, end(chunk, chunks))
            k.store(tensor.name, (ivar("b"), ivar("h"), chunk), of[v.name], guard, k.real)
    return found


def load(k: Chunk, each: tuple[Run, ...], tensors: Mapping[str, t.Tensor], last: Expr) -> dict[str, Var]:
    """What the gates of a run of chunks got, by the names of their values; `last` is the chunk that ends it."""
    found: dict[str, Var] = {}
    for v, tensor in (pair for run in each for pair in run.gets(N, k.real)):
        if tensor.name in tensors:
            at, guard = (k.at["i"], k.live) if "t" in tensor.axes else (last, TRUE)
            found[v.name] = k.load(tensor.name, (ivar("b"), ivar("h"), at), guard, k.b.type_of(v.name), "a")
    return found
