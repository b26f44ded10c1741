"""Stand-ins for the tensors of a call that is described by its sizes only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attncc.diagnostics import did_you_mean
from attncc.runtime.checks import ROLES
from attncc.runtime.interface import Interface, Number, Sort, size
from attncc.runtime.mistakes import MissingTensor, UnknownTensor, WrongGroups

SIZES = ("B", "H", "G", "M", "N", "D", "E")


def full_sizes(given: Mapping[str, Any]) -> dict[str, int]:
    """All seven sizes: B is 1, G is H, M is N (or N is M) and E is D where not given."""
    for name in given:
        if name not in SIZES:
            raise UnknownTensor(f"there is no size {name}", hint=did_you_mean(name, SIZES) or f"{', '.join(SIZES)}")
    sizes = {"B": 1, **given}
    for name, other in (("G", "H"), ("M", "N"), ("N", "M"), ("E", "D")):
        if name not in sizes and other in sizes:
            sizes[name] = sizes[other]
    for name in SIZES:
        if name not in sizes:
            raise MissingTensor(f"the size {name} is missing", hint="B=1, H=8, N=1024, D=64")
    if sizes["H"] and (sizes["G"] == 0 or sizes["H"] % sizes["G"]):
        raise WrongGroups(f"G = {sizes['G']} does not divide H = {sizes['H']}")
    return {name: int(sizes[name]) for name in SIZES}


def shapes(face: Interface, constants: Mapping[str, Number], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor. `offsets` are those of a single document."""
    known = {**constants, **sizes}
    found = {name: tuple(sizes[a] for a in axes) for name, axes in ROLES.items()}
    for param in face.params:
        found[param.name] = (2,) if param.offsets else tuple(size(a.size, known) or 0 for a in param.axes)
    return found


def meta_tensors(
    face: Interface, constants: Mapping[str, Number], given: Mapping[str, Any], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Contiguous tensors without storage for a call with these sizes; integers are 32 bits, captured reals float32."""
    kinds: dict[Sort, torch.dtype] = {"real": torch.float32, "int": torch.int32, "bool": torch.bool}
    types = {p.name: kinds[p.sort] for p in face.params}
    made = shapes(face, constants, full_sizes(given))
    return tuple(torch.empty(made[n], dtype=types.get(n, dtype), device="meta") for n in face.inputs)
