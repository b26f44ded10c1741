"""What a compiled spec is compiled for: everything that may cause a new compilation, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from attncc.tile.nodes import Dtype

Target = Literal["triton", "torch", "gluon"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is promised of a tensor's strides: the last is 1; base and others are multiples of 16 bytes."""

    unit: bool = True
    aligned: bool = True


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
    """Tensors that are not unit and aligned; all others are."""
    gradients: tuple[str, ...] = ()
    """Names of the inputs whose gradient the backward returns, in the order of the inputs."""
    lse_gradient: bool = False
    """The backward takes a gradient of lse, too."""
    precision: Literal["ieee", "tf32"] = "ieee"
    """Of f32 products."""

    def layout(self, name: str) -> Layout:
        return dict(self.layouts).get(name, Layout())
