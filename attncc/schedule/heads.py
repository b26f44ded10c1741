"""Programs of fewer sizes: where heads share no keys, or there is one token.

rewrite: G --> H, and G is no argument any more; M, N --> 1
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from attncc.expr.build import ivar
from attncc.expr.nodes import Const, Expr, substitute
from attncc.tile import nodes as t

H, ONE = ivar("H"), Const(1, "int")


def without_groups(program: t.Program) -> t.Program:
    """`program` for as many kv heads as heads."""
    return _with_sizes(program, {"G": H})


def of_one_token(program: t.Program) -> t.Program:
    """`program` for one token and its row."""
    return _with_sizes(program, {"M": ONE, "N": ONE})


def _with_sizes(program: t.Program, known: dict[str, Expr]) -> t.Program:
    renamed: t.Program = _renamed(program, {ivar(n): size for n, size in known.items()})
    kernels = tuple(replace(k, scalars=tuple(s for s in k.scalars if s not in known)) for k in renamed.kernels)
    return replace(renamed, kernels=kernels, scalars=tuple(s for s in renamed.scalars if s.name not in known))


def _renamed(x: Any, sizes: dict[Expr, Expr]) -> Any:
    match x:
        case Expr():
            return substitute(x, sizes)
        case tuple():
            return tuple(_renamed(y, sizes) for y in x)
        case _ if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return replace(x, **{f.name: _renamed(getattr(x, f.name), sizes) for f in dataclasses.fields(x)})
        case _:
            return x
