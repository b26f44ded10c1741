"""From the tensors of a call to its variant: dims, dtypes, promises of the strides, gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from attncc.runtime.interface import Interface
from attncc.runtime.mistakes import UnsupportedDtype
from attncc.schedule.variant import Layout, Target, Variant

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
    layouts = () if target == "torch" else tuple((n, lay) for n, t in named if (lay := layout_of(t)) != _PLAIN)
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
    )


def layout_of(tensor: Tensor) -> Layout:
    """What a tensor's strides and base keep. The stride of an axis of one element is never used."""
    strides = [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True)]
    item = tensor.element_size()
    unit = not strides or strides[-1][0] == 1 or strides[-1][1] <= 1
    others = strides[:-1] if unit else strides
    aligned = address(tensor) % 16 == 0 and all(s * item % 16 == 0 for s, n in others if n > 1)
    return Layout(unit, aligned)


def address(tensor: Tensor) -> int:
    """Where the first element is, as far as it is known: tensors without storage count as aligned."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0
