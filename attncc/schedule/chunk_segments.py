"""Few heads and many tokens: the chunks of a head are walked in segments, side by side.

    owns     every segment but the last: its state from nothing, and what it leaves of what was before
    forward  every segment: the state at its start from those of the segments before it, then its chunks

With one segment, as where there are many heads, the first kernel has no programs and the second none to join.
"""

from __future__ import annotations

from attncc.expr.build import conj, ivar, op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.chunk_form import Held
from attncc.schedule.chunk import Forward
from attncc.schedule.chunk_problem import Problem
from attncc.tile import nodes as t

B, H, N = ivar("B"), ivar("H"), ivar("N")
SEG, SEGS, OWNS = ivar("SEG"), ivar("SEGS"), ivar("OWNS")
"""The chunks of a segment; how many segments there are, and how many but the last."""
ENOUGH, LEAST = 128, 8
"""Programs that fill a GPU; chunks below which a segment is not worth its first walk."""
NAMES = ("SEG", "SEGS", "OWNS")


def segmented(p: Problem) -> bool:
    """Whether the walk may be cut: a state is a factor times what was before, plus its own."""
    held = p.form.states
    if p.variant.target == "torch" or p.variant.last or not held or any(s.scale or s.scale_of for s in held):
        return False  # the last segment alone would store the last states
    gates = [x for s in held for g in (s.gate, s.beside) for x in (g.log, g.linear)]
    return not any(p.chained(x) for x in (*gates, *(x for s in held for w in s.writes for x in (w.key, w.value))))


def own_of(s: str) -> str:
    """The tensor of what segments make of nothing."""
    return f"{s}_owns"


def fade_of(s: str) -> str:
    """The tensor of what segments leave of a state."""
    return f"{s}_fades"


def counts(chunks: Expr, parts: int) -> tuple[t.Scalar, ...]:
    """The model: as many segments as make ENOUGH programs of `parts` a head, each of LEAST chunks at the least."""
    programs = op("max", op("mul", op("mul", B, H), parts), 1)
    wanted = op("floordiv", op("add", Const(ENOUGH, "int"), op("floordiv", programs, 2)), programs)
    number = op("max", op("min", wanted, op("floordiv", chunks, LEAST)), 1)
    length = op("max", op("floordiv", op("sub", op("add", chunks, number), 1), number), 1)
    found = op("max", op("floordiv", op("sub", op("add", chunks, SEG), 1), SEG), 1)
    values = (length, found, op("sub", SEGS, 1))
    return tuple(t.Scalar(n, "int", v) for n, v in zip(NAMES, values, strict=True))


def begin(f: Forward) -> Var:
    """Declares the sizes of segments."""
    for n in NAMES:
        f.k.b.scalar(n, "int")
    return f.k.b.position("part")


def span(f: Forward, part: Expr, length: Expr | int, chunks: Expr) -> t.Count:
    """The chunks of one of the parts of `length` chunks, as a segment is."""
    first = f.k.b.value(op("mul", part, length), "begin")
    return t.Count(first, f.k.b.value(op("min", op("add", first, length), chunks), "end"))


def factor(f: Forward, s: Held) -> Expr | None:
    """What the chunk at hand leaves of a state."""
    found: Expr | None = None
    for x in f.totals(s):
        if x is not None:
            found = x if found is None else op("mul", found, x)
    return found


def fade_axes(s: Held) -> tuple[str, ...]:
    """The axes of what is left of a state: those of its gates, one at least."""
    along = [x.name for x, g in ((s.key, s.gate), (s.value, s.beside)) if x is not None and g.along(x)]
    both = [x.name for x in (s.key, s.value) if x is not None]
    return tuple(along) or (both[0],)


def tensors(p: Problem, real: t.Dtype) -> tuple[t.Tensor, ...]:
    """What the first kernel stores."""
    found = []
    for s in p.form.states:
        axes = tuple(x.name for x in (s.key, s.value) if x is not None)
        for name, kept in ((own_of(s.name), axes), (fade_of(s.name), fade_axes(s))):
            shape = (B, H, OWNS, *(Const(p.extents[a], "int") for a in kept))
            found.append(t.Tensor(name, ("b", "h", "s", *kept), shape, real))
    return tuple(found)


def joined(f: Forward, states: tuple[Var, ...], segment: Expr) -> tuple[Var, ...]:
    """The states at a segment's start, from those at the first one's."""
    k, b, held = f.k, f.k.b, f.p.form.states
    with b.inner() as scope:
        made = [b.carry(s.name, v, scope.depth) for s, v in zip(held, states, strict=True)]
        index = b.loop_index("segment")
        new = []
        for s, (_, v) in zip(held, made, strict=True):
            own = read(f, own_of(s.name), index, b.type_of(v.name).names())
            fade = read(f, fade_of(s.name), index, fade_axes(s))
            new.append(k.over(k.value(op("add", op("mul", v, fade), own), s.name), *b.type_of(v.name).names()))
        b.add(t.Yield(tuple(v.name for v in new)))
    carried = tuple(c for c, _ in made)
    over = t.Count(Const(0, "int"), segment)
    b.add(t.For(index.name, over, carried, tuple(scope.statements), order="asc", note="the segments before"))
    return b.leave(carried)


def read(f: Forward, tensor: str, segment: Expr, names: tuple[str, ...]) -> Var:
    """What the first kernel stored of a segment."""
    k = f.k
    channels = tuple(k.b.bindings[ivar(n)] for n in names)
    guard = conj(*(k.inside[n] for n in names))
    segment = k.value(op("min", segment, op("sub", OWNS, 1)), "at")  # as it is, so that it is seen to be inside
    type = t.Type(tuple(t.Axis(n, k.b.extent(n)) for n in names), k.real)
    return k.load(tensor, (ivar("b"), ivar("h"), segment, *channels), guard, type, "own")
