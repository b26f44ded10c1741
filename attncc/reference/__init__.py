"""The dense truth: a Spec evaluated over full arrays in float64, differentiable by autograd.

It shares the parser and the IR's node classes with the compiler and nothing else: its table of operations, its
normalisers and its way of reading tensors are its own.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attncc.expr.nodes import Expr, Op, walk
from attncc.ir.nodes import Let, Rebind, Spec, Weights
from attncc.ir.steps import bodies
from attncc.reference.call import Call, Number, prepare
from attncc.reference.evaluate import Evaluator, refuse_astray
from attncc.reference.recurrence import Tokens
from attncc.reference.scope import Scope
from attncc.reference.tensors import Stored
from attncc.reference.values import Value, expanded
from attncc.runtime.mistakes import NoSingleLse

__all__ = ["Result", "evaluate", "reference_callable"]


@dataclass(frozen=True)
class Result:
    """out [B, H, M, E]; lse [B, H, M], natural log, a sink included; emitted arrays by name, in storage order.

    `states` are those of a state program after the last token, [B, H, their axes].
    """

    out: Tensor
    lse: Tensor | None = None
    emitted: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)


def evaluate(
    spec: Spec,
    tensors: Mapping[str, Tensor],
    constants: Mapping[str, Number] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    return_lse: bool = False,
    cast: bool = False,
    magnitudes: bool = False,
    states: Mapping[str, Tensor] | None = None,
) -> Result:
    """Evaluates `spec` on q [B,H,M,D], k [B,G,N,D], v [B,G,N,E] and the captured tensors, by name.

    All arithmetic is in `dtype`; with `cast` out comes back in q's. A row without an allowed key gives output 0, lse
    -inf and no gradient. With `magnitudes` the backward pass adds up the absolute values of the scores' gradients: a
    scale for gradients that cancel. `states` start a state program in place of what its spec says. CallError where the
    tensors don't fit the spec.

    A spec that rounds reals to integers is evaluated on the CPU wherever its tensors live: another device's logarithm
    may differ in its last bit, and a bucket's edge would move with it.
    """
    given = tensors
    if any(t.device.type != "cpu" for t in tensors.values()) and _rounds(spec):
        tensors = {name: t.cpu() for name, t in tensors.items()}
    run = _Run(prepare(spec, tensors, constants or {}, dtype), dtype, magnitudes)
    emitted: dict[str, Tensor] = {}
    for statement in spec.statements:
        match statement:
            case Let(name=name):
                run.call.tensors[name] = run.let(statement)
                if statement.emitted:
                    emitted[name] = run.call.tensors[name].data
            case Rebind(tensor=name):
                run.call.tensors[name] = run.rebind(statement)
    final: dict[str, Tensor] = {}
    if spec.recurrence is None:
        out = run.out(spec.out.body).to(given["q"].device)
    else:
        if return_lse:
            raise NoSingleLse(f"{spec.name} is a state program and has no log-sum-exp")
        before = {name: x.to(run.call.ranges.device) for name, x in (states or {}).items()}
        out, final = Tokens(run.call, run.evaluator, spec.recurrence, spec.out, dtype, before).run()
        out, final = out.to(given["q"].device), {name: x.to(given["q"].device) for name, x in final.items()}
    lse = run.lse(spec).to(out.device) if return_lse else None
    emitted = {name: x.to(out.device) for name, x in emitted.items()}
    return Result(out.to(given["q"].dtype) if cast else out, lse, emitted, final)


def _rounds(spec: Spec) -> bool:
    return any(isinstance(n, Op) and n.name in ("floor", "ceil") for body in bodies(spec) for n in walk(body))


def reference_callable(spec: Spec, constants: Mapping[str, Number] | None = None) -> Callable[..., object]:
    """A function called like compiled attention: `f(q, k, v, return_lse=False, **captured)`, all in float64.

    Gives out alone, or the tuple (out, *emitted, lse) of what there is. A state program starts with the states in
    `state`, a dictionary by name, and with `return_state` the last of the tuple is the dictionary of its last ones.
    """

    def call(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        return_lse: bool = False,
        state: Mapping[str, Tensor] | None = None,
        return_state: bool = False,
        **captured: Tensor,
    ) -> object:
        tensors = {"q": q, "k": k, "v": v, **captured}
        result = evaluate(spec, tensors, constants, return_lse=return_lse, states=state)
        lse = () if result.lse is None else (result.lse,)
        last = (result.states,) if return_state else ()
        parts = (result.out, *result.emitted.values(), *lse, *last)
        return parts if len(parts) > 1 else result.out

    call.__name__ = spec.name
    return call


class _Run:
    """One evaluation of a spec's statements."""

    def __init__(self, call: Call, dtype: torch.dtype, magnitudes: bool) -> None:
        self.call, self.dtype = call, dtype
        self.evaluator = Evaluator(call.tensors, call.ranges, magnitudes)

    def let(self, let: Let) -> Stored:
        """The array of a `let`."""
        scope = self.call.scope(self.dtype)
        sizes = {v.name: self.evaluator.integer(a.size, scope) for v, a in zip(let.vars, let.axes, strict=True)}
        return self._array(let.body, sizes)

    def rebind(self, new: Rebind) -> Stored:
        """The array that q, k or v names from here on."""
        scope = self.call.scope(self.dtype)
        *names, channel = (v.name for v in new.vars)
        sizes = _extents(scope.with_names({"g": self.call.ranges.of("g", self.call.ranges.sizes["G"])}), names)
        return self._array(new.body, sizes | {channel: self.evaluator.integer(new.channels, scope)})

    def out(self, body: Expr) -> Tensor:
        """The output over b, h, i, e."""
        channels = self.call.tensors["v"].data.shape[3]
        scope = self.call.scope(self.dtype).with_names({"e": self.call.ranges.of("e", channels)})
        value = self.evaluator.value(body, scope)
        refuse_astray(value)
        axes = ("b", "h", "i", "e")
        return expanded(value, axes, _extents(scope, axes)).to(self.dtype)

    def lse(self, spec: Spec) -> Tensor:
        """The log of the denominator of the spec's one ratio over keys."""
        roots = [*(s.body for s in spec.statements), spec.out.body]
        found = {n for root in roots for n in walk(root) if isinstance(n, Weights) and n.normaliser.kind == "ratio"}
        if len(found) != 1:
            raise NoSingleLse(f"{spec.name} has {len(found) or 'no'} normalisers with a log-sum-exp, not one")
        lse, axes = self.evaluator.lse[found.pop()], ("b", "h", "i")
        if not set(lse.axes) <= set(axes):
            raise NoSingleLse(f"the normaliser of {spec.name} is not one per b, h and i, so it has no lse")
        return expanded(lse, axes, _extents(self.call.scope(self.dtype), axes))

    def _array(self, body: Expr, sizes: dict[str, int]) -> Stored:
        """`body` over the names in `sizes`, stored in that order. Without h among them, g is an axis of its own."""
        names = tuple(sizes)
        new = {n: self.call.ranges.of(n, sizes[n]) for n in names if n != "g" or "h" not in names}
        scope = self.call.scope(self.dtype).with_names(new)
        value = self.evaluator.value(body, scope)
        data = expanded(Value(value.data, value.axes), names, sizes)
        strays = {name: expanded(where, names, sizes) for name, where in value.strays.items()}
        kinds = tuple("m" if n == "i" else n for n in names)
        return Stored(data.to(self.dtype) if body.sort == "real" else data, kinds, strays)


def _extents(scope: Scope, axes: Iterable[str]) -> dict[str, int]:
    return {a: scope.names[a].data.shape[0] for a in axes}


class _Callable(types.ModuleType):
    """`attncc.reference(spec, **constants)`: this module is also the function of its name."""

    def __call__(self, spec: str | os.PathLike[str], **constants: Number) -> Callable[..., object]:
        from attncc.runtime.dense import dense

        return dense(spec, **constants)


sys.modules[__name__].__class__ = _Callable
