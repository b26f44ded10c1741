"""Made-up tensors for a call: by the axes and the promised bounds of the spec's header."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from attncc.expr.evaluate import evaluate
from attncc.expr.nodes import Expr, Var
from attncc.ir.nodes import Param, Spec
from attncc.runtime.interface import Number, interface_of
from attncc.runtime.warmup import shapes


def made_up(
    spec: Spec,
    constants: Mapping[str, Number],
    sizes: Mapping[str, int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
) -> dict[str, Tensor]:
    """q, k, v and every captured tensor by name; the real ones require a gradient.

    Captured reals are float32 and lie within their bounds, else near 0. Integers over keys look like document
    numbers: sorted, a handful of different ones; others lie within their bounds, else below N. Bools are mostly true.
    """
    rng = torch.Generator().manual_seed(seed)
    found = shapes(interface_of(spec), constants, sizes)
    tensors = {n: torch.randn(found[n], generator=rng).to(device, dtype).requires_grad_() for n in ("q", "k", "v")}
    environment: dict[Expr, Number] = {Var(n, "int"): s for n, s in sizes.items()}
    environment |= {Var(c.name, c.sort): constants[c.name] for c in spec.constants}
    for param in spec.params:
        value = _captured(param, found[param.name], environment, sizes, rng).to(device)
        tensors[param.name] = value.requires_grad_() if param.sort == "real" else value
    return tensors


def _captured(
    param: Param,
    shape: tuple[int, ...],
    environment: Mapping[Expr, Number],
    sizes: Mapping[str, int],
    rng: torch.Generator,
) -> Tensor:
    low, high = (float(evaluate(b, environment)) for b in param.bounds) if param.bounds else (-math.inf, math.inf)
    if param.sort == "bool":
        return torch.rand(shape, generator=rng) < 0.9
    if param.sort == "real":
        return _real(shape, low, high, rng)
    if param.offsets:
        return torch.tensor([0, sizes["N"]], dtype=torch.int32)
    if param.bounds is None and param.axes and param.axes[-1].index in ("m", "n"):
        return torch.randint(0, 4, shape, generator=rng).sort(-1).values.int()
    least = 0 if math.isinf(low) else math.ceil(low)
    most = max(least, sizes["N"] - 1 if math.isinf(high) else math.floor(high))
    return torch.randint(least, most + 1, shape, generator=rng).int()


def _real(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    """Spread over the bounds where both are finite, within about 1 of the finite one, else around 0."""
    if math.isinf(low) and math.isinf(high):
        return 0.3 * torch.randn(shape, generator=rng)
    uniform = torch.rand(shape, generator=rng)
    if math.isinf(low):
        return high - uniform
    return low + uniform * (1.0 if math.isinf(high) else high - low)
