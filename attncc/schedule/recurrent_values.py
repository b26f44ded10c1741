"""Values of one token: expressions of the Spec IR over channels --> statements of a kernel.

The token's number is a scalar, every channel axis of the spec is an axis of the kernel, and states are values over
theirs. Products are summed by the element, so any expression of a state has a form here. Channel axes that are padded
hold 0 in their padding wherever they are summed.
"""

from __future__ import annotations

import math

from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Atom, Const, Expr, Op, Var, free_vars, rewrite, substitute
from attncc.ir.free import free
from attncc.ir.nodes import Contract, Frozen, Gradient, Keep, Let, Load, Rebind, Reduce, S, Scan, Spec, State, Weights
from attncc.passes.chunk_gates import clamped
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.adjoint import Adjoints
from attncc.schedule.builder import Builder
from attncc.schedule.chunk_values import ROLES, Chunk
from attncc.schedule.stream import M, i
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t

_ROLES = {"q": "bhmd", "k": "bgnd", "v": "bgne"}
ZERO, ONE = Const(0.0, "real"), Const(1.0, "real")
NEVER = Const(float("-inf"), "real")
UNIT = "one"
"""The axis of a state without axes, of one element: loops carry no bare numbers."""


class Token(Chunk):
    """A kernel over tokens under construction. `now` are the states and the kept values as they are at this place."""

    def __init__(
        self,
        spec: Spec,
        variant: Variant,
        extents: dict[str, int],
        reserved: tuple[str, ...],
        columns: int = 0,
        *,
        turns: bool = False,
        backwards: bool = False,
    ) -> None:
        """With `turns` a program takes the parts of e one after another, and `part` says where one begins. With
        `backwards` exponentials are passed backwards: what they make 0 has a derivative of 0, too."""
        self.sizes = extents
        self.turns = turns
        self.first_value: Expr | None = None if turns else ivar("e0")
        """The first channel e of the part."""
        self.backwards = backwards
        super().__init__(spec, variant, extents, reserved, columns)
        self.now: dict[str, Var] = {}
        self.homes: dict[str, tuple[Var, ...]] = {}
        """The axes of states and kept values, in order."""
        self.arrays: dict[str, tuple[tuple[Var, ...], Expr]] = {}
        """What q, k, v and the arrays of `let` stand for, over their own indices."""
        for s in spec.statements:
            body = self.put(s.body)
            match s:
                case Rebind(tensor, vars):
                    self.arrays[tensor] = vars, body
                case Let(name, _, vars):
                    self.arrays[name] = vars, body

    def channel(self, name: str, size: int, begin: Expr | None = None) -> None:
        """Declares a channel axis of `size`, padded where the printer wants powers of two; e in its parts."""
        extent = size if self.variant.target == "torch" else 1 << max(size - 1, 0).bit_length()
        base: Expr = Const(0, "int")
        if name == "e" and self.columns:
            begin = begin or self.first_value
            if begin is None:
                return
            extent, base = self.columns, begin
        axis = self.b.axis(name, extent)
        c = self.b.let(name, t.Type((axis,), "i32"), t.Iota(base), "channels")
        self.b.bindings[ivar(name)] = c
        whole = size == extent or size % extent == 0
        self.inside[name] = TRUE if whole else op("lt", c, size)

    def part(self, first: Expr) -> None:
        """The part of e from here on."""
        self.first_value = first
        self.channel("e", self.sizes["e"], first)

    @property
    def once(self) -> Expr:
        """Whether this part stores what all parts share: the last one where they are turns of a program."""
        assert self.first_value is not None
        last = (self.sizes["e"] - 1) // self.columns * self.columns if self.turns else 0
        return op("eq", self.first_value, last)

    def token(self, at: Expr, live: Expr = TRUE, row: Var | None = None) -> None:
        """`at` is the token from here on; nothing is read where `live` does not hold. `row` is its row of the queries
        where it has one for sure."""
        self.b.bindings = {k: v for k, v in self.b.bindings.items() if not isinstance(k, Atom)}
        self.b.bindings[i] = at
        self.live = live
        self.sure = row is not None
        self.row = row if row is not None else self.b.value(op("sub", at, self.shift), "r", "its query row")

    # --- states -----------------------------------------------------------------------------------------------------

    def home(self, x: State | Keep | Frozen, vars: tuple[Var, ...]) -> None:
        """Declares the axes of a state or of a kept value."""
        self.homes[x.name] = vars

    def axes(self, name: str) -> tuple[str, ...]:
        """The axes of a state as it is carried."""
        return tuple(v.name for v in self.homes[name]) or (UNIT,)

    def put(self, e: Expr) -> Expr:
        """`e` with states, kept values and arrays for what they are here."""

        def rule(node: Expr) -> Expr | None:
            match node:
                case Load(name, index) if name in self.now:
                    return self.read(name, index[2:])
                case Load(name) if name in self.params and node.sort == "real":
                    return clamped(node, self.params)  # what is declared holds, in every form
                case Load(name, index) if name in self.arrays:
                    vars, body = self.arrays[name]
                    return substitute(body, dict(zip(vars, index, strict=True)))
                case Op("exp", (x,)) if self.backwards and x is not S and not isinstance(x, Const):
                    lowest = -760.0 if self.real == "f64" else -110.0
                    return op("exp", op("where", op("lt", x, lowest), lowest, x))
                case Var("D" | "E" as name):
                    return Const(self.variant.D if name == "D" else self.variant.E, "int")
                case Op(_, args, sort) if sort != "bool" and all(isinstance(a, Const) for a in args):
                    value = evaluate(node)
                    return Const(value, sort) if math.isfinite(value) else None
                case Gradient(_, of) if of in self.now:
                    return self.gradient(node)
                case _:
                    return None

        return rewrite(e, rule)

    def read(self, name: str, index: tuple[Expr, ...]) -> Expr:
        """A state or a kept value at an index; at its own it is the value itself."""
        v, own = self.now[name], self.homes[name]
        if not own:
            return self.sum(name, v, UNIT) if self.b.type_of(v.name).axes else v
        moved = [(a.name, x) for a, x in zip(own, index, strict=True) if a is not x]
        kept = {a.name for a, x in zip(own, index, strict=True) if a is x}
        others = [x.name for _, x in moved if isinstance(x, Var)]
        if len(others) == len(moved) == len(set(others)) and not set(others) & ({a.name for a in own} | kept):
            return self.renamed(v, dict(zip((a for a, _ in moved), others, strict=True)))
        for axis, x in moved:
            if free_vars(x) & {a.name for a in own}:
                raise NotCompiled(f"the value of `{name}` at another `{axis}`: not compiled yet", self.spec.out.span)
            at = op("eq", self.b.bindings[ivar(axis)], self.b.lower(x))
            v = self.sum(name, op("where", at, v, ZERO), axis)
        return v

    def gradient(self, e: Gradient) -> Var:
        """The derivative of a number by a state: what was computed from the state above does not count."""
        held = self.now[e.of]
        if e.index != self.homes[e.of]:
            raise NotCompiled("`grad` at another place than the state's own: not compiled yet", e.span)
        type = self.b.type_of(held.name)
        alone = self.b.let(e.of, type, t.Map(held), "what the derivative is by")
        number = self.value(substitute(e.body, {held: alone}), "number")
        statements = [s for scope in self.b.scopes for s in scope.statements]
        inside = Adjoints(self, statements, frozenset({alone.name}))
        if number.name in inside.moving:
            inside.add(number.name, ONE)
            inside.run()
        return inside.of.get(alone.name) or self.b.let("none", type, t.Full(ZERO))

    def renamed(self, v: Var, new: dict[str, str]) -> Var:
        """`v` with some of its axes named otherwise."""
        type = self.b.type_of(v.name)
        if not any(a.name in new for a in type.axes):
            return v
        axes = tuple(t.Axis(new.get(a.name, a.name), a.extent) for a in type.axes)
        if any(self.b.extent(a.name) != a.extent for a in axes):
            raise NotCompiled("a state at an index of another size: not compiled yet", self.spec.out.span)
        return self.b.let(v.name, t.Type(axes, type.dtype), t.Rename(v.name), depth=self.b.depth(v))

    # --- expressions ------------------------------------------------------------------------------------------------

    def clean(self, e: Expr, hint: str, *, rows: bool = False) -> Var:
        """`e` with 0 in the padding of its channels."""
        v = self.value(e, hint)
        guard = conj(*(self.inside[a.name] for a in self.b.type_of(v.name).axes if a.name in self.inside))
        return v if guard is TRUE else self.value(op("where", guard, v, ZERO), hint)

    def full(self, e: Expr, hint: str, names: tuple[str, ...]) -> Var:
        """`e` over exactly these axes, 0 in their padding."""
        v = self.clean(e, hint)
        if {a.name for a in self.b.type_of(v.name).axes} == set(names):
            return v
        return self.clean(self.over(v, *names), hint)

    def total(self, e: Expr, axis: str) -> Var:
        """The sum of `e` along an axis, of equal parts where it does not have it."""
        v = self.clean(e, "x")
        if axis not in self.b.type_of(v.name).names():
            return self.value(op("mul", v, float(self.sizes[axis])), "y")
        return self.sum("y", v, axis)

    def _atom(self, builder: Builder, e: Atom) -> Expr:
        match e:
            case Load():
                return self._load(e)
            case Contract(a, c, axis):
                made: Expr = self.total(op("mul", a, c), axis.name)
            case Reduce():
                made = self._reduction(e)
            case Weights():
                made = self._weights(e)
            case Scan("sum", body, binder, reverse, exclusive) if binder.index.name in self.inside:
                v = self.full(body, "x", tuple({*self._names(body), binder.index.name}))
                scan = t.Scan("sum", v.name, binder.index.name, reverse, exclusive)
                made = self.b.let("upto", self.b.type_of(v.name), scan, depth=self.b.depth(v))
            case _:
                raise NotCompiled("this has no form for one token yet", e.span if hasattr(e, "span") else None)
        builder.bindings[e] = made
        return made

    # --- memory -----------------------------------------------------------------------------------------------------

    def guard(self, conditions: list[Expr], axes: list[str]) -> Expr:
        """Whether scalar conditions hold, and channels of these axes are inside."""
        inside = [self.inside[a] for a in axes]
        when = conj(*dict.fromkeys(conditions))
        if when is TRUE or not axes or self.variant.target == "torch":
            return self.b.lower(conj(when, *inside))
        limit = self.b.value(op("where", when, self.end(axes[0]), 0), "limit")
        return self.b.lower(conj(op("lt", self.b.bindings[ivar(axes[0])], limit), *inside[1:]))

    def end(self, axis: str) -> Expr:
        """How many channels an axis has."""
        return Const(self.sizes[axis], "int")

    def row_here(self) -> list[Expr]:
        """The conditions under which the token has a query row."""
        return [] if self.sure else [op("le", 0, self.row), op("lt", self.row, M)]

    def _load(self, e: Load) -> Expr:
        axes = tuple(_ROLES[e.tensor]) if e.tensor in ROLES else tuple(a.index for a in self.params[e.tensor].axes)
        conditions: list[Expr] = []
        index: list[Expr] = []
        for kind, at in zip(axes, e.index, strict=True):
            row = kind == "m" and at is i
            index.append(self.row if row else self.b.value(at, "at"))
            conditions += self.row_here() if row else [self.live] if i in free(at) else []
        names = list(dict.fromkeys(n for at in e.index for n in sorted(free_vars(at)) if n in self.inside))
        dtypes: dict[str, t.Dtype] = dict(self.variant.captured)
        dtype = self.variant.dtype if e.tensor in ROLES else dtypes.get(e.tensor, "i32")
        self.tensors[e.tensor] = None
        guard = self.guard([c for c in conditions if c is not TRUE], names)
        value = self.b.load(e.tensor, dtype, t.Load(e.tensor, tuple(index), guard), e.sort)
        self.sources[value.name] = e, "i"
        return self.cast(value, self.real) if e.sort == "real" else value

    def _names(self, e: Expr) -> tuple[str, ...]:
        return self.b.type_of(self.value(e, "x").name).names()

    def _reduction(self, e: Reduce) -> Expr:
        chosen = None if e.where is TRUE else self.b.lower(e.where)
        match e.op:
            case "sum" | "mean":
                total = self._sums(self._chosen(chosen, e.body, ZERO), e)
                if e.op == "sum":
                    return total
                if chosen is None:
                    return op("div", total, float(math.prod(self.sizes[b.index.name] for b in e.binders)))
                count = self._sums(self._chosen(chosen, ONE, ZERO), e)
                return op("div", total, op("where", op("eq", count, ZERO), ONE, count))
            case "any":
                found = self._extreme("max", self._chosen(chosen, op("where", e.body, ONE, ZERO), ZERO), e, ZERO)
                return op("eq", found, ONE)
            case "max" | "min":
                never = NEVER if e.op == "max" else Const(float("inf"), "real")
                return self._extreme(e.op, self._chosen(chosen, e.body, never), e, never)
            case _:
                raise NotCompiled(f"`{e.op}` one token after another: not compiled yet", e.span)

    def _chosen(self, where: Expr | None, e: Expr, other: Expr) -> Expr:
        return e if where is None else op("where", where, e, other)

    def _sums(self, e: Expr, r: Reduce) -> Expr:
        for binder in r.binders:
            e = self.total(e, binder.index.name)
        return e

    def _extreme(self, which: str, e: Expr, r: Reduce, never: Expr) -> Expr:
        for binder in r.binders:
            axis = binder.index.name
            v = self.value(e, "x")
            if axis in self.b.type_of(v.name).names():
                v = self.value(self._chosen(None if self.inside[axis] is TRUE else self.inside[axis], v, never), "x")
                kept = tuple(a for a in self.b.type_of(v.name).axes if a.name != axis)
                reduce = t.Reduce("max" if which == "max" else "min", v.name, axis)
                v = self.b.let("top", t.Type(kept, self.real), reduce, depth=self.b.depth(v))
            e = v
        return e

    def _weights(self, e: Weights) -> Expr:
        n = e.normaliser
        if e.dropout is not None or n.kind not in ("ratio", "none"):
            raise NotCompiled("these weights have no form for one token yet", e.span)
        mask = None if e.mask is TRUE else e.mask
        if n.kind == "none":
            return self._chosen(mask, self.b.lower(substitute(n.phi, {S: self.value(e.score, "s")})), ZERO)
        if n.phi is not op("exp", S) or n.psi is not n.phi:
            raise NotCompiled("weights of this ratio have no form for one token yet", e.span)
        score = self._chosen(mask, self.value(e.score, "s"), NEVER)
        r = Reduce("max", score, e.keys)
        top = self._extreme("max", score, r, NEVER)
        top = self.value(op("where", op("eq", top, NEVER), ZERO, top), "top")
        x = self.clean(op("exp", op("sub", score, top)), "x")
        total = self._sums(x, r)
        if n.z is not None:
            total = op("add", total, op("mul", n.z, op("exp", op("neg", top))))
        return op("div", x, self.value(op("where", op("eq", total, ZERO), ONE, total), "total"))
