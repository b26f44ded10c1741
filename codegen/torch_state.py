"""The state of printing one kernel: the variable that holds each value, its shape, and whether it may be overwritten.

A value is held by a variable of shape [batch axes ..., its own axes ...]; a batch axis it does not vary with has length
1, and all are left out where it varies with none. Two names that are equal by construction share one variable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from attncc.codegen.scalars import CALL, python_name, spell
from attncc.codegen.torch_exprs import Text
from attncc.codegen.torch_facts import Facts
from attncc.codegen.torch_reads import operands
from attncc.codegen.writer import Writer
from attncc.expr.nodes import Expr, Sort
from attncc.tile import nodes as t

LARGE = 1 << 13
"""Elements from which a result goes to memory that is kept, not allocated again at every turn."""


@dataclass(slots=True, eq=False)
class Storage:
    """One variable's tensor. `owned`: made here, so that it may be overwritten once nobody reads it any more.
    `dense`: contiguous for sure. `lent`: in memory that the next turn of the loop writes again."""

    var: str
    owned: bool
    names: set[str] = field(default_factory=set)
    dense: bool = False
    lent: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """An operand as text: its axes in order and the batch axes it varies with; no storage for an inlined text."""

    text: Text
    axes: tuple[str, ...] = ()
    varies: frozenset[str] = frozenset()
    storage: Storage | None = None
    dense: bool = False
    lent: bool = False

    @property
    def tensor(self) -> bool:
        return self.text.tensor

    @property
    def sort(self) -> Sort:
        return self.text.sort

    def aligned(self, axes: tuple[str, ...]) -> Text:
        """The text as it broadcasts over `axes` (and over any batch)."""
        if not self.tensor or self.axes == axes:
            return self.text
        return replace(self.text, text=align(self.text.at(CALL), self.axes, axes, bool(self.varies)), level=CALL)


def align(text: str, have: tuple[str, ...], want: tuple[str, ...], batched: bool) -> str:
    """A tensor over `have` as it broadcasts over `want`, which contains it."""
    order = tuple(a for a in want if a in have)
    if order != have:
        text = f"{text}.mT" if len(have) == 2 else permuted(text, have, order, batched)
    if order == want or (not batched and want[len(want) - len(order) :] == order):
        return text
    missing = [n for n, a in enumerate(want) if a not in have]
    if len(missing) == 1:
        return f"{text}.unsqueeze({missing[0] - len(want)})"
    marks = [":" if a in have else "None" for a in want]
    while marks and not batched and marks[0] == "None":
        marks.pop(0)
    return f"{text}[{', '.join(['...', *marks])}]"


def permuted(text: str, have: tuple[str, ...], order: tuple[str, ...], batched: bool) -> str:
    """More than two axes in another order."""
    return "".join([text, *_swaps(list(have), order)])


def _swaps(have: list[str], order: tuple[str, ...]) -> list[str]:
    out = []
    for n, a in enumerate(order):
        at = have.index(a)
        if at != n:
            have[n], have[at] = have[at], have[n]
            out.append(f".transpose({n - len(order)}, {at - len(order)})")
    return out


@dataclass(slots=True)
class Frame:
    """A block being printed: what it binds, and where each name is last read in it."""

    loop: bool
    bound: set[str]
    last: dict[str, int]
    index: int = 0


class State:
    """Variables, storages and frames of one kernel."""

    def __init__(self, w: Writer, facts: Facts) -> None:
        self.w = w
        self.facts = facts
        self.real = "torch.float64" if any(x.dtype == "f64" for x in facts.tensors.values()) else "torch.float32"
        self.storages: dict[str, Storage] = {}
        self.frames: list[Frame] = []
        self.used: set[str] = {python_name(n) for n in (*facts.kinds, *facts.tensors)}
        self.used |= {f"{n}_end" for n in (*facts.extents, *facts.batch)}
        self.cut = {a.axis: a.name for a in facts.kernel.grid if a.role == "tile"}
        """The tile position in force on each axis."""
        self.widths: dict[str, int] = {a.name: a.tile for a in facts.kernel.grid if a.role == "tile"}
        """The most positions a tile has."""
        self.rooms: list[int] = []
        """Elements per batch position of the memory lent to the large products of a turn."""
        self.spread: dict[tuple[str, int, str], str] = {}
        """Tensors whose positions along one axis stand several times in a row, made before the batch is walked."""
        self.lending: int | None = None
        """How much of it the turn at hand has taken; None outside innermost loops."""

    # --- names ------------------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """`hint` or the first of hint_2, hint_3 ... that names nothing yet."""
        name, n = hint, 1
        while name in self.used:
            n += 1
            name = f"{hint}_{n}"
        self.used.add(name)
        return name

    def number(self, e: Expr, place: int = 0) -> str:
        """A number as Python text."""
        return spell(e, name=lambda v: python_name(v.name), place=place)

    def end(self, at: str) -> str:
        """The end of the tile, or of the batch, that begins at `at`."""
        return f"{at}_end"

    def begin(self, batch: str) -> str:
        """The first position of `batch` that is being computed."""
        return f"{batch}_at"

    def count(self, batch: str) -> str:
        """How many positions of `batch` are computed at once."""
        return f"{batch}_count"

    def leading(self, varies: frozenset[str]) -> list[str]:
        """Sizes of the batch dimensions."""
        return [self.count(a) if a in varies else "1" for a in self.facts.batch]

    def length(self, axis: t.Axis) -> str:
        """The length of a value's axis in the tile at hand."""
        at = self.cut.get(axis.name)
        return f"{self.end(at)} - {at}" if at else str(axis.extent)

    def borrow(self, type: t.Type, varies: frozenset[str]) -> str:
        """An `out=` for a large result of the turn at hand; none where the tile is small or the loop not innermost."""
        extents = [self.widths[self.cut[a.name]] if a.name in self.cut else a.extent for a in type.axes]
        size = math.prod(extents)
        if self.lending is None or not varies or size < LARGE:
            return ""
        at, self.lending = self.lending, self.lending + 1
        self.rooms += [0] * (self.lending - len(self.rooms))
        self.rooms[at] = max(self.rooms[at], size)
        lead = " * ".join(self.leading(varies))
        return f"_part(room_{at}, {lead}, {', '.join(self.length(a) for a in type.axes)})"

    # --- storages ---------------------------------------------------------------------------------------------------

    def bind(self, name: str, storage: Storage) -> None:
        """`name` is held by `storage` from now on."""
        storage.names.add(name)
        self.storages[name] = storage

    def assign(
        self, name: str, text: str, owned: bool = True, note: str = "", dense: bool = False, lent: bool = False
    ) -> Storage:
        """A new variable for `name`."""
        storage = Storage(python_name(name), owned, dense=dense, lent=lent)
        self.w.line(f"{storage.var} = {text}", note)
        self.bind(name, storage)
        return storage

    def item(self, name: str, sort: Sort = "real") -> Item:
        """`name` as an operand."""
        storage = self.storages.get(name)
        if storage is None:
            return Item(Text(python_name(name), CALL, False, sort))
        type = self.facts.types[name]
        text = Text(storage.var, CALL, True, sort)
        return Item(text, type.names(), self.facts.varies[name], storage, storage.dense)

    def dead(self, name: str) -> bool:
        """Whether nothing reads `name` after the statement at hand."""
        for frame in reversed(self.frames):
            if frame.last.get(name, -1) > frame.index:
                return False
            if name in frame.bound:
                return True
            if frame.loop:
                return False
        return False

    def free(self, storage: Storage | None) -> bool:
        """Whether the statement at hand may overwrite `storage`."""
        return storage is not None and storage.owned and all(self.dead(n) for n in storage.names)


def last_reads(body: tuple[t.Stmt, ...], carried: tuple[str, ...] = ()) -> Frame:
    """The frame of a block, with the last statement that reads each name."""
    last: dict[str, int] = {}
    bound: set[str] = set(carried)
    for n, s in enumerate(body):
        for name in operands(s):
            last[name] = n
        match s:
            case t.Let(name):
                bound.add(name)
            case t.For(_, _, inner) | t.If(_, _, _, inner):
                bound.update(c.name for c in inner)
    return Frame(False, bound, last)
