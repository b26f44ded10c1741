"""What was measured, as text, Markdown and plain data."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from attncc.runtime.bench.case import TILE, Case
from attncc.runtime.bench.measure import WHICH, Contestant
from attncc.runtime.bench.suite import Bound, Goal, Row

_SLACK = 0.02
"""A ratio of 0.98 counts as 1."""


@dataclass(frozen=True)
class Verdict:
    """One bound of a goal: the ratio that was measured, the one wanted, over whom, and how they compare."""

    ratio: float
    bar: float
    over: str
    margin: float
    """1 and more is enough; of times that may be at most so long, the inverse."""
    holds: bool


@dataclass(frozen=True)
class Measured:
    """One row and what came of it."""

    row: Row
    dtype: str
    density: float
    flops: Mapping[str, float]
    entries: Sequence[Contestant]

    @property
    def ours(self) -> tuple[Contestant, ...]:
        return tuple(e for e in self.entries if e.role == "ours")

    @property
    def good(self) -> bool:
        """Whether all results agree and all of attncc's were timed."""
        return all(e.status != "wrong" and (e.status == "timed" or e.role != "ours") for e in self.entries)

    def tflops(self, entry: Contestant, which: str) -> float | None:
        """Of the pairs that the mask leaves."""
        ms = entry.median(which)
        share = entry.work.pairs / (self.ours[0].work.pairs or 1.0)
        return None if ms is None else share * self.flops[which] / ms / 1e9

    def tile_tflops(self, entry: Contestant, which: str) -> float | None:
        """Of all pairs in the tiles that the mask leaves something of."""
        speed = self.tflops(entry, which)
        return None if speed is None else speed * TILE * TILE * entry.work.tiles / (entry.work.pairs or 1.0)

    def ratio(self, mine: Contestant, over: str, which: str) -> tuple[float, float, float] | None:
        """How many times as fast as `over`: of the medians, and the least and largest of any round."""
        wanted = "anchor" if over == "tile" else over
        other = next((e for e in self.entries if e.name == wanted), None)
        if other is None:
            return None
        a, b = ((e.forward if which == "forward" else e.backward) for e in (mine, other))
        if not a or not b:
            return None
        share = mine.work.tiles / (other.work.tiles or 1.0) if over == "tile" else 1.0
        each = [share * y / x for x, y in zip(a, b, strict=True)]
        return share * statistics.median(b) / statistics.median(a), min(each), max(each)

    def nearest(self, mine: Contestant, goal: Goal, which: str) -> Verdict | None:
        """The bound of the goal that comes nearest to holding; None where nobody it is measured by was timed."""
        if goal.most and which == "forward":
            return None
        found = []
        for b in goal.bounds:
            ratio, bar = self.ratio(mine, b.over, which), _least(b, which)
            if ratio is not None:
                margin = bar / ratio[0] if goal.most else ratio[0] / bar
                slack = _SLACK if bar == 1 and not goal.most else 0.0
                found.append(Verdict(ratio[0], bar, b.over, margin, margin >= 1 - slack))
        return max(found, key=lambda v: (v.holds, v.margin), default=None)

    def reached(self, mine: Contestant, goal: Goal, which: str) -> bool | None:
        """Whether a bound of the goal holds; None where nobody it is measured by was timed."""
        verdict = self.nearest(mine, goal, which)
        return None if verdict is None else verdict.holds


# --- text -----------------------------------------------------------------------------------------------------------

_HEAD = f"{'':34} {'':12}" + "".join(f" {w + ' ms':>12} {'TFLOP/s':>8} {'+-':>5} {'ours':>6}" for w in WHICH)


def heading() -> str:
    """The table's head; `ours` is how many times as fast attncc is."""
    return f"{_HEAD} {'error':>8} {'first':>7}"


def lines(m: Measured) -> list[str]:
    """The table's lines of one row: a contestant each but the absent ones, then the goals."""
    found = []
    for n, e in enumerate(e for e in m.entries if e.status != "absent"):
        label = m.row.label if n == 0 else f"  {100 * m.density:.3g}% of the pairs" if n == 1 else ""
        found.append(f"{label:<34} {e.name:<12}{_figures(m, e)}".rstrip())
    for mine in m.ours:
        for goal in m.row.goals:
            states = [f"{w} {_said(m, mine, goal, w)}" for w in WHICH if m.reached(mine, goal, w) is not None]
            if states:
                found.append(f"{'':34} {mine.name}, {goal.text}: {', '.join(states)}")
    return found


def _figures(m: Measured, e: Contestant) -> str:
    if e.status != "timed":
        return f" {e.status.upper() if e.status == 'wrong' else e.status}: {e.note}"
    parts = []
    for which in WHICH:
        ms, speed = e.median(which), m.tflops(e, which)
        if ms is None or speed is None:
            parts.append(f" {'':12} {'':8} {'':5} {'':6}")
            continue
        over = m.ratio(m.ours[0], "tile" if e.role == "anchor" else e.name, which) if e is not m.ours[0] else None
        parts.append(f" {ms:12.4g} {speed:8.4g} {_spread(e, which):>5} {'' if over is None else f'{over[0]:.2f}':>6}")
    worst = f"{max(e.errors.values()):.1e}" if e.errors else ""
    return f"{''.join(parts)} {worst:>8} {e.first_s:6.1f}s {e.note}"


def _spread(e: Contestant, which: str) -> str:
    """Half the distance of the fastest and slowest round."""
    times = e.forward if which == "forward" else e.backward
    return f"{50 * (max(times) - min(times)) / statistics.median(times):.1f}%"


def _said(m: Measured, mine: Contestant, goal: Goal, which: str) -> str:
    ratios = ((b.over, m.ratio(mine, b.over, which)) for b in goal.bounds)
    shown = ", ".join(f"{r[0]:.2f} {over}" for over, r in ratios if r is not None)
    return f"{'reached' if m.reached(mine, goal, which) else 'MISSED'} ({shown})"


def means(rows: Sequence[Measured]) -> list[str]:
    """How many times as fast as each peer attncc's best is, the geometric mean of the rows: a line a peer."""
    found = []
    for over in dict.fromkeys(e.name for m in rows for e in m.entries if e.role == "peer"):
        each = {w: [r for m in rows if (r := _best(m, over, w)) is not None] for w in WHICH}
        said = [f"{w} {statistics.geometric_mean(r):.2f} ({len(r)} rows)" for w, r in each.items() if r]
        if said:
            found.append(f"geometric mean over {over}: {', '.join(said)}")
    return found


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Measured], where: Mapping[str, str]) -> str:
    """One table: TFLOP/s forward / backward of everyone, ratios, and whether the goals are reached."""
    entries = [e for m in rows for e in m.entries if e.status != "absent"]
    ours, others = (list(dict.fromkeys(e.name for e in entries if e.role == r)) for r in ("ours", "peer"))
    tiles = any(e.role == "anchor" for e in entries)
    gradients = any(e.role == "gradients" for e in entries)
    names = [*ours, *others]
    ratios = [f"over {n}" for n in others] + ["per tile"] * tiles + ["captured gradients"] * gradients
    head = ["row", *names, *ratios, "goals"]
    text = [
        f"{', '.join(f'{k} {v}' for k, v in where.items())}. TFLOP/s, forward / backward.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for m in rows:
        known = {e.name: e for e in m.entries}
        cells = [_pair([m.tflops(known[n], w) if n in known else None for w in WHICH], "{:.0f}") for n in names]
        for over in [*others, *(["tile"] if tiles else [])]:
            best = [_best(m, over, w) for w in WHICH]
            cells.append(_pair(best, "{:.2f}"))
        if gradients:
            more = m.ratio(m.ours[0], "gradients", "backward")
            cells.append("" if more is None else f"{100 * (more[0] - 1):+.0f}%")
        text.append(f"| {' | '.join([m.row.label, *cells, _goals(m)])} |")
    said = [line for mean in means(rows) for line in ("", f"{mean[0].upper()}{mean[1:]}.")]
    return "\n".join([*text, *_bars(rows), *said]) + "\n"


def _bars(rows: Sequence[Measured]) -> list[str]:
    """A second table: each goal's ratio, its bar, and whether it holds, by the best of our backends."""
    lines = []
    for m in rows:
        for goal in m.row.goals:
            for which in WHICH:
                found = [v for mine in m.ours if (v := m.nearest(mine, goal, which)) is not None]
                if found:
                    best = max(found, key=lambda v: (v.holds, v.margin))
                    bar = f"{'<=' if goal.most else '>='} {best.bar:.2f}"
                    verdict = "holds" if best.holds else f"short by {100 * (1 - best.margin):.0f}%"
                    cells = [m.row.label, which, goal.text, f"{best.ratio:.2f} {best.over}", bar, verdict]
                    lines.append(f"| {' | '.join(cells)} |")
    head = ["", "| row | half | goal | ratio | bar | |", "|---|---|---|---|---|---|"]
    return [*head, *lines] if lines else []


def _best(m: Measured, over: str, which: str) -> float | None:
    found = [r[0] for mine in m.ours if (r := m.ratio(mine, over, which)) is not None]
    return max(found) if found else None


def _goals(m: Measured) -> str:
    """`2/2`, or the goals that no backend of ours reaches."""
    missed, known = [], 0
    for goal in m.row.goals:
        for which in WHICH:
            states = [s for mine in m.ours if (s := m.reached(mine, goal, which)) is not None]
            known += bool(states)
            if states and not any(states):
                missed.append(f"{which}: {goal.text}")
    return "missed " + "; ".join(missed) if missed else f"{known}/{known}" if known else ""


def _pair(values: Sequence[float | None], form: str) -> str:
    if all(v is None for v in values):
        return ""
    return " / ".join("-" if v is None else form.format(v) for v in values)


# --- data -----------------------------------------------------------------------------------------------------------


def data(rows: Sequence[Measured], where: Mapping[str, str]) -> dict[str, Any]:
    """Everything, every round included."""
    return {**where, "rows": [_row(m) for m in rows]}


def _row(m: Measured) -> dict[str, Any]:
    return {
        "row": m.row.label,
        "spec": m.row.spec,
        "shape": dict(m.row.shape),
        "constants": dict(m.row.constants),
        "dtype": m.dtype,
        "density": m.density,
        "contestants": [_entry(m, e) for e in m.entries],
        "goals": [
            {"goal": g.text, "of": mine.name, **{w: _verdict(m.nearest(mine, g, w)) for w in WHICH}}
            for mine in m.ours
            for g in m.row.goals
        ],
    }


def _verdict(v: Verdict | None) -> dict[str, Any] | None:
    return None if v is None else {"holds": v.holds, "ratio": v.ratio, "bar": v.bar, "over": v.over}


def _entry(m: Measured, e: Contestant) -> dict[str, Any]:
    found: dict[str, Any] = {"name": e.name, "status": e.status, "note": e.note}
    if e.status == "timed":
        found |= {"errors": {n: x if math.isfinite(x) else None for n, x in e.errors.items()}, "first_s": e.first_s}
        for which in WHICH:
            times = e.forward if which == "forward" else e.backward
            if times:
                over = m.ratio(m.ours[0], "tile" if e.role == "anchor" else e.name, which)
                found[which] = {
                    "ms": statistics.median(times),
                    "rounds_ms": times,
                    "tflops": m.tflops(e, which),
                    "tile_tflops": m.tile_tflops(e, which),
                    "ours_over_it": None if over is None else dict(zip(("median", "least", "most"), over, strict=True)),
                }
    return found


def _least(bound: Bound, which: str) -> float:
    return bound.forward if which == "forward" else bound.backward


def measured(row: Row, case: Case, entries: Sequence[Contestant]) -> Measured:
    """The record of a case."""
    flops = {w: case.flops(w) for w in WHICH}
    return Measured(row, str(case.tensors["q"].dtype).removeprefix("torch."), case.density, flops, entries)


def machine(device: torch.device, packages: Sequence[str] = ()) -> dict[str, str]:
    """Where and when it was measured, with the versions of `packages`."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    for name in ("triton", *packages, "attncc"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["python"] = platform.python_version()
    found["date"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return found
