"""Small calls under NVIDIA's compute-sanitizer: `python -m tests.benchmarks.sanitize [--json OUT]`.

Each cell is a spec at one D, forward and backward, in a process of its own: first alone, which compiles its kernels
into the cache and compares its results with the dense reference, then under memcheck and under racecheck. Every tensor
is an allocation of its own there, so that a read past an end is seen. Exits 1 where a tool counts an error, a result is
wrong or a cell does not end; 2 where there is no tool.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.shown import finish, introduce, table

SPECS = Path(__file__).parents[2] / "examples" / "softmax"
TOOLS = ("memcheck", "racecheck")
FILLS = {"slope": "halves", "doc": "steps:100"}
SECONDS = 300
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_COUNTS = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


@dataclass(frozen=True)
class Cell:
    """One call, forward and backward; lengths that leave the last tiles in part."""

    spec: str
    D: int
    M: int
    N: int
    deterministic: bool = False
    backend: str = "auto"

    def __str__(self) -> str:
        lengths = f"N {self.N}" if self.M == self.N else f"M {self.M} N {self.N}"
        return f"{self.spec} D {self.D} {lengths}" + (" deterministic" if self.deterministic else "")


def cells(backend: str) -> list[Cell]:
    """Every one that is run."""
    shapes = (("causal", 300, 300), ("full", 200, 333), ("packed_documents", 384, 384), ("alibi", 257, 400))
    found = [Cell(spec, D, M, N, backend=backend) for D in (64, 128) for spec, M, N in shapes]
    return [*found, *(Cell("causal", D, 300, 300, True, backend) for D in (64, 128))]


def call(cell: Cell) -> dict[str, Any]:
    """Runs a cell in this process; tensors come from the CPU, so that hardly any other kernel runs."""
    import attncc
    from attncc.driver import load
    from attncc.reference import evaluate
    from attncc.runtime.bench.case import build
    from attncc.runtime.trial import error
    from attncc.runtime.warmup import full_sizes

    file = SPECS / f"{cell.spec}.attn"
    sizes = full_sizes({"B": 2, "H": 2, "M": cell.M, "N": cell.N, "D": cell.D})
    spec = load(file)[0]
    case = build(cell.spec, file, spec, {}, sizes, dtype=torch.bfloat16, device=torch.device("cpu"), fills=FILLS)
    cpu = case.with_gradients().tensors
    leaves = [n for n, t in cpu.items() if t.requires_grad]
    tensors: dict[str, Any] = {n: t.detach().to(DEVICE).requires_grad_(n in leaves) for n, t in cpu.items()}
    attn = attncc.compile(file, backend=cell.backend, deterministic=cell.deterministic)
    out = attn(**tensors)
    grads = torch.autograd.grad(out, [tensors[n] for n in leaves], case.d_out.to(DEVICE))
    captured = {n: tensors[n] for n in attn.inputs[3:]}
    plan, ordered = attn.plan(tensors["q"], tensors["k"], tensors["v"], captured)
    halves = (plan.half, plan.backward_half(tuple(t.requires_grad for t in ordered), False))
    exact = {n: t.detach().double().requires_grad_() if n in leaves else t for n, t in cpu.items()}
    want = evaluate(spec, exact, {}).out
    wanted = torch.autograd.grad(want, [exact[n] for n in leaves], case.d_out.double())
    pairs = [(out.detach(), want.detach()), *zip(grads, wanted, strict=True)]
    return {
        "partitioned": [h.partitioned for h in halves],
        "reasons": [h.reason for h in halves],
        "worst": max(error(a.cpu(), b) for a, b in pairs),
    }


def find_tool(given: str) -> str | None:
    """Where compute-sanitizer is."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", *map(str, Path("/usr/local").glob("cuda-*"))]
    places = [
        given,
        *(f"{h}/{folder}/compute-sanitizer" for h in homes if h for folder in ("bin", "compute-sanitizer")),
    ]
    return next((found for p in places if p and (found := shutil.which(p))), shutil.which("compute-sanitizer"))


def child(cell: Cell, before: Sequence[str] = ()) -> tuple[int, str]:
    """Exit status and output of a process that calls a cell."""
    command = [*before, sys.executable, "-m", "tests.benchmarks.sanitize", "--cell", json.dumps(asdict(cell))]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return 124, f"did not end in {SECONDS} s"
    return done.returncode, done.stdout + done.stderr


def alone(cell: Cell) -> dict[str, Any]:
    """A cell without a tool."""
    status, said = child(cell)
    if status:
        return {"cell": str(cell), "partitioned": [], "worst": None, "said": said[-2000:], "right": False}
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return {"cell": str(cell), **found, "right": found["worst"] <= 1e-2}


def under(tool: str, cell: Cell, sanitizer: str, more: Sequence[str]) -> dict[str, Any]:
    """What a tool counts in a cell; None where it came to no end."""
    status, said = child(cell, [sanitizer, "--tool", tool, "--print-limit", "20", *more])
    counts = [int(a or b) for a, b in _COUNTS.findall(said)]
    lines = [line for line in said.splitlines() if line.startswith("=========")]
    bad = status or not counts or counts[-1]
    return {"errors": counts[-1] if counts else None, "said": "\n".join(lines[:60]) or said[-2000:] if bad else ""}


def main() -> None:
    """Prints a line a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default="", help="path of compute-sanitizer")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--jobs", type=int, default=4, help="cells at a time")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--json", default="")
    parser.add_argument("--cell", default="", help=argparse.SUPPRESS)
    parser.add_argument("more", nargs="*", help="further options of the tool, after --")
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(call(Cell(**json.loads(given.cell)))))
        return
    sanitizer = find_tool(given.tool)
    if sanitizer is None:
        print("there is no compute-sanitizer: name it with --tool")
        sys.exit(2)
    where = introduce(torch.device(DEVICE))
    wanted = [c for c in cells(given.backend) if given.only in str(c)]
    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(alone, wanted))
        tasks = [(tool, c) for c in wanted for tool in TOOLS]
        counted = list(pool.map(lambda t: under(t[0], t[1], sanitizer, given.more), tasks))
    for (tool, cell), found in zip(tasks, counted, strict=True):
        row = rows[wanted.index(cell)]
        row |= {tool: found["errors"], f"{tool} clean": found["errors"] == 0}
        if found["said"]:
            row[f"{tool} said"] = found["said"]
            print(f"--- {cell}, {tool}\n{found['said']}\n", flush=True)
    shown = [
        [r["cell"], "/".join("split" if p else "plain" for p in r["partitioned"]), r["worst"], *(r[t] for t in TOOLS)]
        for r in rows
    ]
    print(table(("cell", "tiers", "worst error", *TOOLS), shown))
    good = all(r["right"] and all(r[f"{t} clean"] for t in TOOLS) for r in rows)
    finish({**where, "tool": sanitizer}, rows, given.json, good)


if __name__ == "__main__":
    main()
