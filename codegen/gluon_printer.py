"""Prints a Program as a module of Gluon kernels for Hopper: layouts, partitions, kernels, host functions.

It knows shapes, slots and barriers, and nothing of what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap

from attncc.codegen.gluon_layouts import BITS, layouts
from attncc.codegen.gluon_spelling import Layouts, swizzle
from attncc.codegen.gluon_statements import Body, Scope
from attncc.codegen.host import _Host, helpers, programs_of
from attncc.codegen.scalars import python_name
from attncc.codegen.signature import Arg, kernel_function, signature, sizes, tensors
from attncc.codegen.writer import WIDTH, Writer
from attncc.errors import InternalError
from attncc.expr.interval import Interval
from attncc.expr.nodes import Var
from attncc.tile.nodes import (
    AllocBar,
    AllocShared,
    CopyIn,
    CopyOut,
    For,
    If,
    Kernel,
    Let,
    Load,
    Partition,
    Partitions,
    Program,
    ReduceAdd,
    Stmt,
    Store,
    Type,
)

IMPORTS = """\
import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
"""

LAUNCH = """\
def _launch(kernel, programs, args, *, warps, registers):
    if programs > 0:
        kernel[(programs,)](*args, num_warps=warps, maxnreg=registers)
"""

HELPERS = {
    "_tanh": """\
@gluon.jit
def _tanh(x):
    asm: gl.constexpr = "tanh.approx.f32 $0, $1;"
    return gl.inline_asm_elementwise(asm, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
""",
}


@dataclass(frozen=True, slots=True)
class Box:
    """What one bulk copy moves of a tensor: its shape, the tensor's rank counted, and the buffer's type."""

    shape: tuple[int, ...]
    buffer: Type

    def layout(self) -> str:
        """The shared layout the copy writes or reads, as Gluon's text."""
        return f"NVMMASharedLayout({swizzle(self.buffer)}, {BITS[self.buffer.dtype]}, rank={len(self.shape)})"


def print_gluon(program: Program, *, header: str = "", triton: tuple[int, int] = (3, 6)) -> str:
    """The text of a module with `program`'s kernels and its host function, for a version of Triton."""
    named, kernels, used = Layouts(), Writer(), set[str]()
    for kernel in program.kernels:
        used |= _KernelPrinter(kernels, program, kernel, named, triton).write()
    host = Writer()
    _GluonHost(host, program, named).function(program.name)
    w = Writer()
    w.lines(f'"""{header or program.note or program.name}"""')
    w.line()
    w.lines(IMPORTS)
    w.line()
    for name, text in named.defined.items():
        w.line(f"{name} = gl.constexpr({text})")
    for text in (LAUNCH, *helpers(program), *(HELPERS[n] for n in sorted(used))):
        w.line()
        w.line()
        w.lines(text)
    w.lines(kernels.text())
    w.line()
    w.line()
    w.lines(host.text())
    return w.text()


def arguments(program: Program, kernel: Kernel) -> tuple[Arg, ...]:
    """What `kernel` is called with: as `signature`, with a descriptor for each tensor that is copied in bulk."""
    boxes, addressed = bulk_boxes(program, kernel), _addressed(kernel.body)
    known = tensors(program)
    args: list[Arg] = []
    for arg in signature(program, kernel):
        if arg.kind == "pointer" and arg.name in boxes:
            box = boxes[arg.name]
            kind = f"tensordesc<{known[arg.name].dtype}{list(box.shape)},{box.layout()}>".replace("f32[", "fp32[")
            args.append(Arg("descriptor", f"{arg.name}_desc", kind.replace("<f16[", "<fp16[")))
        owner = arg.name if arg.kind == "pointer" else arg.name.rpartition("_s")[0]
        if arg.kind == "scalar" or owner in addressed:
            args.append(arg)
    return tuple(args)


def bulk_boxes(program: Program, kernel: Kernel) -> dict[str, Box]:
    """The box of each tensor that bulk copies of `kernel` touch; one size of box a tensor."""
    known, buffers = tensors(program), _buffers(kernel)
    boxes: dict[str, Box] = {}
    for s in _all(kernel.body):
        if isinstance(s, CopyIn | CopyOut):
            buffer = buffers[s.slot.name].type
            rank = len(known[s.tensor].axes)
            box = Box((*([1] * (rank - len(buffer.axes))), *(a.extent for a in buffer.axes)), buffer)
            if boxes.setdefault(s.tensor, box).shape != box.shape:
                raise InternalError(f"{s.tensor} is copied in boxes of two sizes")
    return boxes


def _buffers(kernel: Kernel) -> dict[str, AllocShared]:
    return {s.name: s for s in _all(kernel.body) if isinstance(s, AllocShared)}


def _addressed(body: tuple[Stmt, ...]) -> set[str]:
    """Tensors that are read or written by address."""
    found = set()
    for s in _all(body):
        if isinstance(s, Store | ReduceAdd):
            found.add(s.tensor)
        elif isinstance(s, Let) and isinstance(s.op, Load):
            found.add(s.op.tensor)
    return found


def _all(body: tuple[Stmt, ...]) -> list[Stmt]:
    found: list[Stmt] = []
    for s in body:
        found.append(s)
        match s:
            case For(body=inner):
                found += _all(inner)
            case If(then=then, orelse=orelse):
                found += _all(then) + _all(orelse)
            case Partitions(parts):
                for p in parts:
                    found += _all(p.body)
            case _:
                pass
    return found


class _KernelPrinter:
    """Prints one kernel: its partitions' functions, then the kernel that starts them."""

    def __init__(self, w: Writer, program: Program, kernel: Kernel, named: Layouts, triton: tuple[int, int]) -> None:
        self.w, self.program, self.kernel = w, program, kernel
        table, types = layouts(kernel)
        self.scope = Scope(types, table, tensors(program), named, triton)
        self.scope.buffers = _buffers(kernel)
        for size in sizes(program):
            self.scope.known[Var(size, "int")] = Interval(0)
        for axis in kernel.grid:
            self.scope.known[Var(axis.name, "int")] = Interval(0)
            if isinstance(axis.extent, Var):
                self.scope.known[axis.extent] = Interval(1)  # a program runs, so there is one

    def write(self) -> set[str]:
        """Prints; gives the names of the helpers it needs."""
        inside = Writer()
        body = Body(inside, self.scope)
        self._grid(body)
        self._top(body)
        args = [a.name for a in arguments(self.program, self.kernel)]
        stray = set(body.used) - set(args)
        if stray:
            raise InternalError(f"kernel {self.kernel.name} uses {', '.join(sorted(stray))} without being passed it")
        integers = [a.name for a in arguments(self.program, self.kernel) if a.type in ("i32", "i64")]
        self._function(kernel_function(self.kernel), args, inside, integers, self.kernel.note)
        return self.scope.helpers

    def _function(self, name: str, args: list[str], body: Writer, integers: list[str], note: str = "") -> None:
        """A jitted function; `integers` are arguments no compilation may depend on."""
        w = self.w
        w.line()
        w.line()
        w.line(f"@gluon.jit(do_not_specialize={integers})" if integers else "@gluon.jit")
        names = ", ".join(python_name(a) for a in args)
        flat = f"def {name}({names}):"
        if len(flat) > WIDTH:
            w.line(f"def {name}(")
            for line in wrap(names + ",", WIDTH - 4):
                w.line(f"    {line}")
            flat = "):"
        with w.block(flat):
            if note:
                w.line(f'"""{note}"""')
            w.lines(body.text())

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
            inside = Writer()
            body = Body(inside, self.scope)
            body.statements(part.body)
            name = f"{self.kernel.name}_{part.name}"
            self._function(name, list(body.used), inside, [])
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


class _GluonHost(_Host):
    """The host function; kernels take descriptors of the tensors they copy in bulk, built per call."""

    def __init__(self, w: Writer, program: Program, named: Layouts) -> None:
        super().__init__(w, program, launches=True)
        self.named = named

    def launch(self, kernel: Kernel) -> None:
        boxes = bulk_boxes(self.program, kernel)
        args: list[str] = []
        for arg in arguments(self.program, kernel):
            name = arg.name.removesuffix("_desc")
            if arg.kind == "descriptor":
                box = boxes[name]
                layout = f"{self.named.shared(box.buffer, len(box.shape))}.value"
                text = f"TensorDescriptor.from_tensor({python_name(name)}, {list(box.shape)}, {layout})"
                self.w.line(f"{arg.name} = {text}")
                args.append(arg.name)
            else:
                if arg.kind == "pointer":
                    self.unpack(self.tensors[arg.name])
                args.append(python_name(arg.name))
        listed = ", ".join(args) + ("," if len(args) == 1 else "")
        config = [f"warps={kernel.config.warps}", f"registers={kernel.config.registers or None}"]
        self.w.call("_launch", [kernel_function(kernel), programs_of(kernel.grid), f"({listed})", *config])
