"""A pool of pages with garbage outside what a row owns, and dense decoding in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def inputs(h: int, g: int, page: int, d: int, lengths: list[int], seed: int = 0) -> dict[str, Array]:
    """Pages in random order; NaN and huge numbers wherever no row's key lies; -1 behind a row's last page."""
    rng = np.random.default_rng(seed)
    owned = [-(-n // page) for n in lengths]
    pool, width = sum(owned) + 3, max(1, *owned)
    free = iter(rng.permutation(pool))
    pages = np.full((len(lengths), width), -1, dtype=np.int32)
    used = np.zeros((pool, page), dtype=bool)
    for b, n in enumerate(lengths):
        for turn in range(owned[b]):
            pages[b, turn] = next(free)
            used[pages[b, turn], : n - turn * page] = True
    k, v = (rng.standard_normal((pool, g, page, d)).astype(np.float32) for _ in range(2))
    k.swapaxes(1, 2)[~used] = 1e30
    v.swapaxes(1, 2)[~used] = np.nan
    q = rng.standard_normal((len(lengths), h, d)).astype(np.float32)
    return {"q": q, "k": k, "v": v, "pages": pages, "length": np.array(lengths, dtype=np.int32)}


def dense(x: dict[str, Array], scale: float) -> tuple[Array, Array]:
    """(out, lse), row by row."""
    q, k, v = (x[n].astype(np.float64) for n in ("q", "k", "v"))
    rows, heads, page, share = q.shape[0], q.shape[1], k.shape[2], q.shape[1] // k.shape[1]
    out, lse = np.zeros((rows, heads, v.shape[3])), np.full((rows, heads), -np.inf)
    for b in range(rows):
        j = np.arange(x["length"][b])
        for h in range(heads if len(j) else 0):
            at = x["pages"][b, j // page], h // share, j % page
            s = k[at] @ q[b, h] * scale
            top = s.max()
            p = np.exp(s - top)
            out[b, h], lse[b, h] = p @ v[at] / p.sum(), top + np.log(p.sum())
    return out, lse
