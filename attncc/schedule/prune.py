"""prune: values nobody reads are not computed.

rewrite: name = op, name unused  --> nothing
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from attncc.expr.nodes import Expr, free_vars
from attncc.tile import nodes as t

_OTHER = frozenset({"axis", "op", "layout", "note", "order", "how", "rounding", "precision"})
"""Fields whose text is no name of a value."""


def prune(kernel: t.Kernel) -> t.Kernel:
    """`kernel` without its unused Lets."""
    body, _ = _body(kernel.body, frozenset())
    return replace(kernel, body=body)


def _body(body: tuple[t.Stmt, ...], after: frozenset[str]) -> tuple[tuple[t.Stmt, ...], frozenset[str]]:
    """(the statements that count, every name they or what follows reads)."""
    used = set(after)
    kept: list[t.Stmt] = []
    for s in reversed(body):
        match s:
            case t.Let(name, _, op) if name in used:
                used |= set(_names(op))
                kept.append(s)
            case t.Let():
                pass
            case t.For():
                inner, read = _body(s.body, frozenset(used))
                used |= read | set(_names(s.over)) | {c.start for c in s.carried}
                kept.append(replace(s, body=inner))
            case t.If():
                then, one = _body(s.then, frozenset(used))
                orelse, two = _body(s.orelse, frozenset(used))
                used |= one | two | set(_names(s.condition)) | {c.start for c in s.carried}
                kept.append(replace(s, then=then, orelse=orelse))
            case t.Partitions(parts):
                done = [(p, *_body(p.body, frozenset(used))) for p in parts]
                used |= {n for _, _, read in done for n in read}
                kept.append(t.Partitions(tuple(replace(p, body=b) for p, b, _ in done)))
            case _:
                used |= set(_names(s))
                kept.append(s)
    return tuple(reversed(kept)), frozenset(used)


def _names(x: Any) -> Iterator[str]:
    """Every name of a value under `x`; names of tensors among them do no harm."""
    match x:
        case t.Type() | t.Axis():
            return
        case Expr():
            yield from free_vars(x)
        case str():
            yield x
        case tuple():
            for y in x:
                yield from _names(y)
        case _ if dataclasses.is_dataclass(x) and not isinstance(x, type):
            for f in dataclasses.fields(x):
                if f.name not in _OTHER:
                    yield from _names(getattr(x, f.name))
        case _:
            return
