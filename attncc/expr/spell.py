"""Expressions as source text, from the op table's spellings. It knows no printer by name; the tables do."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attncc.expr.nodes import Const, Expr, Op
from attncc.expr.ops_spelling import ATOM, EXPANSIONS, SIGN, SPELLINGS, Spelling
from attncc.expr.order import scalar_walk

Leaf = Callable[[Expr], str | None]
"""The text of a node that is already a name in scope (a Var, an Atom, a common sub-expression); None of others."""


def expand(e: Expr, printer: str) -> Expr:
    """`e` without the operations that `printer` can't spell."""
    table = SPELLINGS[printer]
    done: dict[Expr, Expr] = {}
    for node in scalar_walk(e):
        if not isinstance(node, Op):
            done[node] = node
            continue
        args = tuple(done[a] for a in node.args)
        if node.name in table:
            done[node] = Op(node.name, args, node.sort)
        else:
            done[node] = expand(EXPANSIONS[node.name](*args), printer)
    return done[e]


def spell(
    e: Expr,
    printer: str,
    leaf: Leaf,
    types: Mapping[str, str] | None = None,
    known: Callable[[Expr], bool] | None = None,
) -> str:
    """`e` as an expression of `printer`, which must be able to spell its operations (see `expand`).

    `types` gives the printer's names for {int} and {real}; `known(x)` says that an integer is proved to be >= 0, for
    the printers that have a shorter spelling then. Shared nodes are written out each time: name them first.
    """
    texts: dict[Expr, tuple[str, int]] = {}
    named = {"int": "int", "real": "float", **(types or {})}
    for node in scalar_walk(e):
        text = leaf(node)
        if text is not None:
            texts[node] = text, ATOM
        elif isinstance(node, Const):
            texts[node] = _constant(node)
        elif isinstance(node, Op):
            row = _row(node, printer, known)
            args = [_fit(*texts[a], level) for a, level in zip(node.args, row.inner, strict=False)]
            texts[node] = row.template.format(*args, **named), row.level
        else:
            raise KeyError(node)
    return texts[e][0]


def _row(node: Op, printer: str, known: Callable[[Expr], bool] | None) -> Spelling:
    short = SPELLINGS.get(f"{printer}_nonneg", {}).get(node.name)
    if short is not None and known is not None and all(known(a) for a in node.args):
        return short
    return SPELLINGS[printer][node.name]


def _fit(text: str, level: int, wanted: int) -> str:
    return text if level >= wanted else f"({text})"


def _constant(c: Const) -> tuple[str, int]:
    if c.value in (float("inf"), float("-inf")):
        return f'float("{c.value}")', ATOM
    return repr(c.value), ATOM if c.value >= 0 else SIGN
