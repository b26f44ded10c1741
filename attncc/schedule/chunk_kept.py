"""Values of a chunk that need no state: made once, chunk by chunk and side by side, for all kernels that walk.

    sums        of gates along channels, over the rows
    weights     x_i . w_j faded, over the chunk's rows twice
    operands    what a read multiplies a state with, and what a write adds to it, with their gates
    factors     what a chunk leaves of a state, channel by channel
    products    along channels, of what the tokens read

A kernel stores them, loads them, or, where gradients go through them, makes them again. Each has a tensor of its own,
by the order in which a chunk asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from attncc.expr.build import TRUE, conj, ivar, op
from attncc.expr.nodes import Const, Expr, Op, Var, children, walk
from attncc.ir.nodes import Contract, Load, Reduce
from attncc.schedule.chunk_fading import Sums
from attncc.schedule.chunk_moved import fixed, same
from attncc.schedule.chunk_values import Chunk
from attncc.tile import nodes as t

B, H, N = ivar("B"), ivar("H"), ivar("N")
ONE, ZERO = Const(1.0, "real"), Const(0.0, "real")
MOST = 16
"""Tensors that have names of their own."""
Mode = Literal["makes", "stores", "weights", "loads", "alone"]
"""Alone: what is kept is made for nothing else, and neither stored nor loaded."""


def pair_of(n: int) -> str:
    """The tensor of the gradient of the n-th weights."""
    return f"pair_{n}"


def kept_of(n: int) -> str:
    """The tensor that the n-th value is stored in."""
    return f"kept_{n}"


class Kept:
    """The values of one kernel, in order."""

    def __init__(self, k: Chunk, count: int, *, padded: bool = False) -> None:
        """`padded` where what the tokens have is stored for whole chunks, also behind the last token."""
        self.k, self.count, self.padded = k, count, padded
        self.mode: Mode = "makes"
        self.values: list[tuple[Var, t.Dtype]] = []
        self.number: dict[str, int] = {}
        """Of values, by their names."""
        self.behind: dict[str, tuple[tuple[Var, float], ...]] = {}
        """What running sums, held fixed, are sums of in gradients; those before a row lack the row's own."""
        self.later: list[tuple[int, Var, t.Dtype]] | None = None
        """What is to be stored once it is summed up, where it is made in parts."""
        self.part = ""
        """The axis of these parts; what has it is stored part by part."""
        self.under: dict[int, Expr] = {}
        """On what condition a value is stored, by its number."""
        self.shorter: list[tuple[int, Callable[[], Var], Expr]] = []
        """Values that are made in another way on another condition: their numbers, how, and when."""
        self.ones: dict[str, Var] = {}
        """What running sums of tokens are sums of."""

    def value(self, v: Var, dtype: t.Dtype) -> Var:
        """`v`, or what is stored of it."""
        self.values.append((v, dtype))
        if self.mode == "stores":
            self.newest()
        found = self.k.cast(self.loaded(), self.k.real) if self.mode in ("loads", "weights") else v
        self.number[found.name] = len(self.values) - 1
        return found

    def total(self, v: Var) -> Var:
        """A sum along channels; its gradient goes on to what is summed up."""
        made = self.k.b.made[v.name]
        if self.mode != "makes" or not isinstance(made, t.Reduce):
            return self.value(v, self.k.real)
        self.values.append((v, self.k.real))
        found, term = self.loaded(), made.value
        self.k.known[found.name] = (term,), lambda a: (a,)
        return found

    def operand(self, v: Var) -> Var:
        """A value that enters products."""
        return self.value(v, self.k.variant.dtype)

    def weights(self, make: Callable[[], Var], product: Callable[[], Var] | None, near: Callable[[], Var]) -> Var:
        """The weights of a chunk, which a kernel of their own makes: the `product` of what is stored, if there is one,
        where rows are `near` each other, else what `make` makes."""
        k, dtype = self.k, self.k.variant.dtype
        if self.mode == "weights":
            if product is not None:
                self.shorter.append((len(self.values), product, near()))
                self.under[len(self.values)] = op("not", self.shorter[-1][-1])
            self.values.append((make(), dtype))
            self.newest()
            return self.values[-1][0]
        like = t.Type((t.Axis("i", self.count), t.Axis("j", self.count)), k.real)
        self.values.append((k.b.let("none", like, t.Full(ZERO)), dtype))
        return self.values[-1][0] if self.mode == "stores" else k.cast(self.loaded(), k.real)

    def products(self) -> None:
        """Makes and stores weights as products."""
        for n, make, near in self.shorter:
            self.under[n] = near
            self.store(n, make(), self.values[n][1])

    def sums(self, one: Var) -> Sums:
        """The running sums of gates along a channel: products with zeros and ones, or as they are stored."""
        k, b = self.k, self.k.b
        if self.mode == "stores":
            upto = self.value(triangle(k, one, "f16", earlier=True), k.real)
            channels = t.Type(b.type_of(one.name).axes[1:], k.real)
            last = b.let("last", channels, t.Reduce("sum", one.name, "i"))
        else:
            n = len(self.values)
            self.values.append((one, k.real))
            upto, last = self.loaded(), self.row(n, Const(self.count - 1, "int"))
            self.number[upto.name] = n
            k.known[last.name] = (one.name,), lambda a: (a,)
        k.still.add(upto.name)
        moved = same(k, upto)
        k.known[moved.name] = (one.name,), lambda a: (triangle(k, a, k.variant.dtype, earlier=False),)
        before = fixed(k, k.value(op("sub", upto, one), "before"))
        self.behind[upto.name], self.behind[before.name] = ((moved, 1.0),), ((moved, 1.0), (one, -1.0))
        return Sums(upto, before, last)

    def running(self, one: Var, whole: Var, part: Var) -> Sums:
        """The running sums of a value of the tokens, which is the sum of two: as they are stored."""
        k, b = self.k, self.k.b
        type = b.type_of(one.name)
        if self.mode in ("stores", "alone"):
            pairs = [(b.let("upto", type, t.Scan("sum", x.name, "i")), self._whole(x)) for x in (whole, part)]
            upto, last = (k.value(op("add", *each), "upto") for each in zip(*pairs, strict=True))
            upto = upto if self.mode == "alone" else self.value(upto, k.real)
        else:
            n = len(self.values)
            self.values.append((one, k.real))
            upto, last = self.loaded(), self.row(n, Const(self.count - 1, "int"))
            k.known[upto.name] = (one.name,), lambda a: (b.let("a", type, t.Scan("sum", a.name, "i", True)),)
            k.known[last.name] = (one.name,), lambda a: (a,)
        self.ones[upto.name] = one
        return Sums(upto, k.value(op("sub", upto, one), "before"), last)

    def _whole(self, v: Var) -> Var:
        return self.k.b.let("last", t.Type((), self.k.real), t.Reduce("sum", v.name, "i"))

    def row(self, n: int, row: Expr) -> Var:
        """The n-th value at a row of the chunk, or at rows; at the last token, where rows end there."""
        k = self.k
        names = k.b.type_of(self.values[n][0].name).names()[1:]
        if self.padded:
            return k.load(kept_of(n), (ivar("b"), ivar("h"), self._chunk(), row), TRUE, t.Type((), k.real), "sums")
        at = self._token(row)
        channels = tuple(k.b.bindings[ivar(a)] for a in names)
        guard = conj(*(k.inside[a] for a in names))
        type = t.Type((*k.b.type_of(at.name).axes, *(t.Axis(a, k.b.extent(a)) for a in names)), k.real)
        return k.load(kept_of(n), (ivar("b"), ivar("h"), at, *channels), guard, type, "sums")

    def _token(self, row: Expr) -> Var:
        """The token of a row, or the last one."""
        return self.k.value(op("min", op("add", self.k.first, row), op("sub", N, 1)), "at")

    # --- all channels, also where a program owns some -----------------------------------------------------------------

    def every(self, size: int) -> Var:
        """The numbers of all channels that there are."""
        axis = self.k.b.axis("every", self.k.padded(size))
        return self.k.b.let("every", t.Type((axis,), "i32"), t.Iota(Const(0, "int")), "all channels", depth=0)

    def end(self, n: int, size: int) -> Var:
        """The n-th value at the chunk's last token."""
        return self._all(n, self._token(Const(self.count - 1, "int")), size, self.k.real)

    def rows(self, n: int, size: int) -> Var:
        """The n-th value, as it is stored."""
        return self._all(n, self.k.at["i"], size, self.values[n][1], self.k.live)

    def _all(self, n: int, at: Var, size: int, dtype: t.Dtype, live: Expr = TRUE) -> Var:
        k, c = self.k, self.every(size)
        guard = conj(live, op("lt", c, size) if size % k.b.extent("every") else TRUE)
        type = t.Type((*k.b.type_of(at.name).axes, *k.b.type_of(c.name).axes), dtype)
        return k.load(kept_of(n), (ivar("b"), ivar("h"), at, c), guard, type, "made", depth=k.b.depth(at))

    # --- memory -----------------------------------------------------------------------------------------------------

    def _chunk(self) -> Var:
        return self.k.value(op("floordiv", self.k.first, self.count), "chunk")

    def _rows(self, name: str) -> Var:
        """The numbers of a chunk's rows."""
        return self.k.b.let(name, t.Type((t.Axis(name, self.count),), "i32"), t.Iota(Const(0, "int")))

    def place(self, v: Var) -> tuple[Expr, ...]:
        """Where a value lies: by token, or by chunk."""
        k = self.k
        names = k.b.type_of(v.name).names()
        rows: tuple[Expr, ...] = (k.at["i"],) if "i" in names else (self._chunk(),)
        if self.padded and "i" in names:
            rows = (self._chunk(), self._rows("i"))
        j = self._rows("j") if "j" in names else None
        channels = (j if n == "j" and j is not None else k.b.bindings[ivar(n)] for n in names if n != "i")
        return (ivar("b"), ivar("h"), *rows, *channels)

    def guard(self, v: Var) -> Expr:
        """Its rows are stored, and its channels exist."""
        names = self.k.b.type_of(v.name).names()
        inside = (self.k.inside[n] for n in names if n not in ("i", "j"))
        return conj(*([self.k.live] if "i" in names and not self.padded else []), *inside)

    def loaded(self) -> Var:
        """The newest value as it is stored."""
        k, (v, dtype), n = self.k, self.values[-1], len(self.values) - 1
        type = replace(k.b.type_of(v.name), dtype=dtype)
        return k.load(kept_of(n), self.place(v), self.guard(v), type, "made")

    def newest(self) -> None:
        """Stores the newest value."""
        if self.later is None or self.part in self.k.b.type_of(self.values[-1][0].name).names():
            self.store(len(self.values) - 1, *self.values[-1])
        else:
            self.later.append((len(self.values) - 1, *self.values[-1]))

    def store(self, n: int, v: Var, dtype: t.Dtype) -> None:
        """Stores the n-th value."""
        guard = conj(self.under.get(n, TRUE), self.guard(v))
        self.k.store(kept_of(n), self.place(v), v, guard, dtype)

    def tensors(self, extents: dict[str, int]) -> tuple[t.Tensor, ...]:
        """Where all of them are stored."""
        chunks = op("floordiv", op("add", N, self.count - 1), self.count)
        found = []
        for n, (v, dtype) in enumerate(self.values):
            names = self.k.b.type_of(v.name).names()
            sizes = tuple(Const(self.count if a == "j" else extents[a], "int") for a in names if a != "i")
            rows: tuple[str, ...] = ("t",) if "i" in names else ("c",)
            count: tuple[Expr, ...] = (N,) if "i" in names else (chunks,)
            if self.padded and "i" in names:
                rows, count = ("c", "r"), (chunks, Const(self.count, "int"))
            axes = ("b", "h", *rows, *("w" if a == "j" else a for a in names if a != "i"))
            shape = (B, H, *count, *sizes)
            found.append(t.Tensor(kept_of(n), axes, shape, dtype))
        return tuple(found)


def sums_in(e: Expr) -> list[Contract | Reduce]:
    """The outermost sums along channels in `e`."""
    if isinstance(e, Contract) or (isinstance(e, Reduce) and e.op == "sum"):
        return [e]
    return [x for c in children(e) for x in sums_in(c)] if isinstance(e, Op) else []


def read_by(*every: Expr) -> frozenset[str]:
    """The tensors that expressions read."""
    return frozenset(x.tensor for e in every for x in walk(e) if isinstance(x, Load))


def triangle(k: Chunk, v: Var, dtype: t.Dtype, *, earlier: bool) -> Var:
    """For every row the sum of `v` over it and the rows before it, or behind it; `v` is taken in two parts."""
    b = k.b
    rows, channels = sorted(b.type_of(v.name).axes, key=lambda a: a.name != "i")
    at = {n: b.let(n, t.Type((t.Axis(n, rows.extent),), "i32"), t.Iota(Const(0, "int"))) for n in "ij"}
    seen = op("le", at["j"], at["i"]) if earlier else op("le", at["i"], at["j"])
    with k.ordered(("i", "j")):
        ones = k.cast(k.value(op("where", seen, ONE, ZERO), "ones"), dtype)
    high = k.cast(v, dtype)
    rounded = b.let("high", t.Type(b.type_of(v.name).axes, k.real), t.Cast(high.name))
    low = k.cast(k.value(op("sub", v, rounded), "rest"), dtype)
    total: Var | None = None
    for part in (low, high):
        (left, right), out = k.fitted(ones, k.rename(part), "j", ("i", channels.name))
        dot = t.Dot(left.name, right.name, "j", total.name if total is not None else None)
        type = t.Type(tuple(rows if n == "i" else channels for n in out), k.real)
        total = b.let("upto", type, dot, "running sums")
    assert total is not None
    return total
