"""late: values are computed where they are first read, not where they could be.

rewrite: a = f(x); ...; b = g(a)  -->  ...; a = f(x); b = g(a)

What is computed long before it is read takes registers until then. Statements of a loop stay in it. A loop that only
computes is a value, too, and computed before what is read with it: a loop leaves little, and all that is there already
takes registers while it runs.

Where `tiles` fill the registers, they are stored before vectors, and what sums one up is computed as soon as that takes
no other product: a sum leaves little, and its tile is free. What pairs of tokens have to do with each other comes
first, and what sums up the beginning of a product stands before that, which writes over it.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.nodes import free_vars
from attncc.schedule.reload import reloaded
from attncc.tile import nodes as t
from attncc.tile.verify_scope import uses


def late(kernel: t.Kernel, *, tiles: bool = False) -> t.Kernel:
    """`kernel` with every Let before its first reader."""
    straight = not any(isinstance(s, t.For | t.If) for s in kernel.body)
    return replace(kernel, body=_tiles(kernel.body) if tiles and straight else _body(kernel.body))


def _body(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
    looped: set[str] = set()
    for s in body:
        if isinstance(s, t.For) or read(s) & looped:
            looped |= set(made(s))
    placed = _Placed(body, looped)
    for s in body:
        if not made(s):
            placed.place(s)
    return tuple(placed.statements)


def _tiles(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
    """Without loops: loads of their own for sums, those of loaded tiles first, and stores of tiles before others."""
    body = reloaded(body)
    axes = {s.name: len(s.type.axes) for s in body if isinstance(s, t.Let)}
    placed = _Placed(body, set(), eager=True)
    placed.first()
    placed.pairs()
    for s in sorted(body, key=lambda s: -axes.get(s.value, 0) if isinstance(s, t.Store) else 0):
        if not made(s):
            placed.place(s)
    return tuple(placed.statements)


class _Placed:
    """What is computed, in order, and what waits to be read."""

    def __init__(self, body: tuple[t.Stmt, ...], looped: set[str], *, eager: bool = False) -> None:
        self.order = {n: at for at, s in enumerate(body) for n in made(s)}
        self.looped, self.eager = looped, eager
        self.waiting: dict[str, t.Let | t.For] = {n: s for s in body for n in made(s) if isinstance(s, t.Let | t.For)}
        self.statements: list[t.Stmt] = []
        self.there: set[str] = set()

    def place(self, s: t.Stmt) -> None:
        """The statement, behind all that it reads."""
        for name in made(s):
            del self.waiting[name]
        for name in sorted(read(s), key=lambda n: (n not in self.looped, self.order.get(n, -1))):
            if name in self.waiting:
                self.place(self.waiting[name])
        if self.eager and isinstance(s, t.Let) and isinstance(s.op, t.Dot) and s.op.start is not None:
            self.sums()  # of what it begins with, which is gone behind it
        self.statements.append(replace(s, body=_body(s.body)) if isinstance(s, t.For) else s)
        self.there |= set(made(s))
        if self.eager and isinstance(s, t.Let) and isinstance(s.op, t.Dot):
            self.sums()

    def first(self) -> None:
        """Places what sums up nothing but tiles that are loaded."""
        for s in list(self.waiting.values()):
            if isinstance(s, t.Let) and isinstance(s.op, t.Reduce) and self._loads_tiles(s) and s.name in self.waiting:
                self.place(s)

    def pairs(self) -> None:
        """Places what pairs of tokens have to do with each other: as operands such tiles are half as wide."""
        for name, s in list(self.waiting.items()):
            if isinstance(s, t.Let) and set(s.type.names()) == {"i", "j"} and isinstance(s.op, t.Cast):
                if s.type.dtype in ("f16", "bf16") and name in self.waiting:
                    self.place(s)
        self.sums()

    def _loads_tiles(self, s: t.Stmt) -> bool:
        """Whether tiles are loaded for it, and none multiplied."""
        found = [x for x in map(self.waiting.get, read(s)) if isinstance(x, t.Let) and len(x.type.axes) > 1]
        dots = any(isinstance(x.op, t.Dot) for x in found)
        return bool(found) and not dots and all(isinstance(x.op, t.Load) or self._loads_tiles(x) for x in found)

    def sums(self) -> None:
        """Places everything that sums up tiles which are there."""
        for name, s in list(self.waiting.items()):
            sums = isinstance(s, t.Let) and isinstance(s.op, t.Reduce)
            if sums and name in self.waiting and not self._needs_products(s):
                self.place(s)

    def _needs_products(self, s: t.Stmt) -> bool:
        """Whether tiles are multiplied for it that are not there."""
        for name in read(s) & (set(self.order) - self.there):
            found = self.waiting.get(name)
            if found is None:  # it is being placed
                return True
            if (isinstance(found, t.Let) and isinstance(found.op, t.Dot)) or self._needs_products(found):
                return True
        return False


def made(s: t.Stmt) -> tuple[str, ...]:
    """The names that a statement gives values to, where it does nothing else."""
    match s:
        case t.Let(name):
            return (name,)
        case t.For(carried=carried, body=inner) if all(isinstance(x, t.Yield) or made(x) for x in inner):
            return tuple(c.name for c in carried)
        case _:
            return ()


def read(s: t.Stmt) -> set[str]:
    """The names a statement reads, those of its own body with it."""
    found = set(uses(s))
    match s:
        case t.For(body=inner, carried=carried, over=over):
            found |= {c.start for c in carried} | {n for x in inner for n in read(x)}
            if isinstance(over, t.Count):
                found |= free_vars(over.lo) | free_vars(over.hi)
        case t.If(then=then, orelse=orelse, carried=carried):
            found |= {c.start for c in carried} | {n for x in (*then, *orelse) for n in read(x)}
        case _:
            pass
    return found
