"""Values of a chunk of tokens: expressions of the Spec IR over i and channels --> statements of a kernel.

Axes of the kernel: i and j both run over the tokens of the chunk, every channel axis of the spec is one of its own.
Channel axes that are padded hold 0 in their padding wherever they are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from attncc.errors import InternalError
from attncc.expr.build import TRUE, conj, op
from attncc.expr.nodes import Atom, Const, Expr, Op, Var, free_vars, substitute
from attncc.ir.free import free
from attncc.ir.nodes import Contract, Load, Param, Reduce, Spec
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.builder import Builder
from attncc.schedule.stream import WORDS, G, H, M, N, g, h, i
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t


@dataclass(frozen=True, slots=True)
class ScaledProduct:
    """A product, and what scales rows or columns of it."""

    product: Var
    factor: Expr


ROLES = ("q", "k", "v")
WHOLE: Mapping[str, int] = MappingProxyType({})
"""Every program owns all channels."""


class Chunk:
    """A kernel over chunks under construction."""

    def __init__(
        self,
        spec: Spec,
        variant: Variant,
        extents: dict[str, int],
        reserved: tuple[str, ...],
        columns: Mapping[str, int] | int = WHOLE,
    ) -> None:
        """A program owns so many of the channels in `columns` (a number: of e), from `e0` or `d0` on."""
        self.spec, self.variant = spec, variant
        self.blocks = columns if isinstance(columns, Mapping) else {"e": columns} if columns else WHOLE
        self.columns = self.blocks.get("e", 0)
        self.params: dict[str, Param] = {p.name: p for p in spec.params}
        self.real: t.Dtype = "f64" if variant.dtype == "f64" else "f32"
        self.b = Builder(self.real, ("i", "j", *extents), self._atom)
        self.b.reserve((*ROLES, "out", *self.params, *reserved, *WORDS))
        self.tensors: dict[str, None] = {}
        self.live: Expr = TRUE
        self.first: Expr = Const(0, "int")
        """The chunk's first token."""
        self.at: dict[str, Var] = {}
        self.sources: dict[str, tuple[Load, str]] = {}
        """What each loaded value reads, and the axis its tokens are on."""
        self.inside: dict[str, Expr] = {}
        self.still: set[str] = set()
        """Values that gradients hold fixed."""
        self.known: dict[str, tuple[tuple[str, ...], Callable[[Var], Sequence[Expr]]]] = {}
        """Values that were computed elsewhere: what they depend on, and the gradients of that for theirs."""
        self.scaled: dict[str, ScaledProduct] = {}
        """Products by the names of what they are with a factor."""
        self.upright = False
        """Rows stay rows in gradients: what is summed over them is no product."""
        self._lies: dict[str, tuple[str, ...] | None] = {}
        self._turned: dict[str, Var] = {}
        self._renamed: dict[str, Var] = {}
        for name in "BHGMN":
            self.b.scalar(name, "int")
        for c in spec.constants:
            self.b.scalar(c.name, c.sort)
        for name in ("h", "b", *(f"{n}0" for n in self.blocks)):
            self.b.scalar(name, "int")
        self.stateless = spec.recurrence is not None and not spec.recurrence.states
        head = op("floordiv", h, op("floordiv", H, G)) if variant.grouped else h
        self.b.bindings[g] = self.b.value(head, "g", "the kv head of this head")
        self.shift = self.b.value(op("sub", N, M), "shift", "tokens before the first query")
        for name, size in extents.items():
            self.channel(name, size)

    # --- axes -------------------------------------------------------------------------------------------------------

    def channel(self, name: str, size: int, begin: Expr | None = None) -> None:
        """Declares a channel axis of `size`, padded where the printer wants powers of two; or its part from `begin`."""
        extent = self.padded(size)
        base: Expr = Const(0, "int")
        if name in self.blocks:
            extent, base = self.blocks[name], begin or Var(f"{name}0", "int")
        axis = self.b.axis(name, extent)
        c = self.b.let(name, t.Type((axis,), "i32"), t.Iota(base), "channels")
        self.b.bindings[Var(name, "int")] = c
        self.inside[name] = op("lt", c, Const(size, "int")) if size % extent else TRUE

    def padded(self, size: int) -> int:
        """The extent of an axis for so many channels: a power of two where the printer wants one."""
        return size if self.variant.target == "torch" else max(16, 1 << (size - 1).bit_length())

    def tokens(self, first: Expr, count: int) -> None:
        """The tokens of a chunk, in the current scope."""
        axis = self.b.axis("i", count)
        self.b.axis("j", count)
        if self.stateless:  # there may be more rows than keys
            first = self.b.value(op("add", first, op("min", 0, self.shift)), "first")
        self.first = first
        at = self.b.let("i", t.Type((axis,), "i32"), t.Iota(first), "tokens")
        self.b.bindings[i] = at
        self.at = {"i": at, "j": self.b.let("j", t.Type((t.Axis("j", count),), "i32"), t.Iota(first))}
        self.live = op("lt", at, N)
        begin = self.b.value(op("sub", first, self.shift), "r0")
        self.row = self.b.let("r", t.Type((axis,), "i32"), t.Iota(begin), "their query rows")
        if self.stateless:
            self.live = op("lt", self.row, M)

    def on_j(self, e: Expr, hint: str) -> Var:
        """`e` with its tokens on the axis j, behind its channels, from the loads on."""
        bindings, live, row = dict(self.b.bindings), self.live, self.row
        self.b.bindings = {k: v for k, v in bindings.items() if not isinstance(k, Atom)}
        self.b.bindings[i] = self.at["j"]
        self.live = op("lt", self.at["j"], N)
        self.row = self.b.value(op("sub", self.at["j"], self.shift), "r")
        with self.turned():
            found = self.clean(e, hint, rows=True)
        self.b.bindings, self.live, self.row = bindings, live, row
        return found

    @contextmanager
    def turned(self) -> Iterator[None]:
        """Values made inside have the axis j behind their channels."""
        with self.ordered((*(a for a in self.b.order if a != "j"), "j")):
            yield

    @contextmanager
    def ordered(self, axes: tuple[str, ...]) -> Iterator[None]:
        """Values made inside have these axes in this order, before others."""
        order = self.b.order
        self.b.order = (*axes, *(a for a in order if a not in axes))
        try:
            yield
        finally:
            self.b.order = order

    # --- expressions ------------------------------------------------------------------------------------------------

    def value(self, e: Expr, hint: str) -> Var:
        """`e` as a value over the axes that it has."""
        return self.b.value(e, hint)

    def clean(self, e: Expr, hint: str, *, rows: bool = False) -> Var:
        """`e` with 0 in the padding of its channels, and in rows behind the last token where `rows`."""
        names = [v.name for v in free(e)]
        guard = conj(*(self.inside[n] for n in names if n in self.inside))
        if rows:
            guard = conj(self.live, guard)
        if isinstance(e, Load) and "i" in names and e not in self.b.bindings:
            return self.value(e, hint)  # 0 where its guard fails
        return self.value(e if guard is TRUE else op("where", guard, e, 0.0), hint)

    def narrow(self, v: Var) -> Var:
        """An operand of a product in the inputs' element type."""
        return self.cast(v, self.variant.dtype)

    def cast(self, v: Var, dtype: t.Dtype) -> Var:
        """`v` in another element type."""
        type, made = self.b.type_of(v.name), self.b.made.get(v.name)
        if type.dtype == dtype:
            return v
        if isinstance(made, t.Cast) and self.b.type_of(made.value).dtype == dtype and type.dtype in ("f32", "f64"):
            return Var(made.value, v.sort)  # back from a wider type
        return self.b.let(f"{v.name}_{dtype}", t.Type(type.axes, dtype), t.Cast(v.name), depth=self.b.depth(v))

    def widened(self, v: Var) -> Var:
        """What was narrowed to an operand, as it was; or in the type of sums."""
        made = self.b.made.get(v.name)
        wide = isinstance(made, t.Cast) and self.b.type_of(made.value).dtype == self.real
        return Var(made.value, v.sort) if isinstance(made, t.Cast) and wide else self.cast(v, self.real)

    def over(self, v: Var, *names: str) -> Var:
        """`v` over exactly these axes, repeated along those it lacks."""
        if {a.name for a in self.b.type_of(v.name).axes} == set(names):
            return v
        zeros = self.b.let("zeros", self.b.over(*names), t.Full(Const(0.0, "real")))
        return self.b.let(v.name.split("_")[0], self.b.over(*names), t.Map(op("add", v, zeros)))

    def rename(self, v: Var) -> Var:
        """`v` with its tokens on the axis j."""
        type, made = self.b.type_of(v.name), self.b.made.get(v.name)
        if isinstance(made, t.Cast) and self.b.type_of(made.value).dtype in ("f16", "bf16"):
            return self.cast(self.rename(Var(made.value, v.sort)), type.dtype)
        if v.name not in self._renamed:
            axes = tuple(t.Axis("j", a.extent) if a.name == "i" else a for a in type.axes)
            hint = f"{v.name.split('_')[0]}_j"
            self._renamed[v.name] = self.b.let(hint, t.Type(axes, type.dtype), t.Rename(v.name), depth=self.b.depth(v))
        return self._renamed[v.name]

    def dot(self, hint: str, a: Var, c: Var, axis: str, out: tuple[str, str], start: Var | None = None) -> Var:
        """start + the sum over `axis` of a * c; what scales rows or columns of it scales the sum."""
        factor: Expr | None = None
        if start is None:
            (a, f), (c, g) = self.unscaled(a, axis), self.unscaled(c, axis)
            factor = f if g is None else g if f is None else op("mul", f, g)
        left, right = self.narrow(a), self.narrow(c)
        body = t.Dot(left.name, right.name, axis, start.name if start else None, self.variant.precision)
        row, column = (t.Axis(n, self.b.extent(n)) for n in out)
        found = self.b.let(hint, t.Type((row, column), self.real), body)
        if factor is None:
            return found
        with self.ordered(out):
            made = self.value(op("mul", found, factor), hint)
        self.scaled[made.name] = ScaledProduct(found, factor)
        return made

    def unscaled(self, v: Var, axis: str) -> tuple[Var, Expr | None]:
        """(x, f) for a value f * x of what was loaded in 16 bits, f without `axis`: a product along that takes x as it
        lies in memory."""
        made = self.b.made.get(v.name)
        match made.body if isinstance(made, t.Map) else made:
            case t.Cast(value) if self.b.type_of(v.name).dtype == self.variant.dtype:
                wide, factor = self.unscaled(Var(value, v.sort), axis)
                return (v, None) if factor is None else (wide, factor)
            case Op("mul", (l, r)):
                found = self._scaled(l, r, axis) or self._scaled(r, l, axis)
                return found or (v, None)
            case _:
                return v, None

    def _scaled(self, x: Expr, f: Expr, axis: str) -> tuple[Var, Expr | None] | None:
        """f * x, unscaled."""
        if not isinstance(x, Var) or not isinstance(f, Const | Var):
            return None
        left, g = self.unscaled(x, axis)
        if not self._loaded(left):
            return None
        if self._scales(f, axis):
            return left, f if g is None else op("mul", f, g)
        if isinstance(g, Const):  # one factor of both
            return self.value(op("mul", left, self.value(op("mul", f, g), "x")), "x"), None
        return None

    def _loaded(self, v: Var) -> bool:
        """Whether a value is as wide as sums what was loaded in 16 bits."""
        made = self.b.made.get(v.name)
        return isinstance(made, t.Cast) and self.b.type_of(made.value).dtype in ("f16", "bf16") and self.narrow(v) != v

    def _scales(self, f: Expr, axis: str) -> bool:
        """Whether `f` is a number, or one for every row or column of a product along `axis`."""
        if isinstance(f, Const):
            return True
        return isinstance(f, Var) and len(names := self.b.type_of(f.name).names()) < 2 and axis not in names

    # --- how products lie -------------------------------------------------------------------------------------------

    def fitted(self, a: Var, c: Var, axis: str, axes: tuple[str, ...]) -> tuple[tuple[Var, Var], tuple[str, str]]:
        """(operands, order of the product's axes) such that it takes its operands as they lie; j is behind if it can.

        Where no order does, what pairs the tokens is made once more, the other way round.
        """
        first, second = axes if axes[1] == "j" or "j" not in axes or self.upright else axes[::-1]

        def cost(out: tuple[str, str]) -> int:
            """A pair of tokens is made anew for less than rows of channels; rows stay rows."""
            made = [x for x in (a, c) if not self._fits(x, axis, out)]
            moved = 2 if made and out != (first, second) else 0
            return moved + sum(1 if {"i", "j"} <= {*self.b.type_of(x.name).names()} else 2 for x in made)

        out = min((first, second), (second, first), key=cost)
        left, right = (x if self._fits(x, axis, out) else self.turn(x) for x in (a, c))
        return (left, right), out

    def laid(self, v: Var, axis: str, out: tuple[str, str]) -> Var:
        """`v` as a product over `out` takes it: made once more, the other way round, where it lies otherwise."""
        return v if self._fits(v, axis, out) else self.turn(v)

    def _fits(self, operand: Var, axis: str, out: tuple[str, str]) -> bool:
        lies = self.lies(operand.name)
        return lies is None or lies == ((out[0], axis) if out[0] in lies else (axis, out[1]))

    def turn(self, v: Var) -> Var:
        """A value that lies as a product made it, made once more with its two axes the other way round."""
        if v.name in self._turned or self.lies(v.name) is None:
            return self._turned.get(v.name, v)
        type = self.b.type_of(v.name)
        back = t.Type(type.axes[::-1], type.dtype)
        made = self.b.made[v.name]
        match made:
            case t.Dot(str(a), str(c), axis, start):
                left, right = (self.turn(Var(x, "real")).name for x in (a, c))
                found = self.b.let(v.name, back, t.Dot(left, right, axis, None, made.precision), depth=self.b.depth(v))
                if start is not None:
                    with self.ordered(tuple(a.name for a in back.axes)):
                        found = self.value(op("add", self.turn(Var(start, "real")), found), v.name)
            case t.Map(body):
                wide = [x for x in sorted(free_vars(body)) if len(self.b.type_of(x).axes) > 1]
                turned: dict[Expr, Expr] = {Var(x, "real"): self.turn(Var(x, "real")) for x in wide}
                found = self.b.let(v.name, back, t.Map(substitute(body, turned)), depth=self.b.depth(v))
            case t.Cast(value) | t.Rename(value):
                op_ = replace(made, value=self.turn(Var(value, "real")).name)
                found = self.b.let(v.name, back, op_, depth=self.b.depth(v))
            case _:
                raise InternalError(f"{v.name} lies as no product")
        self._turned[v.name] = found
        return found

    def lies(self, name: str) -> tuple[str, ...] | None:
        """The order of axes of the product that a value was made of, element by element; None where there is none."""
        if name not in self._lies:
            self._lies[name] = self._lies_so(name)
        return self._lies[name]

    def _lies_so(self, name: str) -> tuple[str, ...] | None:
        names = self.b.type_of(name).names()
        match self.b.made.get(name):
            case t.Dot():
                return names
            case t.Rename(value):
                known = self.lies(value)
                new = dict(zip(self.b.type_of(value).names(), names, strict=True))
                return None if known is None else tuple(new[n] for n in known)
            case t.Map() | t.Cast() as made:
                read = free_vars(made.body) if isinstance(made, t.Map) else {made.value}
                found = [x for v in sorted(read) if (x := self.lies(v)) is not None]
                wide = [x for x in found if len(x) > 1 and set(x) == set(names)]
                return wide[0] if wide else None
            case _:
                return None

    def sum(self, hint: str, e: Expr, axis: str) -> Var:
        """The sum of a value along an axis."""
        v = self.value(e, hint)
        kept = tuple(a for a in self.b.type_of(v.name).axes if a.name != axis)
        return self.b.let(hint, t.Type(kept, self.real), t.Reduce("sum", v.name, axis), depth=self.b.depth(v))

    def _atom(self, builder: Builder, e: Atom) -> Expr:
        match e:
            case Load():
                return self._load(e)
            case Contract(a, c, axis):
                made = self._contract(a, c, axis.name)
            case Reduce(name, body, (binder,), where) if name in ("sum", "mean", "max") and where is TRUE:
                made = self._reduce(name, body, binder.index.name, binder.size)
            case _:
                raise NotCompiled("this has no form in a chunk yet", e.span if hasattr(e, "span") else None)
        builder.bindings[e] = made
        return made

    def _contract(self, a: Expr, c: Expr, axis: str) -> Var:
        left, right = self.clean(a, "x"), self.clean(c, "y")
        names = [{x.name for x in self.b.type_of(v.name).axes} for v in (left, right)]
        if "i" in names[1] and "i" not in names[0]:
            left, right, names = right, left, names[::-1]
        if "j" in names[0] and "j" not in names[1]:
            left, right, names = right, left, names[::-1]
        if len(names[0] | names[1]) > 2:
            (row,), (column,) = (tuple(n - {axis}) for n in names)
            return self.dot("y", left, right, axis, (row, column))
        return self.sum("y", op("mul", left, right), axis)

    def _reduce(self, name: str, body: Expr, axis: str, size: Expr) -> Var:
        if name == "max":
            lowest = Const(-1e300 if self.real == "f64" else -3e38, "real")  # of what may be subtracted: no infinity
            full = op("where", self.inside[axis], body, lowest)
            v = self.value(full if self.inside[axis] is not TRUE else body, "x")
            kept = tuple(a for a in self.b.type_of(v.name).axes if a.name != axis)
            return self.b.let("top", t.Type(kept, self.real), t.Reduce("max", v.name, axis), depth=self.b.depth(v))
        total = self.sum("sum", self.clean(body, "x"), axis)
        return total if name == "sum" else self.value(op("div", total, size), "mean")

    # --- memory -----------------------------------------------------------------------------------------------------

    def _load(self, e: Load) -> Expr:
        kinds = {"q": "bhmd", "k": "bgnd", "v": "bgne"}
        axes = tuple(kinds[e.tensor]) if e.tensor in ROLES else tuple(a.index for a in self.params[e.tensor].axes)
        guards: list[Expr] = []
        index: list[Expr] = []
        for kind, at in zip(axes, e.index, strict=True):
            names = free_vars(at)
            if kind == "m" and at is i:
                index.append(self.row)
                guards += [op("le", 0, self.row), op("lt", self.row, M)]
            else:
                index.append(self.b.value(at, "at"))
                guards += [self.live] if "i" in names else []
                if self.stateless and kind == "n" and "i" in names:
                    guards += [op("le", 0, index[-1]), op("lt", index[-1], N)]
            guards += [self.inside[n] for n in sorted(names) if n in self.inside]
        guard = self.b.lower(conj(*dict.fromkeys(guards)))
        dtypes: dict[str, t.Dtype] = dict(self.variant.captured)
        dtype = self.variant.dtype if e.tensor in ROLES else dtypes.get(e.tensor, "i32")
        self.tensors[e.tensor] = None
        value = self.b.load(e.tensor, dtype, t.Load(e.tensor, tuple(index), guard), e.sort)
        self.sources[value.name] = e, "j" if self.b.bindings.get(i) is self.at.get("j") else "i"
        return self.cast(value, self.real) if e.sort == "real" else value

    def load(
        self,
        tensor: str,
        index: tuple[Expr, ...],
        guard: Expr,
        type: t.Type,
        hint: str,
        other: float = 0,
        depth: int | None = None,
    ) -> Var:
        """Reads a tensor of the schedule's own as it is stored, in the current scope or in that of `depth`."""
        self.tensors[tensor] = None
        return self.b.let(hint, type, t.Load(tensor, index, self.b.lower(guard), other), depth=depth)

    def store(self, tensor: str, index: tuple[Expr, ...], value: Var, guard: Expr, dtype: t.Dtype) -> None:
        """Writes a value, cast to the tensor's element type."""
        self.tensors[tensor] = None
        self.b.add(t.Store(tensor, index, self.cast(value, dtype).name, self.b.lower(guard)))
