"""Kernels for the rows of a table, compiled side by side before anything is timed: in processes, without a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attncc.runtime.attention import compile_spec
from attncc.runtime.backends import mode_of, target_of
from attncc.runtime.bench.case import Case
from attncc.runtime.family import Half, Place
from attncc.runtime.interface import Number
from attncc.runtime.states import first_compiled
from attncc.runtime.variants import forward_variant
from attncc.schedule import overrides

_LENGTH = 256
_MOST_PROCESSES = 16


@dataclass(frozen=True)
class Wanted:
    """One half of one call: all that decides its kernels, and no memory, so that another process can compile it."""

    file: str
    """A path, or the text of the spec."""
    which: Literal["forward", "backward"]
    backend: str
    capability: int
    """Of the GPU: 90 for sm_90."""
    constants: Mapping[str, Number]
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype, bool]]
    """Shape, type and whether a gradient is required, by name."""
    deterministic: bool = False
    tiles: str = ""


def wanted(
    case: Case, backend: str, capability: int, *, deterministic: bool = False, tiles: str = ""
) -> tuple[Wanted, ...]:
    """The halves that a call of `case` needs."""
    tensors = {n: (tuple(t.shape), t.dtype, t.requires_grad) for n, t in case.tensors.items()}
    halves: tuple[Literal["forward", "backward"], ...] = ("forward",)
    if any(needs for _, _, needs in tensors.values()):
        halves = ("backward", "forward")  # the one that takes longer first
    file, constants = os.fspath(case.file), dict(case.constants)
    return tuple(Wanted(file, half, backend, capability, constants, tensors, deterministic, tiles) for half in halves)


def build(one: Wanted) -> Half:
    """Compiles it into the disk cache; needs no GPU."""
    attention = compile_spec(
        one.file, backend=one.backend, deterministic=one.deterministic, constants=one.constants, tiles=one.tiles
    )
    family = attention._family
    mode = mode_of(attention._backend, torch.device("cuda"))
    place = Place(mode, one.capability if mode == "cuda" else 0)
    tensors = tuple(_without_memory(*one.tensors[n]) for n in family.face.inputs)
    target = target_of(mode, attention._backend, place.capability)
    variant = forward_variant(family.face, tensors, target, interpreted=mode == "interpret")
    variant = dataclasses.replace(
        variant,
        capability=place.capability or variant.capability,
        tiles=overrides.of(one.tiles, one.which),
        ordered=one.deterministic and mode != "torch",
    )
    if one.which == "backward":
        needs = tuple(n for n, t in zip(family.face.inputs, tensors, strict=True) if t.requires_grad)
        variant = dataclasses.replace(variant, gradients=needs)
    if not family.face.states:
        return family.half(variant, one.which, place)
    made = lambda form: family.half(dataclasses.replace(variant, form=form), one.which, place)  # noqa: E731
    return first_compiled(("chunk", "recurrent"), made)


def _without_memory(shape: tuple[int, ...], dtype: torch.dtype, needs: bool) -> Tensor:
    made = torch.empty(shape, dtype=dtype, device="meta")
    return made.requires_grad_() if needs else made


def side_by_side(all_wanted: Iterable[Wanted], processes: int = 0) -> list[Future[None]]:
    """Begins to compile everything, in as many processes as there are cores; each half once.

    A failure shows when the kernels are wanted.
    """
    tasks = list({repr(w): w for w in all_wanted}.values())
    if not tasks:
        return []
    count = min(len(tasks), processes or os.cpu_count() or 1, _MOST_PROCESSES)
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_alone)
    found = [pool.submit(_quietly, w) for w in tasks]
    pool.shutdown(wait=False)
    return found


def _alone() -> None:
    """One thread for the kernels of a half: there is a process for each half already."""
    os.environ["ATTNCC_WORKERS"] = "1"


def _quietly(one: Wanted) -> None:
    with contextlib.suppress(Exception):
        build(one)


def prefetch(cases: Sequence[Case], backends: Sequence[str], device: torch.device) -> list[Future[None]]:
    """Begins to compile what attncc needs for `cases`, which may be short: variants know no lengths.

    Nothing is begun on a CPU.
    """
    if device.type != "cuda":
        return []
    major, minor = torch.cuda.get_device_capability(device)
    return side_by_side(w for case in cases for backend in backends for w in wanted(case, backend, 10 * major + minor))


def shortened(sizes: dict[str, int]) -> dict[str, int]:
    """Sizes that need the same kernels, at little memory: one batch, few positions, the heads and channels."""
    few = min(_LENGTH, sizes["M"], sizes["N"])
    return {**sizes, "B": min(sizes["B"], 1), "M": few, "N": few}
