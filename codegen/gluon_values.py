"""Names, expressions and values inside a Gluon kernel: each value in the register layout its user wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attncc.codegen.boxes import Box
from attncc.codegen.gluon_exprs import Leaf, Speller, Text, base_two
from attncc.codegen.gluon_helpers import called
from attncc.codegen.gluon_layouts import Layout, Mma, project
from attncc.codegen.gluon_spelling import DTYPES, Layouts
from attncc.codegen.scalars import CALL, SUM, TERNARY, python_name
from attncc.codegen.writer import Writer
from attncc.errors import InternalError
from attncc.expr.interval import Interval
from attncc.expr.nodes import Const, Expr, Var, free_vars
from attncc.expr.nodes import Op as Applied
from attncc.tile.nodes import AllocShared, Cast, DotWait, Full, GridAxis, Iota, Map, Op, Rename, Tensor, Type

MOST = 4
"""Comparisons that are made together."""
CHEAP = 8
"""Values of so many steps are computed again in a second layout instead of exchanged between threads."""


class Scope:
    """What a kernel and its partitions know: types, layouts, tensors, the version they are printed for."""

    def __init__(
        self,
        types: Mapping[str, Type],
        table: Mapping[str, Layout],
        tensors: Mapping[str, Tensor],
        named: Layouts,
        triton: tuple[int, int],
    ) -> None:
        self.types, self.table, self.tensors, self.named, self.triton = types, table, tensors, named, triton
        self.buffers: dict[str, AllocShared] = {}
        self.copied: dict[str, dict[str, Box]] = {}
        """By tensor, then by the name of the descriptor: what the kernel copies in bulk."""
        self.known: dict[Expr, Interval] = {}
        self.helpers: set[str] = set()
        self.grid: tuple[GridAxis, ...] = ()
        self.warps = 0
        """Of the partition being printed."""


class KernelSpeller(Speller):
    """A speller that notes the helpers it calls."""

    def __init__(self, axes: tuple[str, ...], leaf: Leaf, known: Mapping[Expr, Interval], helpers: set[str]) -> None:
        super().__init__(axes, leaf, known)
        self.helpers = helpers

    def spell(self, e: Expr) -> Text:
        text = super().spell(base_two(e))
        self.helpers |= called(text.text)
        return text


class Values:
    """The names of one body; `used` collects those it takes from outside, in order."""

    def __init__(self, w: Writer, scope: Scope) -> None:
        self.w, self.scope = w, scope
        self.used: dict[str, None] = {}
        self.bound: set[str] = set()
        self.recipes: dict[str, Op] = {}
        self.flying: set[str] = set()
        """Products that were begun and not awaited."""

    def use(self, name: str) -> str:
        if name not in self.bound:
            self.used.setdefault(name)
        return python_name(name)

    def bind(self, name: str) -> str:
        self.bound.add(name)
        return python_name(name)

    # --- expressions

    def speller(self, type_: Type, layout: Layout | None) -> KernelSpeller:
        axes = type_.names()

        def leaf(v: Var) -> Text:
            own = self.scope.types.get(v.name)
            if own is None or not own.axes:
                return Text(self.use(v.name), CALL)
            return Text(self.value(v.name, self._slice(v.name, axes, layout)), CALL, own.names())

        return KernelSpeller(axes, leaf, self.scope.known, self.scope.helpers)

    def _slice(self, name: str, axes: tuple[str, ...], layout: Layout | None) -> Layout:
        """The layout in which a value meets others over `axes` that lie in `layout`."""
        own = self.scope.types[name].names()
        if layout is None:
            raise InternalError(f"{name} has axes where a scalar is wanted")
        if own != tuple(a for a in axes if a in own):
            raise InternalError(f"{name} lies as {own}, its user as {axes}")
        return project(layout, axes, own)

    def scalar(self, e: Expr, place: int = TERNARY) -> str:
        return self.speller(Type((), "i32"), None).text(e, place)

    def axes(self, e: Expr) -> bool:
        """Whether an expression has axes."""
        return any(v in self.scope.types and self.scope.types[v].axes for v in free_vars(e))

    # --- values

    def value(self, name: str, layout: Layout) -> str:
        """A value in the layout its user wants: as it is, computed again, or converted."""
        if self.scope.table[name] == layout:
            return self.use(name)
        if self._steps(name) <= CHEAP:
            return self._again(name, layout)
        return f"gl.convert_layout({self.use(name)}, {self.scope.named.register(layout)})"

    def _steps(self, name: str) -> int:
        """How many operations give a value from scalars alone; many where it takes more than arithmetic."""
        match self.recipes.get(name):
            case Iota() | Full():
                return 1
            case Map(body):
                inside = (self._steps(v) for v in free_vars(body) if self.axes(Var(v, "int")))
                return 1 + sum(inside)
            case Cast(value) | Rename(value):
                return 1 + self._steps(value)
            case _:
                return CHEAP + 1

    def _again(self, name: str, layout: Layout) -> str:
        text = self.computed(self.scope.types[name], layout, self.recipes[name])
        return text if text.endswith(")") and text.startswith("gl.") and " " not in text.split("(")[0] else f"({text})"

    def computed(self, type_: Type, layout: Layout, op: Op) -> str:
        """A constant, a position, or arithmetic on values, over the axes of `type_`."""
        into = self.scope.named.register(layout)
        match op:
            case Full(value):
                return f"gl.full({shape(type_)}, {self.scalar(value)}, {DTYPES[type_.dtype]}, {into})"
            case Iota(base):
                steps = f"gl.arange(0, {type_.axes[0].extent}, {into})"
                return steps if base is Const(0, "int") else f"{self.scalar(base, SUM)} + {steps}"
            case Map(body, spared):
                at = self.speller(type_, layout)
                if spared and isinstance(layout, Mma) and in_two_rows(type_, layout):
                    return self._scaled(type_, body, at)
                return self._chosen(type_, layout, body) or self.spread(at.spell(body), type_, layout, at).text
            case Cast(value):
                return f"{self.value(value, layout)}.to({DTYPES[type_.dtype]})"
            case Rename(value):
                return self.value(value, layout)
            case _:
                raise InternalError(f"{type(op).__name__} is not computed twice")

    def _scaled(self, type_: Type, body: Expr, at: Speller) -> str:
        """A tensor core's values by rows' factors, where warps may pass over those that are 1."""
        if not (isinstance(body, Applied) and body.name == "mul"):
            raise InternalError("only a product is spared")
        x, factor = body.args
        self.scope.helpers.add("_scaled_gl")
        factors = at.widen(at.spell(factor), type_.names()).at(TERNARY)
        return f"_scaled_gl({self.scope.named.scaling(type_.axes[1].extent // 2)}, {at.text(x)}, {factors})"

    def _chosen(self, type_: Type, layout: Layout, body: Expr) -> str:
        """A tensor core's values where integers compare as they should, else a constant; "" for all else."""
        match body:
            case Applied("where", (condition, x, Const(float(other)))) if isinstance(layout, Mma):
                pass
            case _:
                return ""
        compared = list(self._comparisons(condition))
        if not 0 < len(compared) <= MOST or any(c is None for c in compared):
            return ""
        if len(compared) == 1 and not (isinstance(x, Var) and isinstance(self.recipes.get(x.name), DotWait)):
            return ""  # one that does not wait for a product stays beside its choice by itself
        at = self.speller(type_, layout)
        chosen = at.spell(x)
        if chosen.axes != type_.names() or type_.dtype != "f32":
            return ""
        sides = [at.widen(at.spell(e), type_.names()).at(TERNARY) for c in compared if c is not None for e in c.args]
        steps = [c.name for c in compared if c is not None]
        helper, asm = f"_chosen{len(steps)}_gl", self.scope.named.comparison(steps, other)
        self.scope.helpers.add(helper)
        return f"{helper}({asm}, {chosen.at(TERNARY)}, {', '.join(sides)})"

    def _comparisons(self, condition: Expr) -> Iterator[Applied | None]:
        """The comparisons of integers that all must hold; None for what is another condition."""
        match condition:
            case Applied("and", (a, b)):
                yield from self._comparisons(a)
                yield from self._comparisons(b)
            case Applied("lt" | "le" | "eq" | "ne", (a, _)) if a.sort == "int" and self.axes(condition):
                yield condition
            case Var(name) if isinstance(known := self.recipes.get(name), Map):
                yield from self._comparisons(known.body)
            case _:
                yield None

    def spread(self, text: Text, type_: Type, layout: Layout, at: Speller) -> Text:
        """`text` over all axes of `type_`."""
        axes, into = type_.names(), self.scope.named.register(layout)
        if text.axes == axes:
            return text
        if not text.axes:
            return Text(f"gl.full({shape(type_)}, {text.at(TERNARY)}, {DTYPES[type_.dtype]}, {into})", CALL, axes)
        zeros = f"gl.zeros({shape(type_)}, gl.float32, {into})"
        return Text(f"gl.broadcast({at.widen(text, axes).at(TERNARY)}, {zeros})[0]", CALL, axes)


def in_two_rows(type_: Type, layout: Mma) -> bool:
    """Whether a thread's part of a tensor core's tile lies in two rows: a row's four threads hold two of eight."""
    return type_.axes[0].extent == 16 * layout.warps and type_.axes[1].extent % 8 == 0


def shape(type_: Type) -> str:
    """A type's extents as a list."""
    return str([a.extent for a in type_.axes])
