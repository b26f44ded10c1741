"""Tensor maps and blocks of arguments, byte by byte, for kernels that copy in bulk."""

from __future__ import annotations

import ctypes
import re
import struct
from typing import Any

import pytest
import torch

from attncc.codegen.gluon_printer import print_gluon
from attncc.codegen.signature import kernel_function, signature
from attncc.runtime import cuda
from attncc.runtime.kernels import Binary, Order, compile_one, numbers, triton_version
from attncc.runtime.maps import describable, steps
from attncc.runtime.mistakes import KernelFailed
from attncc.runtime.parameters import layout_of
from attncc.runtime.text import execute
from tests.runtime.fake_cuda import Recorder
from tests.tile.programs.hopper_forward import PLANS, program

DESCRIPTOR = "tensordesc<{}[{}],NVMMASharedLayout(128, 16, rank=4)>"


def binary(element: str = "bf16", box: tuple[int, ...] = (1, 1, 64, 64), size: int = 2) -> Binary:
    """A kernel of a descriptor, an int, another descriptor's pointer and a real."""
    types = (DESCRIPTOR.format(element, "1, 1, 64, 128"), "i32", "*fp32", "fp32")
    return Binary("k", "k", b"cubin", types, 12, 1000, maps=((3, size, box),))


def test_the_driver_is_asked_what_triton_asks(lib: Recorder) -> None:
    """Axes from the innermost, strides in bytes without its own; no interleaving, zeros outside, 128-byte fetches."""
    q = torch.zeros(2, 300, 4, 128, dtype=torch.bfloat16).transpose(1, 2)
    cuda.Kernel(binary())(1, (q, 5, torch.zeros(1), 0.5))
    assert lib.maps == [
        {
            "type": 9,
            "address": q.data_ptr(),
            "dims": [128, 300, 4, 2],
            "strides": [4 * 128 * 2, 128 * 2, 300 * 4 * 128 * 2],
            "box": [64, 64, 1, 1],
            "elements": [1, 1, 1, 1],
            "interleave": 0,
            "swizzle": 3,
            "promotion": 2,
            "fill": 0,
        }
    ]


@pytest.mark.parametrize(("element", "number"), [("bf16", 9), ("fp16", 6), ("fp32", 7), ("i32", 3)])
def test_element_types(lib: Recorder, element: str, number: int) -> None:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "i32": torch.int32}
    q = torch.zeros(1, 1, 8, 128, dtype=kinds[element])
    cuda.Kernel(binary(element, size=q.element_size()))(1, (q, 5, torch.zeros(1), 0.5))
    assert lib.maps[0]["type"] == number and lib.maps[0]["strides"][0] == 128 * q.element_size()


def test_what_the_kernel_reads_lies_where_it_looks(lib: Recorder) -> None:
    """The map, then the tensor's shape in 32 bits and its strides in 64, then the rest."""
    q, x = torch.zeros(2, 4, 300, 128, dtype=torch.bfloat16), torch.zeros(3)
    cuda.Kernel(binary())(7, (q, -5, x, 0.5))
    (call,) = lib.launches()
    table = call[-2]
    sizes = [128, 4, 4, 4, 4, 8, 8, 8, 8, 4, 8, 4, 8, 8]
    found = b"".join(ctypes.string_at(table[n], size) for n, size in enumerate(sizes))
    expected = (1).to_bytes(128, "little") + struct.pack("<4i4q", *q.shape, *q.stride())
    assert found == expected + struct.pack("<i", -5) + struct.pack("<QfQQ", x.data_ptr(), 0.5, 0, 0)
    assert [c.value for c in call[2:8]] == [7, 1, 1, 32 * 12, 1, 1]


@pytest.fixture(scope="module")
def compiled() -> Binary:
    """The hand-built forward with a captured tensor: four descriptors, two pointers, five scalars."""
    p = program(*PLANS["bias"])
    text = print_gluon(p, triton=numbers(triton_version()))
    order = Order(
        kernel_function(p.kernels[0]),
        tuple((a.name, a.type, a.divisible) for a in signature(p, p.kernels[0])),
        p.kernels[0].config.warps,
        p.kernels[0].config.stages,
        p.kernels[0].config.registers,
        partitioned=True,
    )
    return compile_one(execute(text, "hopper forward")[order.name], order, 90)


def test_parameters_of_a_cubin_lie_where_they_are_packed(compiled: Binary) -> None:
    head = compiled.ptx.split(".visible .entry")[1].split("{")[0]
    offsets, at = [], 0
    for align, kind, count in re.findall(r"\.param(?: \.align (\d+))? \.(\w\d+).*?(?:\[(\d+)\])?,?\n", head):
        width = int(kind[1:]) // 8
        room = int(align or width)
        at = -(-at // room) * room
        offsets.append(at)
        at += width * int(count or 1)
    made = layout_of(compiled.types)
    assert (tuple(offsets), at) == (tuple(made.offsets), made.size)


def test_a_partitioned_kernel_is_launched_with_all_its_warps(compiled: Binary) -> None:
    assert compiled.warps == 12
    assert [box for _, _, box in compiled.maps] == [(1, 1, 64, 64), (1, 1, 128, 64), (1, 1, 128, 64), (1, 1, 64, 64)]
    assert {(swizzle, size) for swizzle, size, _ in compiled.maps} == {(3, 2)}


def test_maps_are_made_once_for_an_address_and_strides(lib: Recorder) -> None:
    kernel, x = cuda.Kernel(binary()), torch.zeros(1)
    q = torch.zeros(2, 4, 300, 128, dtype=torch.bfloat16)
    other = torch.zeros_like(q)
    for tensor in (q, other, q, q[:, :2], q, other):
        kernel(1, (tensor, 5, x, 0.5))
    assert [m["address"] for m in lib.maps] == [q.data_ptr(), other.data_ptr(), q.data_ptr()]
    firsts = [ctypes.string_at(c[-2][0], 128) for c in lib.launches()]
    assert firsts[-1] == (2).to_bytes(128, "little")


def test_axes_of_one_element_and_none(lib: Recorder) -> None:
    assert steps((1, 4, 1, 128), (7, 512, 3, 1)) == (16, 512, 16, 1)
    box, empty = [1, 1, 64, 128], torch.zeros(2, 0, 4, 128)
    assert describable(empty, box, 128).shape == (1, 1, 1, 16)
    spread = torch.zeros(1, 1, 5, 128).expand(2, 3, 5, 128)
    assert describable(spread, box, 128).is_contiguous() and describable(spread, box, 128) is not spread
    whole = torch.zeros(2, 3, 5, 128)
    assert describable(whole, box, 128) is whole


def test_a_refused_map_is_an_error(lib: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        return 1

    monkeypatch.setattr(lib, "cuTensorMapEncodeTiled", refuse, raising=False)
    with pytest.raises(KernelFailed, match=r"can't describe tensor 0 of kernel k, of shape \[1, 1, 2, 128\]"):
        cuda.Kernel(binary())(1, (torch.zeros(1, 1, 2, 128), 5, torch.zeros(1), 0.5))
