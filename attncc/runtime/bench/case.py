"""One row of a table: a spec with its constants, the tensors of a call, and what the call has to compute."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attncc.expr.build import TRUE
from attncc.expr.nodes import Expr
from attncc.ir.nodes import Spec
from attncc.runtime.bench.form import Form, folded, form_of, weights_of
from attncc.runtime.bench.translate import Setting, depends_on, pair_function, setting_of
from attncc.runtime.inputs import made_up
from attncc.runtime.interface import Number

TILE = 128
"""Rows and keys of the tiles in which a mask's work is counted."""


@dataclass(frozen=True)
class Work:
    """What a mask leaves to compute: pairs, and tiles that hold any; of one batch and head, on average."""

    pairs: float
    tiles: float


@dataclass(frozen=True)
class Case:
    """`tensors` holds q, k, v and the captured ones by name; q, k and v require a gradient if a backward is timed."""

    name: str
    file: str | os.PathLike[str]
    """A path, or the text of the spec."""
    spec: Spec
    constants: Mapping[str, Number]
    sizes: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    d_out: Tensor

    @property
    def device(self) -> torch.device:
        return self.tensors["q"].device

    @property
    def known(self) -> dict[str, Number]:
        """Constants and sizes."""
        return {**self.constants, **self.sizes}

    @cached_property
    def form(self) -> Form | str:
        """What a library can be told of the spec, else why not."""
        return form_of(self.spec, self.known)

    @cached_property
    def setting(self) -> Setting:
        """For functions of pairs."""
        return setting_of(self.spec, self.sizes, self.tensors)

    @cached_property
    def work(self) -> Work:
        """Of all masks together, counted exactly."""
        each = [count(folded(w.mask, self.known), self.setting, self.device) for w in weights_of(self.spec)]
        each = each or [count(TRUE, self.setting, self.device)]
        return Work(sum(w.pairs for w in each), sum(w.tiles for w in each))

    def with_spec(self, file: str, spec: Spec) -> Case:
        """Another spec without captured tensors, on the same q, k and v."""
        tensors = {n: self.tensors[n] for n in ("q", "k", "v")}
        constants = {c.name: c.value for c in spec.constants}
        return Case(spec.name, file, spec, constants, self.sizes, tensors, self.d_out)

    def analyse(self) -> None:
        """Finds `form` and `work` now."""
        _ = self.form, self.work

    @property
    def reals(self) -> tuple[str, ...]:
        """The captured tensors that have a gradient."""
        return tuple(p.name for p in self.spec.params if p.sort == "real")

    def with_gradients(self) -> Case:
        """The same, with captured tensors that require their gradients."""
        tensors = {n: t.detach().requires_grad_() if n in self.reals else t for n, t in self.tensors.items()}
        return replace(self, tensors=tensors)

    @property
    def density(self) -> float:
        """The share of the pairs of a query and a key that is computed."""
        return self.work.pairs / max(self.sizes["M"] * self.sizes["N"], 1)

    def flops(self, which: str) -> float:
        """Of the matrix products: two in a forward, five in a backward; of a state, what a token does to it alone."""
        s = self.sizes
        if self.spec.recurrence is not None:
            return 2.0 * s["B"] * s["H"] * s["M"] * s["D"] * s["E"] * (2 if which == "forward" else 5)
        each = s["D"] + s["E"] if which == "forward" else 3 * s["D"] + 2 * s["E"]
        return 2.0 * s["B"] * s["H"] * self.work.pairs * each


def count(mask: Expr, setting: Setting, device: torch.device) -> Work:
    """The pairs at which `mask` holds and the tiles that hold one of them, in strips of TILE rows."""
    s = setting.sizes
    if mask is TRUE:
        return Work(float(s["M"] * s["N"]), float(-(-s["M"] // TILE) * -(-s["N"] // TILE)))
    holds = pair_function(mask, setting)
    b = torch.arange(s["B"] if depends_on(mask, "b") else 1, device=device).view(-1, 1, 1, 1)
    h = torch.arange(s["H"] if depends_on(mask, "h") else 1, device=device).view(-1, 1, 1)
    j = torch.arange(s["N"], device=device)
    pairs, tiles = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
    for first in range(0, s["M"], TILE):
        i = torch.arange(first, min(first + TILE, s["M"]), device=device).view(-1, 1)
        strip = torch.as_tensor(holds(b, h, i, j), device=device).broadcast_to(b.shape[0], h.shape[0], len(i), s["N"])
        pairs += strip.sum()
        used = torch.nn.functional.pad(strip.any(-2), (0, -s["N"] % TILE))
        tiles += used.reshape(-1, TILE).any(-1).sum()
    each = max(b.shape[0] * h.shape[0], 1)
    return Work(int(pairs) / each, int(tiles) / each)


# --- the tensors ----------------------------------------------------------------------------------------------------


Fill = Callable[[Tensor, str], Tensor]
"""From standard normal numbers and what stands behind the colon."""


def _steps(x: Tensor, at: str) -> Tensor:
    """0 0 .. 1 1 .. 2 2 ..: positions in documents of `at` each."""
    return (torch.arange(x.shape[-1]) // int(at)).to(torch.int32).expand(x.shape)


def _halves(x: Tensor, at: str) -> Tensor:
    """A geometric sequence from 2 ** (-8 / n) to 2 ** -8."""
    return torch.exp2(-8.0 / max(x.shape[-1], 1) * torch.arange(1.0, x.shape[-1] + 1)).expand(x.shape)


def _kept(x: Tensor, at: str) -> Tensor:
    """1 - 2 ** -5, 1 - 2 ** -6, ..: what the heads keep of a state."""
    return (1 - torch.exp2(-5.0 - torch.arange(x.shape[-1]))).expand(x.shape)


def _falling(x: Tensor, at: str) -> Tensor:
    """Sums along the last axis of steps of about -at."""
    return -float(at) * (0.5 + x.sigmoid()).cumsum(-1)


TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

FILLS: dict[str, Fill] = {
    "steps": _steps,
    "halves": _halves,
    "kept": _kept,
    "falling": _falling,
    "normal": lambda x, at: float(at or 1) * x,
    "all": lambda x, at: torch.full(x.shape, float(at)),
    "gate": lambda x, at: torch.nn.functional.logsigmoid(x) / float(at or 1),
    "share": lambda x, at: x.sigmoid(),
    "unit": lambda x, at: float(at or 1) * torch.nn.functional.normalize(x, dim=-1),
}
"""How tensors can be filled: `steps:1024`, `halves`, `kept`, `falling:0.01`, `normal:0.3`, `all:1`, `gate:16` (log of
a sigmoid, a sixteenth of it), `share` (between 0 and 1), `unit:0.5` (of that length along the last axis); and behind
it ` as bfloat16`, the type."""


def build(
    name: str,
    file: str | os.PathLike[str],
    spec: Spec,
    constants: Mapping[str, Number],
    sizes: Mapping[str, int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    fills: Mapping[str, str] | None = None,
    backward: bool = True,
    seed: int = 0,
) -> Case:
    """A case with tensors made up for it. Captured tensors require no gradient: what peers compute, too."""
    found = made_up(spec, constants, sizes, dtype=dtype, device=device, seed=seed)
    tensors = {
        n: _filled(t.detach(), fills[n], at) if fills and n in fills else t for at, (n, t) in enumerate(found.items())
    }
    tensors = {n: t.detach().requires_grad_(backward and n in ("q", "k", "v")) for n, t in tensors.items()}
    shape = (*found["q"].shape[:3], sizes["E"])
    d_out = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1)).to(device, dtype)
    return Case(name, file, spec, constants, sizes, tensors, d_out)


def _filled(like: Tensor, how: str, seed: int) -> Tensor:
    how, _, dtype = how.partition(" as ")
    kind, _, at = how.partition(":")
    made = FILLS[kind](torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)), at)
    return made.to(like.device, TYPES[dtype] if dtype else like.dtype).contiguous()
