"""Compiled attention as operators of torch.library, so that torch.compile sees one node and no Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncc.runtime.cache import digest
from attncc.runtime.checks import check_call

if TYPE_CHECKING:
    from attncc.runtime.attention import Attention

_Library: Any = torch.library.Library
_library = _Library("attncc", "FRAGMENT")


@dataclass(frozen=True)
class Ops:
    """The two operators of one compiled spec with its constants.

    forward(q, k, v, *captured) gives (out, lse), or out alone where there is no lse. backward takes d_out, d_lse (or
    None), the same tensors, what forward gave, and for each tensor whether its gradient is wanted; it gives those.
    """

    forward: Any
    backward: Any
    states: Any = None
    """Of a state program: forward(q, k, v, *captured, *states) gives (out, *last states); a state may be None."""


_registered: dict[str, Ops] = {}


def register(attention: Attention) -> Ops:
    """Defines the operators of `attention`, or finds those of an equal one."""
    compiled = attention._family
    parts = [compiled.key, repr(compiled.deterministic), attention._backend, repr(sorted(attention.constants.items()))]
    parts += [attention._tiles, attention._form]
    name = f"{re.sub('[^A-Za-z0-9_]', '_', compiled.face.name)}_{digest(*parts)[:12]}"
    if name not in _registered:
        _registered[name] = _define(name, attention)
    return _registered[name]


def _define(name: str, attention: Attention) -> Ops:
    face = attention._family.face
    tensors = ", ".join(f"Tensor t{i}" for i in range(len(face.inputs)))
    made = "Tensor out, Tensor lse" if face.lse else "Tensor out"
    _library.define(f"{name}({tensors}) -> {'(Tensor, Tensor)' if face.lse else 'Tensor'}")
    _library.define(f"{name}_backward(Tensor? d_out, Tensor? d_lse, {tensors}, {made}, bool[] needs) -> Tensor[]")
    space = torch.ops.attncc
    ops = Ops(getattr(space, name).default, getattr(space, f"{name}_backward").default)
    for key in ("CPU", "CUDA"):
        _library.impl(name, _forward(attention), key)
        _library.impl(f"{name}_backward", _backward(attention), key)
    _library.impl(name, _fake_forward(attention), "Meta")
    _library.impl(f"{name}_backward", _fake_backward(attention), "Meta")
    torch.library.register_autograd(f"attncc::{name}", _autograd(attention, ops), setup_context=_save, lib=_library)
    if face.states:
        from attncc.runtime.library_states import define

        return replace(ops, states=define(name, attention, _library))
    return ops


def _forward(attention: Attention) -> Callable[..., Any]:
    names = attention.inputs[3:]

    def run(q: Tensor, k: Tensor, v: Tensor, *captured: Tensor) -> Any:
        plan, tensors = attention.plan(q, k, v, dict(zip(names, captured, strict=True)))
        outputs = plan.forward(tensors)
        out = with_strides(outputs[0], empty_out(q, v))
        return (out, outputs[1]) if len(outputs) > 1 else out

    return run


def _backward(attention: Attention) -> Callable[..., Any]:
    count = len(attention.inputs)

    def run(d_out: Tensor | None, d_lse: Tensor | None, *rest: Any) -> list[Tensor]:
        tensors, (out, *lse, needs) = rest[:count], rest[count:]
        q, k, v, *captured = tensors
        plan, ordered = attention.plan(q, k, v, dict(zip(attention.inputs[3:], captured, strict=True)))
        grads = plan.backward(ordered, out, lse[0] if lse else None, d_out, d_lse, tuple(needs))
        return [with_strides(g, t) for g, t in zip(grads, tensors, strict=True) if g is not None]

    return run


def _fake_forward(attention: Attention) -> Callable[..., Any]:
    face = attention._family.face

    def fake(q: Tensor, k: Tensor, v: Tensor, *captured: Tensor) -> Any:
        check_call(face, attention.constants, q, k, v, dict(zip(face.inputs[3:], captured, strict=True)))
        out = empty_out(q, v)
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return (out, q.new_empty(q.shape[:3], dtype=wide)) if face.lse else out

    return fake


def _fake_backward(attention: Attention) -> Callable[..., Any]:
    count = len(attention.inputs)

    def fake(d_out: Tensor | None, d_lse: Tensor | None, *rest: Any) -> list[Tensor]:
        return [torch.empty_like(t) for t, need in zip(rest[:count], rest[-1], strict=True) if need]

    return fake


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    outputs = output if isinstance(output, tuple) else (output,)
    ctx.save_for_backward(*inputs, *outputs)
    ctx.count = len(inputs)
    ctx.set_materialize_grads(False)


def _autograd(attention: Attention, ops: Ops) -> Callable[..., Any]:
    real = attention._family.face.real
    differentiable = tuple(n in real for n in attention.inputs)

    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None = None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        needs = [bool(n and d) for n, d in zip(ctx.needs_input_grad, differentiable, strict=True)]
        if d_out is None and d_lse is None:
            return tuple(None for _ in needs)
        found = iter(ops.backward(d_out, d_lse, *saved, needs))
        return tuple(next(found) if need else None for need in needs)

    return backward


def empty_out(q: Tensor, v: Tensor) -> Tensor:
    """An unwritten output: q's order of axes in memory, v's channels."""
    if q.shape[3] == v.shape[3]:
        return torch.empty_like(q)
    strides = q.stride()
    order = sorted(range(3), key=lambda axis: -strides[axis])
    shape = [q.shape[axis] for axis in order]
    inverse = [order.index(axis) for axis in range(3)]
    return q.new_empty([*shape, v.shape[3]]).permute([*inverse, 3])


def with_strides(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in the strides that the operator's fake promised; a copy only where they differ."""
    promised = torch.empty_like(like, device="meta")
    if tensor.stride() == promised.stride():
        return tensor
    return torch.empty_like(promised, device=tensor.device).copy_(tensor)
