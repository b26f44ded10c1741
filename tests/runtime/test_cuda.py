"""The launcher, against a driver that only records; and cubins, compiled where there is no GPU."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import pytest

from attncc.runtime import cuda
from attncc.runtime.assemble import SERIALISED, assembled_well, fits
from attncc.runtime.kernels import Binary, Order, compile_all, compile_one
from attncc.runtime.mistakes import KernelFailed, UnfitKernel
from attncc.runtime.parameters import layout_of
from attncc.runtime.text import execute
from attncc.tile.hopper import REGISTERS, SHARED_BYTES
from tests.runtime.fake_cuda import OnGpu, Recorder

TYPES = ("*bf16", "i64", "*fp32", "i32", "fp32", "i64", "i32", "fp64")
READ: dict[str, Any] = {"*": ctypes.c_void_p, "i64": ctypes.c_int64, "i32": ctypes.c_int32, "fp32": ctypes.c_float}
READ |= {"fp64": ctypes.c_double}


def arguments(table: Any, types: tuple[str, ...]) -> list[Any]:
    """What the driver would read through kernelParams."""
    kinds = [*("*" if t.startswith("*") else t for t in types), "*", "*"]
    return [READ[k].from_address(table[n]).value for n, k in enumerate(kinds)]


def binary(**changes: Any) -> Binary:
    fields: dict[str, Any] = {"name": "k", "entry": "k", "image": b"cubin", "types": TYPES, "warps": 4, "shared": 1000}
    return Binary(**fields | changes)


ARGS = (OnGpu(0x1234567890), -(2**40), OnGpu(0), -3, 1.5, 2**33, 2**31 - 1, 0.1)


def test_arguments_reach_the_driver(lib: Recorder) -> None:
    kernel = cuda.Kernel(binary())
    for _ in range(2):
        cuda.launch(kernel, 12, ARGS, warps=4, stages=2)
    assert [c[0] for c in lib.calls].count("cuModuleLoadData") == 1
    for call in lib.launches():
        _, handle, *grid, stream, table, extra = call
        assert [x.value for x in (handle, *grid)] == [7777, 12, 1, 1, 128, 1, 1, 1000]
        assert (stream.value, extra.value) == (4242, None)
        assert arguments(table, TYPES) == [0x1234567890, -(2**40), None, -3, 1.5, 2**33, 2**31 - 1, 0.1, None, None]
    assert len(lib.launches()) == 2 and len(kernel.free) == 1
    assert not [c for c in lib.calls if c[0] == "cuFuncSetAttribute"]


def test_nothing_is_launched_for_no_programs(lib: Recorder) -> None:
    cuda.Kernel(binary())(0, ARGS)
    assert lib.calls == []


def test_large_shared_memory_is_asked_for(lib: Recorder) -> None:
    cuda.Kernel(binary(shared=100_000))(1, ARGS)
    (call,) = (c for c in lib.calls if c[0] == "cuFuncSetAttribute")
    assert call[2:] == (8, 100_000)
    with pytest.raises(KernelFailed, match="300000 bytes of shared memory; device 0 has 232448"):
        cuda.Kernel(binary(shared=300_000))(1, ARGS)


def test_scratch_memory_is_passed(lib: Recorder) -> None:
    kernel = cuda.Kernel(binary(scratch=64))
    kernel(3, ARGS)
    assert arguments(lib.launches()[0][-2], TYPES)[-2] > 0


def test_a_refused_launch_is_an_error(lib: Recorder) -> None:
    lib.result = 1
    with pytest.raises(KernelFailed, match=r"launching kernel k: out of luck \(CUDA error 1\)"):
        cuda.Kernel(binary())(1, ARGS)
    with pytest.raises(KernelFailed, match="more than a grid can have"):
        cuda.Kernel(binary())(2**31, ARGS)


KERNEL = """
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def scale_kernel(x, x_s, y, factor, n, wide):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    keep = at < n
    value = tl.load(x + at.to(tl.int64) * x_s, mask=keep, other=0)
    tl.store(y + at, value * factor + wide, mask=keep)


@triton.jit(do_not_specialize=["n"])
def wrong_kernel(x, n):
    tl.store(x + tl.arange(0, 3), n)
"""
ORDER = Order(
    "scale_kernel",
    (
        ("x", "*fp32", 16),
        ("x_s", "i64", 4),
        ("y", "*fp32", 16),
        ("factor", "fp32", 0),
        ("n", "i32", 0),
        ("wide", "i64", 0),
    ),
    4,
    2,
)


@pytest.fixture(scope="module")
def functions() -> dict[str, Any]:
    pytest.importorskip("triton")
    import os

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process runs Triton's interpreter")
    return execute(KERNEL, "test kernels")


@pytest.mark.parametrize("capability", [80, 90])
def test_parameters_lie_where_they_are_packed(functions: dict[str, Any], capability: int) -> None:
    made = compile_one(functions["scale_kernel"], ORDER, capability)
    assert made.image[:4] == b"\x7fELF" and made.entry == "scale_kernel" and made.warps == 4
    kinds = re.findall(r"\.param \.(\w+)[^\n]*scale_kernel_param_\d+\s*,?\n", made.ptx.split("{")[0])
    widths = {"u64": 8, "b64": 8, "u32": 4, "b32": 4, "f32": 4}
    at, offsets = 0, []
    for kind in kinds:
        at = -(-at // widths[kind]) * widths[kind]
        offsets.append(at)
        at += widths[kind]
    assert tuple(offsets) == tuple(layout_of(made.types).offsets)


def test_kernels_are_compiled_in_the_order_asked_for(
    functions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNCC_WORKERS", "2")
    orders = [ORDER, Order(ORDER.name, ORDER.args, 8, 1)]
    assert [b.warps for b in compile_all(functions, orders, 90)] == [4, 8]


def test_what_triton_refuses_is_a_backend_error(functions: dict[str, Any]) -> None:
    order = Order("wrong_kernel", (("x", "*fp32", 16), ("n", "i32", 0)), 4, 1)
    with pytest.raises(KernelFailed, match="Triton can't compile kernel wrong_kernel for sm_90"):
        compile_one(functions["wrong_kernel"], order, 90)
    with pytest.raises(KernelFailed, match="takes x, n and is launched with x"):
        compile_one(functions["wrong_kernel"], Order("wrong_kernel", (("x", "*fp32", 16),), 4, 1), 90)


def test_a_partitioned_kernel_must_fit() -> None:
    fits("k", SHARED_BYTES, REGISTERS)
    with pytest.raises(UnfitKernel, match="kernel k needs 232449 bytes of shared memory, and there are 232448"):
        fits("k", 232449, 0)
    with pytest.raises(UnfitKernel, match="needs 86016 registers"):
        fits("k", 0, 32 * 16 * 168)


def test_what_the_assembler_says_of_a_partitioned_kernel() -> None:
    spills = (
        "ptxas info : Function properties for k\n    8 bytes stack frame, {} bytes spill stores, 36 bytes spill loads"
    )
    assembled_well("k", spills.format(32))
    with pytest.raises(UnfitKernel, match="kernel k spills 36 bytes of registers"):
        assembled_well("k", spills.format(36))
    for code in SERIALISED:
        with pytest.raises(UnfitKernel, match=f"the products of kernel k wait for each other: info {code}"):
            assembled_well("k", f"nothing\ninfo {code}\n")
