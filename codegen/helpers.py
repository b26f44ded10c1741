"""Helper functions that printed host code defines where it calls them. The texts need `torch` and nothing else."""

from __future__ import annotations

EMPTY_ORDERED = '''\
def _empty_ordered(like, shape, dtype):
    """An unwritten dense tensor whose axes lie in memory in the order of `like`'s."""
    strides, keys = like.stride(), []
    for a, step in enumerate(strides):  # axes that don't move in memory stay behind their predecessor
        keys.append(step if step and like.shape[a] > 1 else keys[-1] if keys else float("inf"))
    if strides[-1] == 1 or like.shape[-1] == 1:
        keys[-1] = 0
    out, step = [0] * len(shape), 1
    for a in sorted(range(len(shape)), key=lambda a: (keys[a], -a)):
        out[a] = step
        step *= max(shape[a], 1)
    return torch.empty_strided(shape, out, dtype=dtype, device=like.device)
'''

RUN_BOUNDS = '''\
def _run_bounds(ids, last):
    """For each position of the last axis the first (or last) position of its run of equal ids."""
    if last:
        return ids.shape[-1] - 1 - _run_bounds(ids.flip(-1), False).flip(-1)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[..., 1:] = ids[..., 1:] != ids[..., :-1]
    places = torch.arange(ids.shape[-1], device=ids.device)
    return (places * starts).cummax(-1).values if ids.numel() else places.expand(ids.shape)
'''

ID_BOUNDS = '''\
def _id_bounds(ids, last):
    """For each position of the last axis the first (or last) position with the same id, sorted or not."""
    ordered, order = torch.sort(ids, dim=-1, stable=True)
    return torch.empty_like(order).scatter_(-1, order, order.gather(-1, _run_bounds(ordered, last)))
'''

KEPT = '''\
_KEPT = {}


def _kept(key, device, make):
    """`make()` on a device, made once for a key."""
    if (key, device) not in _KEPT:
        if len(_KEPT) >= 64:
            _KEPT.clear()
        _KEPT[key, device] = make().to(device)
    return _KEPT[key, device]
'''

ZEROS_KEPT = '''\
def _zeros_kept(shape, dtype, device):
    """Zeros that every launch leaves as it finds them: one tensor for each stream, a new one for a captured graph."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(shape, dtype=dtype, device=device)
    key = "zeros", shape, dtype, torch.cuda.current_stream(device).cuda_stream
    return _kept(key, device, lambda: torch.zeros(shape, dtype=dtype, device=device))
'''

HELPERS: dict[str, str] = {
    "_kept": KEPT,
    "_zeros_kept": ZEROS_KEPT,
    "_empty_ordered": EMPTY_ORDERED,
    "_run_bounds": RUN_BOUNDS,
    "_id_bounds": ID_BOUNDS,
}
"""In order of definition: later ones may call earlier ones."""

NEEDS: dict[str, tuple[str, ...]] = {"_id_bounds": ("_run_bounds",), "_zeros_kept": ("_kept",)}
