"""canonicalize: one shape for what the later passes match.

rewrite: D, E  --> their numbers
rewrite: table[min(31, 32 // 2 + x), h]  --> table[min(31, 16 + x), h]; indices are not simplified later
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.algebra import fold
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite
from attncc.ir.nodes import Let, Out, Rebind, Spec, Statement


def canonicalize(spec: Spec, D: int, E: int) -> Spec:
    """The spec with its channel sizes fixed."""

    def rule(e: Expr) -> Expr | None:
        match e:
            case Var("D", _):
                return Const(D, "int")
            case Var("E", _):
                return Const(E, "int")
            case Op(name, args, _):
                return fold(name, args)
            case _:
                return None

    def fixed(e: Expr) -> Expr:
        return rewrite(e, rule)

    def statement(s: Statement) -> Statement:
        match s:
            case Let():
                return replace(s, body=fixed(s.body))
            case Rebind():
                return replace(s, body=fixed(s.body), channels=fixed(s.channels))

    params = tuple(replace(p, axes=tuple(replace(a, size=fixed(a.size)) for a in p.axes)) for p in spec.params)
    statements = tuple(statement(s) for s in spec.statements)
    return replace(spec, params=params, statements=statements, out=Out(fixed(spec.out.body), spec.out.span))
