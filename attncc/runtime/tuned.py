"""Tiles that were found faster on this machine than the default ones: kept in the disk cache, read on demand."""

from __future__ import annotations

import torch

from attncc.runtime.cache import Entry, cache, digest, sources_key
from attncc.schedule.variant import Variant


def tuned(family: str, variant: Variant, device: torch.device) -> str:
    """What `keep` stored for this spec, head dimensions, type and device; "" where there is nothing."""
    found = cache().get(_key(family, variant, device))
    return "" if found is None else str(found.data["tiles"])


def keep(family: str, variant: Variant, device: torch.device, tiles: str) -> None:
    """Stores the tiles of a spec (the key of its family) for both halves of `variant`."""
    cache().put(_key(family, variant, device), Entry({"tiles": tiles}))


def _key(family: str, variant: Variant, device: torch.device) -> str:
    """Another compiler, another GPU: another entry. Layouts and gradients share one."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    v = variant
    parts = (v.target, str(v.D), str(v.E), v.dtype, repr(v.captured), v.precision, str(v.grouped), str(v.capability))
    return digest("tuned", sources_key(), family, name, *parts)
