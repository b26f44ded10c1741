"""The compiled callable: `attncc.compile(...)` gives an `Attention`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from attncc.debug import setting
from attncc.diagnostics import did_you_mean
from attncc.errors import SpecError
from attncc.runtime.backends import BACKENDS, mode_of, target_of
from attncc.runtime.checks import check_call, check_constants, check_states
from attncc.runtime.family import Family, Half, Place, Which, family, place_of
from attncc.runtime.interface import Number
from attncc.runtime.library import Ops, register
from attncc.runtime.mistakes import NoSingleLse, NoStates, UnknownBackend, WrongForm, WrongTiles
from attncc.runtime.plan import Plan, attend, must_be_partitioned
from attncc.runtime.states import FORMS, REFUSED, check_step, first_compiled, forms, shapes, with_first
from attncc.runtime.tuned import tuned
from attncc.runtime.variants import forward_variant, result_like
from attncc.runtime.warmup import meta_tensors
from attncc.schedule.variant import Variant

_PLAIN = (Tensor, torch.nn.Parameter)
Last = Literal["none", "new", "over"]
"""What becomes of the states behind the last token: nothing, new tensors, or they are written over the first ones."""
_MEMO = 4096
"""Calls that are remembered by their shapes before all are forgotten."""


class Attention:
    """A compiled spec.

    Call it as `attn(q, k, v, **captured)`: q [B, H, M, D], k [B, G, N, D], v [B, G, N, E] with G dividing H, any
    strides, the captured tensors by the names and axes of the spec's header. The result is [B, H, M, E] in q's dtype
    and layout; with `return_lse=True` the tuple (out, lse), lse [B, H, M] in float32, the natural logarithm of the
    normaliser, -inf for a row without an allowed key. Gradients flow to q, k, v and every real captured tensor.

    A state program starts with the states in `state`, a dictionary by name of tensors [B, H, their axes], 0 (or what
    the spec says) where not given; with `return_state=True` the result is the tuple (out, state), a dictionary of the
    states behind the last token in float32 (float64 for float64 inputs). Gradients flow to and from both.
    """

    def __init__(
        self, compiled: Family, constants: Mapping[str, Number], backend: str, tiles: str = "", form: str = "auto"
    ) -> None:
        self._family = compiled
        self._tiles = tiles
        self._form = form
        self._backend = backend
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._captured = tuple(p.name for p in compiled.face.params)
        self._lse = compiled.face.lse
        self.constants: Mapping[str, Number] = dict(constants)
        self.__name__ = compiled.face.name
        self._ops: Ops = register(self)

    def __repr__(self) -> str:
        constants = "".join(f", {n}={v!r}" for n, v in self.constants.items())
        return f"<attention {self.__name__}, backend={self._backend}{constants}>"

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        return_lse: bool = False,
        state: Mapping[str, Tensor] | None = None,
        return_state: bool = False,
        **captured: Tensor,
    ) -> Any:
        if torch.compiler.is_compiling() or (type(q) not in _PLAIN and isinstance(q, Tensor)):
            return self._traced(q, k, v, return_lse, state, return_state, captured)
        if return_lse and not self._lse:
            raise self._no_lse()
        if state is not None or return_state:
            return self._with_states(q, k, v, {} if state is None else state, return_state, captured)
        plan, tensors = self.plan(q, k, v, captured)
        if torch.is_grad_enabled() and (
            q.requires_grad or k.requires_grad or v.requires_grad or any([t.requires_grad for t in tensors[3:]])
        ):
            return attend(plan, return_lse, *tensors)
        outputs = plan.forward(tensors)
        return (outputs[0], outputs[1]) if return_lse else outputs[0]

    def _with_states(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Mapping[str, Tensor],
        return_state: bool,
        captured: Mapping[str, Tensor],
    ) -> Any:
        plan, tensors = self.plan(q, k, v, captured, state, "new" if return_state else "none")
        if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
            found = attend(plan, False, *tensors)
            outputs = found if return_state else (found,)
        else:
            outputs = plan.forward(tensors)
        return (outputs[0], self._named(outputs[1:])) if return_state else outputs[0]

    def _named(self, lasts: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip((s.name for s in self._family.face.states), lasts, strict=True))

    def step(self, q: Tensor, k: Tensor, v: Tensor, *, state: Mapping[str, Tensor], **captured: Tensor) -> Tensor:
        """out for these tokens; the states, all of them given, are written over with those behind the last token.

        For decoding: no gradients flow. `state` is what a call with `return_state=True` gave, or zeros.
        """
        with torch.no_grad():
            traced = torch.compiler.is_compiling() or type(q) not in _PLAIN
            try:
                plan, tensors = (None, ()) if traced else self.plan(q, k, v, captured, state, "over")
            except SpecError as error:  # no such kernel: the states are returned and copied
                if error.code not in REFUSED:
                    raise
                plan = None
            if plan is None:
                call: Any = self
                out, last = call(q, k, v, state=state, return_state=True, **captured)
                for name, value in last.items():
                    state[name].copy_(value)
                return out  # type: ignore[no-any-return]
            out = plan.forward(tensors)[0]
            for t in state.values():
                torch.autograd.graph.increment_version(t)
        return out

    def plan(
        self,
        q: Any,
        k: Any,
        v: Any,
        captured: Mapping[str, Any],
        state: Mapping[str, Any] = MappingProxyType({}),
        last: Last = "none",
    ) -> tuple[Plan, tuple[Tensor, ...]]:
        """The plan of a call and its tensors in order; CallError where they don't fit the spec."""
        key: tuple[Any, ...]
        try:  # one flat tuple: this runs at every call
            key = (
                *(q.shape, q.stride(), q.dtype, q.device, q.data_ptr() & 15),
                *(k.shape, k.stride(), k.dtype, k.device, k.data_ptr() & 15),
                *(v.shape, v.stride(), v.dtype, v.device, v.data_ptr() & 15),
                q.dtype is torch.float32 and torch.get_float32_matmul_precision(),
            )
            for name, t in captured.items():
                key = (*key, name, t.shape, t.stride(), t.dtype, t.device, t.data_ptr() & 15)
            for name, t in state.items():
                key = (*key, (name,), t.shape, t.stride(), t.dtype, t.device, t.data_ptr() & 15)
            if last != "none":
                key = (*key, last)
            plan = self._plans.get(key)
        except (AttributeError, RuntimeError):  # no tensor, or none with strides and memory
            key, plan = (), None
        if plan is not None:
            tensors = (q, k, v, *[captured[n] for n in self._captured])
            if state:
                tensors = (*tensors, *[state[s.name] for s in self._family.face.states if s.name in state])
            return plan, tensors
        face = self._family.face
        tensors, sizes = check_call(face, self.constants, q, k, v, captured)
        first: tuple[str, ...] = ()
        if last != "none" or not isinstance(state, Mapping) or state:
            first = check_states(face, self.constants, sizes, q, state)
            tensors = (*tensors, *(state[n] for n in first))
        if last == "over":
            check_step(face, self.constants, sizes, q, state)
        plan = self._new_plan(tensors, tensors[0].device, first, last)
        if key:
            if len(self._plans) >= _MEMO:
                self._plans.clear()
            self._plans[key] = plan
        return plan, tensors

    def _new_plan(
        self, tensors: tuple[Tensor, ...], device: torch.device, first: tuple[str, ...] = (), last: Last = "none"
    ) -> Plan:
        mode = mode_of(self._backend, device)
        place = place_of(device, mode)
        compiled = self._family
        face = with_first(compiled.face, first)
        target = target_of(mode, self._backend, place.capability)
        variant = forward_variant(face, tensors, target, interpreted=mode == "interpret")
        single = last == "over" and tensors[0].shape[2] == tensors[1].shape[2] == 1
        variant = dataclasses.replace(variant, first=first, last=last == "new", in_place=last == "over", single=single)
        variant = dataclasses.replace(variant, capability=place.capability or variant.capability)
        variant = dataclasses.replace(variant, kept=variant.kept and last != "over")
        tiles = tuned(compiled.key, variant, device) if self._tiles == "tuned" else self._tiles
        ahead, behind = _halves(tiles)
        variant = dataclasses.replace(variant, tiles=ahead, ordered=compiled.deterministic and mode != "torch")
        needs = [n for n, t in zip(face.inputs, tensors, strict=True) if t.requires_grad]
        if mode == "cuda" and needs and torch.is_grad_enabled():  # compile the backward beside the forward
            both = dataclasses.replace(variant, gradients=tuple(needs), tiles=behind)
            compiled.prefetch(both, "backward", place)
        half = self._forward_half(variant, place, tensors[1].shape[2])
        forced = self._backend == "gluon"
        must_be_partitioned(half, forced)
        inputs = face.inputs
        picks = None if half.inputs == inputs else tuple(inputs.index(n) for n in half.inputs)
        index = -1 if device.type != "cuda" else device.index if device.index is not None else 0
        strides = result_like(tensors[0], tensors[2].shape[3]).stride()
        keywords = half.bind(self.constants)
        plan = Plan(compiled, face, self.constants, place, half, forced, picks, keywords, index, strides, behind)
        if face.states:
            plan.forms = ("chunk", "recurrent") if self._form == "auto" else (half.variant.form,)
            q, k, v = tensors[:3]
            sizes = {"B": q.shape[0], "H": q.shape[1], "D": q.shape[3], "E": v.shape[3], "N": k.shape[2]}
            plan.lasts = shapes(face, {**self.constants, **sizes}) if last == "new" else ()
        return plan

    def _forward_half(self, variant: Variant, place: Place, tokens: int) -> Half:
        """Of a state program, the first form that compiles; only one token after another writes over states."""
        if not self._family.face.states:
            return self._family.half(variant, "forward", place)
        form = "recurrent" if variant.in_place else self._form
        tried = forms(form, tokens, variant.target, self._family.face.scaled)
        made = lambda form: self._family.half(dataclasses.replace(variant, form=form), "forward", place)  # noqa: E731
        return first_compiled(tried, made)

    def _traced(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        return_lse: bool,
        state: Mapping[str, Tensor] | None,
        return_state: bool,
        captured: dict[str, Tensor],
    ) -> Any:
        """Under torch.compile, and for fake and other kinds of tensors: the registered operator."""
        if return_lse and not self._lse:
            raise self._no_lse()
        face = self._family.face
        if set(captured) != set(self._captured):
            check_call(face, self.constants, q, k, v, captured)
        tensors = (q, k, v, *[captured[n] for n in self._captured])
        if state is not None or return_state:
            if self._ops.states is None:
                raise NoStates(f"{face.name} has no states", hint="`state S[d, e]` declares one")
            out, *last = self._ops.states(*tensors, *((state or {}).get(s.name) for s in face.states))
            return (out, self._named(tuple(last))) if return_state else out
        if not self._lse:
            return self._ops.forward(*tensors)
        out, lse = self._ops.forward(*tensors)
        return (out, lse) if return_lse else out

    def _no_lse(self) -> NoSingleLse:
        return NoSingleLse(
            f"{self.__name__} has no lse to return", hint="only a spec with one softmax or ratio over the keys has one"
        )

    # --- looking inside ---

    @property
    def name(self) -> str:
        """The spec's name."""
        return self.__name__

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all tensors: q, k, v and the captured ones."""
        return self._family.face.inputs

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that are loaded, forward and backward, in order of first use."""
        return tuple(h.variant for h in self._family.halves)

    @property
    def builds(self) -> int:
        """How many forwards and backwards were compiled in this process, not read from the disk cache."""
        return self._family.builds

    def source(self, which: Which = "forward") -> str:
        """The printed source of the forward or backward that was used last; of a usual variant before the first."""
        for half in reversed(self._family.halves):
            if half.which == which:
                return half.text
        from attncc.runtime.printing import usual_source

        return usual_source(self._family, which, self._backend)

    def explain(self) -> str:
        """What is compiled and how: a short report as text."""
        from attncc.runtime.printing import report

        return report(self._family, self.constants)

    def warmup(
        self,
        q: Tensor | None = None,
        k: Tensor | None = None,
        v: Tensor | None = None,
        *,
        gradients: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        states: Last = "none",
        **rest: Any,
    ) -> None:
        """Compiles what a call will need, without running it.

        Either `warmup(q, k, v, **captured)` with the tensors of a call, or `warmup(B=.., H=.., N=.., D=..)` with its
        sizes (G is H, M is N and E is D where not given), a dtype and a device. `gradients` also compiles the
        backward: of the tensors that require one, or of all. `states` is of a state program: "new" for a call that
        brings all states and returns them, "over" for a step.
        """
        gradients = gradients and states != "over"
        if q is not None:
            state = rest.pop("state", {})
            plan, tensors = self.plan(q, k, v, rest, state, states)
            needs = tuple(t.requires_grad for t in tensors)
        else:
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            usual = torch.float32 if where.type == "cpu" else torch.bfloat16
            face = self._family.face
            first = tuple(s.name for s in face.states) if states != "none" else ()
            face = with_first(face, first)
            tensors = meta_tensors(face, self.constants, rest, dtype or usual)
            if where.type == "cuda" and where.index is None:
                where = torch.device("cuda", torch.cuda.current_device())
            plan = self._new_plan(tensors, where, first, states)
            needs = tuple(n in face.real for n in face.inputs)
        halves = [plan.half]
        if gradients and any(needs):
            halves.append(plan.backward_half(needs, False))
        if plan.place.mode == "cuda":
            with torch.cuda.device(plan.device):
                for kernel in (kernel for half in halves for kernel in half.kernels):
                    kernel.prepare(plan.device)


def compile_spec(
    spec: str | os.PathLike[str],
    *,
    backend: str,
    deterministic: bool,
    constants: Mapping[str, Any],
    tiles: str = "",
    form: str = "auto",
) -> Attention:
    """See `attncc.compile`."""
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS) or f"one of {', '.join(BACKENDS)}"
        raise UnknownBackend(f"there is no backend {backend!r}", hint=hint)
    if form not in FORMS:
        hint = did_you_mean(form, FORMS) or f"one of {', '.join(FORMS)}"
        raise WrongForm(f"there is no form {form!r}", hint=hint)
    if backend == "auto":
        backend = setting("ATTNCC_BACKEND")
    compiled = family(spec, deterministic=deterministic)
    if tiles not in ("", "tuned"):
        try:
            import_module("attncc.schedule.overrides").check(tiles)
        except ValueError as e:
            raise WrongTiles(f"tiles={tiles!r}: {e}") from None
    return _attention(compiled, tuple(check_constants(compiled.face, constants).items()), backend, tiles, form)


def _halves(tiles: str) -> tuple[str, str]:
    """What `tiles` says of the forward and of the backward. The schedule is imported for it only where it says any."""
    if not tiles:
        return "", ""
    overrides = import_module("attncc.schedule.overrides")
    return overrides.of(tiles, "forward"), overrides.of(tiles, "backward")


@functools.lru_cache(maxsize=256)
def _attention(
    compiled: Family, constants: tuple[tuple[str, Number], ...], backend: str, tiles: str, form: str
) -> Attention:
    return Attention(compiled, dict(constants), backend, tiles, form)
