"""What gradients of captured tensors cost, and whether they come out the same: `python -m tests.benchmarks.gradients`.

Each spec's backward is timed in interleaved rounds, three ways: with gradients of q, k, v alone; with those of its
captured tensors too; the same with `deterministic=True`. Then every one is run ten times over and compared bit by bit.
`--device cpu --shape B=1,H=2,N=64,D=16` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attncc.driver import load
from attncc.errors import AttnccError
from attncc.runtime.attention import compile_spec
from attncc.runtime.bench.case import Case, build
from attncc.runtime.bench.measure import milliseconds
from attncc.runtime.bench.prefetch import shortened, side_by_side, wanted
from attncc.runtime.trial import error
from attncc.runtime.warmup import full_sizes
from tests.benchmarks.shown import finish, introduce, table

LACKS, DIFFERS, ORDERED = 1.15, 1.40, 1.3
"""Bars: a captured tensor that lacks i or j; one read at a function of i - j; the same bits at every run."""
RUNS = 10

CAUSAL = "    mask  = j <= i\n    out   = softmax(score) @ v\n"


@dataclass(frozen=True)
class Row:
    """One spec."""

    name: str
    text: str
    fills: dict[str, str]
    bar: float


ROWS = (
    Row("nothing", "attention causal:\n    score = q @ k / sqrt(D)\n" + CAUSAL, {}, LACKS),
    Row(
        "nothing of documents",
        "attention documents(doc: int[b, n]):\n    score = q @ k / sqrt(D)\n"
        "    mask  = doc[b, i] == doc[b, j] and j <= i\n    out   = softmax(score) @ v\n",
        {"doc": "steps:1024"},
        LACKS,
    ),
    Row(
        "bias[h, j]",
        "attention keyed(bias: real[h, n]):\n    score = q @ k / sqrt(D) + bias[h, j]\n" + CAUSAL,
        {"bias": "normal:0.3"},
        LACKS,
    ),
    Row(
        "bias[b, j]",
        "attention shared_keyed(bias: real[b, n]):\n    score = q @ k / sqrt(D) + bias[b, j]\n" + CAUSAL,
        {"bias": "normal:0.3"},
        LACKS,
    ),
    Row(
        "heat[h, i]",
        "attention heated(heat: real[h, m]):\n    score = heat[h, i] * (q @ k) / sqrt(D)\n" + CAUSAL,
        {"heat": "all:1"},
        LACKS,
    ),
    Row(
        "sink[h]",
        "attention sunk(sink: real[h]):\n    score = q @ k / sqrt(D)\n    mask  = j <= i\n"
        "    out   = softmax(score, sink = sink[h]) @ v\n",
        {"sink": "normal:1"},
        LACKS,
    ),
    Row(
        "slope[h] * (j - i)",
        "attention sloped(slope: real[h]):\n    score = q @ k / sqrt(D) + slope[h] * (j - i)\n" + CAUSAL,
        {"slope": "halves"},
        DIFFERS,
    ),
    Row(
        "table[bucket(j - i), h]",
        "def half(x, size, far) = x if x < size // 2 else "
        "min(size - 1, size // 2 + floor(log(2 * x / size) / log(2 * far / size) * (size - size // 2)))\n"
        "attention bucketed(table: real[32, h]):\n"
        "    score = q @ k / sqrt(D) + table[half(max(i - j, 0), 32, 128), h]\n" + CAUSAL,
        {"table": "normal:0.3"},
        DIFFERS,
    ),
    Row(
        "table of both sides",
        "def half(x, size, far) = x if x < size // 2 else "
        "min(size - 1, size // 2 + floor(log(2 * x / size) / log(2 * far / size) * (size - size // 2)))\n"
        "attention two_sided(table: real[32, h]):\n"
        "    score = q @ k / sqrt(D) + table[half(abs(j - i), 16, 128) + (16 if j > i else 0), h]\n"
        "    out   = softmax(score) @ v\n",
        {"table": "normal:0.3"},
        DIFFERS,
    ),
)


@dataclass
class Way:
    """One way to run a backward."""

    case: Case
    deterministic: bool
    backend: str
    note: str = ""
    partitioned: bool = False

    def prepare(self) -> str:
        """The forward, and the backward once; what attncc says where it refuses, else nothing."""
        try:
            self._first()
        except AttnccError as e:
            return e.diagnostic.message
        return ""

    def _first(self) -> None:
        case = self.case
        attention = compile_spec(
            case.file, backend=self.backend, deterministic=self.deterministic, constants=case.constants
        )
        q, k, v = (case.tensors[n] for n in "qkv")
        captured: dict[str, Any] = {n: t for n, t in case.tensors.items() if n not in ("q", "k", "v")}
        self.leaves = {n: t for n, t in case.tensors.items() if t.requires_grad}
        self.out: Tensor = attention(q, k, v, **captured)
        self.backward()
        plan, tensors = attention.plan(q, k, v, captured)
        half = plan.backward_half(tuple(t.requires_grad for t in tensors), False)
        self.note, self.partitioned = half.reason, half.partitioned

    def backward(self) -> tuple[Tensor, ...]:
        """The gradients."""
        return torch.autograd.grad(self.out, list(self.leaves.values()), self.case.d_out, retain_graph=True)

    def differing(self) -> list[str]:
        """Names of the gradients that are not the same bits in every one of RUNS runs."""
        first = self.backward()
        names = set[str]()
        for _ in range(RUNS - 1):
            again = self.backward()
            names |= {n for n, a, b in zip(self.leaves, first, again, strict=True) if not torch.equal(a, b)}
        return sorted(names)


def ways(row: Row, sizes: dict[str, int], device: torch.device, backend: str) -> dict[str, Way]:
    """The three ways of a row."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    spec = load(row.text)[0]
    plain = build(row.name, row.text, spec, {}, sizes, dtype=dtype, device=device, fills=row.fills)
    every = plain.with_gradients()
    return {
        "plain": Way(plain, False, backend),
        "captured": Way(every, False, backend),
        "ordered": Way(every, True, backend),
    }


def same_outputs(way: Way) -> bool:
    """Whether a forward gives the same bits in every one of RUNS runs."""
    case = way.case
    attention = compile_spec(case.file, backend=way.backend, deterministic=way.deterministic, constants=case.constants)
    tensors: dict[str, Any] = {n: t.detach() for n, t in case.tensors.items()}
    with torch.no_grad():
        first = attention(**tensors)
        return all(torch.equal(first, attention(**tensors)) for _ in range(RUNS - 1))


def measure(row: Row, found: dict[str, Way], rounds: int, device: torch.device) -> dict[str, Any]:
    """One row of the table."""
    refused = {n: said for n, w in found.items() if (said := w.prepare())}
    found = {n: w for n, w in found.items() if n not in refused}
    times = timed({n: w.backward for n, w in found.items()}, rounds, device)
    medians = {n: statistics.median(t) for n, t in times.items()}
    varies = {n: w.differing() for n, w in found.items()}
    cost = medians["captured"] / medians["plain"]
    captured = set(found["captured"].leaves) - {"q", "k", "v"}
    return {
        "captured": row.name,
        **{k: found["plain"].case.sizes[k] for k in "BHND"},
        "plain ms": medians["plain"],
        "cost": cost,
        "bar": row.bar,
        "cost holds": cost <= row.bar,
        "varies": " ".join(varies["captured"]) or "nothing",
        "same bits": not captured & set(varies["captured"]),
        **ordered(found, medians, varies),
        "tier": "/".join("partitioned" if w.partitioned else "plain" for w in found.values()),
        "notes": {**{n: w.note for n, w in found.items() if w.note}, **refused},
        "rounds_ms": times,
    }


def ordered(
    found: dict[str, Way], medians: dict[str, float], varies: dict[str, list[str]]
) -> dict[str, float | bool | None]:
    """What comes of `deterministic=True`: its price, its bits, how far its gradients are from the default's."""
    if "ordered" not in found:
        return {"ordered cost": None, "ordered holds": False, "ordered same": False, "apart": None}
    price = medians["ordered"] / medians["captured"]
    pairs = zip(found["captured"].backward(), found["ordered"].backward(), strict=True)
    return {
        "ordered cost": price,
        "ordered holds": price <= ORDERED,
        "ordered same": not varies["ordered"] and same_outputs(found["ordered"]),
        "apart": max(error(a, b) for a, b in pairs),
    }


def timed(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds by name, one a round; each round begins with another."""
    times: dict[str, list[float]] = {n: [] for n in calls}
    names = list(calls)
    for n in range(rounds):
        for name in (*names[n % len(names) :], *names[: n % len(names)]):
            times[name].append(milliseconds(calls[name], device, 5.0, 20.0))
    return times


def compile_ahead(rows: Sequence[Row], shapes: Sequence[dict[str, int]], device: torch.device, backend: str) -> None:
    """Every kernel at once."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    halves = [
        half
        for sizes in shapes
        for row in rows
        for way in ways(row, shortened(sizes), torch.device("cpu"), backend).values()
        for half in wanted(_in_half(way.case), backend, 10 * major + minor, deterministic=way.deterministic)
    ]
    wait(side_by_side(halves))


def _in_half(case: Case) -> Case:
    """The case as it will be on a GPU: q, k and v in bfloat16."""
    tensors = {
        n: t.detach().bfloat16().requires_grad_(t.requires_grad) if n in ("q", "k", "v") else t
        for n, t in case.tensors.items()
    }
    return replace(case, tensors=tensors)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", action="append", default=[], metavar="B=4,H=16,N=4096,D=128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    device = torch.device(given.device)
    where = introduce(device)
    texts = given.shape or ["B=4,H=16,N=4096,D=128", "B=4,H=16,N=4096,D=64"]
    shapes = [full_sizes({n: int(s) for n, s in (p.split("=") for p in t.split(","))}) for t in texts]
    chosen = [r for r in ROWS if given.only in r.name]
    compile_ahead(chosen, shapes, device, given.backend)
    rows = []
    for sizes in shapes:
        for row in chosen:
            rows.append(measure(row, ways(row, sizes, device, given.backend), given.rounds, device))
            print(f"  {row.name} D {sizes['D']}: {rows[-1]['tier']} {rows[-1]['notes'] or ''}", flush=True)
    head: tuple[str, ...] = ("captured", "D", "plain ms", "cost", "bar", "cost holds", "same bits", "varies")
    head += ("ordered cost", "ordered holds", "ordered same", "apart")
    print("\ncost: backward with captured gradients over that without; ordered: deterministic=True over the default")
    print(table(head, [[r[n] for n in head] for r in rows]))
    good = all(r[n] for r in rows for n in ("cost holds", "same bits", "ordered holds", "ordered same"))
    finish(where, rows, given.json, good)


if __name__ == "__main__":
    main()
