"""Finds the plans of `attncc/schedule/rungs.py`: `python -m tests.benchmarks.rungs [--write]`.

Every candidate of every spec of the suites and examples is compiled, in as many processes as there are cores; one that
spills or whose products wait is out. On a GPU the others are timed beside the default in interleaved rounds; else the
first one in the list is taken. A class gets what fits all its specs and takes the least time (geometric mean).
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from attncc.driver import analyse, load
from attncc.errors import AttnccError
from attncc.runtime import cuda
from attncc.runtime.bench.case import Case, build
from attncc.runtime.bench.measure import Plan, measure
from attncc.runtime.bench.prefetch import Wanted, shortened, wanted
from attncc.runtime.bench.prefetch import build as compiled
from attncc.runtime.bench.suite import read_suite
from attncc.runtime.kernels import triton_version
from attncc.runtime.variants import forward_variant
from attncc.runtime.warmup import full_sizes
from attncc.schedule import hopper_config, rungs
from attncc.schedule.hopper_config import class_of
from attncc.schedule.steps import demand
from attncc.schedule.stream import Problem
from tests.benchmarks.shown import table
from tests.runtime.fake_cuda import Recorder

EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"
FILE = Path(rungs.__file__)
SAME = "spare=24"
"""What every default says anyway: with it a half is compiled as asked, no other rung is tried."""
TWO = "consumers=2 registers=240 early=False turns=False"
MORE = {"forward": (f"{TWO} rounded=False", f"{TWO} settled=True"), "backward": ()}


def candidates(which: str) -> tuple[str, ...]:
    """The default, the rungs of the ladder, and more."""
    tier = f"partitioned.{which}."
    own = ([x.removeprefix(tier) for x in text.split() if x.startswith(tier)] for text in hopper_config.LADDER[which])
    rungs_of = map(" ".join, own)
    return tuple(dict.fromkeys(("", *rungs_of, *MORE[which])))


@dataclass(frozen=True, eq=False)
class Entry:
    """One spec at one width."""

    name: str
    text: str
    D: int
    fills: Mapping[str, str]
    live: rungs.Class

    def case(self, device: torch.device, short: bool) -> Case:
        """Its call; a short one needs the same kernels."""
        sizes = full_sizes({"B": 2, "H": 16 if self.D > 64 else 32, "N": 8192, "D": self.D})
        spec = load(self.text)[0]
        values = {c.name: c.value for c in spec.constants}
        sizes = shortened(sizes) if short else sizes
        made = build(self.name, self.text, spec, values, sizes, dtype=torch.bfloat16, device=device, fills=self.fills)
        return made.with_gradients()


def entries(widths: Sequence[int], only: str) -> Iterator[Entry]:
    """Every spec once at each width."""
    texts = {row.spec: (row.name, dict(row.fills)) for suite in ("softmax", "tiles") for row in read_suite(suite)}
    known = {load(t)[0].out for t in texts}
    for file in sorted(EXAMPLES.glob("*.attn")):
        if load(file)[0].out not in known:
            texts[file.read_text()] = (file.stem, {})
    for text, (name, fills) in texts.items():
        for D in widths:
            if only in name:
                yield Entry(name, text, D, fills, _class(text, D))


def _class(text: str, D: int) -> rungs.Class:
    unit = analyse(load(text)[0], D, D)
    assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
    case = Entry("", text, D, {}, (D, "")).case(torch.device("cpu"), short=True)
    from attncc.runtime.interface import interface_of

    face = interface_of(case.spec)
    variant = forward_variant(face, tuple(case.tensors[n] for n in face.inputs), "gluon", interpreted=False)
    return class_of(D, demand(Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, variant)))


def tiles(which: str, candidate: str) -> str:
    """The candidate as `--tiles` says it."""
    return " ".join(f"partitioned.{which}.{item}" for item in f"{SAME} {candidate}".split())


def unlisted() -> None:
    """From here on plans are the bare defaults, of which candidates are changes."""
    vars(hopper_config).update(FORWARD={}, BACKWARD={})


def fits(one: Wanted) -> str:
    """Why a half does not run partitioned; empty where it does."""
    if not torch.cuda.is_available():
        recorder = Recorder()
        cuda.driver = lambda: recorder  # type: ignore[assignment]
    try:
        half = compiled(one)
    except AttnccError as e:
        return e.diagnostic.message
    return "" if half.partitioned else half.reason or "it is plain"


def all_fitting(found: Sequence[Entry], which: str) -> dict[tuple[Entry, str], str]:
    """Why each candidate does not fit; empty where it does."""
    tasks: dict[tuple[Entry, str], Wanted] = {}
    for entry in found:
        case = entry.case(torch.device("cpu"), short=True)
        for candidate in candidates(which):
            for half in wanted(case, "auto", 90, tiles=tiles(which, candidate)):
                if half.which == which:
                    tasks[(entry, candidate)] = half
    os.environ["ATTNCC_WORKERS"] = "1"
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), unlisted) as pool:
        return dict(zip(tasks, pool.map(fits, tasks.values()), strict=True))


def timed(entry: Entry, which: str, fitting: Sequence[str]) -> dict[str, float]:
    """Milliseconds by candidate."""
    plan = Plan(("auto",), (), (which,) if which == "forward" else ("forward", "backward"), measure_ms=30.0)
    plan = replace(plan, tiles=tuple(tiles(which, c) for c in fitting))
    ours = measure(entry.case(torch.device("cuda"), short=False), plan)[1:]
    found = {c: e.median(which) for c, e in zip(fitting, ours, strict=True)}
    return {c: ms for c, ms in found.items() if ms is not None}


def chosen(found: Sequence[Entry], which: str) -> tuple[dict[rungs.Class, str], list[list[object]]]:
    """What each class gets, and a table of it all."""
    states = all_fitting(found, which)
    rows: list[list[object]] = []
    logs: dict[rungs.Class, dict[str, list[float]]] = {}
    for entry in found:
        fitting = [c for c in candidates(which) if not states[(entry, c)]]
        times = timed(entry, which, fitting) if torch.cuda.is_available() else {c: 1.0 for c in fitting}
        best = min(times.values(), default=1.0)
        mine = {c: math.log(ms / best) for c, ms in times.items()}
        known = logs.setdefault(entry.live, {c: [] for c in mine})
        logs[entry.live] = {c: [*known[c], x] for c, x in mine.items() if c in known}
        shown = [f"{times[c]:.3f}" if c in times else "-" for c in candidates(which)]
        rows.append([f"{entry.name} D {entry.D}", entry.live[1], *shown])
        print(f"  {which} {entry.name} D {entry.D}: {len(fitting)} fit", flush=True)
    return {at: min(known, key=lambda c: sum(known[c])) for at, known in logs.items() if known}, rows


def written(forward: Mapping[rungs.Class, str], backward: Mapping[rungs.Class, str]) -> str:
    """The module's text."""
    text = FILE.read_text()
    lines = [text[: text.index("MEASURED")], f"MEASURED: Final = {torch.cuda.is_available()}\n"]
    lines += ['"""Whether a GPU chose."""\n']
    for name, listed in (("FORWARD", forward), ("BACKWARD", backward)):
        body = "".join(f'    ({at[0]}, "{at[1]}"): "{c}",\n' for at, c in sorted(listed.items()) if c)
        lines.append(f"{name}: Final[Mapping[Class, str]] = " + (f"{{\n{body}}}\n" if body else "{}\n"))
    return "".join(lines)


def main() -> None:
    """Prints a table a half; writes the module where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--widths", default="64,128")
    parser.add_argument("--halves", default="forward,backward")
    parser.add_argument("--only", default="", help="specs whose name holds this")
    given = parser.parse_args()
    unlisted()
    found = list(entries([int(w) for w in given.widths.split(",")], given.only))
    listed: dict[str, Mapping[rungs.Class, str]] = {"forward": rungs.FORWARD, "backward": rungs.BACKWARD}
    for which in given.halves.split(","):
        new, rows = chosen(found, which)
        listed[which] = {**listed[which], **new}
        print(f"\n{which}, Triton {triton_version()}: milliseconds where a GPU was at hand, - where it does not fit")
        print(table(("spec", "class", *(c or "default" for c in candidates(which))), rows))
        for at, candidate in sorted(new.items()):
            print(f"  {at[0]} {at[1]}: {candidate or 'default'}")
    if given.write:
        FILE.write_text(written(listed["forward"], listed["backward"]))


if __name__ == "__main__":
    main()
