"""The interpreter: what a Program of the Tile IR means, on numpy, one grid point at a time, every promise checked.

It is slow and trusts nothing. It finds indices outside their tensors, elements read before or stored twice, races
between programs and between partitions, ranges that overlap, deadlocks, and NaNs made of numbers; and it counts how
often each pair (query row, key) was visited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np

from attncc.expr.nodes import Const, Var
from attncc.tile.interpret_faults import InterpretError, TypeFault
from attncc.tile.interpret_host import extents_of, host_step
from attncc.tile.interpret_kernel import Launched
from attncc.tile.interpret_memory import GlobalTensor
from attncc.tile.interpret_ranges import Visits
from attncc.tile.interpret_values import Array, host_value, rounded, scalar
from attncc.tile.nodes import (
    Alloc,
    Dtype,
    FirstLast,
    Gather,
    Kernel,
    Launch,
    Program,
    ScatterAdd,
    Step,
    SumAxes,
    Tensor,
)

Number = float | bool
"""int, float or bool."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run made: outputs by name, all other tensors, and the visit counters by kernel (and partition)."""

    outputs: dict[str, Array]
    tensors: dict[str, Array]
    visits: dict[str, Visits]


@dataclass(slots=True)
class _Run:
    program: Program
    scalars: dict[str, Number]
    rng: np.random.Generator
    check: bool
    tensors: dict[str, GlobalTensor] = field(default_factory=dict)
    visits: dict[str, Visits] = field(default_factory=dict)

    def real(self) -> Dtype:
        return "f64" if any(t.dtype == "f64" for t in self.program.inputs) else "f32"

    def step(self, step: Step) -> None:
        match step:
            case Alloc(tensor, fill):
                new = GlobalTensor.unwritten(tensor.name, tensor.axes, tensor.dtype, extents_of(tensor, self.scalars))
                if fill is not None:
                    new.data[...] = rounded(np.asarray(fill), tensor.dtype)
                    new.written[...] = True
                self.tensors[tensor.name] = new
            case Launch(name):
                kernel = next((k for k in self.program.kernels if k.name == name), None)
                if kernel is None:
                    raise TypeFault(f"launch of {name}, which is no kernel of the program")
                self.launch(kernel)
            case Gather() | ScatterAdd() | SumAxes() | FirstLast():
                self.tensors[step.out.name] = host_step(step, self.tensors, self.scalars)
            case _:
                assert_never(step)

    def launch(self, kernel: Kernel) -> None:
        missing = [t for t in kernel.tensors if t not in self.tensors]
        missing += [s for s in kernel.scalars if s not in self.scalars]
        if missing:
            raise TypeFault(f"kernel {kernel.name} wants {', '.join(missing)}, which the program does not have yet")
        sorts = {s.name: s.sort for s in self.program.scalars}
        kinds: dict[str, Dtype] = {"int": "i64", "bool": "bool", "real": self.real()}
        scalars = {n: scalar(x, kinds[sorts[n]]) for n, x in self.scalars.items() if n in sorts}
        tensors = {n: self.tensors[n] for n in kernel.tensors}
        Launched(kernel, tensors, scalars, self.rng, self.check, self.visits).run()


def _bind_sizes(program: Program, inputs: Mapping[str, Array], constants: Mapping[str, Number]) -> dict[str, Number]:
    """All scalars: sizes by the inputs' extents, constants as given, then the computed ones in order."""
    found: dict[str, Number] = dict(constants)
    for tensor in program.inputs:
        if len(inputs[tensor.name].shape) != len(tensor.axes):
            raise TypeFault(f"{tensor.name} has {len(inputs[tensor.name].shape)} axes, not {len(tensor.axes)}")
        for e, n in zip(tensor.extents, inputs[tensor.name].shape, strict=True):
            if isinstance(e, Var) and found.setdefault(e.name, n) != n:
                raise TypeFault(f"{tensor.name}: {e.name} is {found[e.name]} elsewhere and {n} here")
    for s in program.scalars:
        if s.value is not None:
            found[s.name] = host_value(s.value, found)
        elif s.name not in found:
            raise TypeFault(f"scalar {s.name} is neither a size of an input nor given")
    for tensor in program.inputs:
        if extents_of(tensor, found) != inputs[tensor.name].shape:
            raise TypeFault(f"{tensor.name} is {inputs[tensor.name].shape}, declared {extents_of(tensor, found)}")
    return found


def run_program(
    program: Program,
    inputs: Mapping[str, Any],
    constants: Mapping[str, Number] | None = None,
    *,
    seed: int = 0,
    check: bool = True,
) -> Report:
    """Runs the steps of `program` on numpy arrays. `seed` decides every order that is left open; `check` also refuses
    NaNs made of numbers. Inputs are rounded to their element types; f16 and bf16 come back in float32."""
    missing = [t.name for t in program.inputs if t.name not in inputs]
    if missing:
        raise TypeFault(f"inputs {', '.join(missing)} are missing")
    arrays = {t.name: rounded(np.asarray(inputs[t.name]), t.dtype) for t in program.inputs}
    run = _Run(program, _bind_sizes(program, arrays, constants or {}), np.random.default_rng(seed), check)
    for t in program.inputs:
        run.tensors[t.name] = GlobalTensor(t.name, t.axes, t.dtype, np.array(arrays[t.name]))
    try:
        for step in program.steps:
            run.step(step)
        for name in program.outputs:
            run.tensors[name].finish()
    except InterpretError as fault:
        raise fault.at(f"program {program.name}") from None
    data = {n: t.data for n, t in run.tensors.items()}
    return Report({n: data[n] for n in program.outputs}, data, run.visits)


def run_kernel(
    kernel: Kernel,
    tensors: Mapping[str, Any],
    scalars: Mapping[str, Number],
    *,
    dtypes: Mapping[str, Dtype] | None = None,
    seed: int = 0,
    check: bool = True,
) -> Report:
    """Runs one kernel alone on numpy arrays, the results of which `Report.outputs` holds (inputs are not changed).

    An array of NaN only is a tensor still to be written. Element types are those of the arrays, or `dtypes`.
    """
    declared, sorts = [], []
    for name in kernel.tensors:
        data = np.asarray(tensors[name])
        axes = tuple(f"a{n}" for n in range(data.ndim))
        kind = (dtypes or {}).get(name) or _dtype(data)
        declared.append(Tensor(name, axes, tuple(Const(n, "int") for n in data.shape), kind))
        sorts.append(data)
    run = _Run(
        Program("kernel", tuple(declared), (), (kernel,), (), ()), dict(scalars), np.random.default_rng(seed), check
    )
    for t, data in zip(declared, sorts, strict=True):
        empty = data.dtype.kind == "f" and data.size > 0 and bool(np.isnan(data).all())
        new = GlobalTensor(t.name, t.axes, t.dtype, rounded(np.array(data), t.dtype), written=not empty)
        run.tensors[t.name] = new
    values = {n: _scalar(x, run.real()) for n, x in scalars.items()}
    Launched(kernel, {n: run.tensors[n] for n in kernel.tensors}, values, run.rng, check, run.visits).run()
    out = {n: t.data for n, t in run.tensors.items()}
    return Report(out, out, run.visits)


def _scalar(x: Number, real: Dtype) -> Any:
    return scalar(x, "bool" if isinstance(x, bool) else "i64" if isinstance(x, int) else real)


def _dtype(data: Array) -> Dtype:
    table: dict[str, Dtype] = {"float64": "f64", "float32": "f32", "float16": "f16", "bool": "bool", "uint8": "u8"}
    return table.get(data.dtype.name, "i64" if data.dtype.itemsize == 8 else "i32")
