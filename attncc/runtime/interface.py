"""What a call needs to know of a spec: its name, constants, captured tensors, and whether it has an lse.

It goes into the disk cache as plain data, so that a warm start neither reads nor checks the spec again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attncc.expr.nodes import Const, Expr, Op, Var, walk
from attncc.ir.nodes import Axis, ConstParam, Param, Spec, Weights


@dataclass(frozen=True, slots=True)
class Interface:
    """The face of a spec. `params` come without the bounds their author promises."""

    name: str
    constants: tuple[ConstParam, ...]
    params: tuple[Param, ...]
    lse: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all tensors, in the order in which compiled programs take them."""
        return ("q", "k", "v", *(p.name for p in self.params))

    @property
    def real(self) -> tuple[str, ...]:
        """The names of the tensors that have a gradient, in the same order."""
        return ("q", "k", "v", *(p.name for p in self.params if p.sort == "real"))


def interface_of(spec: Spec) -> Interface:
    """The interface of `spec`. It has an lse where exactly one normaliser is a ratio."""
    roots = [*(s.body for s in spec.statements), spec.out.body]
    ratios = {n for root in roots for n in walk(root) if isinstance(n, Weights) and n.normaliser.kind == "ratio"}
    params = tuple(Param(p.name, p.sort, p.axes, None, p.offsets) for p in spec.params)
    constants = tuple(ConstParam(c.name, c.value, c.sort) for c in spec.constants)
    return Interface(spec.name, constants, params, len(ratios) == 1)


def to_data(face: Interface) -> dict[str, Any]:
    """`face` as lists, strings and numbers."""
    return {
        "name": face.name,
        "constants": [[c.name, c.value, c.sort] for c in face.constants],
        "params": [
            [p.name, p.sort, [[a.index, _expr_to_data(a.size)] for a in p.axes], p.offsets] for p in face.params
        ],
        "lse": face.lse,
    }


def from_data(data: dict[str, Any]) -> Interface:
    """The inverse of `to_data`."""
    constants = tuple(ConstParam(name, value, sort) for name, value, sort in data["constants"])
    params = tuple(
        Param(name, sort, tuple(Axis(index, _expr_from_data(size)) for index, size in axes), None, offsets)
        for name, sort, axes, offsets in data["params"]
    )
    return Interface(data["name"], constants, params, data["lse"])


def _expr_to_data(e: Expr) -> list[Any]:
    match e:
        case Const(value, sort):
            return ["const", value, sort]
        case Var(name, sort):
            return ["var", name, sort]
        case Op(name, args, sort):
            return ["op", name, [_expr_to_data(a) for a in args], sort]
        case _:
            raise TypeError(f"an axis can't have the size {e!r}")


def _expr_from_data(data: list[Any]) -> Expr:
    match data:
        case ["const", value, sort]:
            return Const(value, sort)
        case ["var", name, sort]:
            return Var(name, sort)
        case ["op", name, args, sort]:
            return Op(name, tuple(_expr_from_data(a) for a in args), sort)
        case _:
            raise ValueError("no expression")
