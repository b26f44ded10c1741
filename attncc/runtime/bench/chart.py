"""Bars of TFLOP/s: forward and backward side by side, a group for each row."""

from __future__ import annotations

import os
from collections.abc import Sequence

from attncc.runtime.bench.measure import WHICH
from attncc.runtime.bench.report import Measured


def draw(rows: Sequence[Measured], title: str, path: str | os.PathLike[str]) -> None:
    """Writes the chart; ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = {e.name for m in rows for e in m.entries if e.status == "timed" and e.role in ("ours", "peer")}
    names = [n for n in dict.fromkeys(e.name for m in rows for e in m.entries) if n in timed]
    which = [w for w in WHICH if any(e.median(w) for m in rows for e in m.entries)]
    height = 1.2 + len(rows) * (0.18 * max(len(names), 1) + 0.14)
    figure = Figure(figsize=(6.4 * max(len(which), 1), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(len(which), 1), sharey=True, squeeze=False)[0]
    thick = 0.86 / max(len(names), 1)
    for ax, w in zip(axes, which, strict=False):
        for n, name in enumerate(names):
            found = [next((m.tflops(e, w) for e in m.entries if e.name == name), None) or 0.0 for m in rows]
            places = [at + (n - (len(names) - 1) / 2) * thick for at in range(len(rows))]
            bars = ax.barh(places, found, thick * 0.94, label=name)
            ax.bar_label(bars, [f"{x:.0f}" if x >= 0.5 else "" for x in found], padding=2, fontsize=6)
        ax.set_title(f"{w}, TFLOP/s", fontsize=10)
        ax.set_yticks(range(len(rows)), [m.row.label for m in rows], fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.08, y=0.01)
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
