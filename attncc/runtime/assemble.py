"""PTX -> cubin by an assembler that Triton brings, keeping what it says.

A partitioned kernel that spills, or whose products wait for each other, is slower than the plain one it replaces.

Assemblers before CUDA 12.9 move the arithmetic of descriptors, by which products on Hopper's tensor cores find their
operands in shared memory, to before what decides whether it is reached, and there may add to the wrong register: the
products then read memory that is not the kernel's. No reader of PTX can tell where they will, so that all kernels with
such products go to the newest assembler; what it makes of them is nearly the same otherwise, and takes as long.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from attncc.runtime.kernels import numbers
from attncc.runtime.mistakes import UnfitKernel
from attncc.runtime.spills import spilled_in_loops
from attncc.tile.hopper import REGISTERS, SHARED_BYTES

SPILLED_BYTES = 32
"""More than this many stored to local memory make a kernel unfit, unless its loops do without."""
SPILLED_ONCE = 1024
"""More than this many make it unfit wherever they are."""
SURE = (12, 9)
"""From this version of CUDA on, assemblers do not mistake descriptors."""
NEWEST = 100
"""The compute capability that Triton brings its newest assembler for; it assembles for others, too."""
SERIALISED = ("mma_async instructions are serialized",)
"""In notices that products on tensor cores were made to wait for each other: C7506, C7507, C7510 ... by the cause."""


def assemble(ptx: str, capability: int) -> tuple[bytes, str]:
    """The cubin of `ptx`, assembled as Triton would, or by an assembler that is sure; and the assembler's notices."""
    with tempfile.TemporaryDirectory(prefix="attncc-") as folder:
        source, image = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [*_command(capability, mistaken(ptx, capability)), str(source), "-o", str(image)]
        done = subprocess.run(command, capture_output=True, text=True, close_fds=False)
        said = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"ptxas failed ({done.returncode}): {said.strip()}")
        return image.read_bytes(), said


def mistaken(ptx: str, capability: int) -> bool:
    """Whether Triton's own choice of an assembler may mistake descriptors of `ptx`."""
    from triton.backends.nvidia import compiler

    return "wgmma.mma_async" in ptx and numbers(compiler.get_ptxas(capability).version) < SURE


def _command(capability: int, sure: bool) -> list[str]:
    import triton
    from triton.backends.nvidia import compiler

    knobs: Any = triton.knobs
    tool = compiler.get_ptxas(NEWEST if sure else capability)
    if sure and numbers(tool.version) < SURE:
        raise RuntimeError(f"the newest assembler that comes with Triton, of CUDA {tool.version}, mistakes descriptors")
    lines = ["-lineinfo", "-suppress-debug-info"] if knobs.compilation.disable_line_info else ["-lineinfo"]
    allocator = ["--regAllocOptLevel=2"] if numbers(triton.__version__) >= (3, 9) else []
    extra = (knobs.nvidia.ptxas_options or "").split()
    suffix = "a" if capability >= 90 else ""
    return [tool.path, *lines, "-v", *allocator, *extra, f"--gpu-name=sm_{capability}{suffix}"]


def assembled_well(name: str, said: str, image: bytes = b"") -> None:
    """Raises UnfitKernel where the assembler's notices say that the kernel `name` is not worth running.

    Registers that are spilled outside the loops with products, once for a tile of results, do no harm.
    """
    waits = [line for line in said.splitlines() if any(words in line for words in SERIALISED)]
    if waits:
        raise UnfitKernel(f"the products of kernel {name} wait for each other: {waits[0].strip()}")
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", said))
    if spilled > SPILLED_BYTES:
        within = spilled_in_loops(image) if image and spilled <= SPILLED_ONCE else None
        if within is None or within > SPILLED_BYTES:
            raise UnfitKernel(f"kernel {name} spills {spilled} bytes of registers")


def fits(name: str, shared: int, registers: int) -> None:
    """Raises UnfitKernel where no Hopper could start the kernel `name`."""
    for needed, most, what in ((shared, SHARED_BYTES, "bytes of shared memory"), (registers, REGISTERS, "registers")):
        if needed > most:
            raise UnfitKernel(f"kernel {name} needs {needed} {what}, and there are {most}")
