"""Programs whose heads share no keys.

rewrite: G --> H, and G is no argument any more
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from attncc.expr.build import ivar
from attncc.expr.nodes import Expr, substitute
from attncc.tile import nodes as t

G, H = ivar("G"), ivar("H")


def without_groups(program: t.Program) -> t.Program:
    """`program` for as many kv heads as heads."""
    renamed: t.Program = _renamed(program)
    kernels = tuple(replace(k, scalars=tuple(s for s in k.scalars if s != "G")) for k in renamed.kernels)
    return replace(renamed, kernels=kernels, scalars=tuple(s for s in renamed.scalars if s.name != "G"))


def _renamed(x: Any) -> Any:
    match x:
        case Expr():
            return substitute(x, {G: H})
        case tuple():
            return tuple(_renamed(y) for y in x)
        case _ if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return replace(x, **{f.name: _renamed(getattr(x, f.name)) for f in dataclasses.fields(x)})
        case _:
            return x
