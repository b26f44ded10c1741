"""One spec tried out on this machine: how far from the dense reference, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attncc.runtime.attention import Attention
from attncc.runtime.variants import DTYPES

BARS = {"f64": 1e-12, "f32": 1e-5, "tf32": 1e-3, "f16": 2e-3, "bf16": 1e-2}
"""Largest relative Frobenius error of outputs and gradients, by what is computed in."""
_DENSE_ELEMENTS = 2**27
"""Scores (B * H * M * N) up to which the dense reference is run."""


@dataclass(frozen=True)
class Trial:
    """Errors by name (None where the reference was too large to run), their bars, times in seconds."""

    errors: dict[str, float] | None
    bars: dict[str, float]
    first: float
    forward: float
    backward: float
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether no error is above its bar."""
        return self.errors is None or all(e <= self.bars[n] for n, e in self.errors.items())


def attempt(attention: Attention, tensors: Mapping[str, Any], *, repeats: int = 5) -> Trial:
    """Runs forward and backward, compares every result, and times them (medians of `repeats`)."""
    q = tensors["q"]
    lse = attention._lse
    sync: Callable[[], Any] = torch.cuda.synchronize if q.is_cuda else lambda: None
    rng = torch.Generator().manual_seed(1)
    start = time.perf_counter()
    outputs = _outputs(attention(**tensors, return_lse=lse))
    ways = [torch.randn(o.shape, generator=rng).to(o.device, o.dtype) for o in outputs]
    results = _results(outputs, ways, tensors)
    sync()
    first = time.perf_counter() - start
    elements = q.shape[0] * q.shape[1] * q.shape[2] * tensors["k"].shape[2]
    notes, errors = [], None
    if elements <= _DENSE_ELEMENTS:
        errors = _compare(attention, tensors, ways, results)
    else:
        notes.append("not compared: the dense reference would be too large at this shape")
    forward, backward = _times(lambda: attention(**tensors), ways[0], tensors, sync, repeats)
    return Trial(errors, _bars(q, results), first, forward, backward, notes)


def _bars(q: Tensor, results: Mapping[str, Tensor]) -> dict[str, float]:
    """By what is computed in, and what a result is stored in: a captured tensor's gradient has its own type."""
    tf32 = q.dtype == torch.float32 and q.is_cuda and torch.get_float32_matmul_precision() != "highest"
    least = BARS["tf32" if tf32 else DTYPES[q.dtype]]
    return {n: max(least, BARS[DTYPES[r.dtype]]) for n, r in results.items()}


def _outputs(came: Any) -> tuple[Tensor, ...]:
    return came if isinstance(came, tuple) else (came,)


def _results(outputs: tuple[Tensor, ...], ways: list[Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """out, lse and the gradient of every tensor that requires one, named as d_<tensor>."""
    leaves = {n: t for n, t in tensors.items() if t.requires_grad}
    pairs = [(o, w.to(o.dtype)) for o, w in zip(outputs, ways, strict=True) if o.requires_grad]
    grads = torch.autograd.grad(
        [o for o, _ in pairs], list(leaves.values()), [w for _, w in pairs], retain_graph=True, allow_unused=True
    )
    named = dict(zip(("out", "lse"), (o.detach() for o in outputs), strict=False))
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        named[f"d_{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return named


def _compare(
    attention: Attention, tensors: Mapping[str, Tensor], ways: list[Tensor], found: Mapping[str, Tensor]
) -> dict[str, float]:
    from attncc.reference import evaluate

    def truth(magnitudes: bool) -> dict[str, Tensor]:
        exact = {
            n: t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
            for n, t in tensors.items()
        }
        result = evaluate(
            attention._family.spec, exact, attention.constants, return_lse=attention._lse, magnitudes=magnitudes
        )
        outputs = (result.out,) if result.lse is None else (result.out, result.lse)
        return _results(outputs, ways, exact)

    wanted, sizes = truth(False), truth(True)
    return {n: error(found[n], wanted[n], sizes[n] if n.startswith("d_") else None) for n in wanted}


def error(actual: Tensor, wanted: Tensor, magnitude: Tensor | None = None) -> float:
    """The relative Frobenius error; infinite where infinities differ or NaN came.

    A gradient is measured against max(||g||, 1e-3 ||sum of |contributions|||): some true gradients are 0.
    """
    a, w = actual.detach().double(), wanted.detach().double()
    if a.shape != w.shape or bool(a.isnan().any()) or bool(((a.isinf() | w.isinf()) & (a != w)).any()):
        return float("inf")
    a, w = (torch.where(x.isinf(), 0, x) for x in (a, w))
    size = float(w.norm())
    if magnitude is not None:
        size = max(size, 1e-3 * float(magnitude.detach().double().norm()))
    distance = float((a - w).norm())
    return distance / size if size else 0.0 if distance == 0 else float("inf")


def _times(
    call: Callable[[], Any],
    way: Tensor,
    tensors: Mapping[str, Tensor],
    sync: Callable[[], Any],
    repeats: int,
) -> tuple[float, float]:
    leaves = [t for t in tensors.values() if t.requires_grad]
    forward, backward = [], []
    for _ in range(repeats):
        sync()
        t0 = time.perf_counter()
        out = call()
        sync()
        t1 = time.perf_counter()
        torch.autograd.grad(out, leaves, way.to(out.dtype), allow_unused=True)
        sync()
        forward.append(t1 - t0)
        backward.append(time.perf_counter() - t1)
    return statistics.median(forward), statistics.median(backward)
