"""A million keys: nothing is allocated that grows with their square, or with their number times a tile's."""

from __future__ import annotations

import subprocess
import sys

from tests.acceptance.holds import EXAMPLES

N = 1 << 20
SCRIPT = """
import resource, sys, torch, attncc
n, path = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
attn = attncc.compile(path, backend="torch", window=64)
def call(n):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 8) for _ in range(3))
    return q, k, v, attn(q, k, v)
call(4096)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
q, k, v, out = call(n)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
i = n // 2 + 1
s = (q[0, 0, i].double() @ k[0, 0, i - 63 : i + 1].double().mT) / 8**0.5
cap = 50.0
want = (cap * (s / cap).tanh()).softmax(-1) @ v[0, 0, i - 63 : i + 1].double()
assert torch.allclose(out[0, 0, i].double(), want, atol=1e-5), (out[0, 0, i], want)
print(grown * 1024)
"""


def test_a_million_keys() -> None:
    command = [sys.executable, "-c", SCRIPT, str(N), str(EXAMPLES / "gemma2.attn")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    tensors = 4 * N * 8 * 4  # q, k, v and out
    assert int(done.stdout) <= 4 * tensors, f"{int(done.stdout) / 2**20:.0f} MiB for {tensors / 2**20:.0f} MiB"
