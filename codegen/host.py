"""Prints a Program's host function: sizes, scalars, allocations, launches, host operations, outputs.

Both targets share it. Nothing in the printed function waits for the device, and every tensor's shape and strides
are read once.
"""

from __future__ import annotations

from attncc.codegen.boxes import Box, boxes
from attncc.codegen.helpers import HELPERS, NEEDS
from attncc.codegen.scalars import PRODUCT, UNARY, python_name, spell
from attncc.codegen.signature import (
    constants,
    host_scalars,
    kernel_function,
    signature,
    sizes,
    strides,
    tensors,
)
from attncc.codegen.tables import index_tables, rounds
from attncc.codegen.writer import Writer
from attncc.expr.nodes import Expr, free_vars
from attncc.tile.dialect import works
from attncc.tile.nodes import (
    Alloc,
    FirstLast,
    Gather,
    GridAxis,
    Kernel,
    Launch,
    Program,
    ScatterAdd,
    Step,
    SumAxes,
    Tensor,
)

LAUNCH = """\
def _launch(kernel, programs, args, *, warps, stages):
    if programs > 0:
        kernel[(programs,)](*args, num_warps=warps, num_stages=stages)
"""
"""The module global through which every compiled kernel is started; a runtime may put its own in its place."""

LIMITED = """\
def _launch(kernel, programs, args, *, warps, stages, registers=None):
    if programs > 0:
        kernel[(programs,)](*args, num_warps=warps, num_stages=stages, maxnreg=registers)
"""
"""The same where kernels have so many registers a thread, and no more."""


def launch_of(*programs: Program) -> str:
    """The text of `_launch` for the kernels of `programs`."""
    return LIMITED if any(k.config.registers for p in programs for k in p.kernels) else LAUNCH


def print_host(w: Writer, program: Program, *, name: str = "", launches: bool = True) -> None:
    """`program` as a Python function `name`; kernels go through `_launch`, or are called where not `launches`."""
    _Host(w, program, launches).function(name or program.name)


def helpers(*programs: Program) -> tuple[str, ...]:
    """Texts of the helper functions that the host functions of `programs` call, in order of definition."""
    direct = {n for p in programs for s in p.steps if (n := _helper(p, s))}
    wanted = direct | {m for n in direct for m in NEEDS.get(n, ())}
    return tuple(text for name, text in HELPERS.items() if name in wanted)


def _helper(program: Program, step: Step) -> str:
    match step:
        case Alloc(kept=True):
            return "_zeros_kept"
        case Alloc(tensor, _, like) if like and not _same_shape(tensor, tensors(program)[like]):
            return "_empty_ordered"
        case Gather(_, _, index) | ScatterAdd(_, _, index) if any(rounds(e) for e in index):
            return "_kept"
        case FirstLast(_, _, kind):
            return "_run_bounds" if kind.startswith("run") else "_id_bounds"
        case _:
            return ""


def _same_shape(a: Tensor, b: Tensor) -> bool:
    return a.extents == b.extents


PROCESSORS = '''\
def _processors(tensor):
    """How many programs that fill a multiprocessor run at once."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count
'''


def programs_of(kernel: Kernel) -> str:
    """The number of programs of a launch, as Python text."""
    places = _places(kernel.grid)
    return f"min({places}, _processors({python_name(kernel.tensors[0])}))" if works(kernel) else places


def _places(grid: tuple[GridAxis, ...]) -> str:
    parts = []
    for axis in grid:
        if axis.tile == 1:
            parts.append(spell(axis.extent, place=PRODUCT))
        else:
            parts.append(f"-(-{spell(axis.extent, place=UNARY)} // {axis.tile})")
    return " * ".join(parts) or "1"


class _Host:
    def __init__(self, w: Writer, program: Program, launches: bool) -> None:
        self.w = w
        self.program = program
        self.launches = launches
        self.tensors = tensors(program)
        self.kernels: dict[str, Kernel] = {k.name: k for k in program.kernels}
        self.unpacked: set[str] = set()
        self.described: dict[str, Box] = {}

    def function(self, name: str) -> None:
        args = [python_name(t.name) for t in self.program.inputs]
        named = [python_name(s.name) for s in constants(self.program)]
        with self.w.block(f"def {name}({', '.join([*args, *(['*', *named] if named else [])])}):"):
            self.docstring()
            self.sizes()
            for s in self.program.scalars:
                if s.value is not None:
                    self.w.line(f"{python_name(s.name)} = {spell(s.value)}")
            if any(not isinstance(s, Launch | SumAxes | FirstLast) for s in self.program.steps):
                self.w.line(f"device = {python_name(self.program.inputs[0].name)}.device")
            for step in self.program.steps:
                self.step(step)
            names = [python_name(n) for n in self.program.outputs]
            self.w.line(f"return {', '.join(names)}" if len(names) > 1 else f"return ({names[0]},)")

    def docstring(self) -> None:
        if self.program.note:
            self.w.lines(f'"""{self.program.note}"""')

    def sizes(self) -> None:
        """Every size from the first input that has it; a line per input that defines some."""
        known = sizes(self.program)
        for tensor in self.program.inputs:
            here = {axis: size for size, (owner, axis) in known.items() if owner == tensor.name}
            if here:
                left = ", ".join(python_name(here[a]) if a in here else "_" for a in range(len(tensor.axes)))
                comma = "," if len(tensor.axes) == 1 else ""
                self.w.line(f"{left}{comma} = {python_name(tensor.name)}.shape")

    def step(self, step: Step) -> None:
        match step:
            case Alloc(tensor, kept=True):
                made = f"_zeros_kept({shape(tensor)}, {dtype(tensor)}, device)"
                self.w.line(f"{python_name(tensor.name)} = {made}")
            case Alloc(tensor, fill, like):
                self.alloc(tensor, fill, like)
            case Launch(kernel):
                self.launch(self.kernels[kernel])
            case Gather(out, source, index):
                self.gather(out, source, index)
            case ScatterAdd(out, source, index, add):
                self.scatter_add(out, source, index, add)
            case SumAxes(out, source, axes):
                self.sum_axes(out, source, axes)
            case FirstLast(out, source, kind):
                which = "_run_bounds" if kind.startswith("run") else "_id_bounds"
                last = kind.endswith("last")
                self.w.line(f"{python_name(out.name)} = {which}({python_name(source)}, {last}).to({dtype(out)})")

    def alloc(self, tensor: Tensor, fill: float | None, like: str) -> None:
        name, kind = python_name(tensor.name), f"dtype={dtype(tensor)}"
        if like:
            model = self.tensors[like]
            source = python_name(like)
            if _same_shape(tensor, model):
                same = model.dtype == tensor.dtype
                make = f"torch.empty_like({source})" if same else f"torch.empty_like({source}, {kind})"
            else:
                make = f"_empty_ordered({source}, {shape(tensor)}, {dtype(tensor)})"
            self.w.line(f"{name} = {make}" + (f".fill_({fill!r})" if fill is not None else ""))
        elif fill is None:
            self.w.line(f"{name} = torch.empty({shape(tensor)}, {kind}, device=device)")
        elif fill == 0:
            self.w.line(f"{name} = torch.zeros({shape(tensor)}, {kind}, device=device)")
        else:
            value = "-math.inf" if fill == float("-inf") else "math.inf" if fill == float("inf") else repr(fill)
            self.w.line(f"{name} = torch.full({shape(tensor)}, {value}, {kind}, device=device)")

    def launch(self, kernel: Kernel) -> None:
        if not self.launches:
            args = [python_name(n) for n in (*kernel.tensors, *host_scalars(kernel))]
            self.w.call(kernel_function(kernel), args)
            return
        passed = signature(self.program, kernel)
        self.describe(kernel)
        for arg in passed:
            if arg.kind == "pointer":
                self.unpack(self.tensors[arg.name])
        config = [f"warps={kernel.config.warps}", f"stages={kernel.config.stages}"]
        if kernel.config.registers:
            config.append(f"registers={kernel.config.registers}")
        self.w.call(
            "_launch", [kernel_function(kernel), programs_of(kernel), _tuple([a.name for a in passed]), *config]
        )

    def describe(self, kernel: Kernel) -> None:
        """Names for the descriptors of a kernel; those of an equal box are there already."""
        copied = boxes(kernel, self.tensors)
        for tensor, named in copied.items():
            for name, box in named.items():
                if self.described.get(name) != box:
                    self.described[name] = box
                    self.w.line(f"{python_name(name)} = {box.described(python_name(tensor))}")

    def unpack(self, tensor: Tensor) -> None:
        """Names for a tensor's strides, before the first launch that passes them."""
        names = strides(tensor)
        if names and tensor.name not in self.unpacked:
            self.unpacked.add(tensor.name)
            left = ", ".join([*names, *(["_"] if tensor.unit else [])])
            self.w.line(f"{left}{',' if len(tensor.axes) == 1 else ''} = {python_name(tensor.name)}.stride()")

    def gather(self, out: Tensor, source: str, index: tuple[Expr, ...]) -> None:
        extents = dict(zip(out.axes, out.extents, strict=True))
        found = f"{python_name(source)}[{', '.join(index_tables(index, extents))}]"
        same = self.tensors[source].dtype == out.dtype
        full = f"{found}.expand({shape(out)})" if not _covers(index, out.axes) else found
        cast = "" if same else f".to({dtype(out)})"
        tail = ".contiguous()" if not _covers(index, out.axes) else ""
        self.w.line(f"{python_name(out.name)} = {full}{cast}{tail}")

    def scatter_add(self, out: Tensor, source: str, index: tuple[Expr, ...], add: bool) -> None:
        origin = self.tensors[source]
        extents = dict(zip(origin.axes, origin.extents, strict=True))
        name = python_name(out.name)
        wide = "torch.float64" if origin.dtype == "f64" else "torch.float32"
        if add:
            wide = dtype(out)
        else:
            self.w.line(f"{name} = torch.zeros({shape(out)}, dtype={wide}, device=device)")
        tables = (f"torch.full((), {x}, device=device)" if x.isdigit() else x for x in index_tables(index, extents))
        self.w.call(
            f"{name}.index_put_",
            [f"({', '.join(tables)},)", f"{python_name(source)}.to({wide})", "accumulate=True"],
        )
        if dtype(out) != wide:
            self.w.line(f"{name} = {name}.to({dtype(out)})")

    def sum_axes(self, out: Tensor, source: str, axes: tuple[str, ...]) -> None:
        origin = self.tensors[source]
        dims = tuple(origin.axes.index(a) for a in axes)
        left = tuple(a for a in origin.axes if a not in axes)
        text = python_name(source)
        if dims:
            text = f"{text}.sum({dims})"
        if left != out.axes:
            text = f"{text}.permute({tuple(left.index(a) for a in out.axes)}).contiguous()"
        if origin.dtype != out.dtype:
            text = f"{text}.to({dtype(out)})"
        self.w.line(f"{python_name(out.name)} = {text}")


def _tuple(names: list[str]) -> str:
    listed = ", ".join(python_name(n) for n in names)
    return f"({listed},)" if len(names) == 1 else f"({listed})"


def _covers(index: tuple[Expr, ...], axes: tuple[str, ...]) -> bool:
    return set(axes) <= {n for e in index for n in free_vars(e)}


TORCH_DTYPE = {
    "f64": "torch.float64",
    "f32": "torch.float32",
    "f16": "torch.float16",
    "bf16": "torch.bfloat16",
    "i64": "torch.int64",
    "i32": "torch.int32",
    "u8": "torch.uint8",
    "bool": "torch.bool",
}


def dtype(tensor: Tensor) -> str:
    """The torch dtype of `tensor`, as text."""
    return TORCH_DTYPE[tensor.dtype]


def shape(tensor: Tensor) -> str:
    """The shape of `tensor` as a Python tuple of host expressions."""
    parts = [spell(e) for e in tensor.extents]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
