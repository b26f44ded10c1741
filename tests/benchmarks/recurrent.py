"""Checks and times state programs on a GPU: `python -m tests.benchmarks.recurrent [OUT.json] [NAME ...]`.

Each spec is first compared with the token loop in float64 on a small shape, out and every gradient, in bfloat16; then
its forward and its backward are timed at B 4, T 8192, H 16, D = E = 128, in turns with the library fla where it can be
imported and has the function.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import attncc
from attncc.reference import evaluate
from attncc.runtime.inputs import made_up
from attncc.runtime.warmup import full_sizes

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
NAMES = ("linear_transformer", "retnet", "lightning", "simple_gla", "mamba2", "gla", "rwkv6", "hgrn2")
WRITTEN = {
    "linear": "attention linear:\n    state S[d, e]\n    S = S + outer(k, v)\n    out = q @ S / sqrt(D)\n",
    "retention": "attention retention(gamma: real[h] in [0, 1]):\n    state S[d, e]\n"
    "    S = gamma[h] * S + outer(k, v)\n    out = q @ S / sqrt(D)\n",
}
FLA: dict[str, Callable[[Any, list[Tensor]], Any]] = {
    "linear": lambda ops, x: ops.chunk_linear_attn(*x, normalize=False),
    "retention": lambda ops, x: ops.chunk_retention(*x[:3]),
    "simple_gla": lambda ops, x: ops.chunk_simple_gla(*x[:3], g=x[3]),
    "gla": lambda ops, x: ops.chunk_gla(*x),
    "rwkv6": lambda ops, x: ops.chunk_rwkv6(*x),
}
FIXED = {"retention": ("gamma",)}
"""Inputs without a gradient in what is timed, as fla gives them none."""
SMALL = {"B": 1, "H": 16, "G": 16, "M": 300, "N": 300, "D": 128, "E": 128}
"""Of many heads: what gets one number a head is a sum that may nearly cancel in some of them."""
LARGE = {"B": 4, "H": 16, "G": 16, "M": 8192, "N": 8192, "D": 128, "E": 128}
BAR = 1e-2
"""Relative, in bfloat16; fla's own tests allow 0.8% of gradients and 3.5% of those of gates."""


def given(attention: Any, sizes: dict[str, int], device: torch.device) -> dict[str, Tensor]:
    """Inputs of a spec, all with gradients: gates that forget within hundreds of tokens."""
    spec = attention._family.spec
    made = made_up(spec, attention.constants, full_sizes(sizes), dtype=torch.bfloat16, device=device)
    for p in spec.params:
        if p.sort == "real" and [a.index for a in p.axes][:3] == ["b", "h", "n"] and p.name not in ("dt",):
            made[p.name] = -0.1 * torch.rand_like(made[p.name])
    return {n: x.detach().requires_grad_(x.is_floating_point()) for n, x in made.items()}


def check(attention: Any, device: torch.device) -> dict[str, float]:
    """Relative errors of out and of every gradient."""
    x = given(attention, SMALL, device)
    wide = {n: t.detach().double().requires_grad_() if t.is_floating_point() else t for n, t in x.items()}
    out, truth = attention(**x), evaluate(attention._family.spec, wide).out
    d_out = torch.randn_like(out)
    mine = torch.autograd.grad(out, [t for t in x.values() if t.requires_grad], d_out, allow_unused=True)
    names = [n for n, t in wide.items() if t.requires_grad]
    true = torch.autograd.grad(truth, [wide[n] for n in names], d_out.double(), allow_unused=True)
    pairs = {"out": (out, truth), **{f"d_{n}": p for n, p in zip(names, zip(mine, true, strict=True), strict=True)}}
    least = 1e-3 * max(float(b.detach().norm()) for _, b in pairs.values() if b is not None)
    zero = torch.zeros((), device=device)
    return {
        n: float(((zero if a is None else a.detach()).double() - (zero if b is None else b.detach())).norm())
        / max(float((zero if b is None else b.detach()).norm()), least)
        for n, (a, b) in pairs.items()
    }


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds, the median of what `do_bench` finds."""
    from triton.testing import do_bench

    found: float = do_bench(call, warmup=50, rep=200, return_mode="median")
    return found


def pair(out: Callable[[], Tensor], leaves: list[Tensor]) -> list[Callable[[], Any]]:
    """Calls of the forward without, and of the backward."""
    made = out()
    d_out = torch.randn_like(made)

    def forward() -> Tensor:
        with torch.no_grad():
            return out()

    return [forward, lambda: torch.autograd.grad(made, leaves, d_out, retain_graph=True, allow_unused=True)]


@dataclass(frozen=True)
class Theirs:
    """A call of fla's, with tensors in its layout that want the gradients which ours do."""

    name: str
    tensors: tuple[Tensor, ...]

    def __call__(self) -> Tensor:
        found: Tensor = FLA[self.name](importlib.import_module("fla.ops"), list(self.tensors))[0]
        return found


def theirs(name: str, x: dict[str, Tensor]) -> dict[str, Theirs]:
    """fla's call by its name, once it has run; nothing where there is none."""
    if name not in FLA or importlib.util.find_spec("fla") is None:
        return {}
    call = Theirs(name, tuple(_turned(t).requires_grad_(t.requires_grad) for t in x.values()))
    try:
        call()
    except Exception as error:  # what it refuses is no result of ours
        print(f"  fla: {type(error).__name__}: {str(error)[:120]}")
        return {}
    return {"fla": call}


def _turned(t: Tensor) -> Tensor:
    return t.detach().transpose(1, 2).contiguous() if t.dim() > 2 else t.detach().clone()


def compiled(name: str) -> Any:
    """An attention of the table, in plain Triton."""
    return attncc.compile(WRITTEN.get(name, EXAMPLES / f"{name}.attn"), backend="triton")


def measure(name: str, attention: Any, device: torch.device) -> dict[str, float]:
    """Milliseconds of both, in turns."""
    x = given(attention, LARGE, device)
    x |= {n: x[n].detach() for n in FIXED.get(name, ())}
    calls = {"": pair(lambda: attention(**x), [t for t in x.values() if t.requires_grad])}
    for call in theirs(name, x).values():
        calls["fla "] = pair(call, [t for t in call.tensors if t.requires_grad])
    taken: dict[str, list[float]] = {}
    for _ in range(3):
        for who, (forward, backward) in calls.items():
            taken.setdefault(f"{who}forward", []).append(timed(forward))
            taken.setdefault(f"{who}backward", []).append(timed(backward))
    return {n: median(v) for n, v in taken.items()}


def main() -> None:
    """Prints a table; writes it where asked."""
    device, rows = torch.device("cuda"), {}
    target = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in sys.argv[2:] or (*WRITTEN, *NAMES):
        attention = compiled(name)
        errors = check(attention, device)
        worst = max(errors, key=lambda n: errors[n])
        print(f"{name}: worst {worst} {errors[worst]:.1e} {'ok' if errors[worst] < BAR else 'FAILED ' + str(errors)}")
        found = measure(name, attention, device)
        size = LARGE["B"] * LARGE["N"] * LARGE["H"] * LARGE["D"] * 2
        rate = {"forward": 4 * size / found["forward"] / 1e9, "backward": 7 * size / found["backward"] / 1e9}
        print("  " + "  ".join(f"{n} {ms:.3f} ms" for n, ms in found.items()), end="  ")
        print("  ".join(f"{n} {r:.2f} TB/s" for n, r in rate.items()), flush=True)
        rows[name] = {"errors": errors, "ms": found, "TB/s of q, k, v, out and gradients": rate}
        if target:  # as they come: peers may take long
            Path(target).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
