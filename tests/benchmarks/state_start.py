"""First calls of state programs, and their forward with few heads.

`python -m tests.benchmarks.state_start [OUT.json] [NAME ...]`

A first call is that of a fresh process with torch and triton imported, without a cache: from `attncc.compile` to the
end of a forward and a backward, B 1, T 1024, H 4, D = E = 128, bfloat16. The forward with few heads has B 1, H 16 and
T 65536; fla's stands beside it where that library can be imported and does not refuse.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import recurrent

NAMES = ("linear", "retention", "simple_gla", "gla", "rwkv6")
SHORT = recurrent.LARGE | {"B": 1, "H": 4, "G": 4, "M": 1024, "N": 1024}
LONG = recurrent.LARGE | {"B": 1, "M": 65536, "N": 65536}

CHILD = """
import json, sys, time, torch, triton
from tests.benchmarks import recurrent, state_start
product = torch.randn(8, 8, device="cuda", requires_grad=True)
torch.autograd.grad(product @ product, product, torch.ones_like(product))
start = time.perf_counter()
attention = recurrent.compiled(sys.argv[1])
x = recurrent.given(attention, state_start.SHORT, torch.device("cuda"))
out = attention(**x)
torch.autograd.grad(out, [t for t in x.values() if t.requires_grad], torch.ones_like(out), allow_unused=True)
torch.cuda.synchronize()
print(json.dumps(time.perf_counter() - start))
"""


def first_call(name: str) -> float:
    """Seconds, in a process of its own."""
    command, environment = [sys.executable, "-c", CHILD, name], {**os.environ, "ATTNCC_CACHE": "off"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds: float = json.loads(done.stdout.splitlines()[-1])
    return seconds


def long_forward(name: str) -> dict[str, float]:
    """Milliseconds of the forward, fla's beside it."""
    attention: Any = recurrent.compiled(name)
    with torch.no_grad():
        x = recurrent.given(attention, LONG, torch.device("cuda"))
        calls = {"forward_ms": lambda: attention(**x)} | recurrent.theirs(name, x)
        return {who: recurrent.timed(call) for who, call in calls.items()}


def main() -> None:
    """Prints a row per spec; writes them where asked."""
    rows: dict[str, dict[str, float]] = {}
    for name in sys.argv[2:] or NAMES:
        rows[name] = {"first_call_s": first_call(name), **long_forward(name)}
        print(name, "  ".join(f"{n} {x:.3f}" for n, x in rows[name].items()), flush=True)
        if len(sys.argv) > 1:  # as they come: peers may take long
            Path(sys.argv[1]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
