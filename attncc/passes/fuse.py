"""fuse: arrays that are cheaper to compute again than to store.

rewrite: let x[b, h, i] = f(...); out = g(x[b, h, j])  --> out = g(f(...) at j)

The statements of a spec are a graph: an edge where one reads what another defines. A pointwise `let` (no reduction,
scan or weights in it) is contracted into its readers, in topological order, so that a chain of them disappears whole;
an emitted one stays, and its readers still don't load it. The graph of what is left is acyclic because a contraction
along a topological order cannot close a cycle.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.nodes import Expr, rewrite, substitute, walk
from attncc.ir.nodes import Contract, Let, Load, Out, Rebind, Reduce, Scan, Spec, Statement, Weights


def fuse(spec: Spec) -> Spec:
    """`spec` without the pointwise arrays that nothing but its own expressions needs."""
    if not any(isinstance(s, Let) for s in spec.statements):
        return spec
    bodies: dict[str, Expr] = {}
    kept: list[Statement] = []
    by_name = {_defines(s): s for s in spec.statements}
    for name in _order(spec):
        s = by_name[name]
        s = replace(s, body=_inlined(s.body, bodies, by_name))
        if isinstance(s, Let) and _pointwise(s.body):
            bodies[name] = s.body
            by_name[name] = s
            if not s.emitted:
                continue
        kept.append(s)
    return replace(spec, statements=tuple(kept), out=Out(_inlined(spec.out.body, bodies, by_name), spec.out.span))


def _defines(s: Statement) -> str:
    match s:
        case Let(name):
            return name
        case Rebind(tensor):
            return tensor


def _order(spec: Spec) -> list[str]:
    """The statements' names, definitions before uses; among equals as written."""
    import networkx as nx

    names = [_defines(s) for s in spec.statements]
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names)
    for s in spec.statements:
        own = _defines(s)
        graph.add_edges_from((r, own) for r in sorted(_reads(s.body)) if r in names and r != own)
    place = {name: n for n, name in enumerate(names)}
    return list(nx.lexicographical_topological_sort(graph, key=place.__getitem__))


def _reads(e: Expr) -> set[str]:
    return {n.tensor for n in walk(e) if isinstance(n, Load)}


def _pointwise(e: Expr) -> bool:
    return not any(isinstance(n, Contract | Reduce | Scan | Weights) for n in walk(e))


def _inlined(e: Expr, bodies: dict[str, Expr], by_name: dict[str, Statement]) -> Expr:
    """`e` with every read of a fused array replaced by the array's own expression there."""

    def rule(node: Expr) -> Expr | None:
        match node:
            case Load(tensor, index) if tensor in bodies:
                let = by_name[tensor]
                assert isinstance(let, Let)
                return substitute(bodies[tensor], dict(zip(let.vars, index, strict=True)))
            case _:
                return None

    return rewrite(e, rule)
