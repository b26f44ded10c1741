"""How far two results are apart, and the bars they are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

BARS: dict[str, float] = {
    "float64": 1e-12,
    "float32": 1e-5,
    "tf32": 1e-3,
    "float16": 2e-3,
    "bfloat16": 1e-2,
}
"""Largest relative Frobenius error of outputs and gradients."""

Magnitudes = Callable[[], Mapping[str, Tensor]]


def error(actual: Tensor, wanted: Tensor, magnitude: Tensor | None = None) -> float:
    """Relative Frobenius error; infinities must agree, NaN is infinitely wrong.

    A gradient is measured against max(||g||, 1e-3 ||sum of |contributions|||), since some true gradients are 0.
    """
    if actual.shape != wanted.shape:
        return float("inf")
    a, w = actual.detach().double().cpu(), wanted.detach().double().cpu()
    if bool(a.isnan().any()) or bool((a.isinf() | w.isinf()).logical_and(a != w).any()):
        return float("inf")
    a, w = (torch.where(x.isinf(), 0, x) for x in (a, w))
    distance, size = float((a - w).norm()), float(w.norm())
    if magnitude is not None:
        size = max(size, 1e-3 * float(magnitude.detach().double().norm()))
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def errors(
    actual: Mapping[str, Tensor], wanted: Mapping[str, Tensor], magnitudes: Magnitudes | None = None, bar: float = 0.0
) -> dict[str, float]:
    """The error of each result by name; `magnitudes` is asked only where an error is above `bar`."""
    assert set(actual) == set(wanted), f"results {sorted(actual)}, expected {sorted(wanted)}"
    found = {name: error(actual[name], wanted[name]) for name in wanted}
    if magnitudes is not None and any(found[n] > bar for n in found if n.startswith("d")):
        sizes = magnitudes()
        found |= {n: error(actual[n], wanted[n], sizes[n]) for n in found if n.startswith("d")}
    return found


def compare(
    actual: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    bar: float | Mapping[str, float],
    cell: object,
    magnitudes: Magnitudes | None = None,
) -> dict[str, float]:
    """Asserts every result within `bar` (one, or one a name) and gives the errors; a failure names tensor and cell."""
    bars = dict.fromkeys(wanted, bar) if isinstance(bar, float) else dict(bar)
    found = errors(actual, wanted, magnitudes, min(bars.values()))
    wrong = [_line(n, found[n], bars[n], actual[n], wanted[n]) for n in found if not found[n] <= bars[n]]
    assert not wrong, f"{cell}:\n" + "\n".join(wrong)
    return found


def _line(name: str, found: float, bar: float, actual: Tensor, wanted: Tensor) -> str:
    if actual.shape != wanted.shape:
        return f"  {name}: shape {tuple(actual.shape)}, expected {tuple(wanted.shape)}"
    a, w = actual.detach().double().cpu(), wanted.detach().double().cpu()
    bad = int(a.isnan().sum())
    note = f", {bad} NaN" if bad else ""
    away = torch.where(a == w, 0, (a - w).abs()).nan_to_num(nan=float("inf"))
    worst = tuple(int(x) for x in torch.unravel_index(away.argmax(), away.shape)) if away.numel() else ()
    return f"  {name}: error {found:.3g} > {bar:.3g}{note}; worst at {worst}: {float(a[worst])} for {float(w[worst])}"


def low_precision_bars(
    plain: Mapping[str, Tensor], wanted: Mapping[str, Tensor], dtype: torch.dtype, magnitudes: Magnitudes | None = None
) -> dict[str, float]:
    """A bar for each result: twice the error of plain torch in `dtype`, plus that of rounding the truth to it."""
    sizes = magnitudes() if magnitudes else {}
    bars: dict[str, float] = {}
    for name, truth in wanted.items():
        size = sizes.get(name) if name.startswith("d") else None
        rounding = error(truth.to(dtype), truth, size)
        bars[name] = 2 * error(plain[name], truth, size) + (rounding if rounding < 1 else 0.0)
    return bars
