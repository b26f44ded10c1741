"""From a row of a suite to its case: what is done once here and once in every process that compiles ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attncc.runtime.bench.case import Case, build
from attncc.runtime.bench.prefetch import shortened
from attncc.runtime.bench.suite import Row
from attncc.runtime.checks import check_constants
from attncc.runtime.interface import interface_of
from attncc.runtime.warmup import full_sizes


@dataclass(frozen=True)
class Kind:
    """What all rows share."""

    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    backward: bool = True


def case_of(row: Row, kind: Kind, short: bool = False) -> tuple[Case, Case | None]:
    """A row's case, and that of its anchor; `short` ones only tell which kernels are needed.

    KeyError and ValueError where a captured tensor can't be filled as the row says.
    """
    from attncc.driver import load

    sizes = full_sizes(row.shape)
    spec = load(row.spec)[0]
    values = check_constants(interface_of(spec), dict(row.constants))
    common: dict[str, Any] = {"dtype": kind.dtype, "device": kind.device, "seed": kind.seed}
    common |= {"backward": kind.backward, "fills": row.fills}
    case = build(row.name, row.spec, spec, values, shortened(sizes) if short else sizes, **common)
    if row.learned and kind.backward:
        case = case.with_gradients()
    return case, case.with_spec(row.anchor, load(row.anchor)[0]) if row.anchor else None
