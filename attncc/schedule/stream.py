"""What the streaming kernels share: their scalars, tiles, loads, scores and loops.

A streaming kernel owns a tile of queries (forward, dQ) or of keys (dK, dV) and walks the tiles of the other axis that
the mask's bounds allow, first those that need the predicate, then those that don't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.nodes import Atom, Const, Expr, Var, free_vars, substitute, walk
from attncc.ir.nodes import Contract, Load, Param, S, Spec
from attncc.passes.attend import Attend
from attncc.passes.bounds import Bounds
from attncc.passes.simplify import scale
from attncc.passes.stream import LOG2E, SHIFT, X, is_exponential, streamed
from attncc.schedule.builder import Builder
from attncc.schedule.config import channels
from attncc.schedule.masks import apart
from attncc.schedule.ranges import Visits
from attncc.schedule.separate import LANE, Parts, in_steps, separate
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t

B, H, G, M, N = (ivar(x) for x in "BHGMN")
b, h, g, i, j = (ivar(x) for x in "bhgij")
NEVER = Const(float("-inf"), "real")
ZERO = Const(0.0, "real")
WORK = ("group", "begin", "members", "number", "tile")
WORDS = (*(f"work_{x}" for x in WORK), "rest", "tiles", "place", "others", "tl", "triton", "torch", "math", "gl")
"""Names that printed kernels use for themselves."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One attention to schedule: what is computed, its bounds along both axes, and the variant it is built for."""

    spec: Spec
    attend: Attend
    by_row: Bounds
    """Keys that a query sees."""
    by_key: Bounds
    """Queries that see a key."""
    variant: Variant
    rising: frozenset[str] = frozenset()
    """Derived arrays whose values never fall along the keys."""

    @property
    def params(self) -> dict[str, Param]:
        return {p.name: p for p in self.spec.params}

    @property
    def real(self) -> t.Dtype:
        """The dtype of scores, statistics and accumulators."""
        return "f64" if self.variant.dtype == "f64" else "f32"

    @property
    def normalised(self) -> bool:
        """Whether there is a Z, so that weights are kept relative to a running maximum."""
        return self.attend.normaliser.psi is not None

    @property
    def exponential(self) -> bool:
        """Whether weights are exp(s): a masked score of -inf needs no second mask."""
        n = self.attend.normaliser
        return n.psi is not None and is_exponential(n.phi) and is_exponential(n.psi)

    def own(self, name: str) -> str:
        """A name of the schedule's own, out of the way of the spec's."""
        taken = {x.name for x in self.spec.params} | {x.name for x in self.spec.constants}
        while name in taken:
            name += "_"
        return name

    def capture_dtype(self, name: str) -> t.Dtype:
        """The element type of a captured, tabulated or derived tensor."""
        dtypes = dict(self.variant.captured)
        source = {x.name: x.source for x in self.attend.tables}.get(name, name)
        return dtypes.get(source, "i32")


@dataclass(frozen=True, slots=True)
class Guards:
    """Which lanes of the two axes may lie outside: the program's own tile always, the loop's in partial tiles."""

    row: Expr = TRUE
    key: Expr = TRUE


class Stream:
    """A streaming kernel under construction. `order` is the register order of score tiles."""

    def __init__(self, p: Problem, order: tuple[str, ...]) -> None:
        self.p = p
        self.b = Builder(p.real, order, self._read)
        self.guards = Guards()
        self.row = ivar("r")
        self.first = ivar("j0")
        """The first key of the tile."""
        self.apart: Expr | None = None
        """What the score has by row and `log_score` left out."""
        self.joined = False
        """Whether the product has the score's terms by key."""
        self.split = {"d": channels(p.variant.D, p.variant), "e": channels(p.variant.E, p.variant)}
        self.tensors: dict[str, None] = {}
        own = ("q", "k", "v", "out", "lse", p.own("delta"), p.own("log_z"))
        captured = (*(x.name for x in p.spec.params), *(x.name for x in p.attend.tables))
        kinds = ("first", "last", "run_first", "run_last", "sorted")
        derived = tuple(f"{x.name}_{kind}" for x in p.spec.params for kind in kinds)
        self.b.reserve((*own, *captured, *derived, *(f"d_{n}" for n in (*own, *captured)), *WORDS))
        for name in "BHGMN":
            self.b.scalar(name, "int")
        for c in p.spec.constants:
            self.b.scalar(c.name, c.sort)

    # --- positions --------------------------------------------------------------------------------------------------

    def start(self, *grid: str) -> None:
        """Declares the grid's positions, the kv head, and how far keys are ahead of rows."""
        self.place(*grid)
        self.shift = self.b.value(op("sub", N, M), "shift", "keys before the first query")
        self.channels = {prefix: self.channel_pieces(prefix) for prefix in self.split}

    def place(self, *grid: str) -> None:
        """Declares the grid's positions in the current scope, and the kv head."""
        for name in grid:
            self.b.position(name)
        if "h" in grid:
            head = op("floordiv", h, op("floordiv", H, G)) if self.p.variant.grouped else h
            self.b.bindings[g] = self.b.value(head, "g", "the kv head of this head")

    def channel_pieces(self, prefix: str) -> tuple[Var, ...]:
        """The channels of each piece, in the current scope."""
        found = []
        for n, (offset, extent, _) in enumerate(self.split[prefix].pieces):
            axis = self.b.axis(f"{prefix}{n}", extent)
            type = t.Type((axis,), "i32")
            found.append(self.b.let(f"{prefix}{n}", type, t.Iota(Const(offset, "int")), "channels"))
        return tuple(found)

    def rows(self, base: Var, extent: int) -> None:
        """The rows of a tile from `base`, and their positions among the keys."""
        axis = self.b.axis("i", extent)
        self.row = self.b.let("r", t.Type((axis,), "i32"), t.Iota(base), "query rows")
        place = op("add", self.row, self.shift)
        self.b.bindings[i] = self.b.let("i", t.Type((axis,), "i32"), t.Map(place), "their positions among the keys")

    def keys(self, base: Var, extent: int) -> None:
        """The keys of a tile from `base`."""
        axis = self.b.axis("j", extent)
        self.first = base
        self.b.bindings[j] = self.b.let("j", t.Type((axis,), "i32"), t.Iota(base), "keys")

    @property
    def key(self) -> Expr:
        return self.b.bindings[j]

    # --- memory -----------------------------------------------------------------------------------------------------

    def pieces(self, prefix: str) -> tuple[tuple[Var, Expr, t.Axis], ...]:
        """(index, guard of its real channels, axis) of each piece of a channel axis."""
        out = []
        for n, (offset, extent, real) in enumerate(self.split[prefix].pieces):
            c = self.channels[prefix][n]
            inside = op("lt", c, offset + real) if real < extent else TRUE
            out.append((c, inside, t.Axis(f"{prefix}{n}", extent)))
        return tuple(out)

    def matrix(self, tensor: str, prefix: str, lead: tuple[Expr, ...], at: Expr, guard: Expr) -> tuple[Var, ...]:
        """The rows `at` of a tensor, a value per channel piece; lanes outside are 0."""
        self.tensors[tensor] = None
        rows = self.b.axes_of(at)
        values = []
        for n, (c, real, axis) in enumerate(self.pieces(prefix)):
            load = t.Load(tensor, (*lead, at, c), conj(guard, real))
            values.append(self.b.let(f"{tensor}{n}", t.Type((*rows, axis), self.p.variant.dtype), load))
        return tuple(values)

    def store_matrix(
        self, tensor: str, prefix: str, lead: tuple[Expr, ...], at: Expr, guard: Expr, parts: tuple[Var, ...]
    ) -> None:
        """Casts the pieces of a result to the tensor's dtype and stores them."""
        self.tensors[tensor] = None
        for (c, real, _), part in zip(self.pieces(prefix), parts, strict=True):
            self.b.add(t.Store(tensor, (*lead, at, c), self.cast(part, self.p.variant.dtype).name, conj(guard, real)))

    def stat(self, tensor: str, hint: str, other: float = 0.0) -> Var:
        """One number per row of a [B, H, M] tensor, `other` past the last row."""
        self.tensors[tensor] = None
        load = t.Load(tensor, (b, self.head(), self.row), self.guards.row, other or 0)
        return self.b.load(hint, self.p.real, load, "real")

    def head(self) -> Expr:
        return self.b.bindings.get(h, h)

    def kv_head(self) -> Expr:
        return self.b.bindings.get(g, g)

    def store_stat(self, tensor: str, value: Var) -> None:
        """Stores one number per row to a [B, H, M] tensor."""
        self.tensors[tensor] = None
        self.b.add(t.Store(tensor, (b, self.head(), self.row), value.name, self.guards.row))

    def body(self) -> tuple[t.Stmt, ...]:
        """The kernel's statements."""
        return tuple(self.b.scope.statements)

    def scalars(self) -> tuple[str, ...]:
        """Every size and the constants that the body reads."""
        return ("B", "H", "G", "M", "N", *(c.name for c in self.p.spec.constants))

    def cast(self, value: Var, dtype: t.Dtype) -> Var:
        type = self.b.type_of(value.name)
        if type.dtype == dtype:
            return value
        depth = self.b.depth(value)
        return self.b.let(f"{value.name}_{dtype}", t.Type(type.axes, dtype), t.Cast(value.name), depth=depth)

    def _read(self, builder: Builder, e: Atom) -> Expr:
        """A captured tensor's read, guarded along the axes that its index moves with."""
        assert isinstance(e, Load), e
        self.tensors[e.tensor] = None
        param = self.p.params.get(e.tensor)
        index: list[Expr] = []
        guards: list[Expr] = []
        for n, at in enumerate(e.index):
            axis = param.axes[n].index if param is not None else ""
            index.append(self.row if axis == "m" and at is i else builder.value(at, "at"))
            if at is i and axis != "m":
                guards.append(op("le", 0, at))
                guards.append(op("lt", at, N))
        names = frozenset(v for at in e.index for v in free_vars(at))
        if e.tensor in self.p.rising and not names & {"i", "j"}:  # read at the end of a tile
            guards += [op("le", 0, index[-1]), op("lt", index[-1], N)]
        guards += [self.guards.row] if "i" in names else []
        guards += [self.guards.key] if "j" in names else []
        guard = builder.lower(conj(*guards))
        dtype = self.p.capture_dtype(e.tensor)
        value = builder.load(e.tensor, dtype, t.Load(e.tensor, tuple(index), guard), e.sort)
        return self._widened(value) if e.sort == "real" else value

    def _widened(self, value: Var) -> Var:
        wide = self.b.widened.get(value.name)
        if wide is None:
            wide = self.cast(value, self.p.real)
            self.b.widened[value.name] = wide
        return wide

    # --- scores -----------------------------------------------------------------------------------------------------

    def product(self, left: tuple[Var, ...], right: tuple[Var, ...], hint: str, prefix: str) -> Var:
        """The score-shaped sum over channel pieces of left @ right."""
        total = ""
        for n, (x, y) in enumerate(zip(left, right, strict=True)):
            dot = t.Dot(x.name, y.name, f"{prefix}{n}", total or None, self.p.variant.precision)
            total = self.b.let(hint, self.b.over("i", "j"), dot).name
        return Var(total, "real")

    def accumulate(
        self, acc: tuple[Var, ...], left: Var, right: tuple[Var, ...], axis: str, hint: str
    ) -> tuple[Var, ...]:
        """acc + left @ right over `axis`, piece by piece; `left` is rounded to the inputs' dtype."""
        narrow = self.cast(left, self.p.variant.dtype)
        out = []
        for a, y in zip(acc, right, strict=True):
            dot = t.Dot(narrow.name, y.name, axis, a.name, self.p.variant.precision)
            out.append(self.b.let(hint, self.b.type_of(a.name), dot))
        return tuple(out)

    def zeros(self, hint: str, axis: str, prefix: str) -> tuple[Var, ...]:
        """An accumulator per channel piece."""
        row = self.b.axis(axis, self.b.extent(axis))
        out = []
        for n, (_, _, piece) in enumerate(self.pieces(prefix)):
            out.append(self.b.let(f"{hint}{n}", t.Type((row, piece), self.p.real), t.Full(ZERO)))
        return tuple(out)

    def scores(self, qk: Var) -> Expr:
        """Binds the product; the score as an expression of it, in natural units."""
        self.b.bindings[self.p.attend.product] = qk
        return self.p.attend.score

    def allowed(self, mask: Expr, *ends: Expr) -> Expr:
        """The predicate of a partial tile: the mask, and the ends of the axes that can be passed."""
        return self.b.lower(conj(apart(mask), *ends))

    def terms(self, e: Expr) -> Parts:
        """An expression of pairs as a sum of what it has by pair, by key and by query.

        What keys add is the same for every tile. A partition whose accumulators are wide has no registers to keep it,
        and computes it in every turn, which costs an operation per key.
        """
        if self.joined:
            return replace(separate(e, self.first, LANE), key=None)
        if self.p.variant.target == "torch":  # whose last tile is as long as what is left
            return separate(e, self.first)
        found = separate(e, self.first, LANE)
        if not any(x is LANE for part in (found.pair, found.key) if part is not None for x in walk(part)):
            return found
        lane = self._lane()
        self.b.bindings[LANE] = lane
        if self.b.depth(lane) == 0 or max(self.p.variant.D, self.p.variant.E) <= 64:
            return found
        zero = self.b.value(op("min", op("sub", N, self.first), 0), "zero", "in a way that no compiler sees")
        steps = op("add", op("mod", LANE, 8), zero), op("mul", op("floordiv", LANE, 8), 8), zero
        pair, key = (None if x is None else in_steps(x, *steps) for x in (found.pair, found.key))
        return replace(found, pair=pair, key=key)

    def _lane(self) -> Var:
        """The keys of a tile, counted from its first: the same for every tile."""
        scope = self.b.scopes[min(self.b.depth(self.key), self.b.depth(self.row))]
        if (LANE, ("j",)) not in scope.known:
            type = t.Type((t.Axis("j", self.b.extent("j")),), "i32")
            lane = self.b.let("lane", type, t.Iota(Const(0, "int")), "keys of a tile", scope.depth)
            scope.known[LANE, ("j",)] = lane.name
        return Var(scope.known[LANE, ("j",)], "int")

    def log_score(self, score: Expr, allowed: Expr | None) -> Var:
        """x = log2(e) * score, -inf where a pair is not allowed; of exponential weights without its terms by row."""
        found = self.terms(scale(score, LOG2E))
        self.apart = found.query if self.p.exponential and found.pair is not None else None
        kept = replace(found, query=None) if self.apart is not None else found
        x = self.b.value(kept.whole(), "x", "the score in base two")
        return x if allowed is None else self.b.value(op("where", allowed, x, NEVER), "x")

    def without_rows(self, statistic: Var) -> Var:
        """A maximum or log2 Z of rows, as exponents want it whose scores lack their terms by row."""
        return statistic if self.apart is None else self.b.value(op("sub", statistic, self.apart), "anchor")

    def weight(self, f: Expr, x: Expr, shift: Expr, allowed: Expr | None, hint: str) -> Var:
        """f, a function of s, divided by exp(shift); 0 where a pair is not allowed."""
        shifted = substitute(streamed(f), {X: x, SHIFT: shift})
        if allowed is not None and not self.p.exponential:
            shifted = op("where", allowed, shifted, ZERO)
        return self.b.value(shifted, hint)

    def plain(self, f: Expr, score: Expr, allowed: Expr | None, hint: str) -> Var:
        """f(s) itself; 0 where a pair is not allowed."""
        value = substitute(f, {S: score})
        return self.b.value(value if allowed is None else op("where", allowed, value, ZERO), hint)

    # --- loops ------------------------------------------------------------------------------------------------------

    def walk(
        self,
        visits: Visits,
        index: str,
        axis: str,
        state: tuple[Var, ...],
        body: Body,
        note: str,
        stages: int = 1,
        far: Turn | None = None,
    ) -> tuple[Var, ...]:
        """All loops over the visited tiles: `body(masked, base, state)` gives the new state, of far ones `far`."""
        for masked, ranges in ((True, visits.partial), (False, visits.full)):
            if ranges is None or not ranges.pieces:
                continue
            what = "tiles that need the mask" if masked else "tiles inside the mask"
            state = self.loop(ranges, index, axis, state, partial(body, masked), f"{note}: {what}", stages)
        if far is not None and visits.full is not None and visits.far:
            ranges = replace(visits.full, pieces=visits.far)
            what = "tiles where tables have one value"
            state = self.loop(ranges, index, axis, state, far, f"{note}: {what}", stages)
        return state

    def loop(
        self,
        over: t.Ranges | t.Count | t.Work,
        index: str,
        axis: str,
        state: tuple[Var, ...],
        body: Turn,
        note: str,
        stages: int = 2,
        order: Literal["any", "asc"] = "any",
    ) -> tuple[Var, ...]:
        """One loop with `state` carried."""
        with self.b.inner() as scope:
            carried, names = [], []
            for v in state:
                c, name = self.b.carry(v.name.split("_")[0], v, scope.depth)
                carried.append(c)
                names.append(name)
            base = self.b.loop_index(index)
            new = body(base, tuple(names))
            self.b.add(t.Yield(tuple(v.name for v in new)))
        self.b.add(t.For(base.name, over, tuple(carried), tuple(scope.statements), axis, order, stages, note))
        return self.b.leave(tuple(carried))


Body = Callable[[bool, Var, tuple[Var, ...]], tuple[Var, ...]]
Turn = Callable[[Var, tuple[Var, ...]], tuple[Var, ...]]


def varies(e: Expr) -> bool:
    """Whether an expression of the Spec IR depends on the query, the key, their product, or the head that is walked."""
    return any(isinstance(n, Contract) or n in (i, j, h) for n in walk(e))
