"""Index expressions over named axes as broadcast integer tensors: the host's gathers and scatters."""

from __future__ import annotations

import hashlib

from attncc.codegen.scalars import CALL, TERNARY, python_name, spell
from attncc.codegen.torch_exprs import Text, dims, tensor_text
from attncc.expr.nodes import Expr, Op, Var, free_vars, walk


def rounds(e: Expr) -> bool:
    """Whether `e` rounds reals to integers."""
    return any(isinstance(n, Op) and n.name in ("floor", "ceil") for n in walk(e))


def index_tables(index: tuple[Expr, ...], extents: dict[str, Expr]) -> list[str]:
    """One text per index: each a tensor that broadcasts over all axes of `extents` in their order, or a number.

    An index that rounds reals is computed in float64 by the CPU and kept for the next call: other devices'
    logarithms may differ in the last bit, and a bucket's edge would move with it.
    """
    return [_kept(e, extents) if rounds(e) else _table(e, extents, "device") for e in index]


def _kept(e: Expr, extents: dict[str, Expr]) -> str:
    names = {n for x in (e, *extents.values()) for n in free_vars(x)} - set(extents)
    text = _table(e, extents, '"cpu"').replace("device=device", 'device="cpu"')
    key = ", ".join([repr(hashlib.sha256(text.encode()).hexdigest()[:8]), *sorted(python_name(n) for n in names)])
    return f"_kept(({key}), device, lambda: {text})"


def _table(e: Expr, extents: dict[str, Expr], device: str) -> str:
    axes = list(extents)

    def leaf(v: Var) -> Text:
        if v.name not in extents:
            return Text(python_name(v.name), CALL, False, v.sort)
        line = f"torch.arange({spell(extents[v.name])}, device={device})"
        return Text(dims(line, len(axes) - 1 - axes.index(v.name)), CALL, True, v.sort)

    return tensor_text(e, leaf, "torch.float64").at(TERNARY)
