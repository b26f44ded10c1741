"""Inputs of the gated delta rule and its token recurrence in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def inputs(b: int, h: int, n: int, d: int, e: int, seed: int = 0) -> dict[str, Array]:
    """Keys of length 1, gates (logs) about -0.1, some of them near -inf: those forget everything."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((b, h, n, d))
    gate = -0.1 * np.abs(rng.standard_normal((b, h, n)))
    gate[rng.random((b, h, n)) < 0.05] = -300.0
    made = {
        "q": rng.standard_normal((b, h, n, d)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.standard_normal((b, h, n, e)),
        "gate": gate,
        "beta": rng.uniform(0, 1, (b, h, n)),
        "s0": rng.standard_normal((b, h, d, e)),
    }
    return {name: x.astype(np.float32) for name, x in made.items()}


def recurrence(x: dict[str, Array], scale: float) -> tuple[Array, Array]:
    """(out, last state), one token after another."""
    q, k, v, gate, beta, s = (x[n].astype(np.float64) for n in ("q", "k", "v", "gate", "beta", "s0"))
    out = np.zeros(v.shape)
    for t in range(q.shape[2]):
        s = s * np.exp(gate[:, :, t])[..., None, None]
        wrong = v[:, :, t] - np.einsum("bhd,bhde->bhe", k[:, :, t], s)
        s = s + np.einsum("bhd,bhe->bhde", k[:, :, t], beta[:, :, t, None] * wrong)
        out[:, :, t] = np.einsum("bhd,bhde->bhe", q[:, :, t], s) * scale
    return out, s
