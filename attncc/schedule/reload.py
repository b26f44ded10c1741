"""reload: tiles that products read are loaded once more for all else.

rewrite: x = load; y = dot(x, ..); z = f(x)  -->  x = load; y = dot(x, ..); x_again = load; z = f(x_again)

Operands of products wait in shared memory; what else reads a tile would keep it in registers beside that, or both until
the last of them is done. It still lies in the cache, and compilers join two loads that nothing is stored between.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.tile import nodes as t
from attncc.tile.walks import every


def reloaded(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
    """`body` with a load of its own for every wider copy of a tile that a product reads as it is."""
    lets = {s.name: s for s in body if isinstance(s, t.Let)}
    read = multiplied(body)
    found: list[t.Stmt] = []
    for s in body:
        if isinstance(s, t.Let) and isinstance(s.op, t.Cast) and s.op.value in read:
            again = _unused(f"{s.op.value}_again", lets)
            lets[again] = replace(lets[s.op.value], name=again)
            found.append(lets[again])
            s = replace(s, op=replace(s.op, value=again))
        found.append(s)
    return tuple(found)


def multiplied(body: tuple[t.Stmt, ...]) -> set[str]:
    """The loads of tiles that products read, renamed or not."""
    lets = {s.name: s for s in every(body) if isinstance(s, t.Let)}
    found: set[str] = set()
    for s in lets.values():
        for name in (s.op.a, s.op.b) if isinstance(s.op, t.Dot) else ():
            while name in lets and isinstance(made := lets[name].op, t.Rename):
                name = made.value
            if name in lets and isinstance(lets[name].op, t.Load) and len(lets[name].type.axes) > 1:
                found.add(name)
    return found


def _unused(name: str, lets: dict[str, t.Let]) -> str:
    return next(x for x in (name, *(f"{name}_{n}" for n in range(1, len(lets) + 2))) if x not in lets)
