"""What was derived from a spec, as text: its face, a picture of the mask, the bounds, the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from attncc.expr.nodes import Const, Expr, Var, rewrite, walk
from attncc.ir.nodes import Load, Segment, Spec, Weights
from attncc.runtime.interface import Interface, Number, interface_of
from attncc.runtime.reads import encode, pairs
from attncc.tile.nodes import Kernel, Partitions
from attncc.tile.text_expr import spell_expr

if TYPE_CHECKING:
    from attncc.passes import Unit
    from attncc.passes.bounds import Bounds
    from attncc.schedule.programs import Pair
    from attncc.tile.nodes import Program

_SIDE = 24
"""Rows and columns of the picture."""


def explain(spec: Spec, unit: Unit, pair: Pair, constants: Mapping[str, Number]) -> str:
    """The whole report; `unit` is the spec after all passes, `pair` its programs."""
    face = interface_of(spec)
    parts = [_face(face, constants), picture(spec, constants)]
    if unit.by_row is not None:
        parts.append("keys of a query at position i:\n" + bounds_text(unit.by_row))
    if unit.by_key is not None:
        parts.append("queries of a key at position j:\n" + bounds_text(unit.by_key))
    for program in (pair.forward, pair.backward):
        if program is not None:
            parts.append(_program(program))
    return "\n\n".join(parts)


def _face(face: Interface, constants: Mapping[str, Number]) -> str:
    lines = [f"attention {face.name}"]
    lines += [f"  constant {name} = {value!r}" for name, value in constants.items()]
    lines += [f"  tensor   {p.name}: {p}" for p in face.params]
    lines.append("  lse      of its one normaliser" if face.lse else "  lse      none")
    lines += [f"  checked at each call: {r[0]} is read in range" for r in {r[0]: r for r in face.reads}.values()]
    return "\n".join(lines)


def picture(spec: Spec, constants: Mapping[str, Number]) -> str:
    """The first mask, sampled: `#` allowed, `?` by the values of a tensor, `.` masked. Queries run down."""
    found = [n for s in [*spec.statements, spec.out] for n in walk(s.body) if isinstance(n, Weights)]
    if not found:
        return "no weights over the keys"
    size = max([_SIDE, *(min(2 * c, 2**16) for c in constants.values() if type(c) is int)])
    at = torch.linspace(0, size - 1, _SIDE).round().long()
    params = {p.name: p for p in spec.params}
    yes, no = pairs(encode(found[0].mask, params), {"B": 1, "H": 1, "G": 1, "M": size, "N": size, **constants}, at)
    marks = {(True, False): "#", (True, True): "?"}
    rows = [[marks.get(m, ".") for m in zip(*r, strict=True)] for r in zip(yes, no, strict=True)]
    step = "" if size == _SIDE else f", sampled every {round(size / _SIDE)} positions"
    head = f"mask at M = N = {size}{step} (queries down, keys across):"
    return "\n".join([head, *(f"  {' '.join(row)}" for row in rows)])


def bounds_text(bounds: Bounds) -> str:
    """One line or two an alternative."""
    lines = []
    for a in bounds.alternatives:
        rows = "" if a.rows == Const(True, "bool") else f"  where {text(a.rows)}"
        lines.append(f"  {text(a.lower)} <= {bounds.index} < {text(a.upper)}{rows}")
        if not a.exact:
            lines.append(f"    surely from {text(a.full_lower)} to {text(a.full_upper)}")
        lines += [f"    also {text(r)}" for r in a.residue]
    return "\n".join(lines or ["  none"])


def _program(program: Program) -> str:
    lines = [f"{program.name}: {', '.join(t.name for t in program.inputs)} -> {', '.join(program.outputs)}"]
    if program.note:
        lines.append(f"  {program.note}")
    for k in program.kernels:
        grid = " x ".join(f"{text(g.extent)}/{g.tile}" if g.tile > 1 else text(g.extent) for g in k.grid)
        lines.append(f"  kernel {k.name}: grid {grid}, {_warps(k)}")
    return "\n".join(lines)


def _warps(kernel: Kernel) -> str:
    for s in kernel.body:
        if isinstance(s, Partitions):
            return f"partitioned: {', '.join(f'{p.name} {p.warps}' for p in s.parts)} warps"
    return f"{kernel.config.warps} warps, {kernel.config.stages} stages"


def text(e: Expr) -> str:
    """An index expression as text, its reads as in the language."""
    shown: dict[str, str] = {}

    def named(x: Expr) -> Expr | None:
        match x:
            case Load(tensor, index, sort):
                words = f"{tensor}[{', '.join(spelled(i) for i in index)}]"
            case Segment(tensor, at, sort):
                words = f"segment({tensor}, {spelled(at)})"
            case _:
                return None
        key = f"read{len(shown)}_"
        shown[key] = words
        return Var(key, sort)

    def spelled(x: Expr) -> str:
        plain = rewrite(x, named)
        found = spell_expr(plain, {v.name: v.sort for v in walk(plain) if isinstance(v, Var)})
        for key in reversed(shown):
            found = found.replace(key, shown[key])
        return found

    return spelled(e)
