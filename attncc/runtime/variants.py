"""From the tensors of a call to its variant: dims, dtypes, promises of the strides, gradients."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from attncc.runtime.interface import Interface
from attncc.runtime.mistakes import UnsupportedDtype
from attncc.schedule.variant import NEAR, Layout, Target, Variant

if TYPE_CHECKING:
    from attncc.tile.nodes import Dtype

DTYPES: Mapping[torch.dtype, Dtype] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "bool",
}
TORCH_DTYPES: Mapping[Dtype, torch.dtype] = {name: dtype for dtype, name in DTYPES.items()}
_PLAIN = Layout()


def forward_variant(face: Interface, tensors: tuple[Tensor, ...], target: Target, *, interpreted: bool) -> Variant:
    """The variant of a forward call. Sizes, constants and who needs a gradient are not in it."""
    q, v = tensors[0], tensors[2]
    dtype = DTYPES[q.dtype]
    refused = {"f64"} if target != "torch" else set()
    if interpreted:
        refused.add("bf16")  # Triton's interpreter computes dots of bfloat16 wrongly
    if dtype in refused:
        where = "Triton's interpreter does" if interpreted else "Kernels for this device do"
        raise UnsupportedDtype(f"{where} not compute in {q.dtype}")
    named = tuple(zip(face.inputs, tensors, strict=True))
    layouts = () if target == "torch" else _layouts(face, named)
    tf32 = target != "torch" and dtype == "f32" and torch.get_float32_matmul_precision() != "highest"
    precision: Literal["ieee", "tf32"] = "tf32" if tf32 else "ieee"
    return Variant(
        target=target,
        D=q.shape[3],
        E=v.shape[3],
        dtype=dtype,
        captured=tuple((n, DTYPES[t.dtype]) for n, t in named[3:]),
        layouts=layouts,
        precision=precision,
        grouped=target == "torch" or q.shape[1] != tensors[1].shape[1],
        kept=target != "torch" and bool(face.states),
    )


def _layouts(face: Interface, named: tuple[tuple[str, Tensor], ...]) -> tuple[tuple[str, Layout], ...]:
    """What doesn't keep every promise: inputs as they came, results and gradients as they will be allocated."""
    q, k, v = (t for _, t in named[:3])
    found = {n: layout_of(t) for n, t in named[:3]}
    for param, (name, tensor) in zip(face.params, named[3:], strict=True):
        walked = tuple(n for n, axis in enumerate(param.axes) if axis.index not in ("b", "h", "g"))
        found[name] = layout_of(tensor, walked)
    found["out"] = found["d_out"] = layout_of(result_like(q, v.shape[3]))
    found |= {f"d_{n}": layout_of(result_like(t, t.shape[3])) for n, t in (("q", q), ("k", k), ("v", v))}
    return tuple((name, layout) for name, layout in found.items() if layout != _PLAIN)


def result_like(tensor: Tensor, channels: int) -> Tensor:
    """A tensor without storage that has the strides of what printed programs allocate like `tensor`."""
    shape = (*tensor.shape[:3], channels)
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if channels == tensor.shape[3]:
        return like if _dense(tensor) else torch.empty_like(like)
    names: dict[str, Any] = {"torch": torch}
    exec(import_module("attncc.codegen.helpers").EMPTY_ORDERED, names)
    made: Tensor = names["_empty_ordered"](like, shape, tensor.dtype)
    return made


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill a block of memory, in any order of axes: `empty_like` keeps such strides.

    Asked here because `empty_like` of a tensor without storage imports sympy, half a second of a first call.
    """
    expected = 1
    for step, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if step != expected:
            return False
        expected *= size
    return tensor.numel() > 0


def layout_of(tensor: Tensor, walked: tuple[int, ...] = (2, 3)) -> Layout:
    """What a tensor's strides and base keep. The stride of an axis of one element is never used.

    `walked` are the axes that lie inside tiles: rows and channels of q, k, v and their like.
    """
    strides = [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True)]
    item = tensor.element_size()
    unit = not strides or strides[-1][0] == 1 or strides[-1][1] <= 1
    others = strides[:-1] if unit else strides
    aligned = address(tensor) % 16 == 0 and all(s * item % 16 == 0 for s, n in others if n > 1)
    near = all(strides[a][0] <= NEAR or strides[a][1] <= 1 for a in walked)
    return Layout(unit, aligned, near)


def address(tensor: Tensor) -> int:
    """Where the first element is, as far as it is known: tensors without storage count as aligned."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0
