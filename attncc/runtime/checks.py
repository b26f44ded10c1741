"""What is checked of a call before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attncc.diagnostics import did_you_mean
from attncc.runtime.interface import Captured, Interface, Number, Sort, size
from attncc.runtime.mistakes import (
    MissingTensor,
    MixedDtypes,
    NoStates,
    NotATensor,
    UnknownConstant,
    UnknownTensor,
    WrongConstant,
    WrongDevice,
    WrongGroups,
    WrongKind,
    WrongRank,
    WrongSize,
)

ROLES: dict[str, tuple[str, ...]] = {"q": ("B", "H", "M", "D"), "k": ("B", "G", "N", "D"), "v": ("B", "G", "N", "E")}
REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
KINDS: dict[Sort, tuple[torch.dtype, ...]] = {
    "real": REAL,
    "int": (torch.int32, torch.int64, torch.uint8),
    "bool": (torch.bool,),
}


def check_constants(face: Interface, given: Mapping[str, Any]) -> dict[str, Number]:
    """All constants of the spec with their values: those given, else their defaults."""
    declared = {c.name: c for c in face.constants}
    for name in given:
        if name not in declared:
            known = f"its constants are {', '.join(declared)}" if declared else "it has none"
            hint = did_you_mean(name, declared) or known
            raise UnknownConstant(f"{face.name} has no constant {name}", hint=hint)
    return {name: _constant(name, c.sort, given.get(name, c.value)) for name, c in declared.items()}


def _constant(name: str, sort: Sort, value: Any) -> Number:
    if sort == "bool" and isinstance(value, bool):
        return value
    if sort == "int" and isinstance(value, int) and not isinstance(value, bool):
        if not -(2**31) <= value < 2**31:
            raise WrongConstant(f"the constant {name} does not fit 32 bits: {value}")
        return value
    if sort == "real" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise WrongConstant(f"the constant {name} is {_an(sort)}, not {value!r}")


def check_call(
    face: Interface, constants: Mapping[str, Number], q: Any, k: Any, v: Any, captured: Mapping[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, int]]:
    """The tensors of a call in the order of `face.inputs`, and its sizes; CallError where they don't fit."""
    tensors: dict[str, Any] = {"q": q, "k": k, "v": v, **_captured(face, captured)}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise NotATensor(f"{name} must be a torch tensor, not {type(tensor).__name__}")
    sizes = _sizes(tensors)
    if face.states and sizes["M"] > sizes["N"]:
        raise WrongSize(f"a state program has a token for each query: M = {sizes['M']} is more than N = {sizes['N']}")
    _check_types(face, tensors)
    known = {**constants, **sizes}
    for param in face.params:
        _check_extents(param, tensors[param.name], known)
    if face.reads and all(type(s) is int for s in sizes.values()):  # symbolic sizes are checked when the call runs
        from attncc.runtime.reads import check_reads

        check_reads(face.reads, sizes, constants)
    return tuple(tensors[n] for n in face.inputs), sizes


def check_states(
    face: Interface, constants: Mapping[str, Number], sizes: Mapping[str, int], q: Tensor, given: Any
) -> tuple[str, ...]:
    """The names of the states that a call gives, in their order; CallError where they don't fit."""
    if not face.states:
        raise NoStates(f"{face.name} has no states", hint="`state S[d, e]` declares one")
    if not isinstance(given, Mapping):
        raise NotATensor(f"state must be a dictionary of tensors by name, not {type(given).__name__}")
    declared = {s.name: s for s in face.states}
    for name, tensor in given.items():
        if name not in declared:
            known = did_you_mean(name, declared) or f"its states are {', '.join(declared)}"
            raise UnknownTensor(f"{face.name} has no state {name}", hint=known)
        if not isinstance(tensor, Tensor):
            raise NotATensor(f"the state {name} must be a torch tensor, not {type(tensor).__name__}")
        if tensor.dtype not in REAL:
            raise WrongKind(f"the state {name} must hold floating-point numbers, not {tensor.dtype}")
        if tensor.device != q.device:
            raise WrongDevice(f"q is on {q.device} and the state {name} on {tensor.device}; all must be on one device")
        _check_extents(declared[name], tensor, {**constants, **sizes})
    return tuple(s.name for s in face.states if s.name in given)


def _captured(face: Interface, captured: Mapping[str, Any]) -> dict[str, Any]:
    declared = {p.name: p for p in face.params}
    for name in captured:
        if name not in declared:
            hint = did_you_mean(name, declared)
            if any(c.name == name for c in face.constants):
                hint = f"{name} is a constant: set it with attncc.compile(..., {name}={captured[name]!r})"
            raise UnknownTensor(f"{face.name} captures no tensor {name}", hint=hint)
    for name, param in declared.items():
        if name not in captured:
            raise MissingTensor(f"{face.name} needs the tensor {name}: {param}", hint=f"attn(q, k, v, {name}={name})")
    return {name: captured[name] for name in declared}


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, axes in ROLES.items():
        shape = tuple(tensors[name].shape)
        if len(shape) != 4:
            raise WrongRank(f"{name} must be [{', '.join(axes)}], not of shape {list(shape)}")
        for axis, extent in zip(axes, shape, strict=True):
            if sizes.setdefault(axis, extent) != extent:
                raise WrongSize(
                    f"{name} has {axis} = {extent} where {owner[axis]} has {sizes[axis]}; "
                    f"{name} must be [{', '.join(axes)}] and is of shape {list(shape)}"
                )
            owner.setdefault(axis, name)
    heads, groups = sizes["H"], sizes["G"]
    if heads and (groups == 0 or heads % groups):
        raise WrongGroups(f"q has H = {heads} heads, and the G = {groups} heads of k and v don't divide them")
    return sizes


def _check_types(face: Interface, tensors: Mapping[str, Tensor]) -> None:
    q = tensors["q"]
    for name in ("q", "k", "v"):
        if tensors[name].dtype not in REAL:
            raise WrongKind(f"{name} must hold floating-point numbers, not {tensors[name].dtype}")
        if tensors[name].dtype != q.dtype:
            raise MixedDtypes(f"q is {q.dtype} and {name} is {tensors[name].dtype}; they must be the same")
    for param in face.params:
        came = tensors[param.name].dtype
        if came not in KINDS[param.sort]:
            wanted = " or ".join(str(d).removeprefix("torch.") for d in KINDS[param.sort])
            raise WrongKind(f"{param.name} is {param} and must be {wanted}, not {came}")
    for name, tensor in tensors.items():
        if tensor.device != q.device:
            raise WrongDevice(f"q is on {q.device} and {name} on {tensor.device}; all must be on one device")
        if tensor.layout != torch.strided:
            raise WrongKind(f"{name} must be a dense tensor, not {tensor.layout}")


def _check_extents(param: Captured, tensor: Tensor, known: Mapping[str, Number]) -> None:
    shape = list(tensor.shape)
    if param.offsets and len(shape) == 1:
        return
    if len(shape) != len(param.axes) or param.offsets:
        raise WrongRank(f"{param.name} must be {param}, not of shape {shape}")
    for at, (axis, extent) in enumerate(zip(param.axes, shape, strict=True)):
        expected = size(axis.size, known)
        if expected is not None and extent != expected:
            what = f"axis {axis.index}" if axis.index else f"axis {at}"
            raise WrongSize(
                f"{param.name} has {extent} on {what} where {expected} is expected; "
                f"{param.name} must be {param} and is of shape {shape}"
            )


def _an(sort: Sort) -> str:
    return {"int": "an int", "real": "a real", "bool": "a bool"}[sort]
