"""Prints programs as a module of blockwise PyTorch: no compilation, memory linear in the lengths, any device."""

from __future__ import annotations

from attncc.codegen.host import helpers, print_host
from attncc.codegen.torch_helpers import TEXTS
from attncc.codegen.torch_kernel import KernelPrinter
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
    mine = [text for name, text in TEXTS.items() if name in wanted]
    for text in (*mine, *helpers(*programs)):
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
