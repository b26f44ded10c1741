"""Builds a kernel's statements: scopes, fresh names, and expressions emitted where they vary least.

An expression of the Spec IR is lowered into Lets. Each part is emitted in the outermost scope that knows its operands
(so what does not depend on the loop leaves the loop) and over its own axes only (so a term of j alone is one row of
values, broadcast later). Equal parts are emitted once per scope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from attncc.expr.nodes import Atom, Const, Expr, Op, Sort, Var, children, free_vars, with_children
from attncc.tile import nodes as t

SPECIAL = frozenset(
    {"exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "erf", "sigmoid", "softplus", "sin", "cos"}
)
"""Functions that get a Let of their own, so that forward values and derivatives share them."""


@dataclass(slots=True)
class Scope:
    """The statements of one loop or of the kernel, and what is already computed or loaded there."""

    depth: int
    statements: list[t.Stmt] = field(default_factory=list)
    known: dict[tuple[Expr, tuple[str, ...]], str] = field(default_factory=dict)
    loaded: dict[t.Load, str] = field(default_factory=dict)


AtomRule = Callable[["Builder", Atom], Expr]


class Builder:
    """One kernel's body under construction. `order` is the register order of the tile axes."""

    def __init__(self, real: t.Dtype, order: tuple[str, ...], atom: AtomRule) -> None:
        self.real = real
        self.order = order
        self.scopes = [Scope(0)]
        self._types: dict[str, t.Type] = {}
        self._depth: dict[str, int] = {}
        self._extent: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._atom = atom
        self.bindings: dict[Expr, Expr] = {}
        """What indices and atoms of the Spec IR stand for at the moment."""
        self.widened: dict[str, Var] = {}
        """Loaded values that were cast to the accumulator type."""
        self.floor = 0
        """The outermost scope that takes statements: above 0, what a loop computes stays in the loop."""
        self.made: dict[str, t.Op] = {}
        """What every name is bound to."""

    # --- names and types --------------------------------------------------------------------------------------------

    def reserve(self, names: Iterable[str]) -> None:
        """Names that mean something else in a kernel: tensors, and words of the printers."""
        for name in names:
            self._used[name] = 1

    def fresh(self, hint: str) -> str:
        """`hint`, or the first of hint_1, hint_2 ... that is free."""
        count = self._used.get(hint, 0)
        self._used[hint] = count + 1
        return hint if count == 0 else self.fresh_numbered(hint, count)

    def fresh_numbered(self, hint: str, count: int) -> str:
        name = f"{hint}_{count}"
        if name in self._used:
            return self.fresh(hint)
        self._used[name] = 1
        return name

    def scalar(self, name: str, sort: Sort) -> Var:
        """Declares a scalar argument or grid position of this very name."""
        self._used[name] = 1
        return self._declare(name, t.Type((), self.dtype(sort)), 0, sort)

    def position(self, name: str) -> Var:
        """Declares a position in the grid: known in the current scope and in those inside it."""
        self._used[name] = 1
        return self._declare(name, t.Type((), "i32"), self.scope.depth, "int")

    def axis(self, name: str, extent: int) -> t.Axis:
        """Declares a tile axis."""
        self._extent[name] = extent
        return t.Axis(name, extent)

    def extent(self, axis: str) -> int:
        return self._extent[axis]

    def dtype(self, sort: Sort) -> t.Dtype:
        return {"int": "i32", "real": self.real, "bool": "bool"}[sort]

    def type_of(self, name: str) -> t.Type:
        return self._types[name]

    def over(self, *names: str) -> t.Type:
        """The accumulator type over these axes, in register order."""
        return t.Type(self._axes(frozenset(names)), self.real)

    def _axes(self, names: frozenset[str]) -> tuple[t.Axis, ...]:
        ordered = [a for a in self.order if a in names]
        ordered += sorted(names - set(ordered))
        return tuple(t.Axis(a, self._extent[a]) for a in ordered)

    def _declare(self, name: str, type: t.Type, depth: int, sort: Sort) -> Var:
        self._types[name] = type
        self._depth[name] = depth
        return Var(name, sort)

    # --- statements -------------------------------------------------------------------------------------------------

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def add(self, statement: t.Stmt) -> None:
        self.scope.statements.append(statement)

    def let(self, hint: str, type: t.Type, op: t.Op, note: str = "", depth: int | None = None) -> Var:
        """Binds `op` to a fresh name in the current scope, or in that of `depth`."""
        scope = self.scope if depth is None else self.scopes[depth]
        name = self.fresh(hint)
        scope.statements.append(t.Let(name, type, op, note))
        self.made[name] = op
        sort: Sort = "bool" if type.dtype == "bool" else "int" if type.dtype in ("i32", "i64") else "real"
        return self._declare(name, type, scope.depth, sort)

    def carry(self, hint: str, start: Var, depth: int) -> tuple[t.Carry, Var]:
        """A value carried by a loop whose body is the scope of `depth`."""
        name = self.fresh(hint)
        type = self._types[start.name]
        return t.Carry(name, type, start.name), self._declare(name, type, depth, start.sort)

    @contextmanager
    def inner(self) -> Iterator[Scope]:
        """A scope inside the current one; its statements are the caller's to place."""
        scope = Scope(len(self.scopes))
        self.scopes.append(scope)
        try:
            yield scope
        finally:
            self.scopes.pop()

    @contextmanager
    def partition(self) -> Iterator[Scope]:
        """The scope of some warps' code: values with axes live and die in it, scalars that it asks for may move out.

        What indices and atoms stand for inside is forgotten afterwards.
        """
        bindings, widened = dict(self.bindings), dict(self.widened)
        with self.inner() as scope:
            yield scope
        self.bindings, self.widened = bindings, widened

    def loop_index(self, hint: str) -> Var:
        """The index of a loop whose body is the current scope."""
        name = self.fresh(hint)
        return self._declare(name, t.Type((), "i32"), self.scope.depth, "int")

    def leave(self, carried: tuple[t.Carry, ...]) -> tuple[Var, ...]:
        """The carried names, now values of the current scope."""
        for c in carried:
            self._depth[c.name] = self.scope.depth
        return tuple(Var(c.name, "int" if c.type.dtype in ("i32", "i64") else "real") for c in carried)

    # --- expressions ------------------------------------------------------------------------------------------------

    def value(self, e: Expr, hint: str, note: str = "") -> Var:
        """`e` as a value: a Var that exists already, or a new Let of its own."""
        body = self.lower(e, hint)
        if isinstance(body, Var):
            return body
        return self._place(body, hint, note)

    def lower(self, e: Expr, hint: str = "") -> Expr:
        """`e` over names in scope: atoms bound, invariant and narrower parts emitted on their own."""
        if e in self.bindings:
            return self.bindings[e]
        match e:
            case Const() | Var():
                return e
            case Op(name, args, _):
                lowered = with_children(e, tuple(self.lower(a) for a in args))
                parts = tuple(self._part(lowered, c) for c in children(lowered))
                out = with_children(lowered, parts)
                return self._place(out, hint or name, "") if name in SPECIAL else out
            case Atom():
                return self._atom(self, e)
            case _:
                raise TypeError(type(e))

    def _part(self, parent: Expr, child: Expr) -> Expr:
        if not isinstance(child, Op):
            return child
        if self.depth(child) < self.depth(parent) or self.axes_of(child) != self.axes_of(parent):
            return self._place(child, "c" if not self.axes_of(child) else _hint(child), "")
        return child

    def _place(self, body: Expr, hint: str, note: str) -> Var:
        depth = self.depth(body)
        axes = self.axes_of(body)
        names = tuple(a.name for a in axes)
        for scope in self.scopes[self.floor : depth + 1]:
            if (body, names) in scope.known:
                return Var(scope.known[body, names], body.sort)
        var = self.let(hint, t.Type(axes, self.dtype(body.sort)), t.Map(body), note, depth)
        self.scopes[depth].known[body, names] = var.name
        return var

    def noted(self, body: Expr, hint: str, note: str) -> Var:
        """`body`, an operation on names in scope, as a value with a note at its Let; the same is made once."""
        return self._place(body, hint, note)

    def load(self, hint: str, dtype: t.Dtype, load: t.Load, sort: Sort, note: str = "") -> Var:
        """A load over the axes of its indices, in the outermost scope that knows them; the same load once."""
        parts = (*load.index, load.guard)
        depth = max(self.depth(x) for x in parts)
        axes = self._axes(frozenset(a.name for x in load.index for a in self.axes_of(x)))
        for scope in self.scopes[self.floor : depth + 1]:
            if load in scope.loaded:
                return Var(scope.loaded[load], sort)
        var = self.let(hint, t.Type(axes, dtype), load, note, depth)
        self.scopes[depth].loaded[load] = var.name
        return var

    def depth(self, e: Expr) -> int:
        """Of the outermost scope that knows every operand, and takes statements."""
        return max(self.floor, max((self._depth[v] for v in free_vars(e)), default=0))

    def axes_of(self, e: Expr) -> tuple[t.Axis, ...]:
        names = frozenset(a.name for v in free_vars(e) for a in self._types[v].axes)
        return self._axes(names)


_HINTS = {"real": "f", "lt": "inside", "le": "inside", "eq": "same", "and": "ok", "or": "ok", "not": "no"}


def _hint(e: Op) -> str:
    return _HINTS.get(e.name, "x")
