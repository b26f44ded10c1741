"""The operators of a state program that is called with states, or asked for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncc.runtime.checks import check_call
from attncc.runtime.library import empty_out, with_strides
from attncc.runtime.states import shapes

if TYPE_CHECKING:
    from attncc.runtime.attention import Attention


def define(name: str, attention: Attention, library: Any) -> Any:
    """The operator (q, k, v, *captured, *states) -> (out, *states behind the last token), with its gradients."""
    face = attention._family.face
    tensors = ", ".join(f"Tensor t{n}" for n in range(len(face.inputs)))
    firsts = ", ".join(f"Tensor? f{n}" for n in range(len(face.states)))
    d_lasts = ", ".join(f"Tensor? d{n}" for n in range(len(face.states)))
    made = ", ".join(["Tensor"] * (1 + len(face.states)))
    library.define(f"{name}_states({tensors}, {firsts}) -> ({made})")
    back = f"{name}_states_backward"
    library.define(f"{back}(Tensor? d_out, {d_lasts}, {tensors}, {firsts}, Tensor out, bool[] needs) -> Tensor[]")
    space = torch.ops.attncc
    forward, backward = getattr(space, f"{name}_states").default, getattr(space, back).default
    for key in ("CPU", "CUDA"):
        library.impl(f"{name}_states", _forward(attention), key)
        library.impl(back, _backward(attention), key)
    library.impl(f"{name}_states", _fake_forward(attention), "Meta")
    library.impl(back, _fake_backward(attention), "Meta")
    rule = _autograd(attention, backward)
    torch.library.register_autograd(f"attncc::{name}_states", rule, setup_context=_save, lib=library)
    return forward


def _split(attention: Attention, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Tensor], dict[str, Any]]:
    """(q, k and v; captured tensors by name; given states by name)."""
    face = attention._family.face
    count = len(face.inputs)
    captured = dict(zip(face.inputs[3:], tensors[3:count], strict=True))
    firsts = zip((s.name for s in face.states), tensors[count:], strict=True)
    return tensors[:3], captured, {n: t for n, t in firsts if t is not None}


def _forward(attention: Attention) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        (q, k, v), captured, state = _split(attention, args)
        plan, tensors = attention.plan(q, k, v, captured, state, "new")
        out, *last = plan.forward(tensors)
        return (with_strides(out, empty_out(q, v)), *last)

    return run


def _backward(attention: Attention) -> Callable[..., Any]:
    count = 1 + len(attention._family.face.states)

    def run(*args: Any) -> list[Tensor]:
        (d_out, *d_last), (*given, out, needs) = args[:count], args[count:]
        (q, k, v), captured, state = _split(attention, tuple(given))
        plan, tensors = attention.plan(q, k, v, captured, state, "new")
        present = tuple(need for t, need in zip(given, needs, strict=True) if t is not None)
        grads = plan.backward(tensors, out, None, d_out, None, present, tuple(d_last))
        return [with_strides(g, t) for g, t in zip(grads, tensors, strict=True) if g is not None]

    return run


def _fake_forward(attention: Attention) -> Callable[..., Any]:
    face = attention._family.face

    def fake(*args: Any) -> Any:
        (q, k, v), captured, _ = _split(attention, args)
        _, sizes = check_call(face, attention.constants, q, k, v, captured)
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        known = {**attention.constants, **sizes}
        return (empty_out(q, v), *(q.new_empty(s, dtype=wide) for s in shapes(face, known)))

    return fake


def _fake_backward(attention: Attention) -> Callable[..., Any]:
    count = 1 + len(attention._family.face.states)

    def fake(*args: Any) -> list[Tensor]:
        return [torch.empty_like(t) for t, need in zip(args[count:-2], args[-1], strict=True) if need]

    return fake


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.absent = tuple(t is None for t in inputs)
    ctx.save_for_backward(*(t for t in inputs if t is not None), output[0])
    ctx.set_materialize_grads(False)


def _autograd(attention: Attention, backward: Any) -> Callable[..., Any]:
    face = attention._family.face
    real = [*(n in face.real for n in face.inputs), *(True for _ in face.states)]

    def rule(ctx: Any, d_out: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        given = [None if absent else next(saved) for absent in ctx.absent]
        needs = [bool(n and r) for n, r in zip(ctx.needs_input_grad, real, strict=True)]
        if d_out is None and all(d is None for d in d_last):
            return tuple(None for _ in needs)
        found = iter(backward(d_out, *d_last, *given, next(saved), needs))
        return tuple(next(found) if need else None for need in needs)

    return rule
