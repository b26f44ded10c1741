"""The plan of a call: what calls with the same shapes, strides and types share, and their autograd function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncc.runtime.backends import quietly
from attncc.runtime.family import Family, Half, Place
from attncc.runtime.interface import Interface, Number
from attncc.runtime.mistakes import NotPartitioned
from attncc.runtime.states import first_compiled
from attncc.runtime.variants import address, layout_of
from attncc.schedule.variant import Form, Variant

if TYPE_CHECKING:
    from attncc.runtime.prepared import Prepared


@dataclass(eq=False)
class Plan:
    """What calls with the same shapes, strides and types share."""

    family: Family
    face: Interface
    """With the first values of the states that are given."""
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
    forms: tuple[Form, ...] = ("chunk",)
    """Of a state program: the forms that the backward may have."""
    lasts: tuple[tuple[int, ...], ...] = ()
    """The shapes of the states that are returned."""
    backwards: dict[tuple[Any, ...], Half] = field(default_factory=dict)
    kept: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    """Whether results and their gradients keep the promises of the variant, by name, strides and alignment."""
    prepared: dict[Any, Prepared | None] = field(default_factory=dict)
    """Repeated calls, by what their tensors beside the forward's inputs look like; None where there is no short cut."""

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(out, lse), or (out,) where there is no lse, and the states that are returned behind."""
        found = self.every(tensors)
        return found[: -self.passed] if self.passed else found

    def every(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `forward` gives, and behind it what the forward made for itself and a backward wants."""
        args = tensors if self.picks is None else tuple(tensors[p] for p in self.picks)
        return self._run("forward", self.half, args)

    @cached_property
    def passed(self) -> int:
        """How many tensors the forward hands to a backward."""
        return len(self.half.outputs) - 1 - len(self.lasts) if self.half.variant.kept else 0

    def backward_half(self, needs: tuple[bool, ...], with_lse: bool, kept: bool = True) -> Half:
        """The backward that gives the gradients of the tensors at which `needs` holds; it takes what was `kept`."""
        kept = kept or not self.passed
        found = self.backwards.get((needs, with_lse, kept))
        if found is None:
            names = tuple(n for n, need in zip(self.face.inputs, needs, strict=True) if need)
            variant = dataclasses.replace(self.half.variant, gradients=names, lse_gradient=with_lse, tiles=self.behind)
            found = self._compiled(variant if kept else dataclasses.replace(variant, kept=False))
            must_be_partitioned(found, self.forced)
            self.backwards[(needs, with_lse, kept)] = found
        return found

    def _compiled(self, variant: Variant) -> Half:
        if not self.face.states:
            return self.family.half(variant, "backward", self.place)
        made = lambda form: self.family.half(dataclasses.replace(variant, form=form), "backward", self.place)  # noqa: E731
        return first_compiled(self.forms, made)

    def backward(
        self,
        tensors: tuple[Tensor, ...],
        out: Tensor,
        lse: Tensor | None,
        d_out: Tensor | None,
        d_lse: Tensor | None,
        needs: tuple[bool, ...],
        d_last: tuple[Tensor | None, ...] = (),
        kept: tuple[Tensor, ...] = (),
    ) -> list[Tensor | None]:
        """The gradients of `tensors`, None where `needs` does not hold; `kept` is what is made again where missing."""
        half = self.backward_half(needs, d_lse is not None, bool(kept))
        d_out = torch.zeros_like(out) if d_out is None else d_out
        if self.place.mode != "torch":
            out, d_out = self._as_promised("out", out), self._as_promised("d_out", d_out)
        inputs = self.face.inputs
        named = dict(zip(inputs, tensors, strict=True))
        named |= {"out": out, "d_out": d_out}
        for s, shape, d in zip(self.face.states, self.lasts, d_last or (None,) * len(self.lasts), strict=False):
            wide = torch.float64 if out.dtype == torch.float64 else torch.float32
            named[f"d_{s.name}_last"] = out.new_zeros(shape, dtype=wide) if d is None else _contiguous(d)
        if lse is not None:
            named["lse"] = _contiguous(lse)
        if d_lse is not None:
            named["d_lse"] = _contiguous(d_lse)
        named |= dict(zip(self.half.outputs[len(self.half.outputs) - len(kept) :], kept, strict=True))
        args = tuple(named[n] for n in half.inputs)
        key = (needs, d_lse is not None, bool(kept), out.stride(), d_out.stride())
        grads = dict(zip(half.outputs, self._run(key, half, args), strict=True))
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


class _Attend(torch.autograd.Function):
    """A call with gradients: saves the inputs, out and lse, and what the forward hands to the backward."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, return_lse: bool, *tensors: Tensor) -> Any:
        outputs = plan.every(tensors)
        shown = len(outputs) - plan.passed
        outputs, kept = outputs[:shown], outputs[shown:]
        ctx.plan, ctx.kept = plan, len(kept)
        ctx.has_lse = shown > 1 and not plan.lasts
        ctx.save_for_backward(*kept, *tensors, *outputs[: 1 + ctx.has_lse])
        ctx.set_materialize_grads(False)
        return outputs if return_lse or plan.lasts else outputs[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, *d_rest: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[2:]
        if d_out is None and all(d is None for d in d_rest):
            return (None, None, *(None for _ in needs))
        kept, saved = ctx.saved_tensors[: ctx.kept], ctx.saved_tensors[ctx.kept :]
        *tensors, out, lse = saved if ctx.has_lse else (*saved, None)
        d_lse, d_last = (None, d_rest) if ctx.plan.lasts else (d_rest[0] if d_rest else None, ())
        grads = ctx.plan.backward(tuple(tensors), out, lse, d_out, d_lse, tuple(needs), d_last, kept)
        return (None, None, *grads)


attend: Callable[..., Any] = _Attend.apply
