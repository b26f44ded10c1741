"""Compiles a printed Gluon kernel to a Hopper cubin without a GPU, and reads what the assembler says about it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.experimental.gluon._runtime import GluonASTSource

from attncc.codegen.gluon_printer import arguments, print_gluon
from attncc.codegen.scalars import python_name
from attncc.codegen.signature import kernel_function
from attncc.tile.nodes import Kernel, Program

_MAJOR, _MINOR = triton.__version__.split(".")[:2]
VERSION = int(_MAJOR), int(_MINOR)


@dataclass(frozen=True)
class Cubin:
    """What a kernel became. `serialised` are the assembler's complaints about its tensor core pipeline."""

    products: int
    waits: int
    bulk_copies: int
    exchanges: int
    """Of numbers between the threads of a warp."""
    shared_bytes: int
    spilled_bytes: int
    registers: int
    reallocates: bool
    serialised: tuple[str, ...]


def load(text: str, path: Path) -> ModuleType:
    """The printed module, from a file: Triton reads its kernels' source."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_kernel(program: Program, kernel: Kernel, folder: Path) -> Cubin:
    """`kernel` as printed for the installed Triton, through its compiler and a verbose run of the assembler."""
    module = load(print_gluon(program, triton=VERSION), folder / f"{program.name}.py")
    args = arguments(program, kernel)
    attributes: Any = {(n,): [["tt.divisibility", a.divisible]] for n, a in enumerate(args) if a.divisible > 1}
    source = GluonASTSource(
        getattr(module, kernel_function(kernel)), {python_name(a.name): a.type for a in args}, {}, attributes
    )
    options = {"num_warps": kernel.config.warps, "maxnreg": kernel.config.registers}
    built: Any = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return _assembled(built, folder)


def _assembled(built: Any, folder: Path) -> Cubin:
    ptx = built.asm["ptx"]
    (folder / "kernel.ptx").write_text(ptx)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    command = [get_ptxas(90).path, "-v", "-arch=sm_90a", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    sass = subprocess.run(
        [tools / "cuobjdump", "-sass", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    return Cubin(
        products=ptx.count("wgmma.mma_async"),
        waits=sass.count("WARPGROUP.DEPBAR"),
        exchanges=ptx.count("shfl.sync.bfly"),
        bulk_copies=len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.shared::c\w+\.global", ptx)),
        shared_bytes=built.metadata.shared,
        spilled_bytes=sum(int(x) for x in re.findall(r"(\d+) bytes spill stores", said)),
        registers=max((int(x) for x in re.findall(r"Used (\d+) registers", said)), default=0),
        reallocates="USETMAXREG" in sass,
        serialised=tuple(x for x in said.splitlines() if "mma_async instructions are serialized" in x),
    )
