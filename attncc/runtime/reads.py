"""Captured tensors read out of range where the mask is true: found before anything is launched.

Reads that any call keeps in range (slope[h], doc[b, j], a row at its own i) are dropped when the spec is read. What
is left is evaluated on the ranges of a call's indices: exactly where there are few positions, else at the
ends and at a sample of the positions that are out of range. What depends on the values of a tensor is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncc.runtime.interface import Number
from attncc.runtime.mistakes import OutOfRange

if TYPE_CHECKING:
    from attncc.expr.nodes import Expr
    from attncc.ir.nodes import Param, Spec

Node = tuple[Any, ...]
"""An expression as tuples: (const, value), (var, name), (op, name, arguments, sort), (load, reads), (unknown,)."""

_EXACT = 2**16
"""Pairs (i, j) up to which all are looked at."""
_SAMPLE = 8


@dataclass(frozen=True, slots=True)
class Read:
    """One axis of one read: `index` must lie in 0 .. size-1 wherever `guard` holds."""

    tensor: str
    axis: str
    size: Node
    index: Node
    guard: Node


def fields(read: Read) -> tuple[Any, ...]:
    """Its fields, as an interface keeps them."""
    return (read.tensor, read.axis, read.size, read.index, read.guard)


# --- collecting -----------------------------------------------------------------------------------------------------


def reads_of(spec: Spec) -> tuple[Read, ...]:
    """Every read of a captured tensor that some call could take out of range."""
    params = {p.name: p for p in spec.params}
    found: dict[Read, None] = {}
    for body in [*(s.body for s in spec.statements), spec.out.body]:
        for read in _reads(body, ("const", True), params):
            found[read] = None
    return tuple(found)


def _reads(e: Expr, guard: Node, params: Mapping[str, Param]) -> Iterator[Read]:
    from attncc.expr.nodes import Op, children
    from attncc.ir.nodes import Load, Weights

    match e:
        case Op("where", (c, a, b), _):
            yield from _reads(c, guard, params)
            condition = encode(c, params)
            yield from _reads(a, _and(guard, condition), params)
            yield from _reads(b, _and(guard, ("op", "not", (condition,), "bool")), params)
        case Weights(score, mask, normaliser):
            allowed = _and(guard, encode(mask, params))
            yield from _reads(score, allowed, params)
            if normaliser.z is not None:
                yield from _reads(normaliser.z, allowed, params)
        case Load(tensor, index) if tensor in params:
            for axis, x in zip(params[tensor].axes, index, strict=False):
                yield from _reads(x, guard, params)
                if not params[tensor].offsets and not _always_inside(axis.index, x):
                    yield Read(tensor, axis.index, encode(axis.size, {}), encode(x, params), guard)
        case _:
            for c in children(e):
                yield from _reads(c, guard, params)


def _always_inside(axis: str, x: Expr) -> bool:
    from attncc.expr.nodes import Var

    own = {"m": "i", "n": "j"}.get(axis, axis)
    return bool(axis) and isinstance(x, Var) and x.name == own


def encode(e: Expr, params: Mapping[str, Param]) -> Node:
    """`e` as nested tuples. A load keeps only where it is read."""
    from attncc.expr.nodes import Const, Op, Var
    from attncc.ir.nodes import Load

    match e:
        case Const(value, _):
            return ("const", value)
        case Var(name, _):
            return ("var", name)
        case Op(name, args, sort):
            return ("op", name, tuple(encode(a, params) for a in args), sort)
        case Load(tensor, index) if tensor in params and not params[tensor].offsets:
            axes = zip(params[tensor].axes, index, strict=False)
            return ("load", tuple((encode(a.size, {}), encode(x, params)) for a, x in axes))
        case _:
            return ("unknown",)


def _and(a: Node, b: Node) -> Node:
    return b if a == ("const", True) else ("op", "and", (a, b), "bool")


# --- checking -------------------------------------------------------------------------------------------------------


def check_reads(reads: tuple[tuple[Any, ...], ...], sizes: Mapping[str, int], constants: Mapping[str, Number]) -> None:
    """OutOfRange where a call of these sizes reads a tensor outside of it."""
    for read in (Read(*r) for r in reads):
        place = _stray(read, {**constants, **sizes})
        if place is not None:
            index, i, j, size = place
            axis = f"axis {read.axis}" if read.axis else "an axis"
            raise OutOfRange(
                f"{read.tensor} is read at {index} on {axis} of size {size}, at the pair i = {i}, j = {j} "
                f"(M = {sizes['M']}, N = {sizes['N']}), which the mask allows"
            )


def _stray(read: Read, known: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """(index, i, j, size) of a position that is read out of range."""
    m, n = known["M"], known["N"]
    if 0 in (known["B"], known["H"], m, n):
        return None
    i, j = torch.arange(n - m, n)[:, None], torch.arange(n)[None, :]
    if m * n <= _EXACT:
        return _search(read, known, i, j)
    for rows, keys in _samples(read, known, i, j):
        found = _search(read, known, rows, keys)
        if found is not None:
            return found
    return None


def _samples(read: Read, known: Mapping[str, Any], i: Tensor, j: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and columns to search where all pairs are too many: the ends, and those next to where reads go astray."""
    edge = _spread(torch.arange(i.shape[0])), _spread(torch.arange(j.shape[1]))
    along_i, along_j = _bad(read, known, i, j[:, edge[1]]), _bad(read, known, i[edge[0]], j)
    if along_i is not None:
        yield i[_spread(along_i.any(1).nonzero()[:, 0])], j
    if along_j is not None:
        yield i, j[:, _spread(along_j.any(0).nonzero()[:, 0])]
    yield i[edge[0]], j
    yield i, j[:, edge[1]]


def _spread(positions: Tensor) -> Tensor:
    """A few of them: both ends and some between."""
    count = positions.numel()
    if count <= _SAMPLE:
        return positions
    return positions[torch.linspace(0, count - 1, _SAMPLE).round().long()]


def _search(read: Read, known: Mapping[str, Any], i: Tensor, j: Tensor) -> tuple[int, int, int, int] | None:
    if not i.numel() or not j.numel():
        return None
    bad = _bad(read, known, i, j)
    if bad is None or not bool(bad.any()):
        return None
    scope = _Scope(known, i, j)
    allowed = scope.truth(read.guard)[0]
    wrong = _over_pairs(bad & allowed, i, j)
    at = wrong.nonzero()
    if not at.numel():
        return None
    index, size = scope.number(read.index), scope.number(read.size)
    assert index is not None and size is not None
    first = tuple(int(x) for x in at[0])
    value = int(index.expand(wrong.shape)[first])
    return value, int(i[first[-2], 0]), int(j[0, first[-1]]), int(size)


def _bad(read: Read, known: Mapping[str, Any], i: Tensor, j: Tensor) -> Tensor | None:
    """Where the index is out of range; None where that is not known."""
    scope = _Scope(known, i, j)
    index, size = scope.number(read.index), scope.number(read.size)
    if index is None or size is None:
        return None
    return _over_pairs((index < 0) | (index >= size), i, j)


def _over_pairs(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """`x` at every pair, its last two axes."""
    return x | torch.zeros_like(i, dtype=torch.bool) | torch.zeros_like(j, dtype=torch.bool)


def pairs(e: Node, known: Mapping[str, Any], at: Tensor) -> tuple[list[list[bool]], list[list[bool]]]:
    """Whether `e` may be true, and may be false, for the queries and keys `at`, of one head of one batch."""
    i, j = at[:, None] + (known["N"] - known["M"]), at[None, :]
    yes, no = (_over_pairs(x, i, j)[..., :, :].reshape(len(at), len(at)) for x in _Scope(known, i, j).truth(e))
    return yes.tolist(), no.tolist()


class _Scope:
    """Evaluation over the pairs of `i` and `j`; heads and batches are axes before them. None is an unknown number."""

    def __init__(self, known: Mapping[str, Any], i: Tensor, j: Tensor) -> None:
        h = torch.arange(known["H"])[:, None, None]
        self.values: dict[str, Tensor] = {n: torch.as_tensor(v) for n, v in known.items()}
        self.values |= {"i": i, "j": j, "h": h, "b": torch.arange(known["B"])[:, None, None, None]}
        self.values["g"] = h // max(1, known["H"] // max(1, known["G"]))

    def number(self, e: Node) -> Tensor | None:
        """The value of a number."""
        match e:
            case ("const", value):
                return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
            case ("var", name):
                return self.values.get(name)
            case ("op", "where", (c, a, b), _):
                yes, no = self.truth(c)
                one, other = self.number(a), self.number(b)
                if one is None or other is None or bool((yes & no).any()):
                    return None
                return torch.where(yes, one, other)
            case ("op", "real", (x,), _):
                exact = self.number(x) if _is_number(x) else None
                return None if exact is None else exact.double()
            case ("op", name, args, sort) if sort != "bool" and all(_is_number(a) for a in args):
                values = [self.number(a) for a in args]
                known = [v for v in values if v is not None]
                return _table()[name](*known) if len(known) == len(values) else None
            case _:
                return None

    def truth(self, e: Node) -> tuple[Tensor, Tensor]:
        """(may be true, may be false). A comparison that reads a tensor out of range is false."""
        match e:
            case ("const", value):
                return torch.tensor(bool(value)), torch.tensor(not value)
            case ("op", "and", (a, b), _):
                (x, not_x), (y, not_y) = self.truth(a), self.truth(b)
                return x & y, not_x | not_y
            case ("op", "or", (a, b), _):
                (x, not_x), (y, not_y) = self.truth(a), self.truth(b)
                return x | y, not_x & not_y
            case ("op", "not", (a,), _):
                x, not_x = self.truth(a)
                return not_x, x
            case ("op", ("lt" | "le" | "eq" | "ne") as name, (a, b), _) if _is_number(a) and _is_number(b):
                left, right = self.number(a), self.number(b)
                if left is not None and right is not None:
                    holds = _table()[name](left, right)
                    return holds, ~holds
                return self.inside(a) & self.inside(b), torch.tensor(True)
            case ("var", name) if name in self.values:
                return self.values[name].bool(), ~self.values[name].bool()
            case _:
                return self.inside(e), torch.tensor(True)

    def inside(self, e: Node) -> Tensor:
        """Where every load of `e` may be in range."""
        match e:
            case ("load", reads):
                result = torch.tensor(True)
                for size, index in reads:
                    s, x = self.number(size), self.number(index)
                    if s is not None and x is not None:
                        result = result & (x >= 0) & (x < s)
                return result
            case ("op", _, args, _):
                result = torch.tensor(True)
                for a in args:
                    result = result & self.inside(a)
                return result
            case _:
                return torch.tensor(True)


def _is_number(e: Node) -> bool:
    match e:
        case ("const", value):
            return not isinstance(value, bool)
        case ("op", _, _, sort):
            return bool(sort != "bool")
        case _:
            return True


def _table() -> Mapping[str, Callable[..., Tensor]]:
    from attncc.reference.operations import TABLE

    return TABLE
