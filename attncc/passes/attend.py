"""attend: the one weighted sum a streaming schedule computes, in the terms it needs.

rewrite: out = weights(score, mask) @ v                 --> Attend(score, mask, normaliser, product, captured)
rewrite: x[f(j - i), h] in a score                      --> x_by_offset[h, j - i + (N - 1)], tabulated once per call
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attncc.expr.build import ivar, op
from attncc.expr.interval import bounds
from attncc.expr.nodes import Const, Expr, Op, free_vars, rewrite, substitute, walk
from attncc.ir.nodes import Contract, Let, Load, Normaliser, Param, S, Spec, Weights
from attncc.passes.bounds.affine import affine, leaf
from attncc.passes.mistakes import NotCompiled, TakenName

I, J, H, N, M = (ivar(x) for x in "ijhNM")
OFFSET = ivar("o")
"""j - i + (N - 1), the position in a table by offset: 0 .. N + M - 2."""


@dataclass(frozen=True, slots=True)
class Table:
    """`name`[*axes, o] = source[index], index over the Vars named by `axes` and o."""

    name: str
    source: str
    axes: tuple[str, ...]
    index: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Attend:
    """w(i, j) = normaliser(score) where mask; out = w @ v."""

    score: Expr
    mask: Expr
    normaliser: Normaliser
    product: Contract
    """The `q @ k` inside score."""
    tables: tuple[Table, ...]

    @property
    def captured(self) -> tuple[Load, ...]:
        """Every differentiable read in the score and in z, each once."""
        roots = [self.score] + ([self.normaliser.z] if self.normaliser.z is not None else [])
        seen = {n: None for r in roots for n in walk(r) if isinstance(n, Load) and n.sort == "real"}
        return tuple(n for n in seen if n.tensor not in ("q", "k"))


def attend(spec: Spec) -> Attend:
    """The attention `spec` computes; NotCompiled where it is not one weighted sum over the keys."""
    _check_names(spec)
    for s in spec.statements:
        if not (isinstance(s, Let) and not s.emitted):
            raise NotCompiled(f"`{_named(s)}` is not compiled yet", s.span)
        raise NotCompiled(f"`let {s.name}` as an array of its own is not compiled yet", s.span)
    body = spec.out.body
    match body:
        case Contract(Weights() as w, Load("v") as v, axis) if axis is J and v.index[2] is J:
            pass
        case _:
            raise NotCompiled("only `out = weights @ v` is compiled yet", spec.out.span)
    if w.dropout is not None:
        raise NotCompiled("dropout is not compiled yet", w.span)
    if w.normaliser.kind not in ("ratio", "none") or len(w.keys) != 1:
        raise NotCompiled("this normaliser is not compiled yet", w.span)
    mask, normaliser = w.mask, w.normaliser
    product = _product(w.score, spec)
    score, tables = _tabulate(w.score, {x.name: x for x in spec.params})
    _refuse_other_atoms(score, mask, normaliser, spec)
    return Attend(score, mask, normaliser, product, tables)


def _check_names(spec: Spec) -> None:
    results = {"q", "k", "v", "out", "lse", *(p.name for p in spec.params)}
    taken = {"lse", *(f"d_{name}" for name in results)}
    declared = [(x.name, x.span) for x in spec.params] + [(x.name, x.span) for x in spec.constants]
    for name, span in declared:
        if name in taken:
            raise TakenName(f"`{name}` is the name of a result", span, hint="give the parameter another name")
    for c in spec.constants:
        if c.name == S.name:
            raise TakenName(f"`{c.name}` is what a normaliser calls its score", c.span, hint="give it another name")


def _named(s: object) -> str:
    return f"emit {s.name}" if isinstance(s, Let) else f"{getattr(s, 'tensor', 'this')} = ..."


def _product(score: Expr, spec: Spec) -> Contract:
    found = [n for n in walk(score) if isinstance(n, Contract)]
    if len(found) != 1:
        raise NotCompiled(f"a score with {len(found)} inner products is not compiled yet", spec.out.span)
    match found[0]:
        case Contract(Load("q"), Load("k")) as c:
            return c
        case Contract(Load("k") as k, Load("q") as q, axis, extent, sort, span):
            return Contract(q, k, axis, extent, sort, span)
        case c:
            raise NotCompiled("only the inner product `q @ k` is compiled yet", c.span)


def _tabulate(score: Expr, params: Mapping[str, Param]) -> tuple[Expr, tuple[Table, ...]]:
    """Reads whose index depends on i and j through j - i alone move to a table by offset.

    Offsets that the mask keeps out may have no place in the tensor: they get that of the nearest one that has.
    """
    tables: dict[str, Table] = {}
    moved: dict[Expr, Expr] = {}
    for load in (n for n in walk(score) if isinstance(n, Load)):
        names = frozenset().union(*(free_vars(x) for x in load.index))
        if not {"i", "j"} <= names:
            continue
        index = tuple(_by_offset(x) for x in load.index)
        if any({"i", "j"} & free_vars(x) for x in index):
            continue
        axes = tuple(sorted({v for x in index for v in free_vars(x)} & {"b", "h", "g"}))
        name = f"{load.tensor}_by_offset{len(tables) or ''}"
        ends = (a.size for a in params[load.tensor].axes)
        tables[name] = Table(name, load.tensor, axes, tuple(map(_inside, index, ends)))
        at = (*(ivar(a) for a in axes), op("add", op("sub", J, I), op("sub", N, 1)))
        moved[load] = Load(name, at, load.sort, load.span)
    return substitute(score, moved), tuple(tables.values())


def _inside(e: Expr, size: Expr) -> Expr:
    """`e` kept in 0 .. size-1, where it moves with the offset and may leave them."""
    if "o" not in free_vars(e):
        return e
    found = bounds(e, {})
    low = e if found.lo >= 0 else op("max", e, 0)
    return low if isinstance(size, Const) and found.hi < size.value else op("min", low, op("sub", size, 1))


def _by_offset(e: Expr) -> Expr:
    """`e` with j - i written as o - (N - 1), in differences and in comparisons.

    rewrite: 16 if i < j else 0  -->  16 if 0 < o - (N - 1) else 0
    """
    distance = op("sub", OFFSET, op("sub", N, 1))

    def moved(x: Expr) -> Expr | None:
        """A sum in which i and j cancel but for their difference."""
        along, rest = affine(x).split(lambda n: n is I or n is J)
        times = dict(along.terms)
        if not times or times.get(J, 0) + times.get(I, 0):
            return None
        return (leaf(distance).times(times[J]) + rest).expr()

    def rule(n: Expr) -> Expr | None:
        match n:
            case Op("add" | "sub", _, "int"):
                return moved(n)
            case Op("lt" | "le" | "eq" | "ne", (Expr(sort="int") as a, b)):
                difference = moved(op("sub", b, a))
                return None if difference is None else op(n.name, 0, difference)
            case _:
                return None

    return rewrite(e, rule)


def _refuse_other_atoms(score: Expr, mask: Expr, normaliser: Normaliser, spec: Spec) -> None:
    roots = (score, mask, *((normaliser.z,) if normaliser.z is not None else ()))
    for atom in (n for r in roots for n in walk(r)):
        if isinstance(atom, Load | Op) or not hasattr(atom, "span"):
            continue
        if not isinstance(atom, Contract):
            raise NotCompiled(f"{type(atom).__name__.lower()} inside a score or mask is not compiled yet", atom.span)
