"""The compiled callable: `attncc.compile(...)` gives an `Attention`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncc.debug import setting
from attncc.diagnostics import did_you_mean
from attncc.runtime.backends import BACKENDS, mode_of, quietly, target_of
from attncc.runtime.checks import check_call, check_constants
from attncc.runtime.family import Family, Half, Place, Which, family, place_of
from attncc.runtime.interface import Number
from attncc.runtime.library import Ops, register
from attncc.runtime.mistakes import NoSingleLse, NotPartitioned, UnknownBackend, WrongTiles
from attncc.runtime.tuned import tuned
from attncc.runtime.variants import address, forward_variant, layout_of, result_like
from attncc.runtime.warmup import meta_tensors
from attncc.schedule.variant import Variant

if TYPE_CHECKING:
    from attncc.runtime.prepared import Prepared

_PLAIN = (Tensor, torch.nn.Parameter)
_MEMO = 4096
"""Calls that are remembered by their shapes before all are forgotten."""


@dataclass(eq=False)
class Plan:
    """What calls with the same shapes, strides and types share."""

    family: Family
    constants: Mapping[str, Number]
    place: Place
    half: Half
    forced: bool
    """Halves must be partitioned."""
    picks: tuple[int, ...] | None
    """Positions of the tensors the program takes; None where it takes all, in order."""
    keywords: Mapping[str, Number]
    device: int
    """The CUDA device, -1 on the CPU."""
    strides: tuple[int, ...]
    """Of the forward's out."""
    behind: str = ""
    """What differs from the default plan of the backward."""
    backwards: dict[tuple[Any, ...], Half] = field(default_factory=dict)
    kept: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    """Whether results and their gradients keep the promises of the variant, by name, strides and alignment."""
    prepared: dict[Any, Prepared | None] = field(default_factory=dict)
    """Repeated calls, by what their tensors beside the forward's inputs look like; None where there is no short cut."""

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(out, lse), or (out,) where there is no lse."""
        args = tensors if self.picks is None else tuple(tensors[p] for p in self.picks)
        return self._run("forward", self.half, args)

    def backward_half(self, needs: tuple[bool, ...], with_lse: bool) -> Half:
        """The backward that gives the gradients of the tensors at which `needs` holds."""
        found = self.backwards.get((needs, with_lse))
        if found is None:
            inputs = self.family.face.inputs
            names = tuple(n for n, need in zip(inputs, needs, strict=True) if need)
            variant = dataclasses.replace(self.half.variant, gradients=names, lse_gradient=with_lse, tiles=self.behind)
            found = self.family.half(variant, "backward", self.place)
            must_be_partitioned(found, self.forced)
            self.backwards[(needs, with_lse)] = found
        return found

    def backward(
        self,
        tensors: tuple[Tensor, ...],
        out: Tensor,
        lse: Tensor | None,
        d_out: Tensor | None,
        d_lse: Tensor | None,
        needs: tuple[bool, ...],
    ) -> list[Tensor | None]:
        """The gradients of `tensors`, None where `needs` does not hold."""
        half = self.backward_half(needs, d_lse is not None)
        d_out = torch.zeros_like(out) if d_out is None else d_out
        if self.place.mode != "torch":
            out, d_out = self._as_promised("out", out), self._as_promised("d_out", d_out)
        named = dict(zip(self.family.face.inputs, tensors, strict=True))
        named |= {"out": out, "d_out": d_out}
        if lse is not None:
            named["lse"] = _contiguous(lse)
        if d_lse is not None:
            named["d_lse"] = _contiguous(d_lse)
        args = tuple(named[n] for n in half.inputs)
        key = (needs, d_lse is not None, out.stride(), d_out.stride())
        grads = dict(zip(half.outputs, self._run(key, half, args), strict=True))
        inputs = self.family.face.inputs
        return [grads[f"d_{n}"] if need else None for n, need in zip(inputs, needs, strict=True)]

    def _as_promised(self, name: str, tensor: Tensor) -> Tensor:
        """`tensor`, laid out like the forward's own result where it breaks the variant's promise of its strides.

        Most often an expanded gradient; one copy is cheaper than one more variant.
        """
        seen = (name, tensor.stride(), tensor.data_ptr() & 15)
        kept = self.kept.get(seen)
        if kept is None:
            kept = self.kept[seen] = self.half.variant.layout(name).covers(layout_of(tensor))
        if kept:
            return tensor
        return torch.empty_strided(tensor.shape, self.strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

    def _run(self, key: Any, half: Half, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """`half` on `args`; of calls with one `key`, the first is recorded and later ones take the short cut."""
        if self.device >= 0 and self.device != _current_device():
            with torch.cuda.device(self.device):
                return self._run(key, half, args)
        known = self.prepared.get(key)
        return known(args) if known is not None else self._first(key, half, args)

    def _first(self, key: Any, half: Half, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        keywords = self.keywords if half is self.half else half.bind(self.constants)
        if self.place.mode == "interpret":
            return quietly(half.function, args, keywords)
        if self.place.mode != "cuda" or key in self.prepared:
            return half.function(*args, **keywords)
        from attncc.runtime.prepared import prepare, record

        found, launched = record(half.function, args, keywords)
        named = dict(zip(half.outputs, found, strict=True))
        self.prepared[key] = prepare(half.steps, half.inputs, args, named, launched)
        return found


_current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
"""The device torch launches on; tensors on a GPU exist, so CUDA is up."""


def must_be_partitioned(half: Half, forced: bool) -> None:
    """Raises NotPartitioned where partitioned kernels are asked for and this half has none."""
    if forced and not half.partitioned:
        raise NotPartitioned(f"the {half.which} can't be partitioned: {half.reason or 'no reason is known'}")


def _contiguous(tensor: Tensor) -> Tensor:
    """A contiguous tensor whose base is a multiple of 16 bytes, as every allocation's is."""
    whole = tensor.contiguous()
    return whole if address(whole) % 16 == 0 else whole.clone()


class Attention:
    """A compiled spec.

    Call it as `attn(q, k, v, **captured)`: q [B, H, M, D], k [B, G, N, D], v [B, G, N, E] with G dividing H, any
    strides, the captured tensors by the names and axes of the spec's header. The result is [B, H, M, E] in q's dtype
    and layout; with `return_lse=True` the tuple (out, lse), lse [B, H, M] in float32, the natural logarithm of the
    normaliser, -inf for a row without an allowed key. Gradients flow to q, k, v and every real captured tensor.
    """

    def __init__(self, compiled: Family, constants: Mapping[str, Number], backend: str, tiles: str = "") -> None:
        self._family = compiled
        self._tiles = tiles
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

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **captured: Tensor) -> Any:
        if torch.compiler.is_compiling() or (type(q) not in _PLAIN and isinstance(q, Tensor)):
            return self._traced(q, k, v, return_lse, captured)
        if return_lse and not self._lse:
            raise self._no_lse()
        plan, tensors = self.plan(q, k, v, captured)
        if torch.is_grad_enabled() and (
            q.requires_grad or k.requires_grad or v.requires_grad or any([t.requires_grad for t in tensors[3:]])
        ):
            return _attend(plan, return_lse, *tensors)
        outputs = plan.forward(tensors)
        return (outputs[0], outputs[1]) if return_lse else outputs[0]

    def plan(self, q: Any, k: Any, v: Any, captured: Mapping[str, Any]) -> tuple[Plan, tuple[Tensor, ...]]:
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
            plan = self._plans.get(key)
        except (AttributeError, RuntimeError):  # no tensor, or none with strides and memory
            key, plan = (), None
        if plan is not None:
            return plan, (q, k, v, *[captured[n] for n in self._captured])
        tensors, _ = check_call(self._family.face, self.constants, q, k, v, captured)
        plan = self._new_plan(tensors, tensors[0].device)
        if key:
            if len(self._plans) >= _MEMO:
                self._plans.clear()
            self._plans[key] = plan
        return plan, tensors

    def _new_plan(self, tensors: tuple[Tensor, ...], device: torch.device) -> Plan:
        mode = mode_of(self._backend, device)
        place = place_of(device, mode)
        compiled = self._family
        target = target_of(mode, self._backend, place.capability)
        variant = forward_variant(compiled.face, tensors, target, interpreted=mode == "interpret")
        variant = dataclasses.replace(variant, capability=place.capability or variant.capability)
        tiles = tuned(compiled.key, variant, device) if self._tiles == "tuned" else self._tiles
        ahead, behind = _halves(tiles)
        variant = dataclasses.replace(variant, tiles=ahead, ordered=compiled.deterministic and mode != "torch")
        needs = [n for n, t in zip(compiled.face.inputs, tensors, strict=True) if t.requires_grad]
        if mode == "cuda" and needs and torch.is_grad_enabled():  # compile the backward beside the forward
            both = dataclasses.replace(variant, gradients=tuple(needs), tiles=behind)
            compiled.prefetch(both, "backward", place)
        half = compiled.half(variant, "forward", place)
        forced = self._backend == "gluon"
        must_be_partitioned(half, forced)
        inputs = compiled.face.inputs
        picks = None if half.inputs == inputs else tuple(inputs.index(n) for n in half.inputs)
        index = -1 if device.type != "cuda" else device.index if device.index is not None else 0
        strides = result_like(tensors[0], tensors[2].shape[3]).stride()
        keywords = half.bind(self.constants)
        return Plan(compiled, self.constants, place, half, forced, picks, keywords, index, strides, behind)

    def _traced(self, q: Tensor, k: Tensor, v: Tensor, return_lse: bool, captured: dict[str, Tensor]) -> Any:
        """Under torch.compile, and for fake and other kinds of tensors: the registered operator."""
        if return_lse and not self._lse:
            raise self._no_lse()
        if set(captured) != set(self._captured):
            check_call(self._family.face, self.constants, q, k, v, captured)
        tensors = (q, k, v, *[captured[n] for n in self._captured])
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
        **rest: Any,
    ) -> None:
        """Compiles what a call will need, without running it.

        Either `warmup(q, k, v, **captured)` with the tensors of a call, or `warmup(B=.., H=.., N=.., D=..)` with its
        sizes (G is H, M is N and E is D where not given), a dtype and a device. `gradients` also compiles the
        backward: of the tensors that require one, or of all.
        """
        if q is not None:
            plan, tensors = self.plan(q, k, v, rest)
            needs = tuple(t.requires_grad for t in tensors)
        else:
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            usual = torch.float32 if where.type == "cpu" else torch.bfloat16
            tensors = meta_tensors(self._family.face, self.constants, rest, dtype or usual)
            if where.type == "cuda" and where.index is None:
                where = torch.device("cuda", torch.cuda.current_device())
            plan = self._new_plan(tensors, where)
            needs = tuple(n in self._family.face.real for n in self.inputs)
        halves = [plan.half]
        if gradients and any(needs):
            halves.append(plan.backward_half(needs, False))
        if plan.place.mode == "cuda":
            with torch.cuda.device(plan.device):
                for kernel in (kernel for half in halves for kernel in half.kernels):
                    kernel.prepare(plan.device)


class _Attend(torch.autograd.Function):
    """A call with gradients: saves the inputs, out and lse."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, return_lse: bool, *tensors: Tensor) -> Any:
        outputs = plan.forward(tensors)
        ctx.plan = plan
        ctx.has_lse = len(outputs) > 1
        ctx.save_for_backward(*tensors, *outputs)
        ctx.set_materialize_grads(False)
        return (outputs[0], outputs[1]) if return_lse else outputs[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None = None) -> Any:
        needs = ctx.needs_input_grad[2:]
        if d_out is None and d_lse is None:
            return (None, None, *(None for _ in needs))
        saved = ctx.saved_tensors
        *tensors, out, lse = saved if ctx.has_lse else (*saved, None)
        grads = ctx.plan.backward(tuple(tensors), out, lse, d_out, d_lse, tuple(needs))
        return (None, None, *grads)


_attend: Callable[..., Any] = _Attend.apply


def compile_spec(
    spec: str | os.PathLike[str], *, backend: str, deterministic: bool, constants: Mapping[str, Any], tiles: str = ""
) -> Attention:
    """See `attncc.compile`."""
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS) or f"one of {', '.join(BACKENDS)}"
        raise UnknownBackend(f"there is no backend {backend!r}", hint=hint)
    if backend == "auto":
        backend = setting("ATTNCC_BACKEND")
    compiled = family(spec, deterministic=deterministic)
    if tiles not in ("", "tuned"):
        try:
            import_module("attncc.schedule.overrides").check(tiles)
        except ValueError as e:
            raise WrongTiles(f"tiles={tiles!r}: {e}") from None
    return _attention(compiled, tuple(check_constants(compiled.face, constants).items()), backend, tiles)


def _halves(tiles: str) -> tuple[str, str]:
    """What `tiles` says of the forward and of the backward. The schedule is imported for it only where it says any."""
    if not tiles:
        return "", ""
    overrides = import_module("attncc.schedule.overrides")
    return overrides.of(tiles, "forward"), overrides.of(tiles, "backward")


@functools.lru_cache(maxsize=256)
def _attention(compiled: Family, constants: tuple[tuple[str, Number], ...], backend: str, tiles: str) -> Attention:
    return Attention(compiled, dict(constants), backend, tiles)
