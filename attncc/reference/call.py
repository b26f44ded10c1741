"""What comes in with a call: tensors checked against the spec, sizes read off them, constants filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attncc.diagnostics import did_you_mean
from attncc.expr.nodes import Sort
from attncc.ir.nodes import Param, Spec
from attncc.reference.evaluate import Evaluator
from attncc.reference.scope import Ranges, Scope, scalar
from attncc.reference.tensors import Stored
from attncc.reference.values import Value
from attncc.runtime.mistakes import (
    MissingTensor,
    UnknownConstant,
    UnknownTensor,
    WrongGroups,
    WrongKind,
    WrongRank,
    WrongSize,
)

Number = int | float | bool

_ROLES = {"q": ("b", "h", "m", "d"), "k": ("b", "g", "n", "d"), "v": ("b", "g", "n", "e")}
_SIZE_OF = {"b": "B", "h": "H", "g": "G", "m": "M", "n": "N", "d": "D", "e": "E"}


@dataclass(frozen=True)
class Call:
    """Everything an evaluation starts from."""

    tensors: dict[str, Stored]
    ranges: Ranges
    constants: tuple[tuple[str, Value], ...]

    def scope(self, dtype: torch.dtype) -> Scope:
        """The scope in which statements stand."""
        return Scope(self.ranges.base(self.constants), dtype)


def prepare(spec: Spec, tensors: Mapping[str, Tensor], constants: Mapping[str, Number], dtype: torch.dtype) -> Call:
    """Checks the call; real tensors are converted to `dtype`, differentiably."""
    _check_names(spec, tensors)
    sizes = _sizes({name: tensors[name] for name in _ROLES})
    ranges = Ranges(sizes, tensors["q"].device)
    call = Call({}, ranges, _constants(spec, constants, ranges.device))
    for name, kinds in _ROLES.items():
        call.tensors[name] = Stored(_typed(name, tensors[name], "real", dtype), kinds)
    for param in spec.params:
        data = _typed(param.name, tensors[param.name], param.sort, dtype)
        _check_param(param, data, call, dtype)
        call.tensors[param.name] = Stored(data, tuple(a.index for a in param.axes) or ("",) * data.dim())
    return call


def _check_names(spec: Spec, tensors: Mapping[str, Tensor]) -> None:
    wanted = [*_ROLES, *(p.name for p in spec.params)]
    for name in wanted:
        if name not in tensors:
            raise MissingTensor(f"{spec.name} needs the tensor {name}")
    for name in tensors:
        if name not in wanted:
            raise UnknownTensor(f"{spec.name} has no tensor {name}", hint=did_you_mean(name, wanted))


def _sizes(roles: Mapping[str, Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, kinds in _ROLES.items():
        shape = tuple(roles[name].shape)
        if len(shape) != 4:
            axes = ", ".join(_SIZE_OF[k] for k in kinds)
            raise WrongRank(f"{name} must be [{axes}], not of shape {shape}")
        for kind, extent in zip(kinds, shape, strict=True):
            known = sizes.setdefault(_SIZE_OF[kind], extent)
            if known != extent:
                raise WrongSize(
                    f"{name} has {_SIZE_OF[kind]} = {extent} where {known} is expected; its shape is {shape}"
                )
    if sizes["H"] % sizes["G"] if sizes["G"] else sizes["H"]:
        raise WrongGroups(f"q has {sizes['H']} heads; the {sizes['G']} heads of k and v do not divide them")
    return sizes


def _constants(spec: Spec, given: Mapping[str, Number], device: torch.device) -> tuple[tuple[str, Value], ...]:
    known = {c.name for c in spec.constants}
    for name in given:
        if name not in known:
            raise UnknownConstant(f"{spec.name} has no constant {name}", hint=did_you_mean(name, known))
    return tuple((c.name, scalar(given.get(c.name, c.value), c.sort, device)) for c in spec.constants)


def _typed(name: str, data: Tensor, sort: Sort, dtype: torch.dtype) -> Tensor:
    real = data.is_floating_point()
    came: Sort = "real" if real else "bool" if data.dtype == torch.bool else "int"
    if came != sort:
        raise WrongKind(f"{name} must hold {sort} values, not {data.dtype}")
    return data.to({"real": dtype, "int": torch.int64, "bool": torch.bool}[sort])


def _check_param(param: Param, data: Tensor, call: Call, dtype: torch.dtype) -> None:
    rank = 1 if param.offsets else len(param.axes)
    if data.dim() != rank:
        axes = "S + 1" if param.offsets else ", ".join(a.index or "number" for a in param.axes)
        raise WrongRank(f"{param.name} must be [{axes}], not of shape {tuple(data.shape)}")
    if param.offsets:
        return
    evaluator, scope = Evaluator({}, call.ranges), call.scope(dtype)
    for at, axis in enumerate(param.axes):
        size = max(0, evaluator.integer(axis.size, scope))
        if data.shape[at] != size:
            what = f"axis {axis.index}" if axis.index else f"axis {at}"
            raise WrongSize(f"{param.name} has {data.shape[at]} on {what} where {size} is expected")
