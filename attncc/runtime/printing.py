"""Source and reports of a family without a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from attncc.runtime.family import Family, Half, Which
from attncc.runtime.interface import Interface, Number
from attncc.schedule.variant import Layout, Target, Variant
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
    return family.source(family.programs(variant), variant)


def report(family: Family, constants: Mapping[str, Number]) -> str:
    """What the spec takes, and a line for each loaded forward and backward with its kernels."""
    face = family.face
    lines = [f"attention {face.name}"]
    lines += [f"  constant {name} = {value!r}" for name, value in constants.items()]
    lines += [f"  tensor   {p.name}: {p}" for p in face.params]
    lines.append(f"  lse      {'yes' if face.lse else 'no'}")
    for half in family.halves:
        lines += _half_lines(half)
    return "\n".join(lines)


def _half_lines(half: Half) -> list[str]:
    v = half.variant
    flow = f"{', '.join(half.inputs)} -> {', '.join(half.outputs)}"
    lines = [f"  {half.which:<8} {tier(half)} {v.dtype} D={v.D} E={v.E}: {flow}"]
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
