"""under: what a turn reads beside its products is asked for while they run.

rewrite: s = wait(product); x = load(c); f(s, x)  -->  x = load(c); s = wait(product); f(s, x)

Nothing moves over a wait by itself, so that every read behind one is waited for in full. Tiles stay where they are:
they would take the registers of another tile all along.
"""

from __future__ import annotations

from attncc.tile import nodes as t
from attncc.tile.verify_scope import uses


def ask_before(statements: list[t.Stmt], wait: int) -> None:
    """Moves numbers and vectors that are read behind statement `wait`, and what their places need, to before it."""
    free: dict[str, t.Let] = {}
    made: set[str] = set()
    for s in statements[wait:]:
        if isinstance(s, t.Let):
            made.add(s.name)
            if isinstance(s.op, t.Map | t.Iota | t.Load | t.SharedLoad) and not uses(s) & (made - free.keys()):
                free[s.name] = s
    moved: set[str] = set()
    for s in reversed(free.values()):
        if s.name in moved or (isinstance(s.op, t.Load | t.SharedLoad) and len(s.type.axes) <= 1):
            moved |= {s.name, *uses(s)}
    first = [s for s in free.values() if s.name in moved]
    rest = [s for s in statements[wait:] if not (isinstance(s, t.Let) and s.name in moved and s.name in free)]
    statements[wait:] = [*first, *rest]
