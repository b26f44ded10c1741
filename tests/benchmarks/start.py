"""Times the first call of a spec, cold and from the disk cache: `python -m tests.benchmarks.start [BACKEND ...]`.

Each figure comes from a fresh process with torch and triton already imported and the device's context made, and one
backward with an explicit gradient done: torch imports sympy for the first of those, two seconds of its own. All are
from `attncc.compile` to a result: "forward" without gradients, "step" forward and backward of a training step, whose
kernels are compiled side by side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SPECS = Path(__file__).parents[2] / "examples" / "softmax"

CHILD = """
import json, sys, time, torch, triton
import attncc
device = "cuda" if torch.cuda.is_available() else "cpu"
q, k, v = (torch.randn(1, 8, 1024, 64, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32,
                       requires_grad=True) for _ in range(3))
product = q @ k.mT
torch.autograd.grad(product, (q, k), torch.ones_like(product))
start = time.perf_counter()
attn = attncc.compile(sys.argv[1], backend=sys.argv[2])
with torch.set_grad_enabled(sys.argv[3] == "step"):
    out = attn(q, k, v)
if sys.argv[3] == "step":
    out.backward(torch.ones_like(out))
if device == "cuda":
    torch.cuda.synchronize()
print(json.dumps(1e3 * (time.perf_counter() - start)))
"""


def measure(spec: str, backend: str, what: str, cache: str) -> float:
    """Milliseconds of one fresh process."""
    environment = {**os.environ, "ATTNCC_CACHE": cache}
    command = [sys.executable, "-c", CHILD, str(SPECS / f"{spec}.attn"), backend, what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints cold and warm figures, the best of three warm processes."""
    backends = sys.argv[1:] or ["auto"]
    for spec, backend in ((s, b) for b in backends for s in ("causal", "gemma2")):
        for what in ("forward", "step"):
            with tempfile.TemporaryDirectory() as cache:
                cold = measure(spec, backend, what, cache)
                warm = min(measure(spec, backend, what, cache) for _ in range(3))
            print(f"{spec} ({backend}), {what}: cold {cold:.0f} ms, warm {warm:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
