"""What a compiled spec is compiled for: everything that may cause a new compilation, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from attncc.tile.nodes import Dtype

Target = Literal["triton", "torch", "gluon"]
Form = Literal["chunk", "recurrent"]
NEAR = 1 << 22
"""Elements: 256 lanes of this stride stay below 2**30."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is promised of a tensor's strides.

    unit: the last is 1. aligned: the base and all other strides are multiples of 16 bytes. near: those of axes that
    a tile walks are at most NEAR elements, so that offsets inside a tile fit 32 bits.
    """

    unit: bool = True
    aligned: bool = True
    near: bool = True

    def covers(self, other: Layout) -> bool:
        """Whether a tensor that keeps `other` keeps this promise, too."""
        pairs = ((self.unit, other.unit), (self.aligned, other.aligned), (self.near, other.near))
        return all(kept or not promised for promised, kept in pairs)


@dataclass(frozen=True, slots=True)
class Variant:
    """One member of a spec's finite set of variants. Sizes and mask-only constants are not in it."""

    target: Target
    D: int
    E: int
    dtype: Dtype
    """Of q, k and v."""
    captured: tuple[tuple[str, Dtype], ...] = ()
    """Element types of the captured tensors, by name."""
    layouts: tuple[tuple[str, Layout], ...] = ()
    """Inputs, results and their gradients ("out", "d_q" ...) that don't keep every promise; all others do."""
    gradients: tuple[str, ...] = ()
    """Names of the inputs whose gradient the backward returns, in the order of the inputs."""
    lse_gradient: bool = False
    """The backward takes a gradient of lse, too."""
    precision: Literal["ieee", "tf32"] = "ieee"
    """Of f32 products."""
    grouped: bool = True
    """Several heads may share a kv head; else there are as many of one as of the other."""
    capability: int = 90
    """Of the GPU whose registers and shared memory the default tiles are chosen for: 90 for sm_90."""
    ordered: bool = False
    """Every sum is added up in one order, so that equal calls give equal bits."""
    tiles: str = ""
    """What differs from the default plan (attncc.schedule.overrides)."""
    form: Form = "chunk"
    """Of a state program: many tokens at a time, or one after another."""
    first: tuple[str, ...] = ()
    """The states that start with what the call gives, a tensor `NAME_first` each."""
    last: bool = False
    """The forward also returns every state behind the last token, `NAME_last`; the backward takes `d_NAME_last`."""
    in_place: bool = False
    """The forward writes the states behind the last token over `NAME_first`."""
    kept: bool = False
    """The forward of a state program also returns what it made for itself and a backward wants, which takes it."""
    single: bool = False
    """Of such a forward: there is one token, and one row."""

    def layout(self, name: str) -> Layout:
        return dict(self.layouts).get(name, Layout())
