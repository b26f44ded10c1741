"""Changes to a kernel's statements, for tests that break a program on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from attncc.tile import nodes as t

Change = Callable[[t.Stmt], t.Stmt | None]


def swap(s: Any, **fields: Any) -> Any:
    """`s` with other fields."""
    return replace(s, **fields)


def statements(body: tuple[t.Stmt, ...]) -> Iterator[t.Stmt]:
    """Every statement, at any depth."""
    for s in body:
        yield s
        match s:
            case t.For():
                yield from statements(s.body)
            case t.If():
                yield from statements((*s.then, *s.orelse))
            case t.Partitions(parts):
                for p in parts:
                    yield from statements(p.body)
            case _:
                pass


def changed(body: tuple[t.Stmt, ...], change: Change) -> tuple[t.Stmt, ...]:
    """Each statement replaced, or dropped where `change` gives None; inner ones first."""
    out: list[t.Stmt] = []
    for s in body:
        match s:
            case t.For():
                s = replace(s, body=changed(s.body, change))
            case t.If():
                s = replace(s, then=changed(s.then, change), orelse=changed(s.orelse, change))
            case t.Partitions(parts):
                s = t.Partitions(tuple(replace(p, body=changed(p.body, change)) for p in parts))
            case _:
                pass
        new = change(s)
        if new is not None:
            out.append(new)
    return tuple(out)


def altered(program: t.Program, change: Change) -> t.Program:
    """A program of one kernel with its statements changed."""
    (kernel,) = program.kernels
    return replace(program, kernels=(replace(kernel, body=changed(kernel.body, change)),))


def let(name: str, /, **fields: Any) -> Change:
    """Other fields for the Let of this name."""
    return lambda s: swap(s, **fields) if isinstance(s, t.Let) and s.name == name else s


def without(name: str) -> Change:
    """No Let of this name, no store to this tensor."""
    return lambda s: None if getattr(s, "name", getattr(s, "tensor", None)) == name else s
