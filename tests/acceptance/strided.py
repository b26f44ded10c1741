"""Calls on views: every way in which a tensor's strides may be odd, held to the float64 truth with all gradients.

A case makes q, k and v as views of leaves, and the cotangent of the output as a view; gradients are those of leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import attncc
from attncc.runtime.attention import Attention
from tests.acceptance.holds import EXAMPLES
from tests.support.compare import BARS, compare
from tests.support.inputs import Results, truth

Shape = tuple[int, int, int, int]
View = Callable[[Shape, Callable[..., Tensor]], tuple[Tensor, Tensor]]
"""(shape, maker of leaves) -> (leaf, view of the shape)."""


def plain(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x = leaf(*shape)
    return x, x


def transposed(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """[B, N, H, D] seen as [B, H, N, D]."""
    x = leaf(shape[0], shape[2], shape[1], shape[3])
    return x, x.transpose(1, 2)


def rows_first(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """[N, B, H, D]."""
    x = leaf(shape[2], shape[0], shape[1], shape[3])
    return x, x.permute(1, 2, 0, 3)


def one_batch(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x = leaf(1, *shape[1:])
    return x, x.expand(shape)


def one_head(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x = leaf(shape[0], 1, *shape[2:])
    return x, x.expand(shape)


def one_row(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x = leaf(shape[0], shape[1], 1, shape[3])
    return x, x.expand(shape)


def sliced(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Part of a larger tensor on every axis, from an aligned place."""
    B, H, N, D = shape
    x = leaf(B + 1, H + 1, N + 3, D + 32)
    return x, x[1:, 1:, 3:, 16 : 16 + D]


def unaligned(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    B, H, N, D = shape
    x = leaf(B, H, N, D + 1)
    return x, x[..., 1:]


def odd_base(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Aligned strides from a base that is not."""
    B, H, N, D = shape
    x = leaf(B, H, N, D + 16)
    return x, x[..., 3 : 3 + D]


def every_other_channel(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x = leaf(*shape[:3], 2 * shape[3])
    return x, x[..., ::2]


def channels_first(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """[B, H, D, N]: the stride of rows is 1, that of channels is N."""
    x = leaf(shape[0], shape[1], shape[3], shape[2])
    return x, x.transpose(2, 3)


def every_other_row(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x = leaf(shape[0], shape[1], 2 * shape[2], shape[3])
    return x, x[:, :, ::2]


def all_one(shape: Shape, leaf: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """A single number seen everywhere: the cotangent of a sum."""
    x = leaf(1)
    return x, x.expand(shape)


@dataclass(frozen=True)
class Case:
    """One call; `d_out` is the view of the output's cotangent."""

    name: str
    q: View = plain
    k: View = plain
    v: View = plain
    d_out: View = plain
    spec: str = "packed_documents"
    D: int = 32
    E: int = 32
    dtype: str = "float32"
    sizes: tuple[int, int, int, int, int] = (2, 4, 2, 40, 72)
    """B, H, G, M, N."""
    captured: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("transposed", transposed, transposed, transposed),
    Case("rows first, E is not D", rows_first, rows_first, rows_first, E=48),
    Case("broadcast over batch", one_batch, one_batch, one_batch),
    Case("broadcast over heads", one_head, one_head, one_head, E=16),
    Case("one key and one value for all", k=one_row, v=one_row, spec="sigmoid_attention"),
    Case("sliced", sliced, sliced, sliced, spec="alibi"),
    Case("unaligned", unaligned, unaligned, unaligned, spec="alibi"),
    Case("unaligned values", v=unaligned, spec="gpt_oss"),
    Case("odd base", odd_base, odd_base, odd_base, dtype="float16"),
    Case("every other channel", every_other_channel, every_other_channel, every_other_channel, E=48),
    Case("channels first", channels_first, channels_first, channels_first),
    Case("channels first, E is not D", channels_first, k=channels_first, E=48, spec="sigmoid_attention"),
    Case("every other row", every_other_row, every_other_row, every_other_row, transposed),
    Case("gradient of a sum", d_out=all_one),
    Case("gradient of a sum, half, no multiple of 16 bytes", d_out=all_one, dtype="float16", D=64, E=36),
    Case("gradient with channels first", d_out=channels_first, spec="t5"),
    Case("gradient transposed, output not", d_out=transposed, spec="gpt_oss"),
    Case("gradient unaligned", d_out=unaligned),
    Case("gradient broadcast over heads", transposed, transposed, transposed, one_head),
    Case("padded rows, no multiple of 16 bytes", sliced, sliced, sliced, D=36, E=100, dtype="float16"),
    Case("one of each", channels_first, transposed, unaligned, spec="sigmoid_attention", sizes=(1, 2, 1, 1, 1)),
    Case("captured views", spec="alibi", captured={"slope": lambda x: x.repeat_interleave(2)[::2]}),
    Case("captured broadcast", captured={"doc": lambda x: x[:1].expand_as(x)}),
    Case("captured off its base", captured={"doc": lambda x: torch.cat([x, x, x], 1)[:, 1 : 1 + x.shape[1]]}),
)


def hold(case: Case, *, backend: str, device: str = "cpu", seed: int = 0) -> Attention:
    """Asserts every result of `case` within the bar of its type; gives what was called."""
    rng = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    B, H, G, M, N = case.sizes

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(device, dtype).requires_grad_()

    shapes: dict[str, tuple[View, Shape]] = {
        "q": (case.q, (B, H, M, case.D)),
        "k": (case.k, (B, G, N, case.D)),
        "v": (case.v, (B, G, N, case.E)),
    }
    pairs = {name: view(shape, leaf) for name, (view, shape) in shapes.items()}
    leaves = {name: pair[0] for name, pair in pairs.items()}
    views: dict[str, Any] = {name: pair[1] for name, pair in pairs.items()}
    for name, base in _captured(case, rng).items():
        put = base.to(device)
        leaves[name] = put.requires_grad_() if put.is_floating_point() else put
        views[name] = case.captured[name](leaves[name]) if name in case.captured else leaves[name]
    d_out = case.d_out((B, H, M, case.E), leaf)[1].detach()
    attn = attncc.compile(EXAMPLES / f"{case.spec}.attn", backend=backend)
    got = _results(attn(**views), leaves, d_out)

    def reference(magnitudes: bool) -> Results:
        out = truth(case.spec, attn.constants, magnitudes=magnitudes)(**views, return_lse=False)
        return _results(out, leaves, d_out.double())

    compare(got, reference(False), BARS[case.dtype], case, lambda: reference(True))
    return attn


def _captured(case: Case, rng: torch.Generator) -> dict[str, Tensor]:
    B, H, _, _, N = case.sizes
    match case.spec:
        case "packed_documents":
            return {"doc": torch.randint(0, 4, (B, N), generator=rng).sort(-1).values.to(torch.int32)}
        case "alibi":
            return {"slope": 0.5 ** torch.arange(1.0, H + 1)}
        case "gpt_oss":
            return {"sink": torch.randn(H, generator=rng)}
        case "sigmoid_attention":
            return {"bias": torch.randn(H, generator=rng)}
        case "t5":
            return {"table": torch.randn(32, H, generator=rng)}
        case _:
            return {}


def _results(out: Tensor, leaves: dict[str, Tensor], d_out: Tensor) -> Results:
    wanted = {n: x for n, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(out, list(wanted.values()), d_out)
    return {"out": out.detach()} | {f"d{n}": g for n, g in zip(wanted, grads, strict=True)}
