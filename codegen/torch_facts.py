"""What the torch printer knows of a kernel before it prints: what each name is, what it varies with, who reads it.

Tiles are cut at the extent of their axis, so a comparison of a span with that extent is true, and is folded away.
"""

from __future__ import annotations

from dataclasses import fields, replace

from attncc.codegen.signature import host_scalars, tensors
from attncc.codegen.torch_kinds import ZERO, Kind, Lane, Number, Span, Uneven, Value
from attncc.codegen.torch_products import only_multiplied, scaled_products
from attncc.codegen.torch_reads import mapped, needed, operands
from attncc.errors import InternalError
from attncc.expr.build import FALSE, TRUE, op
from attncc.expr.nodes import Const, Expr, Op, Var, free_vars, rewrite, substitute, walk
from attncc.tile import nodes as t


def facts(program: t.Program, kernel: t.Kernel) -> Facts:
    """The facts of `kernel`; batch axes whose positions take different turns are walked one by one, like a split."""
    while True:
        try:
            return Facts(program, kernel)
        except Uneven as e:
            grid = tuple(replace(a, role="split") if a.name in e.axes else a for a in kernel.grid)
            kernel = replace(kernel, grid=grid)


class Facts:
    """The facts of one kernel; `body` is its statements with the folds applied."""

    def __init__(self, program: t.Program, kernel: t.Kernel) -> None:
        self.kernel = kernel
        self.tensors = {n: x for n, x in tensors(program).items() if n in kernel.tensors}
        self.kinds: dict[str, Kind] = {n: Number() for n in host_scalars(kernel)}
        self.types: dict[str, t.Type] = {}
        self.varies: dict[str, frozenset[str]] = {}
        self.extents: dict[str, Expr] = {}
        """Of the axis that a tile position moves along."""
        self.cut: dict[str, str] = {}
        """The tile position in force on each axis."""
        self.constants: dict[str, Expr] = {}
        """Truth values that folding has decided."""
        self.order: dict[str, int] = {n: 0 for n in host_scalars(kernel)}
        """When each Let was met: a number known before a product may scale it."""
        self.filled: set[str] = set()
        """Names of constant tensors: they are made in the shape that the loop which carries them needs."""
        self.scale: dict[str, Expr] = {}
        """Numbers that products are multiplied by where they are made."""
        self.batch = tuple(a.name for a in reversed(kernel.grid) if a.role == "batch")
        for axis in kernel.grid:
            self._grid(axis)
        body = self._block(kernel.body)
        self.body = scaled_products(body, self)
        self.needed = needed(self.body, self)
        self.flat = only_multiplied(self.body, self)
        """Loaded matrices that only products read: held as [batch, row, column]."""

    def _grid(self, axis: t.GridAxis) -> None:
        if axis.role == "batch":
            self.kinds[axis.name] = Lane(Var(axis.name, "int"))
            self.varies[axis.name] = frozenset({axis.name})
            return
        self.kinds[axis.name] = Number()
        if axis.role == "tile":
            self.extents[axis.name] = axis.extent
            self.cut[axis.axis] = axis.name

    # --- questions --------------------------------------------------------------------------------------------------

    def deps(self, e: Expr) -> frozenset[str]:
        """The batch axes that `e` varies with."""
        return frozenset(a for n in free_vars(e) for a in self.varies.get(n, ()))

    def is_number(self, e: Expr) -> bool:
        return all(isinstance(self.kinds[n], Number) for n in free_vars(e))

    def known(self, e: Expr, before: str) -> bool:
        """Whether everything in `e` has its value before the Let of that name."""
        return all(self.order.get(n, len(self.order)) < self.order[before] for n in free_vars(e))

    def lane(self, e: Expr) -> Expr | None:
        """`e` over batch positions and numbers, where it is that."""
        table: dict[Expr, Expr] = {}
        for v in (n for n in walk(e) if isinstance(n, Var)):
            match self.kinds[v.name]:
                case Lane(expr):
                    table[v] = expr
                case Number():
                    pass
                case _:
                    return None
        return substitute(e, table) if table else None

    def span(self, e: Expr) -> Span | None:
        """`e` as consecutive positions, where it is a span plus or minus a number."""
        match e:
            case Var(name):
                kind = self.kinds[name]
                return kind if isinstance(kind, Span) else None
            case Op("add", (a, b)):
                a, b = (b, a) if self.is_number(a) else (a, b)
                s = self.span(a) if self.is_number(b) else None
                return None if s is None else replace(s, offset=_plus(s.offset, b))
            case Op("sub", (a, b)) if self.is_number(b):
                s = self.span(a)
                return None if s is None else replace(s, offset=_plus(s.offset, op("neg", b)))
            case _:
                return None

    def inside(self, s: Span, extent: Expr) -> bool:
        """Whether every position of `s` is proved to be below `extent`."""
        if s.at:
            return s.offset is ZERO and self.extents[s.at] is extent
        match s.offset, extent:
            case Const(int(begin)), Const(int(end)):
                return begin + s.extent <= end
        return False

    # --- statements -------------------------------------------------------------------------------------------------

    def fold(self, e: Expr) -> Expr:
        """rewrite: `position < extent` of its own axis --> true, and what follows from it."""
        return rewrite(e, self._fold)

    def _fold(self, e: Expr) -> Expr | None:
        match e:
            case Var(name):
                return self.constants.get(name)
            case Op("lt", (a, b)) if (s := self.span(a)) is not None and self.inside(s, b):
                return TRUE
            case Op("lt", (Const(a), Const(b))):
                return TRUE if a < b else FALSE
            case Op("le", (Const(0), a)) if (s := self.span(a)) is not None and s.offset is ZERO:
                return TRUE
            case Op("and" | "or" as name, (a, b)):
                neutral, final = (TRUE, FALSE) if name == "and" else (FALSE, TRUE)
                if a is final or b is final:
                    return final
                return b if a is neutral else a if b is neutral else None
            case Op("not", (a,)) if a is TRUE or a is FALSE:
                return FALSE if a is TRUE else TRUE
            case Op("where", (c, a, b)) if c is TRUE or c is FALSE:
                return a if c is TRUE else b
        return None

    def _block(self, body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
        return tuple(self._statement(s) for s in body)

    def _statement(self, s: t.Stmt) -> t.Stmt:
        match s:
            case t.Let():
                return self._let(s)
            case t.For():
                return self._loop(s)
            case t.If():
                return self._branch(s)
            case t.Store() | t.ReduceAdd() | t.Yield():
                folded: t.Stmt = mapped(s, self.fold)
                return folded
            case _:
                raise InternalError(f"{type(s).__name__} has no torch spelling")

    def _let(self, s: t.Let) -> t.Let:
        s = replace(s, op=mapped(s.op, self.fold))
        self.types[s.name] = s.type
        self.order[s.name] = len(self.order)
        if isinstance(s.op, t.Map) and s.op.body in (TRUE, FALSE):
            self.constants[s.name] = s.op.body
        deps = frozenset(a for n in operands(s.op) for a in self.varies.get(n, ()))
        self.varies[s.name] = deps
        self.kinds[s.name] = self._kind(s, deps)
        if isinstance(s.op, t.Full) and s.type.axes:
            self.filled.add(s.name)
        return s

    def _kind(self, s: t.Let, deps: frozenset[str]) -> Kind:
        if not s.type.axes:
            if not deps:
                return Number()
            if isinstance(s.op, t.Map) and s.op.body.sort == "int" and (e := self.lane(s.op.body)) is not None:
                return Lane(e)
            return Value()
        match s.op:
            case t.Iota(base) if self.is_number(base):
                axis = s.type.axes[0]
                at = self.cut.get(axis.name, "")
                if at and base is Var(at, "int"):
                    return Span(axis.name, at, ZERO, axis.extent)
                return Span(axis.name, at, _plus(base, op("neg", Var(at, "int"))) if at else base, axis.extent)
            case t.Map(body) if (span := self.span(body)) is not None:
                return span
        return Value()

    def _loop(self, s: t.For) -> t.For:
        self.kinds[s.index] = Number()
        self._even(s.over)
        outer = dict(self.cut)
        if isinstance(s.over, t.Ranges):
            s = replace(s, over=mapped(s.over, self.fold))
            self.extents[s.index] = s.over.extent if isinstance(s.over, t.Ranges) else ZERO
            self.cut[s.axis] = s.index
        for c in s.carried:
            self._carry(c, self.varies.get(c.start, frozenset()))
        while True:
            body = self._block(s.body)
            if not self._widen(s.carried, (body,)):
                break
        self.cut = outer
        for c in s.carried:
            if c.start in self.filled:
                self.varies[c.start] |= self.varies[c.name]
        return replace(s, body=body)

    def _even(self, over: t.Ranges | t.Count | t.Work) -> None:
        """Intervals are widened to what all positions of the batch need; nothing else may vary with it."""
        if isinstance(over, t.Work):
            return
        pieces = [over] if isinstance(over, t.Count) else [p for p in over.pieces if not isinstance(p, t.Interval)]
        for p in pieces:
            bounds = [e for f in fields(p) if isinstance(e := getattr(p, f.name), Expr)]
            if not all(self.is_number(e) for e in bounds):
                raise Uneven(frozenset(a for e in bounds for a in self.deps(e)))

    def _branch(self, s: t.If) -> t.If:
        s = replace(s, condition=self.fold(s.condition))
        if not self.is_number(s.condition):
            raise Uneven(self.deps(s.condition))
        then, orelse = self._block(s.then), self._block(s.orelse)
        for c in s.carried:
            self._carry(c, self.varies.get(c.start, frozenset()))
        self._widen(s.carried, (then, orelse))
        return replace(s, then=then, orelse=orelse)

    def _carry(self, c: t.Carry, deps: frozenset[str]) -> None:
        self.types[c.name] = c.type
        self.varies[c.name] = deps
        self.kinds[c.name] = Value() if c.type.axes or deps else Number()

    def _widen(self, carried: tuple[t.Carry, ...], bodies: tuple[tuple[t.Stmt, ...], ...]) -> bool:
        """Carried names vary with what they are given at the end of a body, too; whether that is new."""
        changed = False
        for body in bodies:
            end = body[-1] if body and isinstance(body[-1], t.Yield) else t.Yield(())
            for c, name in zip(carried, end.values, strict=True):
                new = self.varies[c.name] | self.varies.get(name, frozenset())
                if new != self.varies[c.name]:
                    self._carry(c, new)
                    changed = True
        return changed


def _plus(a: Expr, b: Expr) -> Expr:
    if a is ZERO:
        return b
    match b:
        case Op("neg", (c,)):
            return op("sub", a, c)
        case Const(0):
            return a
    return op("add", a, b)
