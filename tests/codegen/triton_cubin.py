"""Compiles a printed Triton kernel to a cubin without a GPU, and reads what the assembler says about it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from triton.backends.nvidia.compiler import get_ptxas

from attncc.codegen.signature import kernel_function, signature
from attncc.codegen.triton_printer import print_module
from attncc.runtime.kernels import Order, compile_one
from attncc.tile.nodes import Kernel, Program


@dataclass(frozen=True)
class Cubin:
    """Tensor core instructions, asynchronous copies and spilled bytes of a kernel."""

    products: int
    copies: int
    shared_bytes: int
    spilled_bytes: int


def compile_kernel(program: Program, kernel: Kernel, capability: int, folder: Path) -> Cubin:
    """`kernel` of `program` as printed, for sm_`capability`."""
    path = folder / f"{program.name}.py"
    path.write_text(print_module(program, None, program.name))
    spec = importlib.util.spec_from_file_location(program.name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = tuple((a.name, a.type, a.divisible) for a in signature(program, kernel))
    function = getattr(module, kernel_function(kernel))
    order = Order(kernel.name, args, kernel.config.warps, kernel.config.stages)
    built = compile_one(function, order, capability)
    (folder / "kernel.ptx").write_text(built.ptx)
    arch = "sm_90a" if capability == 90 else f"sm_{capability}"
    command = [get_ptxas(capability).path, "-v", f"-arch={arch}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Cubin(
        products=len(re.findall(r"(wgmma\.mma_async|mma\.sync)\.", built.ptx)),
        copies=built.ptx.count("cp.async"),
        shared_bytes=built.shared,
        spilled_bytes=sum(int(x) for x in re.findall(r"(\d+) bytes spill stores", said)),
    )
