"""What a call costs beside its kernels, and where it may stand: `python -m tests.benchmarks.launch [--json OUT]`.

1. Python per call at N = 128, B 1, H 8, D 64 in bfloat16: the wall time of `attn(q, k, v)` minus that of launching the
   same kernels bare, with arguments that are packed already; of 1,000 calls, the best of several rounds. "through
   autograd" is the least that torch asks for a forward and a backward: a Function that does nothing but those launches.
2. A CUDA graph of the forward, and of forward and backward, replayed on new inputs: equal to eager calls.
3. Two streams side by side: equal to one call after the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import attncc
from attncc.runtime.trial import error
from tests.benchmarks.shown import finish, introduce, table

if TYPE_CHECKING:
    from attncc.runtime.attention import Attention
    from attncc.runtime.prepared import Prepared

CAUSAL = Path(__file__).parents[2] / "examples" / "softmax" / "causal.attn"
MOST_PYTHON = 25.0
"""Microseconds beyond the bare launches."""
CLOSE = 1e-3
"""Relative error of a dQ whose parts are added up in any order."""
CALLS, ROUNDS = 1000, 7
new_stream: Any = torch.cuda.Stream


def inputs(N: int, seed: int, gradients: bool) -> tuple[Tensor, ...]:
    """q, k, v."""
    gen = torch.Generator("cuda").manual_seed(seed)
    made = (torch.randn(1, 8, N, 64, device="cuda", generator=gen).bfloat16() for _ in "qkv")
    return tuple(x.requires_grad_(gradients) for x in made)


def microseconds(call: Callable[[], object]) -> float:
    """A call's wall time: of CALLS of them, the best of ROUNDS."""
    found = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
        found.append(1e6 * (time.perf_counter() - start) / CALLS)
    return min(found)


def bare(prepared: Prepared, args: Sequence[Tensor]) -> Callable[[], None]:
    """Launches what `prepared` launches for `args`, again and again into the same results."""
    made = [args[0].new_empty_strided(s, strides, dtype=dtype) for s, strides, dtype, _ in prepared.made]
    fills = [(t, fill) for t, (*_, fill) in zip(made, prepared.made, strict=True) if fill is not None]
    addresses = [t.data_ptr() for t in (*args, *made)]
    _, stream, zeros = prepared.last
    addresses += zeros
    launches, kept = prepared.launches, (args, made)

    def launch() -> None:
        assert kept
        for tensor, fill in fills:
            tensor.fill_(fill)
        for start in launches:
            start(addresses, stream)

    return launch


def function_of(forward: Callable[[], None], backward: Callable[[], None], outputs: Sequence[Tensor]) -> Any:
    """A torch Function of three tensors that only launches."""
    out, *grads = outputs

    class Least(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            forward()
            ctx.save_for_backward(q, k, v)
            return out.detach()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, d_out: Tensor) -> Any:
            backward()
            return tuple(g.detach() for g in grads)

    return Least.apply


def python_per_call(backend: str) -> list[dict[str, Any]]:
    """The rows of the first table."""
    attn: Attention = attncc.compile(CAUSAL, backend=backend)
    q, k, v = inputs(128, 0, gradients=True)
    d_out = torch.randn_like(q)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attn(q, k, v), (q, k, v), d_out)

    for _ in range(10):
        with torch.no_grad():
            out = attn(q, k, v)
        grads = both()
    plan, ordered = attn.plan(q, k, v, {})
    ahead = plan.prepared["forward"]
    behind = next(p for key, p in plan.prepared.items() if key != "forward")
    assert ahead is not None and behind is not None, "calls are not prepared: every one is a first one"
    outputs = plan.forward(ordered)
    named = dict(zip(("q", "k", "v", "out", "lse", "d_out"), (*ordered, *outputs, d_out), strict=True))
    half = plan.backward_half((True, True, True), False)
    forward = bare(ahead, [named[n].detach() for n in plan.half.inputs])
    backward = bare(behind, [named[n].detach() for n in half.inputs])
    least = function_of(forward, backward, (out, *grads))
    with torch.no_grad():
        row = {"which": "forward", "call": microseconds(lambda: attn(q, k, v)), "bare": microseconds(forward)}
    more = {
        "which": "forward and backward",
        "call": microseconds(both),
        "bare": microseconds(lambda: (forward(), backward())),
        "through autograd": microseconds(lambda: torch.autograd.grad(least(q, k, v), (q, k, v), d_out)),
    }
    rows: list[dict[str, Any]] = [{"backend": backend, **row}, {"backend": backend, **more}]
    for r in rows:
        r["added"] = r["call"] - r["bare"]
        r["beyond autograd"] = r["call"] - r["through autograd"] if "through autograd" in r else r["added"]
        r["holds"] = r["beyond autograd"] <= MOST_PYTHON
    return rows


def results(attn: Attention, tensors: tuple[Tensor, ...], d_out: Tensor | None) -> tuple[Tensor, ...]:
    """(out,), with gradients where a cotangent is given."""
    if d_out is None:
        with torch.no_grad():
            return (attn(*tensors),)
    out = attn(*tensors)
    return (out.detach(), *torch.autograd.grad(out, tensors, d_out))


def replayed(backend: str, backward: bool, deterministic: bool) -> dict[str, Any]:
    """A captured graph against eager calls, on two sets of new inputs."""
    attn = attncc.compile(CAUSAL, backend=backend, deterministic=deterministic)
    held = inputs(500, 0, backward)
    d_out = torch.randn_like(held[0]).detach() if backward else None
    side = new_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results(attn, held, d_out)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(attn, held, d_out)
    pairs = []
    for seed in (1, 2):
        fresh = inputs(500, seed, backward)
        with torch.no_grad():
            for old, new in zip(held, fresh, strict=True):
                old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        pairs += list(zip([x.clone() for x in found], results(attn, fresh, d_out), strict=True))
    return compared("graph", backend, backward, deterministic, pairs)


def on_streams(backend: str, backward: bool, deterministic: bool) -> dict[str, Any]:
    """Eight calls on two streams against the same calls one after the other."""
    attn = attncc.compile(CAUSAL, backend=backend, deterministic=deterministic)
    cases = [inputs(1000, seed, backward) for seed in range(8)]
    d_out = torch.randn_like(cases[0][0]).detach() if backward else None
    expected = [results(attn, c, d_out) for c in cases]
    torch.cuda.synchronize()
    streams = [new_stream() for _ in range(2)]
    found = []
    for n, case in enumerate(cases):
        with torch.cuda.stream(streams[n % 2]):
            found.append(results(attn, case, d_out))
    torch.cuda.synchronize()
    pairs = [p for a, b in zip(found, expected, strict=True) for p in zip(a, b, strict=True)]
    return compared("two streams", backend, backward, deterministic, pairs)


def compared(
    what: str, backend: str, backward: bool, deterministic: bool, pairs: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Every bit where sums have one order, else nearly."""
    worst = max(error(a, b) for a, b in pairs)
    equal = all(torch.equal(a, b) for a, b in pairs)
    which = "forward and backward" if backward else "forward"
    exact = deterministic or not backward
    return {
        "backend": backend,
        "check": what,
        "which": which + (", deterministic" if deterministic else ""),
        "bitwise": "yes" if equal else "no",
        "worst": worst,
        "holds": equal if exact else worst <= CLOSE,
    }


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="auto,triton")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    where, backends = introduce(torch.device("cuda")), given.backends.split(",")
    costs = [row for b in backends for row in python_per_call(b)]
    head: tuple[str, ...] = (
        "backend",
        "which",
        "call",
        "bare",
        "through autograd",
        "added",
        "beyond autograd",
        "holds",
    )
    print(f"\nmicroseconds a call; at most {MOST_PYTHON:.0f} of them Python beyond the launches (and torch's autograd)")
    print(table(head, [[r.get(n) for n in head] for r in costs]), flush=True)
    ways = [(b, back, det) for b in backends for back, det in ((False, False), (True, False), (True, True))]
    checks = [check(*way) for check in (replayed, on_streams) for way in ways]
    head = ("backend", "check", "which", "bitwise", "worst", "holds")
    print("\n" + table(head, [[r[n] for n in head] for r in checks]))
    rows = [*costs, *checks]
    finish(where, rows, given.json, all(r["holds"] for r in rows))


if __name__ == "__main__":
    main()
