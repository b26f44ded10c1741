"""Mistakes in a call: its tensors, their shapes, and the options asked for."""

from __future__ import annotations

from typing import ClassVar

from attncc.errors import CallError


class MissingTensor(CallError):
    """A tensor the spec captures was not given.

    Broken: `attn(q, k, v)` for `attention alibi(slope: real[h])`.
    Mended: `attn(q, k, v, slope=slope)`.
    """

    code: ClassVar[str] = "E501"


class UnknownTensor(CallError):
    """A tensor or constant was given that the spec does not declare.

    Broken: `attn(q, k, v, slopes=slope)` for `attention alibi(slope: real[h])`.
    Mended: `attn(q, k, v, slope=slope)`.
    """

    code: ClassVar[str] = "E502"


class WrongRank(CallError):
    """A tensor has more or fewer axes than the spec gives it.

    Broken: `attn(q[0], k, v)`, where q[0] is [H, M, D].
    Mended: `attn(q[:1], k, v)`; q is [B, H, M, D].
    """

    code: ClassVar[str] = "E503"


class WrongSize(CallError):
    """An axis of a tensor does not have the size the other tensors fix.

    Broken: `attn(q, k, v, slope=torch.ones(4))` where q has 8 heads.
    Mended: `attn(q, k, v, slope=torch.ones(8))`.
    """

    code: ClassVar[str] = "E504"


class WrongGroups(CallError):
    """The number of key heads does not divide the number of query heads.

    Broken: q with 8 heads, k and v with 3.
    Mended: k and v with 1, 2, 4 or 8 heads.
    """

    code: ClassVar[str] = "E505"


class WrongKind(CallError):
    """A tensor holds numbers of another kind than the spec declares.

    Broken: `attn(q, k, v, doc=torch.zeros(2, 64))` for `doc: int[b, n]`.
    Mended: `attn(q, k, v, doc=torch.zeros(2, 64, dtype=torch.int32))`.
    """

    code: ClassVar[str] = "E506"


class OutOfRange(CallError):
    """A captured tensor is read outside its extent at a pair that the mask allows.

    Broken: `score = q @ k + table[i - j, h]` without a mask, `table: real[128, h]`, called with 1000 keys.
    Mended: `mask = j <= i and i - j < 128`.
    """

    code: ClassVar[str] = "E507"


class NoSingleLse(CallError):
    """`return_lse=True` was asked of a spec in which no single normaliser has a log-sum-exp.

    Broken: `attn(q, k, v, return_lse=True)` for `out = sigmoid(q @ k) @ v`.
    Mended: `attn(q, k, v)`; only one `softmax` or `ratio` over the keys has an lse.
    """

    code: ClassVar[str] = "E508"


class RandomWeights(CallError):
    """The dense reference draws no random numbers, so it has no dropout.

    Broken: the reference of `dropout(softmax(score), p) @ v` with p = 0.1.
    Mended: the same with the constant p = 0.
    """

    code: ClassVar[str] = "E509"
