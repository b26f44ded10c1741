"""Prints programs whose kernels may be warp-specialised: those in Gluon for Hopper, all others in plain Triton.

One module holds both, and the host functions that launch them. It knows layouts, partitions and boxes of bulk copies,
and nothing of what is computed.
"""

from __future__ import annotations

from textwrap import wrap

from attncc.codegen import triton_printer as plain
from attncc.codegen.boxes import boxes
from attncc.codegen.gluon_helpers import helper_imports, helper_texts
from attncc.codegen.gluon_layouts import layouts
from attncc.codegen.gluon_spelling import Layouts
from attncc.codegen.gluon_statements import Body, Scope
from attncc.codegen.host import LIMITED, PROCESSORS, helpers, print_host
from attncc.codegen.renumber import renumbered
from attncc.codegen.scalars import python_name
from attncc.codegen.signature import Arg, kernel_function, signature, sizes, tensors
from attncc.codegen.writer import WIDTH, Writer
from attncc.errors import InternalError
from attncc.expr.interval import Interval
from attncc.expr.nodes import Var
from attncc.tile.dialect import any_partitioned, partitioned, works
from attncc.tile.nodes import AllocBar, AllocShared, Kernel, Partition, Partitions, Program
from attncc.tile.walks import every

IMPORTS = """\
import math

import torch
"""
PLAIN_IMPORTS = """\
import triton
import triton.language as tl
"""
GLUON_IMPORTS = """\
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
"""

DESCRIPTOR = '''\
def _descriptor(tensor, box, swizzle):
    """Describes a tensor to bulk copies that move `box` at a time; outside it they read 0 and write nothing."""
    if not tensor.numel():
        tensor = tensor.new_zeros((*(1 for _ in box[1:]), 16))
    if 0 in tensor.stride():
        tensor = tensor.contiguous()
    steps = [s if n > 1 else 16 for n, s in zip(tensor.shape, tensor.stride())]  # the hardware checks unused ones, too
    layout = gl.NVMMASharedLayout(swizzle, 8 * tensor.element_size(), rank=len(box))
    return TensorDescriptor(tensor, list(tensor.shape), [*steps[:-1], 1], box, layout)
'''


def print_module(forward: Program, backward: Program | None, title: str, *, triton: tuple[int, int] = (3, 6)) -> str:
    """The module of a forward program and its backward, for a version of Triton."""
    return _module([p for p in (forward, backward) if p is not None], title, triton)


def print_gluon(program: Program, *, header: str = "", triton: tuple[int, int] = (3, 6)) -> str:
    """The text of a module with `program`'s kernels and its host function, for a version of Triton."""
    return _module([program], header or program.note or program.name, triton)


def arguments(program: Program, kernel: Kernel) -> tuple[Arg, ...]:
    """What `kernel` is called with."""
    return signature(program, kernel)


def _module(programs: list[Program], title: str, triton: tuple[int, int]) -> str:
    if not any_partitioned(*programs):
        forward, *rest = programs
        return plain.print_module(forward, rest[0] if rest else None, title)
    named, kernels, hosts = Layouts(), Writer(), Writer()
    used, others = set[str](), list[tuple[Program, Kernel]]()
    for program, kernel in plain.distinct_kernels(programs):
        if partitioned(kernel):
            used |= _KernelPrinter(kernels, program, kernel, named, triton).write()
        else:
            others.append((program, kernel))
    for program in programs:
        hosts.line()
        hosts.line()
        print_host(hosts, program)
    own = helper_texts(used, fast=any(t.dtype == "bf16" for t in programs[0].inputs))
    simple = _plain_part(others, programs[0])
    w = Writer()
    w.lines(f'"""{title}, for Triton {triton[0]}.{triton[1]}"""')
    w.line()
    w.lines(IMPORTS + (PLAIN_IMPORTS if others else "") + helper_imports(used, GLUON_IMPORTS))
    w.line()
    for name, text in named.defined.items():
        w.lines(f"{name} = gl.constexpr({text})\n")
    shared = (PROCESSORS,) if any(works(k) for p in programs for k in p.kernels) else ()
    for text in (LIMITED, DESCRIPTOR, *shared, *helpers(*programs), *own):
        w.line()
        w.line()
        w.lines(text)
    for part in (simple, kernels.text(), hosts.text()):
        w.verbatim(part)
    return w.text()


def _plain_part(kernels: list[tuple[Program, Kernel]], forward: Program) -> str:
    """Kernels in plain Triton, after what they call."""
    w, used = Writer(), set[str]()
    for program, kernel in kernels:
        w.line()
        w.line()
        used |= plain.print_kernel(w, program, kernel)
    return "".join(f"\n\n{helper}" for helper in plain.kernel_helpers(used, forward)) + w.text()


class _KernelPrinter:
    """Prints one kernel: its partitions' functions, then the kernel that starts them."""

    def __init__(self, w: Writer, program: Program, kernel: Kernel, named: Layouts, triton: tuple[int, int]) -> None:
        self.w, self.program, self.kernel = w, program, kernel
        table, types = layouts(kernel)
        self.scope = Scope(types, table, tensors(program), named, triton)
        self.scope.copied = boxes(kernel, tensors(program))
        self.scope.grid = kernel.grid
        self.scope.buffers = {s.name: s for s in every(kernel.body) if isinstance(s, AllocShared)}
        for size in sizes(program):
            self.scope.known[Var(size, "int")] = Interval(0)
        for axis in kernel.grid:
            self.scope.known[Var(axis.name, "int")] = Interval(0)
            if isinstance(axis.extent, Var):
                self.scope.known[axis.extent] = Interval(1)  # a program runs, so there is one

    def write(self) -> set[str]:
        """Prints; gives the names of the helpers it needs."""
        inside = Writer(1)
        body = Body(inside, self.scope)
        if not works(self.kernel):
            self._grid(body)
        self._top(body)
        args = [a.name for a in arguments(self.program, self.kernel)]
        stray = set(body.used) - set(args)
        if stray:
            raise InternalError(f"kernel {self.kernel.name} uses {', '.join(sorted(stray))} without being passed it")
        integers = [python_name(a.name) for a in arguments(self.program, self.kernel) if a.type in ("i32", "i64")]
        self._function(kernel_function(self.kernel), [python_name(a) for a in args], inside, integers, self.kernel.note)
        return self.scope.helpers

    def _function(self, name: str, args: list[str], body: Writer, integers: list[str], note: str = "") -> None:
        """A jitted function; `integers` are arguments no compilation may depend on."""
        w = self.w
        w.line()
        w.line()
        w.line(f"@gluon.jit(do_not_specialize={integers})" if integers else "@gluon.jit")
        names = ", ".join(args)
        flat = f"def {name}({names}):"
        if len(flat) > WIDTH:
            w.line(f"def {name}(")
            for line in wrap(names + ",", WIDTH - 4):
                w.line(f"    {line}")
            flat = "):"
        with w.block(flat):
            if note:
                w.line(f'"""{note}"""')
            w.append(body)

    def _grid(self, body: Body) -> None:
        """One program number, decoded: the first axis varies fastest."""
        w, grid = body.w, self.kernel.grid
        w.line("pid = gl.program_id(0)")
        for n, axis in enumerate(grid):
            last = n == len(grid) - 1
            if last and not axis.descending:
                count = ""
            elif axis.tile > 1:
                count = f"tiles_{axis.name}"
                w.line(f"{count} = ({body.scalar(axis.extent)} + {axis.tile - 1}) // {axis.tile}")
            else:
                count = body.scalar(axis.extent)
            number = "pid" if last else f"pid % {count}"
            if axis.descending:
                number = f"({count} - 1 - {number})"
            if axis.tile > 1:
                number = f"{number} * {axis.tile}" if axis.descending or last else f"({number}) * {axis.tile}"
            w.line(f"{body.bind(axis.name)} = {number}")
            if not last:
                w.line(f"pid = pid // {count}")

    def _top(self, body: Body) -> None:
        """The kernel's own statements; barriers are visible to all once the last one is made."""
        bars = [n for n, s in enumerate(self.kernel.body) if isinstance(s, AllocBar)]
        for n, s in enumerate(self.kernel.body):
            if isinstance(s, Partitions):
                self._partitions(body, s.parts)
            else:
                body.statement(s)
            if bars and n == bars[-1]:
                body.w.line("fence_async_shared()")

    def _partitions(self, outer: Body, parts: tuple[Partition, ...]) -> None:
        calls = []
        for part in parts:
            inside = Writer(1)
            self.scope.warps = part.warps
            body = Body(inside, self.scope)
            body.statements(part.body)
            name = f"{self.kernel.name.removesuffix('_kernel')}_{part.name}"
            passed, local = ([python_name(n) for n in names] for names in (body.used, body.bound))
            text, args = renumbered(inside.text(), passed, local)
            lines = Writer()
            lines.verbatim(text)
            self._function(name, args, lines, [])
            calls.append((name, [outer.use(u) for u in body.used]))
        w = outer.w
        w.line("gl.warp_specialize(")
        w.line("    [")
        for function, names in calls:
            w.line(f"        ({function}, (")
            for line in wrap(f"{', '.join(names)},", WIDTH - 16):
                w.line(f"            {line}")
            w.line("        )),")
        w.line("    ],")
        w.line(f"    {[p.warps for p in parts[1:]]},")
        w.line(f"    {[p.registers for p in parts[1:]]},")
        w.line(")")
