"""Source and reports of a family without a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from attncc.runtime.family import Family, Half, Which
from attncc.runtime.interface import Interface, Number
from attncc.runtime.states import first_compiled
from attncc.schedule.variant import Form, Layout, Target, Variant
from attncc.tile.nodes import Dtype


def usual_variant(face: Interface, target: Target, dtype: Dtype | None = None, D: int = 64, E: int = 64) -> Variant:
    """The variant of contiguous inputs that all need gradients; captured reals are f32, integers i32."""
    kinds: dict[str, Dtype] = {"real": "f32", "int": "i32", "bool": "bool"}
    kind = dtype or ("f32" if target == "torch" else "bf16")
    return Variant(
        target=target,
        D=D,
        E=E,
        dtype=kind,
        captured=tuple((p.name, kinds[p.sort]) for p in face.params),
        layouts=() if target == "torch" else _layouts(D, E, 4 if kind == "f32" else 2),
        gradients=face.real,
    )


def _layouts(D: int, E: int, item: int) -> tuple[tuple[str, Layout], ...]:
    """Rows of so many channels that they are no multiple of 16 bytes can't promise it."""
    rows = ((D, ("q", "k", "d_q", "d_k")), (E, ("v", "out", "d_out", "d_v")))
    return tuple((n, Layout(aligned=False)) for size, names in rows if size * item % 16 for n in names)


def usual_source(family: Family, which: Which, backend: str) -> str:
    """The printed source of the usual variant: forward alone, or with its backward."""
    import torch

    gpu = backend in ("triton", "gluon", "interpret") or (backend == "auto" and torch.cuda.is_available())
    hopper = gpu and torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    split = backend == "gluon" or (backend == "auto" and hopper)
    variant = usual_variant(family.face, "gluon" if split else "triton" if gpu else "torch")
    if which == "forward":
        variant = dataclasses.replace(variant, gradients=())
    return family.source(*programs(family, variant))


def programs(family: Family, variant: Variant) -> tuple[Any, Variant]:
    """The programs of a variant, and the variant: of a state program in the first form that compiles."""
    if not family.face.states:
        return family.programs(variant), variant

    def made(form: Form) -> tuple[Any, Variant]:
        chosen = dataclasses.replace(variant, form=form)
        return family.programs(chosen), chosen

    return first_compiled(("chunk", "recurrent"), made)


def report(family: Family, constants: Mapping[str, Number]) -> str:
    """What the spec takes, and a line for each loaded forward and backward with its kernels."""
    face = family.face
    lines = [f"attention {face.name}"]
    lines += [f"  constant {name} = {value!r}" for name, value in constants.items()]
    lines += [f"  tensor   {p.name}: {p}" for p in face.params]
    lines += [f"  state    {s.name}: {s}" for s in face.states]
    lines.append(f"  lse      {'yes' if face.lse else 'no'}")
    for half in family.halves:
        lines += _half_lines(half, bool(face.states))
    return "\n".join(lines)


def _half_lines(half: Half, states: bool) -> list[str]:
    v = half.variant
    flow = f"{', '.join(half.inputs)} -> {', '.join(half.outputs)}"
    walk = {"chunk": ", in chunks", "recurrent": ", token by token"}[v.form] if states else ""
    lines = [f"  {half.which:<8} {tier(half)} {v.dtype} D={v.D} E={v.E}{walk}: {flow}"]
    if v.target == "gluon" and not half.partitioned:
        lines.append(f"    not partitioned: {half.reason}")
    for kernel in half.kernels:
        b = kernel.binary
        kind = "partitioned, " if b.maps else ""
        lines.append(
            f"    kernel {b.name}: {kind}{b.warps} warps, {b.shared} bytes shared, {len(b.image)} bytes of code"
        )
    return lines


def tier(half: Half) -> Target:
    """What a half runs as: partitioned kernels are in Gluon, what could not be is plain Triton."""
    if half.variant.target != "gluon":
        return half.variant.target
    return "gluon" if half.partitioned else "triton"
