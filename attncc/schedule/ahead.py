"""ahead: what a turn of a walk reads beside its products is loaded a turn before.

rewrite: for c: x = load(c); f(x)  -->  y = load(lo); for c, x = y: y = load(c + 1); f(x)

Triton begins loads of a later turn only for operands of products; what scales a sum, or a product's start, would be
waited for in every turn. The last turn loads its own once more.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import TRUE, conj, op
from attncc.expr.nodes import Expr, Var, free_vars, substitute
from attncc.tile import nodes as t
from attncc.tile.verify_scope import uses


def ahead(kernel: t.Kernel) -> t.Kernel:
    """`kernel` with numbers and vectors of its walks loaded ahead."""
    body: list[t.Stmt] = []
    for s in kernel.body:
        if isinstance(s, t.For) and isinstance(s.over, t.Count) and s.order == "asc":
            before, s = _walk(s, s.over)
            body += before
        body.append(s)
    return replace(kernel, body=tuple(body))


def _walk(walk: t.For, over: t.Count) -> tuple[list[t.Stmt], t.For]:
    """What is loaded before a walk, and the walk."""
    lets = {s.name: s for s in walk.body if isinstance(s, t.Let)}
    multiplied = _multiplied(lets)
    chosen = [s for s in lets.values() if s.name not in multiplied and _whole(s)]
    if not chosen:
        return [], walk
    last = op("sub", over.hi, 1)
    following = op("min", op("add", Var(walk.index, "int"), 1), last)
    first, later = _Copies(walk.index, lets, "first", over.lo), _Copies(walk.index, lets, "next", following)
    carried = []
    for s in chosen:
        first.load(s, op("lt", over.lo, over.hi))
        later.load(s, TRUE)
        carried.append(t.Carry(f"{s.name}_now", s.type, f"{s.name}_first"))
    names = {s.name for s in chosen}
    now = {n: replace(lets[n], op=t.Map(Var(f"{n}_now", "real"))) for n in names}
    body = tuple(now[s.name] if isinstance(s, t.Let) and s.name in names else s for s in walk.body)
    *rest, final = body
    assert isinstance(final, t.Yield)
    final = t.Yield((*final.values, *(f"{s.name}_next" for s in chosen)))
    return first.made, replace(walk, carried=(*walk.carried, *carried), body=(*later.made, *rest, final))


def _whole(s: t.Let) -> bool:
    """Whether a number or a vector of numbers is loaded, all of it."""
    loads = isinstance(s.op, t.Load) and s.op.guard is TRUE
    return loads and len(s.type.axes) <= 1 and s.type.dtype == "f32"


def _multiplied(lets: dict[str, t.Let]) -> set[str]:
    """What becomes an operand of a product."""
    found = {n for s in lets.values() if isinstance(s.op, t.Dot) for n in (s.op.a, s.op.b) if isinstance(n, str)}
    for s in reversed(lets.values()):
        if s.name in found and not isinstance(s.op, t.Dot):
            found |= uses(s)
    return found


class _Copies:
    """Loads of one turn, and what their places are computed from."""

    def __init__(self, index: str, lets: dict[str, t.Let], suffix: str, at: Expr) -> None:
        self.lets, self.suffix = lets, suffix
        self.made: list[t.Stmt] = [t.Let(f"{index}_{suffix}", t.Type((), "i32"), t.Map(at))]
        self.new: dict[Expr, Expr] = {Var(index, "int"): Var(f"{index}_{suffix}", "int")}

    def load(self, s: t.Let, guard: Expr) -> None:
        """A load, where `guard` holds."""
        assert isinstance(s.op, t.Load)
        index = tuple(map(self._moved, s.op.index))
        if guard is not TRUE and s.type.axes:  # a mask has the axes of what is loaded
            guard = conj(op("lt", index[-1], s.type.axes[0].extent), guard)
        self.made.append(replace(s, name=f"{s.name}_{self.suffix}", op=replace(s.op, index=index, guard=guard)))

    def _moved(self, e: Expr) -> Expr:
        for name in sorted(free_vars(e) & self.lets.keys(), key=list(self.lets).index):
            if Var(name, "int") not in self.new:
                s = self.lets[name]
                made = replace(s, name=f"{name}_{self.suffix}", op=self._op(s.op))
                self.made.append(made)
                self.new[Var(name, "int")] = Var(made.name, "int")
        return substitute(e, self.new)

    def _op(self, made: t.Op) -> t.Op:
        match made:
            case t.Map(body):
                return t.Map(self._moved(body))
            case t.Iota(base):
                return t.Iota(self._moved(base))
            case _:
                raise AssertionError(f"a place is computed by {type(made).__name__}")
