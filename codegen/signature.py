"""What a kernel is called with: one list that the host's launches, the printed kernels and the compiler agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attncc.codegen.boxes import addressed, boxes
from attncc.errors import InternalError
from attncc.expr.nodes import Var, free_vars
from attncc.tile.nodes import Alloc, Dtype, FirstLast, Gather, Kernel, Program, Scalar, ScatterAdd, SumAxes, Tensor

ITEMSIZE: dict[Dtype, int] = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "u8": 1, "bool": 1}
POINTER: dict[Dtype, str] = {
    "f64": "*fp64",
    "f32": "*fp32",
    "f16": "*fp16",
    "bf16": "*bf16",
    "i64": "*i64",
    "i32": "*i32",
    "u8": "*u8",
    "bool": "*i1",
}
ALIGNMENT = 16
"""Bytes that the base and the strides of an aligned tensor are multiples of."""


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument of a kernel. `divisible`: the promised divisor of its value, 0 where there is none.

    `tensor` is what a pointer or a descriptor leads to.
    """

    kind: Literal["pointer", "stride", "scalar", "descriptor"]
    name: str
    type: str
    divisible: int = 0
    tensor: str = ""


def tensors(program: Program) -> dict[str, Tensor]:
    """Every tensor of `program` by name: its inputs and what its steps make."""
    made = [t for s in program.steps if (t := _made(s)) is not None]
    return {t.name: t for t in (*program.inputs, *made)}


def _made(step: object) -> Tensor | None:
    match step:
        case Alloc(tensor):
            return tensor
        case Gather(out) | ScatterAdd(out) | SumAxes(out) | FirstLast(out):
            return out
        case _:
            return None


def strides(tensor: Tensor) -> tuple[str, ...]:
    """The names of the strides a kernel is passed, in the order of the axes; none for a contiguous tensor."""
    if not tensor.strided:
        return ()
    axes = tensor.axes[:-1] if tensor.unit else tensor.axes
    return tuple(f"{tensor.name}_s{a}" for a in axes)


def signature(program: Program, kernel: Kernel) -> tuple[Arg, ...]:
    """The arguments of `kernel`: each tensor's pointer and strides, then the scalars.

    What a kernel copies in bulk it is passed descriptors of, one for each size of box, and no pointer unless it reads
    or writes there by address, too.
    """
    known = tensors(program)
    copied = boxes(kernel, known)
    others = addressed(kernel) if copied else set()
    args: list[Arg] = []
    for name in kernel.tensors:
        tensor = known.get(name)
        if tensor is None:
            raise InternalError(f"kernel {kernel.name} names tensor {name}, which program {program.name} does not have")
        args.extend(Arg("descriptor", d, box.type(), tensor=name) for d, box in copied.get(name, {}).items())
        if name in copied and name not in others:
            continue
        args.append(Arg("pointer", name, POINTER[tensor.dtype], ALIGNMENT if tensor.aligned else 0, name))
        step = ALIGNMENT // ITEMSIZE[tensor.dtype] if tensor.aligned else 0
        args.extend(Arg("stride", s, "i64", step) for s in strides(tensor))
    scalars = {s.name: s for s in program.scalars}
    args.extend(Arg("scalar", n, scalar_type(program, scalars[n])) for n in kernel.scalars)
    return tuple(args)


def kernel_function(kernel: Kernel) -> str:
    """The name a kernel is printed under: never that of a host function."""
    return kernel.name if kernel.name.endswith("_kernel") else f"{kernel.name}_kernel"


def host_scalars(kernel: Kernel) -> tuple[str, ...]:
    """What a kernel printed as a plain function is passed besides its tensors: its scalars and those of its grid."""
    grid = (n for axis in kernel.grid for n in sorted(free_vars(axis.extent)))
    return tuple(dict.fromkeys((*kernel.scalars, *grid)))


def scalar_type(program: Program, scalar: Scalar) -> str:
    """Integers are 32 bits; reals are as wide as the program computes."""
    if scalar.sort != "real":
        return "i32"
    return "fp64" if any(t.dtype == "f64" for t in program.inputs) else "fp32"


def sizes(program: Program) -> dict[str, tuple[str, int]]:
    """Where each size comes from: the first input with an axis of exactly that extent, and which axis it is."""
    free = {s.name for s in program.scalars if s.value is None}
    found: dict[str, tuple[str, int]] = {}
    for tensor in program.inputs:
        for axis, extent in enumerate(tensor.extents):
            if isinstance(extent, Var) and extent.name in free:
                found.setdefault(extent.name, (tensor.name, axis))
    return found


def constants(program: Program) -> tuple[Scalar, ...]:
    """The scalars a caller passes by name: those without a value that no input's shape defines."""
    known = sizes(program)
    return tuple(s for s in program.scalars if s.value is None and s.name not in known)
