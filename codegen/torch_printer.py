"""Prints programs as a module of blockwise PyTorch: no compilation, memory linear in the lengths, any device."""

from __future__ import annotations

from attncc.codegen.host import helpers, print_host
from attncc.codegen.torch_kernel import PART, PIECES, STEPS, KernelPrinter
from attncc.codegen.torch_memory import text_of
from attncc.codegen.writer import Writer
from attncc.tile.nodes import Program


def print_module(forward: Program, backward: Program | None, title: str) -> str:
    """The text of a module with `forward` and, where there is one, `backward`."""
    programs = [p for p in (forward, backward) if p is not None]
    kernels = Writer()
    wanted: set[str] = set()
    for program in programs:
        for kernel in program.kernels:
            printer = KernelPrinter(kernels, program, kernel)
            kernels.line()
            kernels.line()
            printer.function()
            wanted |= printer.helpers
    w = Writer()
    w.lines(f'"""{title}"""')
    w.line()
    for module in ("math", "torch"):
        w.line(f"import {module}")
    loops = [text for name, text in (("_steps", STEPS), ("_pieces", PIECES), ("_part", PART)) if name in wanted]
    for text in (*loops, *text_of(wanted), *helpers(*programs)):
        w.line()
        w.line()
        w.lines(text)
    w.append(kernels)
    for program in programs:
        w.line()
        w.line()
        w.line("@torch.no_grad()")
        print_host(w, program, launches=False)
    return w.text()
