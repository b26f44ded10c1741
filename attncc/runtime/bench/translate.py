"""Expressions of the Spec IR as Python functions of (b, h, i, j) over torch tensors: small source text, executed.

`i` is a query's row here, as libraries count it; the expressions count it in key coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attncc.expr.nodes import Const, Expr, Op, Var, free_vars, substitute, walk
from attncc.expr.spell import expand, spell
from attncc.ir.nodes import Load, S, Segment, Spec

_DIFFERENCE = Var("difference", "int")


class Unsayable(Exception):
    """The expression has a part that no function of one pair can say; the message names it."""


@dataclass(frozen=True)
class Setting:
    """What names in an expression mean: a call's sizes and captured tensors, and the axes these have."""

    sizes: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]


@dataclass
class _Writer:
    """Collects the tensors that the text reads."""

    setting: Setting
    real: str
    captured: dict[str, Tensor] = field(default_factory=dict)
    tables: dict[str, Tensor] = field(default_factory=dict)

    def text(self, e: Expr) -> str:
        return spell(expand(e, "torch"), "torch", self._leaf, {"int": "torch.int64", "real": self.real})

    def _leaf(self, e: Expr) -> str | None:
        match e:
            case Var("i", _):
                shift = self.setting.sizes["N"] - self.setting.sizes["M"]
                return f"(i + {shift})" if shift else "i"
            case Var("g", _):
                return f"(h // {self.setting.sizes['H'] // max(self.setting.sizes['G'], 1)})"
            case Var(name, _) if name in ("b", "h", "j", "s", _DIFFERENCE.name):
                return name
            case Load(tensor, index, _):
                return self._load(tensor, index)
            case Segment(tensor, at, _):
                return f"{self._segments(tensor)}[{self.text(at)}]"
            case Op("min" | "max" as name, (a, b), _) if isinstance(a, Const) or isinstance(b, Const):
                x, c = (a, b) if isinstance(b, Const) else (b, a)
                assert isinstance(c, Const)
                return f"torch.clamp({self.text(x)}, {'max' if name == 'min' else 'min'}={c.value!r})"
            case Const() | Op():
                return None
            case _:
                raise Unsayable(f"it has {type(e).__name__.lower()} in a score or mask")

    def _load(self, tensor: str, index: tuple[Expr, ...]) -> str:
        if tensor in self.tables:
            self.captured[tensor] = self.tables[tensor]
            return f"{tensor}[j - i + {self.setting.sizes['M'] - 1}]"
        if tensor not in self.setting.tensors:
            raise Unsayable(f"it reads {tensor} in a score or mask")
        self.captured[tensor] = self.setting.tensors[tensor]
        shift = self.setting.sizes["N"] - self.setting.sizes["M"]
        places = []
        for at, axis in zip(index, self.setting.axes[tensor], strict=True):
            rows = axis == "m" and shift
            places.append("i" if rows and at == Var("i", "int") else self.text(at) + (f" - {shift}" if rows else ""))
        return f"{tensor}[{', '.join(places)}]" if places else tensor

    def _segments(self, tensor: str) -> str:
        """An array over positions: which of the packed documents each lies in."""
        name = f"{tensor}_segment"
        ends = self.setting.tensors[tensor]
        positions = torch.arange(self.setting.sizes["N"], device=ends.device, dtype=ends.dtype)
        self.captured[name] = torch.searchsorted(ends[1:].contiguous(), positions, right=True)
        return name

    def tabulated(self, e: Expr) -> Expr:
        """`e` with rounded functions of j - i as tables, computed in double: a logarithm's last bit moves an edge."""
        i, j = Var("i", "int"), Var("j", "int")
        difference: dict[Expr, Expr] = {
            Op("sub", (j, i), "int"): _DIFFERENCE,
            Op("sub", (i, j), "int"): Op("neg", (_DIFFERENCE,), "int"),
        }
        found: dict[Expr, Expr] = {}
        inside: set[Expr] = set()
        for node in reversed(list(walk(e))):
            if node in inside or not isinstance(node, Op) or node.sort != "int" or not _rounds(node):
                continue
            flat = substitute(node, difference)
            if free_vars(flat) == {_DIFFERENCE.name} and not any(isinstance(n, Load | Segment) for n in walk(flat)):
                inside |= set(walk(node))
                found[node] = Load(self._table(flat), (Op("sub", (j, i), "int"),), "int")
        return substitute(e, found)

    def _table(self, e: Expr) -> str:
        """A table over all differences from -(N - 1) to M - 1."""
        sizes = self.setting.sizes
        device = next(iter(self.setting.tensors.values())).device
        differences = torch.arange(1 - sizes["N"], max(sizes["M"], 1), device=device)
        text = _Writer(self.setting, "torch.float64").text(e)
        name = f"table_{len(self.tables)}"
        self.tables[name] = _made(text, (_DIFFERENCE.name,), {})(differences).to(torch.int32)
        return name


def _rounds(e: Expr) -> bool:
    return any(isinstance(n, Op) and n.name in ("floor", "ceil") for n in walk(e))


def _made(text: str, arguments: tuple[str, ...], captured: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The function; captured tensors are variables of an enclosing scope, where compilers of functions find them."""
    code = f"def make({', '.join(captured)}):\n    def function({', '.join(arguments)}):\n        return {text}\n"
    names: dict[str, Any] = {"torch": torch}
    exec(code + "    return function\n", names)
    made: Callable[..., Any] = names["make"](*captured.values())
    return made


def setting_of(spec: Spec, sizes: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Setting:
    """The setting of a call."""
    axes = {p.name: tuple(a.index for a in p.axes) for p in spec.params}
    return Setting(sizes, {n: t.detach() for n, t in tensors.items() if n in axes}, axes)


def pair_function(e: Expr, setting: Setting, *, scored: bool = False) -> Callable[..., Any]:
    """`e` as f(b, h, i, j), or as f(s, b, h, i, j) where it is a score; Unsayable where it isn't one.

    `e` has only numbers for constants and sizes (see form.folded).
    """
    writer = _Writer(setting, "torch.float32")
    text = writer.text(writer.tabulated(e))
    return _made(text, (*((S.name,) if scored else ()), "b", "h", "i", "j"), writer.captured)


def depends_on(e: Expr, index: str) -> bool:
    """Whether an index is free in `e`; g is a function of h."""
    return bool(free_vars(e) & ({"h", "g"} if index == "h" else {index}))
