"""What is found about products before printing: numbers they are multiplied by, matrices that nothing else reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attncc.codegen.torch_reads import mapped, operands
from attncc.expr.nodes import Const, Expr, Op, Var, rewrite, walk
from attncc.tile import nodes as t
from attncc.tile.walks import every

if TYPE_CHECKING:
    from attncc.codegen.torch_facts import Facts


def scaled_products(body: tuple[t.Stmt, ...], facts: Facts) -> tuple[t.Stmt, ...]:
    """rewrite: s = a @ b; ... s * number ... --> s = (a @ b) * number, where s is read in no other way."""
    uses: dict[str, int] = {}
    factors: dict[str, set[Expr]] = {}
    dots: set[str] = set()
    for s in every(body):
        if isinstance(s, t.Let) and isinstance(s.op, t.Dot) and s.op.start is None:
            dots.add(s.name)
    for s in every(body):
        match s:
            case t.Let(_, _, t.Map(e)):
                for name, factor in _factors(e, dots, facts):
                    factors.setdefault(name, set()).add(factor)
            case t.For(_, over, carried):
                for n in (*operands(over), *(c.start for c in carried)):
                    uses[n] = uses.get(n, 0) + 1
            case t.If():
                pass
            case _:
                for n in operands(s):
                    uses[n] = uses.get(n, 0) + 1
    one = Const(1.0, "real")
    for name in dots:
        found = factors.get(name, set())
        if name not in uses and len(found) == 1 and one not in found:
            facts.scale[name] = next(iter(found))
    return _substituted(body, facts)


def only_multiplied(body: tuple[t.Stmt, ...], facts: Facts) -> frozenset[str]:
    """Loaded matrices of every batch position that only products read."""
    loads = {s.name for s in every(body) if isinstance(s, t.Let) and isinstance(s.op, t.Load)}
    loads = {n for n in loads if len(facts.types[n].axes) == 2 and len(facts.varies[n]) == len(facts.batch) > 1}
    for s in every(body):
        match s:
            case t.Let(name, type, t.Dot(a, b, _, start)) if len(type.axes) == 2:
                flat = all(isinstance(x, str) and len(facts.types[x].axes) == 2 for x in (a, b))
                loads -= {start} if flat and facts.varies[name] else {a, b, start}
            case t.For(_, over, carried):
                loads -= {*operands(over), *(c.start for c in carried)}
            case t.If(condition):
                loads -= set(operands(condition))
            case _:
                loads -= set(operands(s))
    return frozenset(loads)


def _factors(e: Expr, dots: set[str], facts: Facts) -> Iterator[tuple[str, Expr]]:
    """Each appearance of a product in `e` with the number it is multiplied by, 1 where there is none."""
    inside: set[Expr] = set()
    for node in walk(e):
        pair = _times(node, dots, facts)
        if pair is not None:
            yield pair[0].name, pair[1]
            inside.add(node)
    for node in walk(e):
        if node not in inside and isinstance(node, Op):
            for a in node.args:
                if isinstance(a, Var) and a.name in dots:
                    yield a.name, Const(1.0, "real")
    if isinstance(e, Var) and e.name in dots:
        yield e.name, Const(1.0, "real")


def _times(node: Expr, dots: set[str], facts: Facts) -> tuple[Var, Expr] | None:
    match node:
        case Op("mul", (x, y)):
            for v, c in ((x, y), (y, x)):
                if isinstance(v, Var) and v.name in dots and facts.is_number(c) and facts.known(c, v.name):
                    return v, c
    return None


def _substituted(body: tuple[t.Stmt, ...], facts: Facts) -> tuple[t.Stmt, ...]:
    names = set(facts.scale)

    def rule(node: Expr) -> Expr | None:
        pair = _times(node, names, facts)
        return pair[0] if pair is not None and facts.scale[pair[0].name] is pair[1] else None

    return tuple(mapped(s, lambda e: rewrite(e, rule)) for s in body)
