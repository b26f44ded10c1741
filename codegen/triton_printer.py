"""Prints programs as a module of Triton kernels and host functions: portable, from sm_80 on.

It knows tiles, loops and memory, and nothing of what is computed. Grids are flat: one program number, the kernel's
first grid axis fastest. Every offset that a stride multiplies is a 64-bit product.
"""

from __future__ import annotations

from collections.abc import Iterable

from attncc.codegen.boxes import boxes
from attncc.codegen.host import helpers, launch_of, print_host
from attncc.codegen.scalars import python_name
from attncc.codegen.signature import kernel_function, signature, tensors
from attncc.codegen.triton_exprs import FAST_TANH, HELPERS
from attncc.codegen.triton_statements import KernelBody
from attncc.codegen.writer import Writer
from attncc.errors import InternalError
from attncc.expr.nodes import Const, Expr, Var
from attncc.tile.nodes import GridAxis, Kernel, Program

IMPORTS = """\
import math

import torch
import triton
import triton.language as tl
"""
DESCRIPTORS = "from triton.tools.tensor_descriptor import TensorDescriptor\n"

DESCRIPTOR = '''\
def _descriptor(tensor, box):
    """Describes a tensor to bulk loads of `box` at a time; outside it they read 0."""
    if not tensor.numel():
        tensor = tensor.new_zeros((*(1 for _ in box[1:]), 16))
    if 0 in tensor.stride():
        tensor = tensor.contiguous()
    steps = [s if n > 1 else 16 for n, s in zip(tensor.shape, tensor.stride())]  # the hardware checks unused ones, too
    return TensorDescriptor(tensor, list(tensor.shape), [*steps[:-1], 1], box)
'''


def print_module(forward: Program, backward: Program | None, title: str, *, portable: bool = False) -> str:
    """The module of a forward program and its backward.

    `portable` keeps to operations that Triton's interpreter and every GPU have.
    """
    programs = [p for p in (forward, backward) if p is not None]
    kernels = Writer()
    used: set[str] = set()
    for program, kernel in distinct_kernels(programs):
        kernels.line()
        kernels.line()
        used |= print_kernel(kernels, program, kernel)
    w = Writer()
    w.lines(f'"""{title}"""')
    w.line()
    copies = any(boxes(k, tensors(p)) for p in programs for k in p.kernels)
    w.lines(IMPORTS + (DESCRIPTORS if copies else ""))
    described = (DESCRIPTOR,) if copies else ()
    for text in (
        launch_of(*programs),
        *described,
        *helpers(*programs),
        *kernel_helpers(used, forward, portable=portable),
    ):
        w.line()
        w.line()
        w.lines(text)
    w.verbatim(kernels.text())
    for p in programs:
        w.line()
        w.line()
        print_host(w, p)
    return w.text()


def distinct_kernels(programs: Iterable[Program]) -> list[tuple[Program, Kernel]]:
    """The kernels to print, each with a program that launches it: one that two launch once."""
    printed: dict[str, Kernel] = {}
    found = []
    for p in programs:
        for k in p.kernels:
            if printed.setdefault(k.name, k) == k and k is not printed[k.name]:
                continue
            found.append((p, k))
    return found


def kernel_helpers(used: set[str], forward: Program, *, portable: bool = False) -> list[str]:
    """Texts of the helper functions that kernels call."""
    fast = not portable and any(t.dtype == "bf16" for t in forward.inputs)
    return [FAST_TANH if n == "tanh" and fast else HELPERS[n] for n in sorted(used)]


def print_kernel(w: Writer, program: Program, kernel: Kernel) -> set[str]:
    """Writes `kernel`; the names of the helper functions it calls."""
    args = [python_name(a.name) for a in signature(program, kernel)]
    body = KernelBody(w, program, kernel)
    fixed = [python_name(n) for n in kernel.scalars if program_sort(program, n) != "real"]
    w.line(f"@triton.jit(do_not_specialize={fixed!r})")
    w.call(f"def {kernel_function(kernel)}", args, ":")
    with body.indented():
        if kernel.note:
            w.lines(f'"""{kernel.note}"""')
        _grid(w, kernel.grid)
        body.statements(kernel.body)
    return body.helpers


def program_sort(program: Program, name: str) -> str:
    """The sort of a scalar of `program`."""
    return next(s.sort for s in program.scalars if s.name == name)


def _count(extent: Expr) -> str:
    """An extent of the grid as text: a size or a number."""
    match extent:
        case Var(name):
            return python_name(name)
        case Const(value):
            return str(value)
        case _:
            raise InternalError("an extent of the grid is a size or a number")


def _grid(w: Writer, grid: Iterable[GridAxis]) -> None:
    """Decodes the program number into the grid's positions."""
    axes = tuple(grid)
    w.line("rest = tl.program_id(0)")
    for n, axis in enumerate(axes):
        name = python_name(axis.name)
        count = _count(axis.extent)
        last = n == len(axes) - 1
        if axis.tile > 1 or axis.role == "tile":
            w.line(f"tiles = tl.cdiv({count}, {axis.tile})")
            number = "rest" if last else "rest % tiles"
            text = f"(tiles - 1 - {number}) * {axis.tile}" if axis.descending else f"({number}) * {axis.tile}"
            w.line(f"{name} = {text}", f"first of the program's {axis.tile} positions")
            count = "tiles"
        else:
            w.line(f"{name} = rest" if last else f"{name} = rest % {count}")
        if not last:
            w.line(f"rest = rest // {count}")
