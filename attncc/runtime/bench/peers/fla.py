"""fla (package flash-linear-attention): recurrences over one state, each a function of its own.

Which function computes a spec is found by comparison: the table holds the spec that each one is.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attncc.driver import load
from attncc.ir.nodes import Spec
from attncc.runtime.bench.case import Case
from attncc.runtime.bench.peers import Ready
from attncc.runtime.bench.rows import Kind
from attncc.runtime.bench.suite import Row
from attncc.runtime.bench.warming import first_calls

Call = Callable[[Any, Sequence[Tensor], float], Any]
"""From the library's `ops`, q, k, v and the captured tensors in its layout, and the scale."""

KNOWN: tuple[tuple[str, Call], ...] = (
    (
        """
attention linear:
    state S[d, e]
    S = S + outer(k, v)
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_linear_attn(*x, scale=scale, normalize=False),
    ),
    (
        """
attention kept({0}: real[h]):
    state S[d, e]
    S = {0}[h] * S + outer(k, v)
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_simple_gla(*x[:3], g_gamma=x[3].float().log(), scale=scale),
    ),
    (
        """
attention gated({0}: real[b, h, n]):
    state S[d, e]
    S = exp({0}[b, h, i]) * S + outer(k, v)
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_simple_gla(*x[:3], g=x[3], scale=scale),
    ),
    (
        """
attention gated_by_channel({0}: real[b, h, n, d]):
    state S[d, e]
    S = exp({0}[b, h, i, d]) * S + outer(k, v)
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_gla(*x, scale=scale),
    ),
    (
        """
attention read_before({0}: real[b, h, n, d], {1}: real[h, d]):
    state S[d, e]
    out = q @ (S + {1}[h, d] * outer(k, v)){scale}
    S = exp({0}[b, h, i, d]) * S + outer(k, v)
""",
        lambda ops, x, scale: ops.chunk_rwkv6(*x, scale=scale),
    ),
    (
        """
attention delta({0}: real[b, h, n]):
    state S[d, e]
    S = S + outer(k, {0}[b, h, i] * (v - k @ S))
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_delta_rule(*x, scale=scale),
    ),
    (
        """
attention gated_delta({0}: real[b, h, n], {1}: real[b, h, n]):
    state S[d, e]
    S = exp({0}[b, h, i]) * S
    S = S + outer(k, {1}[b, h, i] * (v - k @ S))
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_gated_delta_rule(*x[:3], g=x[3], beta=x[4], scale=scale),
    ),
    (
        """
attention delta_by_channel({0}: real[b, h, n, d], {1}: real[b, h, n]):
    state S[d, e]
    S = exp({0}[b, h, i, d]) * S
    S = S + outer(k, {1}[b, h, i] * (v - k @ S))
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_kda(*x[:3], g=x[3], beta=x[4], scale=scale),
    ),
    (
        """
attention low_rank({0}: real[b, h, n, d], {1}: real[b, h, n, d], {2}: real[b, h, n, d]):
    state S[d, e]
    S = exp({0}[b, h, i]) * S + outer({2}[b, h, i], {1}[b, h, i] @ S) + outer(k, v)
    out = q @ S{scale}
""",
        lambda ops, x, scale: ops.chunk_rwkv7(x[0], x[3], x[1], x[2], x[4], x[5], scale=scale),
    ),
    (
        """
attention forgetting({0}: real[b, h, n]):
    score = q @ k / sqrt(D) + {0}[b, h, i] - {0}[b, h, j]
    mask  = j <= i
    out   = softmax(score) @ v
""",
        lambda ops, x, scale: ops.parallel_forgetting_attn(*x[:3], _steps(x[3])),
    ),
)


def _steps(total: Tensor) -> Tensor:
    """What a sum along the positions, [B, N, H], was taken of."""
    return torch.diff(total, dim=1, prepend=torch.zeros_like(total[:, :1]))


@dataclass(frozen=True)
class _Fla:
    name: str = "fla"
    package: str = "flash-linear-attention"

    def available(self, device: torch.device) -> str | None:
        if importlib.util.find_spec("fla") is None:
            return "flash-linear-attention is not installed"
        return None if device.type == "cuda" else "runs on cuda only"

    def prepare(self, case: Case) -> Ready | str:
        found = _call_of(case.spec)
        if found is None:
            return "it has no such function"
        if case.sizes["H"] != case.sizes["G"] or case.sizes["M"] != case.sizes["N"]:
            return "it wants as many heads and positions of keys as of queries"
        call, scaled = found
        ops: Any = importlib.import_module("fla.ops")
        names = ("q", "k", "v", *(p.name for p in case.spec.params))
        axes = {p.name: [a.index for a in p.axes] for p in case.spec.params}
        x = [_turned(case.tensors[n], axes.get(n, ["b", "h", "n", "d"])) for n in names]
        scale = case.sizes["D"] ** -0.5 if scaled else 1.0

        def forward() -> Tensor:
            out = call(ops, x, scale)
            found: Tensor = out[0] if isinstance(out, tuple) else out
            return found

        leaves = tuple(t for t in x if t.requires_grad)
        return Ready(forward, leaves, case.d_out.transpose(1, 2).contiguous(), _turned_back)

    def warm(self, rows: Sequence[Row], kind: Kind) -> list[Future[None]]:
        """First calls in processes: the library tries dozens of configurations of each kernel."""
        wanted = {r.spec: r for r in rows if self.name not in r.without and _call_of(load(r.spec)[0]) is not None}
        if not wanted or self.available(kind.device):
            return []
        return first_calls("fla", self.name, list(wanted.values()), kind, _one_run_each)


@lru_cache(maxsize=256)
def _call_of(spec: Spec) -> tuple[Call, bool] | None:
    """The function that computes `spec`, and whether by the usual scale; None where there is none."""
    names = [p.name for p in spec.params]
    wanted = (spec.statements, spec.out, spec.recurrence, [p.axes for p in spec.params])
    for text, call in KNOWN:
        for scaled in (True, False):
            with contextlib.suppress(IndexError):  # it captures more
                known = load(text.format(*names, scale=" / sqrt(D)" if scaled else ""))[0]
                if (known.statements, known.out, known.recurrence, [p.axes for p in known.params]) == wanted:
                    return call, scaled
    return None


def _turned(x: Tensor, axes: Sequence[str]) -> Tensor:
    """[b, h, n, ..] as [b, n, h, ..], its own layout in memory; what has no positions as it is."""
    made = x.detach().transpose(1, 2).contiguous() if list(axes[:3]) == ["b", "h", "n"] else x.detach()
    return made.requires_grad_(x.requires_grad)


def _turned_back(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _one_run_each() -> None:
    """Makes Triton's tuning compile everything and choose nothing: other processes share the device."""
    os.environ |= {"FLA_CACHE_RESULTS": "0", "TRITON_CACHE_AUTOTUNING": "0"}
    from triton.runtime import driver

    def once(call: Callable[[], object], quantiles: Sequence[float] = (), **_: Any) -> list[float]:
        call()
        return [1.0] * max(len(quantiles), 1)

    active: Any = driver.active
    active.get_benchmarker = lambda: once


PEERS = (_Fla(),)
