"""Prints loads, stores and additions to memory: slices where the index allows, gathers and scatters elsewhere."""

from __future__ import annotations

from attncc.codegen.scalars import CALL, PRODUCT, SUM, TERNARY, UNARY, literal, python_name
from attncc.codegen.signature import host_scalars
from attncc.codegen.torch_exprs import Text
from attncc.codegen.torch_kinds import ZERO, Span
from attncc.codegen.torch_maps import Maps
from attncc.codegen.torch_places import Along, At, Every, Place, plan
from attncc.codegen.torch_state import Item, State
from attncc.expr.build import TRUE
from attncc.expr.nodes import Expr, Op, free_vars
from attncc.tile import nodes as t
from attncc.tile.walks import every

NARROW = frozenset({"f16", "bf16"})


class Memory:
    """The accesses of one kernel."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.helpers: set[str] = set()
        stores = (s for s in every(state.facts.body) if isinstance(s, t.Store | t.ReduceAdd))
        self.written = {s.tensor for s in stores}
        """Tensors that the kernel writes: what it loads of them is a copy."""

    # --- slices -----------------------------------------------------------------------------------------------------

    def view(self, tensor: str, places: tuple[Place, ...], axes: tuple[str, ...]) -> tuple[str, frozenset[str]]:
        """The cut of a tensor with the shape of a value over `axes`, and the batch axes it has."""
        batch = self.state.facts.batch
        cuts = [self.cut(tensor, n, p) for n, p in enumerate(places)]
        while cuts and cuts[-1] == ":":
            cuts.pop()
        name = python_name(tensor)
        for n, p in enumerate(places):
            if isinstance(p, Every) and p.repeat is not None and self.outside(p.repeat):
                name = self.state.spread.setdefault((name, n, self.safe(p.repeat)), self.state.fresh(f"{name}_each"))
        text = f"{name}[{', '.join(cuts)}]" if cuts else name
        kept = [p for p in places if not isinstance(p, At)]
        for n, p in enumerate(kept):
            if isinstance(p, Every) and p.repeat is not None and not self.outside(p.repeat):
                text = self.repeated(text, n, len(kept), p)
        have = [p.span.axis if isinstance(p, Along) else p.axis for p in kept]
        found = frozenset(a for a in have if a in batch)
        want = [a for a in batch if a in found] + [a for a in axes if a in have]
        if want != have:
            text = f"{text}.permute({', '.join(str(have.index(a)) for a in want)})"
        if found and len(found) < len(batch):
            marks = [":" if a in found else "None" for a in batch]
            text = f"{text}[{', '.join(marks)}]"
        return text, found

    def outside(self, e: Expr) -> bool:
        """Whether `e` is known before the batch is walked."""
        return free_vars(e) <= set(host_scalars(self.state.facts.kernel))

    def safe(self, e: Expr) -> str:
        """A quotient of sizes that does not fail where they are 0."""
        match e:
            case Op("floordiv", (a, b)):
                return f"{self.state.number(a, PRODUCT)} // max(1, {self.state.number(b)})"
        return self.state.number(e)

    def repeated(self, text: str, dim: int, rank: int, p: Every) -> str:
        """Each position of `dim`, `repeat` times in a row: a view where that is once."""
        assert p.repeat is not None
        sizes = ["-1"] * (rank + 1)
        sizes[dim + 1] = self.state.number(p.repeat)
        return f"{text}.unsqueeze({dim + 1}).expand({', '.join(sizes)}).flatten({dim}, {dim + 1})"

    def cut(self, tensor: str, n: int, place: Place) -> str:
        """The index of one axis."""
        state = self.state
        match place:
            case At(index):
                return state.number(index)
            case Along(span):
                return self.along(tensor, n, span)
            case Every(axis, repeat, step, offset):
                begin, end = state.begin(axis), state.end(axis)
                if repeat is not None and not self.outside(repeat):
                    by = state.number(repeat, UNARY)
                    return f"{begin} // {by} : -(-{end} // {by})"
                if step is None:
                    return f"{begin}:{end}"
                by, first = state.number(step, UNARY), state.number(offset, SUM)
                lead = "" if offset is ZERO else f"{first} + "
                return f"{lead}{begin} * {by} : {lead}({end} - 1) * {by} + 1 : {by}"

    def along(self, tensor: str, n: int, span: Span) -> str:
        if not span.at:
            extent = self.state.facts.tensors[tensor].extents[n]
            if span.offset is ZERO and getattr(extent, "value", None) == span.extent:
                return ":"
            first = self.state.number(span.offset, SUM)
            return f"{first} : {first} + {span.extent}"
        if span.offset is ZERO:
            return f"{span.at}:{self.state.end(span.at)}"
        shift = self.state.number(span.offset, PRODUCT)
        return f"{span.at} + {shift} : {self.state.end(span.at)} + {shift}"

    # --- loads ------------------------------------------------------------------------------------------------------

    def load(self, s: t.Let, load: t.Load) -> Item:
        """The elements as an operand: a view of memory, or a new tensor. Narrow floats are widened at once."""
        state = self.state
        axes = s.type.names()
        places = plan(load.index, state.facts) if load.guard is TRUE else None
        if places is not None:
            text, found = self.view(load.tensor, places, axes)
            if load.tensor in self.written and s.type.dtype not in NARROW:
                text = f"{text}.clone()"
        else:
            text, found = self.gathered(load, axes)
        if s.name in state.facts.flat:
            text = f"{text}.flatten(0, {len(state.facts.batch) - 1})"
        if s.type.dtype in NARROW:
            text = f"{text}.float()"
        sort = "bool" if s.type.dtype == "bool" else "int" if s.type.dtype in ("i64", "i32", "u8") else "real"
        if found < state.facts.varies[s.name]:
            state.facts.varies[s.name] = found
        return Item(Text(text, CALL, True, sort), axes, found)  # type: ignore[arg-type]

    def gathered(self, load: t.Load, axes: tuple[str, ...]) -> tuple[str, frozenset[str]]:
        self.helpers.add("_gather")
        index, guard, found = self.indices(load.index, load.guard, axes)
        return f"_gather({python_name(load.tensor)}, {index}, {guard}, {literal(load.other)})", found

    def indices(self, index: tuple[Expr, ...], guard: Expr, axes: tuple[str, ...]) -> tuple[str, str, frozenset[str]]:
        """Index tensors and a guard that broadcast over the batch and `axes`."""
        texts = [self.tensor(e, axes) for e in index]
        found = frozenset(a for e in (*index, guard) for a in self.state.facts.deps(e))
        return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})", self.tensor(guard, axes), found

    def tensor(self, e: Expr, axes: tuple[str, ...]) -> str:
        """`e` as a tensor; a number becomes one."""
        item = Maps(self.state, axes, e).run()
        if not item.tensor:
            return f"torch.tensor({item.text.at(TERNARY)}, device=device)"
        return item.aligned(axes).at(TERNARY)

    # --- stores -----------------------------------------------------------------------------------------------------

    def store(self, s: t.Store) -> None:
        """tensor[index] = value."""
        value = self.value(s.value)
        places = plan(s.index, self.state.facts, target=True) if s.guard is TRUE else None
        if places is None:
            self.scattered("_scatter", s, value)
            return
        text, _ = self.view(s.tensor, places, value.axes)
        self.state.w.line(f"{text}.copy_({value.text.at(TERNARY)})", s.note)

    def reduce_add(self, s: t.ReduceAdd) -> None:
        """tensor[index] += value, summed over the batch axes that the index does not have."""
        value = self.value(s.value)
        places = plan(s.index, self.state.facts, target=True) if s.guard is TRUE else None
        if places is None:
            self.scattered("_scatter_add", s, value)
            return
        text, found = self.view(s.tensor, places, value.axes)
        self.state.w.line(f"{text}.add_({self.summed(value, found)})", s.note)

    def summed(self, value: Item, found: frozenset[str]) -> str:
        """The value without the batch axes outside `found`, as length 1."""
        batch = self.state.facts.batch
        dims = [n - len(batch) - len(value.axes) for n, a in enumerate(batch) if a in value.varies - found]
        text = value.text.at(CALL)
        if not dims:
            return text
        if found:
            return f"{text}.sum({tuple(dims)}, keepdim=True)"
        return f"{text}.sum({tuple(n - len(batch) - len(value.axes) for n in range(len(batch)))})"

    def scattered(self, helper: str, s: t.Store | t.ReduceAdd, value: Item) -> None:
        self.helpers.add(helper)
        index, guard, found = self.indices(s.index, s.guard, value.axes)
        text = value.text.at(CALL)
        if helper == "_scatter_add" and value.varies - found:
            text = self.summed(value, found)
        self.state.w.call(helper, [python_name(s.tensor), index, guard, text])

    def value(self, name: str) -> Item:
        """What is stored: a value, or a number as a tensor."""
        item = self.state.item(name)
        if item.tensor:
            return item
        return Item(Text(f"torch.tensor({item.text.at(TERNARY)}, device=device)", CALL, True, "real"))
