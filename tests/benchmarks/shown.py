"""What the scripts of this folder share: tables as text, figures as JSON, the machine they come from."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attncc.runtime.bench.report import machine


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of equal width, the first to the left; floats with three digits, booleans as `holds` and `SHORT`."""
    cells = [list(head), *([_cell(x) for x in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in cells
    )


def _cell(x: object) -> str:
    match x:
        case bool():
            return "holds" if x else "SHORT"
        case float():
            return f"{x:.3g}"
        case None:
            return ""
        case _:
            return str(x)


def introduce(device: torch.device) -> dict[str, Any]:
    """Prints and gives where it is measured."""
    where: dict[str, Any] = dict(machine(device))
    print(", ".join(f"{k} {v}" for k, v in where.items()), flush=True)
    return where


def finish(where: dict[str, Any], rows: Sequence[dict[str, Any]], path: str, good: bool) -> None:
    """Writes the figures where a path is given; exits 0 where everything holds, else 1."""
    if path:
        Path(path).write_text(json.dumps({**where, "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
    print("everything holds" if good else "NOT everything holds", flush=True)
    sys.exit(0 if good else 1)
