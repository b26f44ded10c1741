"""Helper functions that printed torch kernels call. The texts need `math` and `torch` and nothing else."""

from __future__ import annotations

STEPS = '''\
_ROOM = 1 << 18  # elements of a tile for each thread: what its cache holds


def _steps(sizes, tile):
    """How many positions of each batch axis to compute at once, the last axis first."""
    room, steps = max(1, _ROOM * torch.get_num_threads() // tile), []
    for size in reversed(sizes):
        steps.append(max(1, min(size, room)))
        room = max(1, room // max(1, size))
    return reversed(steps)
'''

PIECES = '''\
def _pieces(width, *spans):
    """The positions of `spans`, each once, as (begin, end) of pieces at most `width` long."""
    reached = 0
    for begin, end in sorted(spans):
        begin = max(begin, reached)
        for at in range(begin, end, width):
            yield at, min(at + width, end)
        reached = max(reached, end)
'''

PART = '''\
def _part(room, *shape):
    """The first elements of `room` in this shape."""
    return room[: math.prod(shape)].view(shape)
'''

EACH = '''\
def _each(x, dim, times):
    """`x` with every position along `dim` `times` in a row."""
    return x if times == 1 else x.repeat_interleave(times, dim)
'''

GATHER = '''\
def _gather(x, index, guard, other):
    """x[index] where `guard` holds, `other` elsewhere; an index is never out of range."""
    if x.numel() == 0:
        return x.new_full(torch.broadcast_shapes(guard.shape, *(n.shape for n in index)), other)
    index = tuple(n.clamp(0, size - 1) for n, size in zip(index, x.shape))
    return torch.where(guard, x[index], other)
'''

SCATTER = '''\
def _scatter_add(x, index, guard, value):
    """x[index] += value where `guard` holds."""
    if x.numel() and value.numel():
        index = tuple(n.clamp(0, size - 1) for n, size in zip(index, x.shape))
        x.index_put_(index, torch.where(guard, value, 0).to(x.dtype), accumulate=True)
'''

ASSIGN = '''\
def _scatter(x, index, guard, value):
    """x[index] = value where `guard` holds."""
    shape = torch.broadcast_shapes(guard.shape, value.shape, *(n.shape for n in index))
    keep = guard.expand(shape)
    x[tuple(n.expand(shape)[keep] for n in index)] = value.expand(shape)[keep].to(x.dtype)
'''

TEXTS: dict[str, str] = {
    "_steps": STEPS,
    "_pieces": PIECES,
    "_part": PART,
    "_each": EACH,
    "_gather": GATHER,
    "_scatter_add": SCATTER,
    "_scatter": ASSIGN,
}
"""In order of definition."""
