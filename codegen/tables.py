"""Index expressions over named axes as broadcast integer tensors: the host's gathers and scatters."""

from __future__ import annotations

from attncc.codegen.scalars import CALL, TERNARY, python_name, spell
from attncc.codegen.torch_exprs import Text, dims, tensor_text
from attncc.expr.nodes import Expr, Var


def index_tables(index: tuple[Expr, ...], extents: dict[str, Expr]) -> list[str]:
    """One text per index: each a tensor that broadcasts over all axes of `extents` in their order, or a number.

    Reals inside an index are float64, so integer functions of logarithms agree with the host's own.
    """
    axes = list(extents)

    def leaf(v: Var) -> Text:
        if v.name not in extents:
            return Text(python_name(v.name), CALL, False, v.sort)
        line = f"torch.arange({spell(extents[v.name])}, device=device)"
        return Text(dims(line, len(axes) - 1 - axes.index(v.name)), CALL, True, v.sort)

    return [tensor_text(e, leaf, "torch.float64").at(TERNARY) for e in index]
