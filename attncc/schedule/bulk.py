"""bulk: Hopper moves whole tiles by itself, and one thread asks for them.

rewrite: load(x, (b, h, first + lane, c), 0 <= first + lane < extent)  -->  the same, in bulk

A bulk copy reads 0 outside of its tensor, so that a guard which says no more than that costs nothing. Computing a
pointer for every 16 bytes of a tile takes registers, and a third of the instructions of a short turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from attncc.expr.algebra import Algebra
from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars, substitute
from attncc.expr.normal import normal_form
from attncc.tile import nodes as t
from attncc.tile.sizes import BYTES

REALS = ("f16", "bf16", "f32")
"""Elements of boxes."""
ALIGNMENT = 16
MOST, RANK = 256, 5
"""Elements of a box along one axis, and axes of a tensor: what the hardware knows."""

Moved = Callable[[t.Kernel, t.Let], bool]
Margin = tuple[int, Expr]
"""An integer, and the least that it is to be."""


def bulk(program: t.Program, moved: Moved) -> t.Program:
    """`program` with the loads of tiles that `moved` picks moved in bulk, where they can be."""
    tensors = {x.name: x for x in program.inputs}
    tensors |= {s.tensor.name: s.tensor for s in program.steps if isinstance(s, t.Alloc)}
    kernels = tuple(_Kernel(k, tensors, moved).made() for k in program.kernels)
    return replace(program, kernels=kernels)


class _Kernel:
    """A kernel, and what its positions are computed from."""

    def __init__(self, kernel: t.Kernel, tensors: Mapping[str, t.Tensor], moved: Moved) -> None:
        self.kernel, self.tensors, self.moved = kernel, tensors, moved
        self.algebra = Algebra(None)
        self.lets: dict[str, t.Let] = {}

    def made(self) -> t.Kernel:
        return replace(self.kernel, body=self.body(self.kernel.body))

    def body(self, body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
        """Its statements, one by one: what a load is computed from stands before it."""
        found: list[t.Stmt] = []
        for s in body:
            match s:
                case t.Let(name, _, t.Load() as load) if self.fits(s, load) and self.moved(self.kernel, s):
                    s = replace(s, op=replace(load, bulk=True))
                    self.lets[name] = s
                case t.Let(name):
                    self.lets[name] = s
                case t.For():
                    s = replace(s, body=self.body(s.body))
                case t.If():
                    s = replace(s, then=self.body(s.then), orelse=self.body(s.orelse))
                case _:
                    pass
            found.append(s)
        return tuple(found)

    def fits(self, s: t.Let, load: t.Load) -> bool:
        """Whether a load is that of a box, which is read where, and only where, it lies in its tensor."""
        tensor = self.tensors.get(load.tensor)
        if tensor is None or not self.describable(tensor) or load.other != 0 or len(s.type.axes) != 2:
            return False
        lanes = [x for x in load.index if self.axes(x)]
        names = [a for x in lanes for a in self.axes(x)]
        if lanes != list(load.index[-2:]) or names != list(s.type.names()) or not all(map(self.iota, lanes)):
            return False
        if any(a.extent > MOST for a in s.type.axes) or s.type.axes[-1].extent * BYTES[tensor.dtype] < ALIGNMENT:
            return False
        bounds = [b for x, n in zip(load.index, tensor.extents, strict=True) if x in lanes for b in self.bounds(x, n)]
        return all(self.margin(c) in bounds for c in self.conditions(load.guard))

    def describable(self, tensor: t.Tensor) -> bool:
        """Whether the hardware can be told of a tensor: its base and its steps are aligned."""
        if tensor.dtype not in REALS or len(tensor.axes) > RANK or not tensor.unit:
            return False
        row = tensor.extents[-1]
        whole = isinstance(row, Const) and int(row.value) * BYTES[tensor.dtype] % ALIGNMENT == 0
        return tensor.aligned and (tensor.strided or whole)

    def axes(self, e: Expr) -> tuple[str, ...]:
        found = (self.lets[n].type.names() for n in sorted(free_vars(e)) if n in self.lets)
        return tuple(dict.fromkeys(a for names in found for a in names))

    def iota(self, e: Expr) -> bool:
        return isinstance(e, Var) and e.name in self.lets and isinstance(self.lets[e.name].op, t.Iota)

    def bounds(self, e: Expr, extent: Expr) -> tuple[Margin, Margin]:
        """That `e` lies in 0 .. extent - 1."""
        return (0, self.normal(e)), (1, self.normal(op("sub", extent, e)))

    def conditions(self, guard: Expr) -> tuple[Expr, ...]:
        """What a guard asks for, each by itself."""
        match guard:
            case Op("and", args):
                return tuple(x for a in args for x in self.conditions(a))
            case Const(value=True):
                return ()
            case Var(name) if name in self.lets and isinstance(made := self.lets[name].op, t.Map):
                return self.conditions(made.body)
            case _:
                return (guard,)

    def margin(self, condition: Expr) -> Margin | None:
        """Such a condition, as it compares."""
        match condition:
            case Op("le", (Const(value=0), e)):
                return 0, self.normal(e)
            case Op("lt", (e, end)):
                return 1, self.normal(op("sub", end, e))
            case _:
                return None

    def normal(self, e: Expr) -> Expr:
        """An integer down to lanes, the grid's positions and sizes."""
        while True:
            known: dict[Expr, Expr] = {}
            for name in free_vars(e):
                match self.lets[name] if name in self.lets else None:
                    case t.Let(_, _, t.Map(body)):
                        known[Var(name, "int")] = body
                    case t.Let(_, type, t.Iota(base)):
                        known[Var(name, "int")] = op("add", base, Var(f"{type.axes[0].name} lane", "int"))
                    case _:
                        pass
            if not known:
                return normal_form(self.algebra, e)
            e = substitute(e, known)
