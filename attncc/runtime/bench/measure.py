"""One case timed: every contestant is called, compared, and timed in rounds that take turns."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from attncc.runtime.attention import compile_spec
from attncc.runtime.bench.case import Case, Work
from attncc.runtime.bench.peers import Peer, Ready
from attncc.runtime.family import _stages as stages
from attncc.runtime.trial import BARS, error
from attncc.runtime.variants import DTYPES

Status = Literal["timed", "wrong", "can't", "absent", "failed"]
Role = Literal["ours", "anchor", "gradients", "peer"]
"""anchor: another spec, whose time per tile is the measure. gradients: ours, with those of captured tensors."""
WHICH = ("forward", "backward")
_TRUTH_ELEMENTS = 2**24
"""Scores (B * H * M * N) up to which the dense reference is asked, too."""


@dataclass
class Contestant:
    """What came of one contestant in one case. Times are milliseconds, one a round."""

    name: str
    status: Status = "timed"
    note: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    """By result, relative to what attncc's first backend computed (of that one: to the dense reference)."""
    first_s: float = 0.0
    """The first call, forward and backward, compilation included."""
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    role: Role = "peer"
    work: Work = Work(1.0, 1.0)
    """What its mask leaves to compute."""

    def median(self, which: str) -> float | None:
        """The median of its rounds, None where it was not timed."""
        times = self.forward if which == "forward" else self.backward
        return statistics.median(times) if times else None


@dataclass(frozen=True)
class Plan:
    """Who takes part and how long it takes."""

    backends: tuple[str, ...]
    peers: tuple[Peer, ...]
    which: tuple[str, ...] = WHICH
    rounds: int = 5
    tiles: tuple[str, ...] = ()
    """Other plans than the default, timed beside it."""
    gradients: bool = False
    """attncc is also timed with the gradients of captured tensors."""
    strict: bool = False
    """What attncc refuses is raised, not noted."""
    warmup_ms: float = 25.0
    pending: tuple[Future[None], ...] = ()
    """Compilations that have to end before anything is timed."""
    measure_ms: float = 20.0


@dataclass
class Running:
    """A contestant with its calls by what they time."""

    entry: Contestant
    calls: dict[str, Callable[[], Any]]
    results: dict[str, Tensor]


def measure(case: Case, plan: Plan, anchor: Case | None = None) -> list[Contestant]:
    """Times `case`, and beside it attncc's `anchor`, another spec on the same q, k and v."""
    entries: list[Contestant] = []
    running: list[Running] = []
    truth: dict[str, Tensor] = {}
    for entry, make in _contestants(case, plan, anchor):
        entries.append(entry)
        if entry.status != "timed":
            continue
        try:
            ready = make()
            if isinstance(ready, str):
                entry.status, entry.note = "can't", ready
                continue
            found = start(entry, ready, plan.which)
        except Exception as e:
            if entry.role == "ours" and plan.strict:
                raise
            first = [*str(e).strip().splitlines(), ""][0]
            entry.status, entry.note = "failed", f"{type(e).__name__}: {first[:160]}"
            continue
        if entry.role != "anchor":
            truth = truth or dense_truth(case, found) or found.results
            judge(entry, found.results, truth, case)
        if entry.status == "timed":
            running.append(found)
        found.results = {}
    wait(plan.pending)
    take_turns(running, plan, case.device)
    return entries


def _contestants(case: Case, plan: Plan, anchor: Case | None) -> Iterator[tuple[Contestant, Callable[[], Ready | str]]]:
    for n, backend in enumerate(plan.backends):
        name = "attncc" if len(plan.backends) == 1 else f"attncc-{backend}"
        found: list[tuple[Role, str, Case, str, str]] = [("ours", name, case, "", "")]
        if n == 0 and anchor is not None:
            found.append(("anchor", "anchor", anchor, "", anchor.name))
        if n == 0 and plan.gradients and "backward" in plan.which and case.reals:
            with_those = f"with those of {', '.join(case.reals)}"
            found.append(("gradients", "gradients", case.with_gradients(), "", with_those))
        found += [("ours", f"{name}-{at}", case, tiles, tiles) for at, tiles in enumerate(plan.tiles, 1)]
        for role, called, one, tiles, note in found:
            entry = Contestant(called, note=note, role=role, work=one.work if role == "anchor" else case.work)
            yield entry, lambda b=backend, c=one, t=tiles: our_call(c, b, t)  # type: ignore[misc]
    for peer in plan.peers:
        reason = peer.available(case.device)
        entry = Contestant(peer.name, "absent", reason) if reason else Contestant(peer.name)
        entry.work = case.work
        yield entry, lambda p=peer: _prepared(p, case)  # type: ignore[misc]


def _prepared(peer: Peer, case: Case) -> Ready | str:
    """Alone with the expressions: kernels may be on their way in other threads."""
    with stages:
        return peer.prepare(case)


def our_call(case: Case, backend: str, tiles: str = "") -> Ready:
    """attncc's call, with the default plan or another."""
    attention = compile_spec(case.file, backend=backend, deterministic=False, constants=case.constants, tiles=tiles)
    q, k, v = (case.tensors[n] for n in "qkv")
    captured: dict[str, Any] = {n: t for n, t in case.tensors.items() if n not in ("q", "k", "v")}
    leaves = (q, k, v, *(t for t in captured.values() if t.requires_grad)) if q.requires_grad else ()

    def said() -> str:
        """Why a half is plain where a partitioned one is usual."""
        plan, tensors = attention.plan(q, k, v, captured)
        halves = [plan.half, *([plan.backward_half(tuple(t.requires_grad for t in tensors), False)] if leaves else [])]
        return ", ".join(f"{h.which} {h.reason}" for h in halves if h.reason)

    return Ready(lambda: attention(q, k, v, **captured), leaves, case.d_out, said=said)


def start(entry: Contestant, ready: Ready, which: Sequence[str]) -> Running:
    """The first call, and the calls that will be timed."""
    entry.note = entry.note or ready.note
    training = "backward" in which and bool(ready.leaves)
    began = time.perf_counter()
    with torch.set_grad_enabled(training):
        out = ready.forward()
    results = {"out": ready.turned(out.detach())}
    calls: dict[str, Callable[[], Any]] = {}

    def forward() -> None:
        with torch.set_grad_enabled(training):
            ready.forward()

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, ready.leaves, ready.d_out, retain_graph=True)

    if "forward" in which:
        calls["forward"] = forward
    if training:
        for name, grad in zip(("d_q", "d_k", "d_v"), backward(), strict=False):
            results[name] = ready.turned(grad)
        calls["backward"] = backward
    if out.is_cuda:
        torch.cuda.synchronize()
    entry.note = ", ".join(n for n in (entry.note, ready.said()) if n)
    entry.first_s = time.perf_counter() - began
    return Running(entry, calls, results)


def dense_truth(case: Case, found: Running) -> dict[str, Tensor]:
    """The dense reference's results, where it is small enough to run; else nothing."""
    s = case.sizes
    if s["B"] * s["H"] * s["M"] * s["N"] > _TRUTH_ELEMENTS:
        return {}
    from attncc.reference import evaluate

    exact = {n: t.detach().double() if t.is_floating_point() else t for n, t in case.tensors.items()}
    leaves = [exact[n].requires_grad_("d_q" in found.results) for n in "qkv"]
    out = evaluate(case.spec, exact, case.constants).out
    results = {"out": out.detach()}
    if "d_q" in found.results:
        grads = torch.autograd.grad(out, leaves, case.d_out.to(out), allow_unused=True)
        grads = tuple(torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True))
        results |= dict(zip(("d_q", "d_k", "d_v"), grads, strict=True))
    return results


def judge(entry: Contestant, results: dict[str, Tensor], truth: dict[str, Tensor], case: Case) -> None:
    """Errors against twice the bar of the type: two roundings meet."""
    entry.errors = {n: error(r, truth[n]) for n, r in results.items() if truth is not results}
    q = case.tensors["q"]
    tf32 = q.dtype == torch.float32 and q.is_cuda and torch.get_float32_matmul_precision() != "highest"
    bar = 2 * BARS["tf32" if tf32 else DTYPES[q.dtype]]
    wrong = {n: e for n, e in entry.errors.items() if not e <= bar}
    if wrong:
        entry.status = "wrong"
        entry.note = ", ".join(f"{n} is {_percent(e)} off" for n, e in wrong.items())


def _percent(e: float) -> str:
    return f"{100 * e:.2g}%" if math.isfinite(e) else "infinitely"


def take_turns(running: Sequence[Running], plan: Plan, device: torch.device) -> None:
    """Everyone is timed once a round, in an order drawn for it: what ran before heats the GPU for what comes next."""
    for n in range(plan.rounds):
        for r in random.Random(n).sample(running, len(running)):
            for which, call in r.calls.items():
                times = r.entry.forward if which == "forward" else r.entry.backward
                times.append(milliseconds(call, device, plan.warmup_ms, plan.measure_ms))


def milliseconds(call: Callable[[], Any], device: torch.device, warmup: float, measured: float) -> float:
    """The median time of a call over about `measured` milliseconds of calls, at least one."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=warmup, rep=measured, return_mode="median"))
    times: list[float] = []
    call()
    while sum(times) < measured or not times:
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)
