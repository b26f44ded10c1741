"""Times compiled specs beside FlexAttention and SDPA on one CUDA device.

`python -m tests.benchmarks.flex OUT.json [BACKEND [ROW ...]]`; the backend is `triton` and rows are all unless named.

Same tensors, one process, rounds interleaved, medians. FLOPs count the mask's density: forward 4 B H M N D, backward
2.5 times that.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import triton
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from triton.testing import do_bench

import attncc

SPECS = Path(__file__).parents[2] / "examples" / "softmax"
N, WINDOW, CAP, DOCUMENT = 8192, 1024, 20.0, 1024
SHAPES = ((2, 16, 128), (2, 32, 64))
ROUNDS = 5
BACKEND = sys.argv[2] if len(sys.argv) > 2 else "triton"
ROWS = frozenset(sys.argv[3:])

SOFTCAP = """
attention softcap(cap = 20.0):
    score = cap * tanh(q @ k / (sqrt(D) * cap))
    mask  = j <= i
    out   = softmax(score) @ v
"""


@dataclass(frozen=True)
class Case:
    """One row: a spec with its constants and captured tensors, and FlexAttention's functions for the same."""

    name: str
    spec: str | Path
    density: float
    score_mod: Callable[..., Any] | None
    mask_mod: Callable[..., Any]
    constants: dict[str, Any]
    captured: dict[str, Any]


def cases(heads: int) -> list[Case]:
    """The rows of the table."""
    slope = torch.exp2(-torch.arange(1, heads + 1, device="cuda", dtype=torch.float32) * 8 / heads)
    docs = (torch.arange(N, device="cuda") // DOCUMENT).to(torch.int32)
    batched = docs.expand(2, N).contiguous()

    def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
        return i >= j

    def window(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i >= j) & (i - j < WINDOW)

    def documents(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (docs[i] == docs[j]) & (i >= j)

    def alibi(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + slope[h] * (j - i)

    def softcap(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return CAP * torch.tanh(s / CAP)

    band = (WINDOW * N - WINDOW * WINDOW / 2) / N / N
    return [
        Case("causal", SPECS / "causal.attn", 0.5, None, causal, {}, {}),
        Case("window", SPECS / "window.attn", band, None, window, {"window": WINDOW}, {}),
        Case("alibi", SPECS / "alibi.attn", 0.5, alibi, causal, {}, {"slope": slope}),
        Case("softcap", SOFTCAP, 0.5, softcap, causal, {"cap": CAP}, {}),
        Case("documents", SPECS / "packed_documents.attn", 0.5 * DOCUMENT / N, None, documents, {}, {"doc": batched}),
    ]


def measure(case: Case, batch: int, heads: int, dim: int) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    shape = (batch, heads, N, dim)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    row: dict[str, Any] = {"case": case.name, "B": batch, "H": heads, "N": N, "D": dim}
    start = time.perf_counter()
    attn = attncc.compile(case.spec, backend=BACKEND, **case.constants)
    ours = attn(q, k, v, **case.captured)
    grad = torch.randn_like(ours)
    torch.autograd.grad(ours, (q, k, v), grad, retain_graph=True)
    torch.cuda.synchronize()
    row["attncc_first_call_s"] = time.perf_counter() - start
    torch._dynamo.reset()
    flex = torch.compile(flex_attention, dynamic=False)
    blocks = torch.compile(create_block_mask)(case.mask_mod, None, None, N, N, device="cuda")

    def run_flex() -> torch.Tensor:
        return flex(q, k, v, score_mod=case.score_mod, block_mask=blocks)

    calls: dict[str, Callable[[], torch.Tensor]] = {"attncc": lambda: attn(q, k, v, **case.captured), "flex": run_flex}
    if case.name == "causal":
        calls["sdpa"] = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    outs = {name: call() for name, call in calls.items()}
    row["difference"] = ((outs["attncc"] - outs["flex"]).float().norm() / outs["flex"].float().norm()).item()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            forward = do_bench(call, warmup=5, rep=20, return_mode="median")
            backward = do_bench(
                lambda out=outs[name]: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True),
                warmup=5,
                rep=20,
                return_mode="median",
            )
            times[name].append((forward, backward))
    flops = 4 * batch * heads * N * N * dim * case.density
    for name, found in times.items():
        forward, backward = (statistics.median(t[n] for t in found) for n in (0, 1))
        row[f"{name}_forward_ms"], row[f"{name}_backward_ms"] = forward, backward
        row[f"{name}_forward_tflops"] = flops / forward / 1e9
        row[f"{name}_backward_tflops"] = 2.5 * flops / backward / 1e9
    row["forward_ratio"] = row["flex_forward_ms"] / row["attncc_forward_ms"]
    row["backward_ratio"] = row["flex_backward_ms"] / row["attncc_backward_ms"]
    return row


def main() -> None:
    """Prints the table and writes it as JSON."""
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    head = {"backend": BACKEND, "gpu": torch.cuda.get_device_name(), **versions}
    print(head, date.today())
    rows = []
    for batch, heads, dim in SHAPES:
        for case in (c for c in cases(heads) if not ROWS or c.name in ROWS):
            row = measure(case, batch, heads, dim)
            rows.append(row)
            speeds = "  ".join(
                f"{name} {row[f'{name}_forward_tflops']:4.0f} / {row[f'{name}_backward_tflops']:4.0f}"
                for name in ("attncc", "flex", *(["sdpa"] if case.name == "causal" else []))
            )
            print(
                f"{case.name:10} D {dim:3}  {speeds}"
                f"  ratio {row['forward_ratio']:.2f} / {row['backward_ratio']:.2f}"
                f"  first call {row['attncc_first_call_s']:.1f} s  difference {row['difference']:.1e}",
                flush=True,
            )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({**head, "date": str(date.today()), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
