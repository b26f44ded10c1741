"""Walks over the statements of a kernel."""

from __future__ import annotations

from collections.abc import Iterator

from attncc.tile.nodes import For, If, Partitions, Stmt


def every(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """The statements of `body`, each before those of the bodies inside it."""
    for s in body:
        yield s
        match s:
            case For(body=inner):
                yield from every(inner)
            case If(then=then, orelse=orelse):
                yield from every(then)
                yield from every(orelse)
            case Partitions(parts):
                for p in parts:
                    yield from every(p.body)
            case _:
                pass
