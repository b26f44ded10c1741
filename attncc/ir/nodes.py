"""The Spec IR: what is computed, with names for axes and no tiles.

A Spec is a list of declarations, `Let`s and outputs whose right sides are scalar expressions (attncc.expr) over
index variables. What an equation of attention adds to scalar arithmetic are the atoms below:

    Load(tensor, index)                    one element of q, k, v, a parameter or a `let`
    Contract(a, b, axis, extent)           the sum over one axis of a product: every `@`
    Reduce(op, body, binders, where)       sum, mean, max, min, any, argmax over named indices
    Scan(op, body, axis, ...)              a cumulative sum along an axis
    Weights(score, mask, normaliser, keys) attention weights as a function of i and the keys; never materialised
    Segment(tensor, at)                    which packed document a position lies in
    Gradient(body, of, index)              the derivative of a number by one element of a state

A Spec with a Recurrence is a state program: its states pass from token to token by the steps, in their order, and
`out` is read where the step Read stands. There `i` is the token, k and v are read at i, and a state is a tensor
over b, h and its own axes that a Load reads as it is at that place.

Index variables are Vars of sort int named as in the language (b h g i j d e and new ones), sizes are Vars named
B H G M N D E. `i` is the query's position in key coordinates, row + (N - M). Loads of q, parameters on an `m` axis
and outputs are indexed by `i` too: the axis says that it is a query row. Everything is frozen and compared by value;
spans are carried along and not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attncc.diagnostics import Span
from attncc.expr.build import TRUE
from attncc.expr.nodes import Atom, Expr, Sort, Var


def _span() -> Span | None:
    return field(default=None, compare=False, repr=False)


# --- atoms: what stands inside expressions --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Load(Atom):
    """One element. Float tensors load as real, integer tensors as int, bool tensors as bool."""

    tensor: str
    index: tuple[Expr, ...]
    sort: Sort
    span: Span | None = _span()


@dataclass(frozen=True, eq=False, slots=True)
class Contract(Atom):
    """sum over `axis` in 0 .. extent-1 of a * b; `axis` is bound here."""

    a: Expr
    b: Expr
    axis: Var
    extent: Expr
    sort: Sort = "real"
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Binder:
    """An index bound by a reduction or by weights, running over 0 .. size-1."""

    index: Var
    size: Expr


@dataclass(frozen=True, eq=False, slots=True)
class Reduce(Atom):
    """`op` of body over the tuples of `binders` at which `where` holds; of nothing: 0, max -inf, min inf."""

    op: Literal["sum", "mean", "max", "min", "any", "argmax"]
    body: Expr
    binders: tuple[Binder, ...]
    where: Expr = TRUE
    sort: Sort = "real"
    span: Span | None = _span()


@dataclass(frozen=True, eq=False, slots=True)
class Scan(Atom):
    """The running `op` of body along `binder`, read at the binder's own index (it stays free)."""

    op: Literal["sum"]
    body: Expr
    binder: Binder
    reverse: bool = False
    exclusive: bool = False
    sort: Sort = "real"
    span: Span | None = _span()


@dataclass(frozen=True, eq=False, slots=True)
class Segment(Atom):
    """The number of the packed document, by its ends in `tensor` (S + 1 offsets), that position `at` lies in."""

    tensor: str
    at: Expr
    sort: Sort = "int"
    span: Span | None = _span()


@dataclass(frozen=True, eq=False, slots=True)
class Gradient(Atom):
    """The derivative of `body`, one number per b, h and token, by the element `index` of the state `of`.

    Only reads of `of` by that name count: what was computed from it before is held fixed.
    """

    body: Expr
    of: str
    index: tuple[Expr, ...]
    sort: Sort = "real"
    span: Span | None = _span()


S = Var("s", "real")
"""The score inside a normaliser's phi and psi."""


@dataclass(frozen=True, slots=True)
class Normaliser:
    """w = phi(s) / Z with Z = sum over keys of psi(s), plus z; w = phi(s) where psi is None.

    softmax: phi = psi = exp(s). With a sink: z = exp(sink). An elementwise weight: phi = s, psi = None.
    `kind` is the class that decides the streaming form: "ratio" merges in any order, "none" has no Z,
    "scan" (ordered) and "threshold" (implicit) are typed by the front end and refused by the schedules.
    """

    kind: Literal["ratio", "none", "scan", "threshold"]
    phi: Expr
    psi: Expr | None = None
    z: Expr | None = None
    """May depend on b, h, i and sizes."""
    options: tuple[tuple[str, Expr], ...] = ()
    """Of the classes "scan" and "threshold": alpha and the like."""


@dataclass(frozen=True, eq=False, slots=True)
class Weights(Atom):
    """Normalised weights at (i, keys). `score` and `mask` see the key indices; a masked pair weighs 0."""

    score: Expr
    mask: Expr
    normaliser: Normaliser
    keys: tuple[Binder, ...]
    dropout: Expr | None = None
    """Probability of dropping a weight after normalisation."""
    sort: Sort = "real"
    span: Span | None = _span()


# --- declarations and statements ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConstParam:
    """A constant of the header with its default, settable at compile."""

    name: str
    value: int | float | bool
    sort: Sort
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a captured tensor or a `let`: the index it is declared with ("" for a plain number) and its size.

    The index is one of b h g m n d e, or a new name. `n` is any key position, `m` a query row.
    """

    index: str
    size: Expr


@dataclass(frozen=True, slots=True)
class Param:
    """A captured tensor. `bounds` are what the author promises about its values."""

    name: str
    sort: Sort
    axes: tuple[Axis, ...]
    bounds: tuple[Expr, Expr] | None = None
    offsets: bool = False
    """Declared `offsets`: S + 1 cumulative ends."""
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Let:
    """A named array over `axes`; `body` uses the axes' indices as Vars (an n or m axis is read as j or i there).

    With `emitted` it is also returned. `vars` are the Vars that stand for the axes in `body`, in order.
    """

    name: str
    axes: tuple[Axis, ...]
    vars: tuple[Var, ...]
    body: Expr
    emitted: bool = False
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Rebind:
    """A new q, k or v for everything below: `body` over (b, h|g, i|j, channel)."""

    tensor: Literal["q", "k", "v"]
    vars: tuple[Var, ...]
    channels: Expr
    body: Expr
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Out:
    """The output over (b, h, i, e)."""

    body: Expr
    span: Span | None = _span()


Statement = Let | Rebind


# --- state programs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """A state over b, h and `axes`; `vars` stand for the axes in `init`, the value it starts with.

    With `per`, an integer of b, h and i, it starts anew at each token whose `per` is not that of the token before.
    """

    name: str
    axes: tuple[Axis, ...]
    vars: tuple[Var, ...]
    init: Expr
    per: Expr | None = None
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Frozen:
    """`name` reads as `state` stood before token every * (i // every), or as it last started anew, if that is later."""

    name: str
    state: str
    every: Expr
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Assign:
    """The new value of a state at the token: `body` over b, h, i and `vars`."""

    state: str
    vars: tuple[Var, ...]
    body: Expr
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Keep:
    """A value of the token over b, h and `axes`, computed where it stands: states may change below it."""

    name: str
    axes: tuple[Axis, ...]
    vars: tuple[Var, ...]
    body: Expr
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Micro:
    """`steps` for binder.index = 0 .. binder.size-1, in order, within one token."""

    binder: Binder
    steps: tuple[Step, ...]
    span: Span | None = _span()


@dataclass(frozen=True, slots=True)
class Read:
    """The place at which `out` is computed."""


Step = Assign | Keep | Micro | Read


@dataclass(frozen=True, slots=True)
class Recurrence:
    """What a token does to the states. One Read stands among the outermost steps."""

    states: tuple[State, ...]
    frozen: tuple[Frozen, ...]
    steps: tuple[Step, ...]

    @property
    def carried(self) -> frozenset[str]:
        """The names of states and frozen states."""
        return frozenset(s.name for s in self.states) | {f.name for f in self.frozen}


@dataclass(frozen=True, slots=True)
class Spec:
    """One `attention NAME(...)`: everything that is computed."""

    name: str
    constants: tuple[ConstParam, ...]
    params: tuple[Param, ...]
    statements: tuple[Statement, ...]
    out: Out
    span: Span | None = _span()
    recurrence: Recurrence | None = None
    """In a state program; the statements stand above its steps and read no state."""
    places: tuple[tuple[Expr, Span], ...] = field(default=(), compare=False, repr=False)
    """Where its expressions stand in its text (attncc.expr.nodes.placed)."""
