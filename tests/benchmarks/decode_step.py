"""One token with a state in and out, beside a copy of the state: `python -m tests.benchmarks.decode_step [OUT.json]`.

Each spec is first compared with the float64 token loop at a small size; then one token of B * H = 512 and 2048 heads
with D = E = 128 in bfloat16 is timed, states written over (`step`) and returned anew, both as a CUDA graph would run
them: medians of kernel time with a cold cache. The share is the time of a copy of as many bytes over the step's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attncc
from attncc.reference import evaluate
from attncc.runtime.attention import Attention
from attncc.runtime.inputs import made_up
from attncc.runtime.warmup import full_sizes

ROOT = Path(__file__).parents[2]
FILES = [
    *(
        f"examples/recurrent/{n}.attn"
        for n in ("lightning", "simple_gla", "mamba2", "gla", "rwkv6", "linear_transformer")
    ),
    *(f"tests/specs/corpus/recurrences/{n}.attn" for n in ("gated_delta", "rwkv7", "delta_product")),
]
HEADS = 16


def inputs(attn: Attention, heads: int, width: int, tokens: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Made-up tensors on the GPU for so many heads in all."""
    sizes = full_sizes({"B": max(1, heads // HEADS), "H": min(heads, HEADS), "N": tokens, "D": width})
    made = made_up(attn._family.spec, attn.constants, sizes, dtype=dtype, device=torch.device("cuda"))
    return {n: x.detach() for n, x in made.items()}


def states(attn: Attention, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The states behind a few made-up tokens."""
    call: Any = attn
    with torch.no_grad():
        return call(**given, return_state=True)[1]  # type: ignore[no-any-return]


def error(a: Tensor, b: Tensor) -> float:
    """Relative Frobenius error."""
    return float((a.double().cpu() - b.cpu()).norm() / b.cpu().norm())


def check(attn: Attention) -> float:
    """The worst error of out and states after three steps, against the token loop."""
    given = inputs(attn, 4, 64, 3, torch.float32)
    truth = evaluate(attn._family.spec, {n: x.double() if x.is_floating_point() else x for n, x in given.items()})
    held = {n: torch.zeros_like(x, dtype=torch.float32) for n, x in truth.states.items()}
    axes = {p.name: [a.index for a in p.axes] for p in attn._family.face.params}
    worst = 0.0
    for i in range(3):
        one = {n: _token(x, axes.get(n, ["b", "h", "n", "d"]), i) for n, x in given.items()}
        worst = max(worst, error(attn.step(**one, state=held), truth.out[:, :, i : i + 1]))
    return max(worst, *(error(held[n], x) for n, x in truth.states.items()))


def _token(x: Tensor, axes: list[str], i: int) -> Tensor:
    at = next((n for n, a in enumerate(axes) if a in ("n", "m")), None)
    return x if at is None else x.narrow(at, i, 1)


def main(out: str = "") -> None:
    """Prints the table; writes it as JSON where a file is named."""
    from triton.testing import do_bench

    rows: list[dict[str, Any]] = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'spec':<20}{'B*H':>6}{'error':>10}{'step ms':>10}{'new ms':>10}{'copy ms':>10}{'share':>8}{'TB/s':>8}")
    for file in FILES:
        attn = attncc.compile(ROOT / file)
        worst = check(attn)
        for heads in (512, 2048):
            given = inputs(attn, heads, 128, 1, torch.bfloat16)
            held = states(attn, given)
            size = sum(x.numel() * x.element_size() for x in held.values())
            source, target = (torch.empty(size // 4, device="cuda") for _ in range(2))
            call: Any = attn
            with torch.no_grad():
                step = do_bench(lambda: attn.step(**given, state=held), return_mode="median")  # noqa: B023
                new = do_bench(lambda: call(**given, state=held, return_state=True), return_mode="median")  # noqa: B023
                copy = do_bench(lambda: target.copy_(source), return_mode="median")  # noqa: B023
            row = {"spec": Path(file).stem, "heads": heads, "error": worst, "step_ms": step, "new_ms": new}
            row |= {"copy_ms": copy, "share": copy / step, "tbs": 2 * size / step / 1e9}
            rows.append(row)
            print(
                f"{row['spec']:<20}{heads:>6}{worst:>10.1e}{step:>10.4f}{new:>10.4f}{copy:>10.4f}"
                f"{row['share']:>8.2f}{row['tbs']:>8.2f}"
            )
    if out:
        Path(out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
