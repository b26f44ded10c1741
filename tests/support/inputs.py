"""Inputs for a cell: q, k, v in the cell's layout, the captured tensors of a spec, and one way to run both sides.

inputs = make_inputs("alibi", cell, device="cpu", seed=0)
attn = attncc.compile(path, **inputs.constants)
got = run(attn, inputs)                        # {"out", "lse", "dq", "dk", "dv", "dslope"}
want, magnitudes = expected(inputs)            # the same numbers in float64
compare(got, want, BARS[cell.dtype], cell, magnitudes)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attncc.ir.nodes import Param, Spec
from attncc.reference import evaluate
from tests.support.cells import Cell
from tests.support.specs import SPECS

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Inputs:
    """`leaves` are what gradients are taken of; `views()` is what goes into the call."""

    spec: str
    cell: Cell
    leaves: dict[str, Tensor]
    cotangent: Tensor
    """Of out."""
    lse_cotangent: Tensor
    constants: dict[str, int | float]
    has_lse: bool

    def views(self) -> dict[str, Tensor]:
        """Each leaf as the tensor of the call, in the cell's layout."""
        return {name: _view(name, leaf, self.cell) for name, leaf in self.leaves.items()}

    def exact(self, dtype: torch.dtype = torch.float64) -> Inputs:
        """The same numbers in another type, with fresh leaves."""

        def convert(x: Tensor) -> Tensor:
            return x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x

        leaves = {name: convert(x) for name, x in self.leaves.items()}
        return replace(self, leaves=leaves, cotangent=self.cotangent.to(dtype))


def make_inputs(
    spec_name: str, cell: Cell, device: str = "cpu", dtype: torch.dtype | None = None, seed: int = 0
) -> Inputs:
    """Random inputs for one of `tests.support.specs.SPECS`; the same on every device."""
    spec = SPECS[spec_name]
    kind = dtype or getattr(torch, cell.dtype)
    rng = torch.Generator().manual_seed(seed)
    leaves = _roles(spec_name, cell, rng)
    leaves.update({p.name: _captured(p, cell, rng) for p in spec.params})

    def put(x: Tensor) -> Tensor:
        return x.to(device, kind).requires_grad_() if x.is_floating_point() else x.to(device)

    cotangent = torch.randn(cell.B, cell.H, cell.M, cell.E, generator=rng, dtype=torch.float64)
    lse_cotangent = torch.randn(cell.B, cell.H, cell.M, generator=rng, dtype=torch.float64)
    return Inputs(
        spec_name,
        cell,
        {name: put(x) for name, x in leaves.items()},
        cotangent.to(device, kind),
        lse_cotangent.to(device),
        {"window": max(1, min(50, cell.N // 2))} if "window" in {c.name for c in spec.constants} else {},
        spec_name != "sigmoid_attention",
    )


def _roles(name: str, cell: Cell, rng: torch.Generator) -> dict[str, Tensor]:
    """The buffers under q, k and v: one row of batch for a broadcast, one channel more for unaligned rows."""
    batch = min(cell.B, 1) if cell.layout == "broadcast" else cell.B
    pad = int(cell.layout == "unaligned")
    made: dict[str, Tensor] = {}
    for role, heads, rows, channels in (
        ("q", cell.H, cell.M, cell.D),
        ("k", cell.G, cell.N, cell.D),
        ("v", cell.G, cell.N, cell.E),
    ):
        shape = (batch, rows, heads, channels) if cell.layout == "transposed" else (batch, heads, rows, channels)
        x = torch.randn(*shape[:3], channels + pad, generator=rng, dtype=torch.float64)
        if cell.feature == "large means":
            x = x + 2 * torch.randn(channels + pad, generator=rng, dtype=torch.float64)
        if cell.feature == "outliers":
            x = x + 10 * torch.randn(x.shape, generator=rng) * (torch.rand(x.shape, generator=rng) < 1e-3)
        made[role] = x * cell.D**-0.5 if role == "q" and name == "t5" else x
    return made


def _view(name: str, leaf: Tensor, cell: Cell) -> Tensor:
    if name not in ("q", "k", "v"):
        return leaf
    match cell.layout:
        case "transposed":
            return leaf.transpose(1, 2)
        case "broadcast":
            return leaf.expand(cell.B, -1, -1, -1)
        case "unaligned":
            return leaf[..., 1:]
        case _:
            return leaf


def _captured(param: Param, cell: Cell, rng: torch.Generator) -> Tensor:
    """Values that suit the parameter by its name."""
    sizes = {"b": cell.B, "h": cell.H, "g": cell.G, "m": cell.M, "n": cell.N, "d": cell.D, "e": cell.E}
    shape = [sizes[a.index] if a.index in sizes else int(a.size.value) for a in param.axes]  # type: ignore[attr-defined]
    match param.name:
        case "doc":
            documents = torch.randint(0, 4, shape, generator=rng)
            return documents.sort(-1).values.to(torch.int32)
        case "keep":
            return torch.rand(shape, generator=rng) < (0.02 if cell.feature == "empty rows" else 0.7)
        case "prefix":
            return torch.randint(0, cell.N + 1, shape, generator=rng).to(torch.int32)
        case "slope":
            return 0.5 ** torch.arange(1, shape[0] + 1, dtype=torch.float64)
        case _:
            return torch.randn(shape, generator=rng, dtype=torch.float64)


# --- running --------------------------------------------------------------------------------------------------------


def truth(
    spec: Spec | str,
    constants: Mapping[str, int | float] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    magnitudes: bool = False,
) -> Callable[..., Any]:
    """The dense reference, called like compiled attention with return_lse."""
    known = SPECS[spec] if isinstance(spec, str) else spec

    def call(*, return_lse: bool, **tensors: Tensor) -> object:
        result = evaluate(known, tensors, constants, dtype=dtype, return_lse=return_lse, magnitudes=magnitudes)
        return (result.out, result.lse) if return_lse else result.out

    return call


def run(attention: Callable[..., Any], inputs: Inputs) -> Results:
    """out, lse and the gradient of every real leaf ("dq", "dslope" ...), under the inputs' cotangents.

    Calls `attention(q=, k=, v=, return_lse=, **captured)`.
    """
    found = attention(**inputs.views(), return_lse=inputs.has_lse)
    out, lse = found if inputs.has_lse else (found, None)
    wanted = {name: x for name, x in inputs.leaves.items() if x.requires_grad}
    outputs, cotangents = [out], [inputs.cotangent.to(out.dtype)]
    if lse is not None:
        outputs.append(lse)
        cotangents.append(inputs.lse_cotangent.to(lse.dtype))
    grads = torch.autograd.grad(outputs, list(wanted.values()), cotangents, allow_unused=True)
    results = {"out": out.detach()} | ({} if lse is None else {"lse": lse.detach()})
    for (name, leaf), grad in zip(wanted.items(), grads, strict=True):
        results[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad.detach()
    return results


def expected(inputs: Inputs, spec: Spec | str | None = None) -> tuple[Results, Callable[[], Results]]:
    """The float64 results, and a function that gives each gradient's sum of absolute contributions."""
    known = inputs.spec if spec is None else spec

    def results(magnitudes: bool) -> Results:
        return run(truth(known, inputs.constants, magnitudes=magnitudes), inputs.exact())

    return results(False), lambda: results(True)
