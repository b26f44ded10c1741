"""Attention written by hand in torch, one function a spec: (q, k, v, **captured) -> (out, lse or None).

Nothing here imports the compiler. q is [B,H,M,D], k [B,G,N,D], v [B,G,N,E]; the row r sits at r + N - M.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor | None]


def _heads(x: Tensor, q: Tensor) -> Tensor:
    """k or v repeated to q's heads."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    return q @ _heads(k, q).transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)


def _positions(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """i as a column and j as a row."""
    m, n = q.shape[2], k.shape[2]
    return torch.arange(m, device=q.device)[:, None] + (n - m), torch.arange(n, device=q.device)[None, :]


def _softmax(score: Tensor, mask: Tensor, v: Tensor, q: Tensor, sink: Tensor | None = None) -> Pair:
    """Masked softmax with an optional extra logit; rows without a key give 0 and -inf."""
    mask = mask.expand(score.shape)
    alive = mask.any(-1, keepdim=True)
    if sink is not None:
        score = torch.cat([score, sink.expand(*score.shape[:3], 1)], -1)
        mask = torch.cat([mask, alive], -1)
    score = torch.where(mask, score, -torch.inf)
    score = torch.where(alive, score, 0)
    weight = torch.where(alive, torch.softmax(score, -1), 0)
    lse = torch.where(alive[..., 0], torch.logsumexp(score, -1), -torch.inf)
    return weight[..., : v.shape[2]] @ _heads(v, q), lse


def full(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    i, j = _positions(q, k)
    return _softmax(_scores(q, k), (i == i) & (j == j), v, q)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    i, j = _positions(q, k)
    return _softmax(_scores(q, k), j <= i, v, q)


def sliding_window(q: Tensor, k: Tensor, v: Tensor, window: int = 1024) -> Pair:
    i, j = _positions(q, k)
    return _softmax(_scores(q, k), (j <= i) & (j > i - window), v, q)


def gemma2(q: Tensor, k: Tensor, v: Tensor, cap: float = 50.0, window: int = 4096) -> Pair:
    i, j = _positions(q, k)
    score = torch.tanh(_scores(q, k) / cap) * cap
    return _softmax(score, (j <= i) & (j > i - window), v, q)


def alibi(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Pair:
    i, j = _positions(q, k)
    return _softmax(_scores(q, k) - slope[:, None, None] * (i - j), j <= i, v, q)


def packed_documents(q: Tensor, k: Tensor, v: Tensor, doc: Tensor) -> Pair:
    i, j = _positions(q, k)
    if doc.shape[1] == 0:
        return _softmax(_scores(q, k), j <= i, v, q)
    same = doc[:, i.clamp(min=0)] == doc[:, j]
    return _softmax(_scores(q, k), (same & (j <= i) & (i >= 0))[:, None], v, q)


def gpt_oss(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, window: int = 128) -> Pair:
    i, j = _positions(q, k)
    return _softmax(_scores(q, k), (j <= i) & (j > i - window), v, q, sink=sink[:, None, None])


def sigmoid_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Pair:
    i, j = _positions(q, k)
    weight = torch.sigmoid(_scores(q, k) + bias[:, None, None])
    return torch.where(j <= i, weight, 0) @ _heads(v, q), None


def t5(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Pair:
    def bucket(distance: int) -> int:
        far = abs(distance)
        half = far if far < 8 else min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8))
        return half + 16 * (distance > 0)

    i, j = _positions(q, k)
    far = q.shape[2] + k.shape[2]
    buckets = torch.tensor([bucket(x) for x in range(-far, far + 1)], device=q.device)
    index = buckets[j - i + far]
    bias = torch.stack([column[index] for column in table.unbind(1)])
    return _softmax(_scores(q, k, scale=1) + bias, j == j, v, q)


def padding(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Pair:
    return _softmax(_scores(q, k), keep[:, None, None, :], v, q)


def prefix_lm(q: Tensor, k: Tensor, v: Tensor, prefix: Tensor) -> Pair:
    i, j = _positions(q, k)
    return _softmax(_scores(q, k), (j <= i) | (j < prefix[:, None, None, None]), v, q)


def softpick(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    i, j = _positions(q, k)
    lift = torch.exp(_scores(q, k)) - 1
    mask = (j <= i).expand(lift.shape)
    total = torch.where(mask, lift.abs(), 0).sum(-1) + 1e-6
    weight = torch.where(mask, torch.relu(lift), 0) / total[..., None]
    lse = torch.where(mask.any(-1), torch.log(total), -torch.inf)
    return weight @ _heads(v, q), lse


ORACLES: dict[str, Callable[..., Pair]] = {
    f.__name__: f
    for f in (
        full,
        causal,
        sliding_window,
        gemma2,
        alibi,
        packed_documents,
        gpt_oss,
        sigmoid_attention,
        t5,
        padding,
        prefix_lm,
        softpick,
    )
}
