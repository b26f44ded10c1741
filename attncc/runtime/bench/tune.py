"""A search for faster plans of one spec on this machine: compiled side by side, checked, timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from attncc.debug import integer
from attncc.errors import AttnccError
from attncc.runtime.attention import Attention, compile_spec
from attncc.runtime.bench.case import Case
from attncc.runtime.bench.measure import (
    Contestant,
    Plan,
    dense_truth,
    judge,
    milliseconds,
    our_call,
    start,
    take_turns,
)
from attncc.runtime.bench.prefetch import side_by_side, wanted
from attncc.runtime.family import Half
from attncc.runtime.trial import BARS, error
from attncc.runtime.tuned import keep
from attncc.runtime.variants import DTYPES
from attncc.schedule import overrides
from attncc.schedule.candidates import Group, Which, groups

FINALISTS = 4
_GAIN = 0.99
"""A plan wins where it takes at most this share of the default's time."""

Status = Literal["refused", "same", "wrong", "slower", "lost", "kept"]


@dataclass(frozen=True)
class Tried:
    """One candidate. refused: it can't be compiled or partitioned. same: it prints what another one does. slower: it
    was no finalist; lost: it was."""

    which: Which
    kernel: str
    tiles: str
    status: Status
    ms: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Found:
    """The result of a search: what changes of the default plan, "" if nothing, and how much faster it is."""

    tiles: str
    gains: Mapping[str, float]
    """By kernel: the default's time over the winner's, medians of the last rounds; of several groups, the product."""
    tried: Sequence[Tried]


@dataclass(frozen=True)
class Search:
    """How long to search. `limit` is the most candidates of a group."""

    backend: str = "auto"
    which: tuple[Which, ...] = ("forward", "backward")
    rounds: int = 5
    measure_ms: float = 20.0
    limit: int = 1000


def tune(case: Case, short: Case, search: Search, say: Callable[[Tried], None]) -> Found:
    """Searches the plans of `case` and keeps the best on disk, for `tiles="tuned"`. `short` is for the reference."""
    halves = {which: _half(case, search.backend, "", which) for which in ("forward", *search.which)}
    partitioned: dict[Which, bool] = {
        w: halves[w].partitioned if w in halves else False for w in ("forward", "backward")
    }
    variant = halves["forward"].variant
    best, gains, tried = "", dict[str, float](), list[Tried]()
    for group in groups(variant, partitioned):
        if group.which in search.which:
            best, gain, more = _settle(group, best, case, short, search, say)
            gains[group.kernel] = gains.get(group.kernel, 1.0) * gain
            tried += more
    family = _attention(case, search.backend, "")._family
    keep(family.key, replace(variant, tiles=""), case.device, best)
    return Found(best, gains, tried)


def _settle(
    group: Group, base: str, case: Case, short: Case, search: Search, say: Callable[[Tried], None]
) -> tuple[str, float, list[Tried]]:
    """The best of a group on top of `base`, and its gain."""
    tried: list[Tried] = []

    def tell(tiles: str, status: Status, ms: float | None = None, note: str = "") -> None:
        tried.append(Tried(group.which, group.kernel, tiles, status, ms, note))
        say(tried[-1])

    texts = [merged(base, text) for text in group.texts[: search.limit]]
    sources = {_half(case, search.backend, base, group.which).text: base}
    right: list[tuple[float, str]] = []
    exact: dict[str, Tensor] = {}
    for text, came in zip(texts, _compiled(texts, group, case, search), strict=True):
        if isinstance(came, str):
            tell(text, "refused", note=came)
        elif came.text in sources:
            tell(text, "same", note=sources[came.text] or "the default")
        else:
            sources[came.text] = text
            wrong = _check(text, group.which, short, search.backend, exact)
            if wrong:
                tell(text, "wrong", note=wrong)
            else:
                right.append((_quick(text, group.which, case, search), text))
    right.sort()
    for ms, text in right[FINALISTS:]:
        tell(text, "slower", ms)
    times = _final([base, *(text for _, text in right[:FINALISTS])], group.which, case, search)
    best = min(times, key=lambda text: times[text])
    best = best if times[best] <= _GAIN * times[base] else base
    for _, text in right[:FINALISTS]:
        if text in times:
            tell(text, "kept" if text == best else "lost", times[text])
        else:
            tell(text, "wrong", note="at this shape")
    return best, times[base] / times[best], tried


def merged(base: str, text: str) -> str:
    """Both changes; where they meet, the second's."""
    return " ".join(
        f"{n}={v}" for n, v in sorted({**dict(overrides.items(base)), **dict(overrides.items(text))}.items())
    )


def _attention(case: Case, backend: str, tiles: str) -> Attention:
    return compile_spec(case.file, backend=backend, deterministic=False, constants=case.constants, tiles=tiles)


def _half(case: Case, backend: str, tiles: str, which: str) -> Half:
    attention = _attention(case, backend, tiles)
    q, k, v = (case.tensors[n] for n in "qkv")
    plan, tensors = attention.plan(q, k, v, {n: t for n, t in case.tensors.items() if n not in ("q", "k", "v")})
    if which == "forward":
        return plan.half
    return plan.backward_half(tuple(t.requires_grad for t in tensors), False)


def _compiled(texts: Sequence[str], group: Group, case: Case, search: Search) -> list[Half | str]:
    """The halves of all candidates, or why there is none; on a GPU they are compiled side by side before."""
    split = group.kernel.startswith("partitioned")
    default = _half(case, search.backend, "", group.which)
    family = _attention(case, search.backend, "")._family

    def one(text: str) -> Half | str:
        try:
            if split:  # what can't even be scheduled is not worth the plain kernel that would stand in for it
                tiles = overrides.of(text, group.which)
                family.programs(replace(default.variant, tiles=tiles))
            half = _half(case, search.backend, text, group.which)
        except (AttnccError, AssertionError, ValueError, ArithmeticError, KeyError) as e:
            return [*str(e).strip().splitlines(), type(e).__name__][0]
        if split and not half.partitioned:
            return half.reason or "it is not partitioned"
        return half

    if case.device.type == "cuda":
        capability = default.variant.capability
        halves = [w for text in texts for w in wanted(case, search.backend, capability, tiles=text)]
        wait(side_by_side((w for w in halves if w.which == group.which), integer("ATTNCC_WORKERS")))
    return [one(text) for text in texts]


def _check(text: str, which: Which, short: Case, backend: str, exact: dict[str, Tensor]) -> str:
    """What the dense reference finds wrong with a candidate at a small shape of odd lengths; "" if nothing."""
    entry = Contestant(text)
    try:
        running = start(entry, our_call(short, backend, text), (which,))
    except Exception as e:
        return [*str(e).strip().splitlines(), type(e).__name__][0]
    if not exact:
        exact.update(dense_truth(short, running))
    bar = BARS[DTYPES[short.tensors["q"].dtype]]
    errors = {n: error(r, exact[n]) for n, r in running.results.items()}
    return ", ".join(f"{n} is off by {e:.1e}" for n, e in errors.items() if not e <= bar)


def _quick(text: str, which: Which, case: Case, search: Search) -> float:
    running = start(Contestant(text), our_call(case, search.backend, text), (which,))
    return milliseconds(running.calls[which], case.device, search.measure_ms / 4, search.measure_ms / 4)


def _final(texts: Sequence[str], which: Which, case: Case, search: Search) -> dict[str, float]:
    """Medians of rounds that take turns, of those whose results agree with the first's."""
    running = [start(Contestant(text), our_call(case, search.backend, text), (which,)) for text in texts]
    for r in running:
        judge(r.entry, r.results, running[0].results, case)
        r.results = {} if r is not running[0] else r.results
    agreeing = [r for r in running if r.entry.status == "timed"]
    take_turns(agreeing, Plan((), (), rounds=search.rounds, measure_ms=search.measure_ms), case.device)
    return {r.entry.name: r.entry.median(which) or float("inf") for r in agreeing}
