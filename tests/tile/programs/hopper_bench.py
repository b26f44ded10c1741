"""Runs the hand-built Hopper forward on a GPU: `python -m tests.tile.programs.hopper_bench --run --time`.

--run checks every plan on awkward and plain shapes; --time interleaves the plans with cuDNN and prints TFLOP/s.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attncc.codegen.gluon_printer import print_gluon
from tests.tile.programs.hopper_forward import PLANS, Plan, Score, biased, capped, program

CAP = 20.0
SHAPES = [(1, 4, 2, 640, 640), (2, 2, 1, 300, 300), (1, 2, 2, 129, 1000), (1, 2, 2, 1000, 129), (1, 1, 1, 1, 1)]
"""B, H, G, M, N."""


@functools.cache
def module(name: str) -> ModuleType:
    """The printed module of a plan, for the installed Triton."""
    import triton

    version = tuple(int(x) for x in triton.__version__.split(".")[:2])
    path = Path(tempfile.mkdtemp()) / f"{name}.py"
    path.write_text(print_gluon(program(*PLANS[name]), triton=version))  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, name: str = "causal") -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse of plan `name`, the scale being D ** -0.5."""
    plan, score = PLANS[name]
    args: list[Any] = [q, k, v]
    named: dict[str, float] = {"scale": plan.D**-0.5}
    if score is biased:
        args.append(slopes(q))
    if score is capped:
        named["cap"] = CAP
    out, lse = module(name).hopper_forward(*args, **named)
    return out, lse


def slopes(q: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.01, 0.5, q.shape[1], device=q.device)


def expected(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, score: Score
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32, dense."""
    (_, h, m, d), n = q.shape, k.shape[2]
    k, v = (x.float().repeat_interleave(h // x.shape[1], 1) for x in (k, v))
    s = q.float() @ k.mT * d**-0.5
    i = torch.arange(m, device=q.device)[:, None] + n - m
    j = torch.arange(n, device=q.device)[None]
    if score is capped:
        s = CAP * torch.tanh(s / CAP)
    if score is biased:
        s = s + slopes(q)[:, None, None] * (j - i)
    if plan.causal:
        s = s.masked_fill(j > i, -math.inf)
    return torch.nan_to_num(s.softmax(-1)) @ v, s.logsumexp(-1)


def check(name: str) -> None:
    """Every shape: relative errors of out and lse."""
    plan, score = PLANS[name]
    for b, h, g, m, n in SHAPES:
        gen = torch.Generator("cuda").manual_seed(0)
        q, k, v = (
            torch.randn(b, x, r, plan.D, device="cuda", generator=gen).bfloat16() for x, r in ((h, m), (g, n), (g, n))
        )
        out, lse = run(q, k, v, name)
        want, want_lse = expected(q, k, v, plan, score)
        error = float((out.float() - want).norm() / want.norm())
        live = want_lse.isfinite()
        off = float((lse - want_lse)[live].abs().max())
        same = bool((lse.isfinite() == live).all())
        verdict = "ok" if error < 1e-2 and off < 1e-2 and same else "WRONG"
        print(f"{name:12} B{b} H{h} G{g} M{m} N{n}: out {error:.1e} lse {off:.1e} {verdict}", flush=True)


def time(names: list[str], rounds: int) -> None:
    """Interleaved medians, TFLOP/s, the ratio to cuDNN of the same density."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from triton.testing import do_bench

    cases: dict[str, Callable[[], Any]] = {}
    flops: dict[str, float] = {}
    for d in sorted({PLANS[n][0].D for n in names}):
        shape = (2, 16 if d == 128 else 32, 8192, d)
        q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        for n in names:
            if PLANS[n][0].D == d:
                cases[n] = functools.partial(run, q, k, v, n)
                flops[n] = 4 * math.prod(shape) * shape[2] * (0.5 if PLANS[n][0].causal else 1)
        for causal in (True, False):
            label = f"cudnn{d}_{'causal' if causal else 'full'}"

            def library(
                q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v, c: bool = causal
            ) -> torch.Tensor:
                with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=c)

            cases[label] = library
            flops[label] = 4 * math.prod(shape) * shape[2] * (0.5 if causal else 1)
    times: dict[str, list[float]] = {n: [] for n in cases}
    for _ in range(rounds):
        for n, f in cases.items():
            times[n].append(do_bench(f, warmup=5, rep=25, return_mode="median"))
    for n, t in times.items():
        mid = sorted(t)[len(t) // 2]
        print(f"{n:16} {mid:7.3f} ms {flops[n] / mid / 1e9:5.0f} TFLOP/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("plans", nargs="*", default=list(PLANS))
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    for name in options.plans if options.run else []:
        check(name)
    if options.time:
        time(options.plans, options.rounds)


if __name__ == "__main__":
    main()
