"""Zeros that every launch leaves as it finds them: one tensor for each device and stream, made once.

Launches of one stream follow one another, so that each finds what the one before left. Those of two streams may run
side by side, and a captured graph may be replayed on any stream: a graph gets zeros of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_made: dict[tuple[Any, ...], Tensor] = {}


def capturing() -> Callable[[], bool]:
    """Says whether the current stream's launches are captured into a graph."""
    return torch.cuda.is_current_stream_capturing if torch.version.cuda else lambda: False


def on_stream(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, stream: int) -> Tensor:
    """The zeros of `stream`, which is the current one of the device and is not captured."""
    key = (shape, dtype, device, stream)
    found = _made.get(key)
    if found is None:
        found = _made[key] = torch.zeros(shape, dtype=dtype, device=device)
    return found


def kept_by(
    stream: Callable[[int], int], captured: Callable[[], bool]
) -> Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]:
    """What a printed module's `_zeros_kept` becomes."""

    def zeros_kept(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if captured():
            return torch.zeros(shape, dtype=dtype, device=device)
        return on_stream(shape, dtype, device, stream(device.index or 0))

    return zeros_kept
