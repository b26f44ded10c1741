"""Recurrent attention by hand, a loop over tokens each: (q, k, v, **captured) -> out, for M = N.

Nothing here imports the compiler. q is [B,H,N,D]; k [B,G,N,D] and v [B,G,N,E] are repeated to q's heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loop = Callable[..., Tensor]


def _heads(x: Tensor, q: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def _read(q: Tensor, s: Tensor) -> Tensor:
    return torch.einsum("bhd,bhde->bhe", q, s)


def _gated(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor | None = None) -> Tensor:
    """S = decay S + k v^T, read after it, or, with a bonus, before it; decay and k, v are [B, H, N, ...]."""
    s, rows = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
    for t in range(q.shape[2]):
        kv = _outer(k[:, :, t], v[:, :, t])
        old, s = s, decay[:, :, t, :, None] * s + kv
        rows.append(_read(q[:, :, t], s if bonus is None else old + bonus[:, :, None] * kv))
    return torch.stack(rows, 2)


def _summed(fq: Tensor, fk: Tensor, v: Tensor, eps: float) -> Tensor:
    """Features of q and k: (sum fk v^T) and (sum fk), up to each token, read by fq and divided."""
    rows, s, z = [], 0.0 * _outer(fk[:, :, 0], v[:, :, 0]), 0.0 * fk[:, :, 0]
    for t in range(v.shape[2]):
        s, z = s + _outer(fk[:, :, t], v[:, :, t]), z + fk[:, :, t]
        rows.append(_read(fq[:, :, t], s) / ((fq[:, :, t] * z).sum(-1, keepdim=True) + eps))
    return torch.stack(rows, 2)


def _both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _heads(k, q), _heads(v, q)


def _turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    at = torch.arange(x.shape[2], dtype=x.dtype)[:, None]
    angle = at * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half : 2 * half]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)


def linear_transformer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return _summed(functional.elu(q) + 1, functional.elu(k) + 1, v, 1e-6)


def retnet(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return _gated(_turned(q), _turned(k), v, gamma[:, None, None].expand(k.shape)) / math.sqrt(q.shape[-1])


def lightning(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return _gated(q, k, v, torch.exp(-slope)[:, None, None].expand(k.shape)) / math.sqrt(q.shape[-1])


def mamba2(q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, skip: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    decay = torch.exp(dt * A[:, None])[..., None].expand(k.shape)
    return _gated(q, k, dt[..., None] * v, decay) + skip[:, None, None] * v


def simple_gla(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return _gated(q, k, v, decay.exp()[..., None].expand(k.shape)) / math.sqrt(q.shape[-1])


def gla(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return _gated(q, k, v, decay.exp()) / math.sqrt(q.shape[-1])


def hgrn2(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    return _gated(q, -torch.expm1(decay), _heads(v, q), decay.exp())


def rwkv5(q: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return _gated(q, k, v, w.exp()[:, None].expand(k.shape), u)


def rwkv6(q: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return _gated(q, k, v, w.exp(), u)


def metala(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, w: Tensor) -> Tensor:
    v, new = _heads(v, q), 1 - decay.exp()
    own = torch.sigmoid((q * w[:, None] * new).sum(-1, keepdim=True))
    return _gated(q, new, v, decay.exp()) + own * v


def rodimus(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, tau: Tensor, beta: Tensor, skip: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    g, temper = torch.log1p(gate.exp()), 1 / (1 + torch.exp(-tau))
    unit = k / torch.sqrt(k.square().sum(-1, keepdim=True) + 1e-6)
    return _gated(q, unit * g**temper, beta * v, torch.exp(-g * temper)) + skip[:, None] * v


def gsa(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    keys = q.new_zeros(*q.shape[:2], q.shape[-1], decay.shape[-1])
    values, rows = q.new_zeros(*q.shape[:2], decay.shape[-1], v.shape[-1]), []
    for t in range(q.shape[2]):
        a = decay[:, :, t].exp()
        keys = keys * a[..., None, :] + _outer(k[:, :, t], 1 - a)
        values = a[..., None] * values + _outer(1 - a, v[:, :, t])
        rows.append(_read(torch.softmax(_read(q[:, :, t], keys) / math.sqrt(q.shape[-1]), -1), values))
    return torch.stack(rows, 2)


def mlstm(q: Tensor, k: Tensor, v: Tensor, f: Tensor, u: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    one = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    both = _gated(q, u.exp()[..., None] * k, one, torch.sigmoid(f)[..., None].expand(k.shape))
    return both[..., :-1] / both[..., -1:].abs().clamp(min=1)


def _squares(x: Tensor) -> Tensor:
    return _outer(x, x).flatten(-2)


def based(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    fq, fk = (
        torch.cat([torch.ones_like(x[..., :1]), x, _squares(x) / 2**0.5], -1) for x in (q / q.shape[-1] ** 0.5, k)
    )
    return _summed(fq, fk, v, 1e-6)


def rebased(q: Tensor, k: Tensor, v: Tensor, wq: Tensor, bq: Tensor, wk: Tensor, bk: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    width = (q.shape[-1],)
    fq, fk = functional.layer_norm(q, width, wq, bq), functional.layer_norm(k, width, wk, bk)
    return _summed(_squares(fq), _squares(fk), v, 1e-6)


def performer(q: Tensor, k: Tensor, v: Tensor, W: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    scale = q.shape[-1] ** -0.25
    fq, fk = (torch.exp(scale * x @ W.mT - (scale * x).square().sum(-1, keepdim=True) / 2) for x in (q, k))
    return _summed(fq, fk, v, 0.0)


def cosformer(q: Tensor, k: Tensor, v: Tensor, span: int = 2048) -> Tensor:
    k, v = _both(q, k, v)
    rows = []
    for t in range(q.shape[2]):
        ahead = torch.arange(t, -1, -1, dtype=q.dtype)
        score = torch.einsum("bhd,bhjd->bhj", q[:, :, t].relu(), k[:, :, : t + 1].relu())
        weight = score * torch.cos(math.pi / 2 * ahead / span)
        rows.append(torch.einsum("bhj,bhje->bhe", weight, v[:, :, : t + 1]) / (weight.sum(-1, keepdim=True) + 1e-6))
    return torch.stack(rows, 2)


def sana(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    score = q.relu() @ k.relu().mT
    return score @ v / (score.sum(-1, keepdim=True) + 1e-6)


def sla(q: Tensor, k: Tensor, v: Tensor, filter: Tensor) -> Tensor:
    wide = _heads(v, q)
    padded = functional.pad(wide, (0, 0, 1, 1))
    n = v.shape[2]
    return sana(q, k, v) + sum(filter[:, t] * padded[:, :, t : t + n] for t in range(3))


def qt_vit(q: Tensor, k: Tensor, v: Tensor, alpha: float = 0.5, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    k, v = _both(q, k, v)
    fq, fk = (torch.cat([alpha * x**2, beta * x, gamma * torch.ones_like(x[..., :1])], -1) for x in (q, k))
    score = fq @ fk.mT
    return score @ v / (score.sum(-1, keepdim=True) + 1e-6)


def chela(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    out = _gated(q, k, v, torch.ones_like(k))
    return out / torch.sqrt(out.square().mean(-1, keepdim=True) + 1e-6) * gate


def linformer(q: Tensor, k: Tensor, v: Tensor, P: Tensor, F: Tensor) -> Tensor:
    k, v = _both(q, k, v)
    return torch.softmax(q @ (P @ k).mT / math.sqrt(q.shape[-1]), -1) @ (F @ v)


RECURRENT: dict[str, Loop] = {
    f.__name__: f
    for f in (
        linear_transformer, retnet, lightning, mamba2, simple_gla, gla, hgrn2, rwkv5, rwkv6, metala, rodimus, gsa,
        mlstm, based, rebased, performer, cosformer, sla, sana, qt_vit, chela, linformer,
    )
}  # fmt: skip
