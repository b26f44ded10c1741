"""Trains a small causal character model twice: attention compiled from a spec, and PyTorch's own.

Both runs start from the same seed and read the same text, the Python sources of this repository, in the same order.
Their losses must agree; they are printed side by side and, with --plot, drawn.

    python examples/train.py --steps 300 --plot losses.png
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import attncc

SPEC = Path(__file__).parent / "softmax" / "causal.attn"
ROOT = Path(__file__).resolve().parents[1]
BAR = 1e-4
"""How far the losses of one step may be apart: rounding grows with the steps, a wrong gradient shows at once."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own causal attention."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and around a shortcut."""

    def __init__(self, width: int, heads: int, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.into = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x is [B, N, width]; the heads are views of it, nothing is copied."""
        b, n, width = x.shape
        q, k, v = self.into(self.norms[0](x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, n, width))
        y: Tensor = self.mlp(self.norms[1](x))
        return x + y


class Model(nn.Module):
    """Characters in, the next character's logits out."""

    def __init__(self, characters: int, context: int, width: int, heads: int, layers: int, attend: Attend) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, attend) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, characters))

    def forward(self, text: Tensor) -> Tensor:
        """text [B, N] gives [B, N, characters]."""
        x = self.characters(text) + self.places(torch.arange(text.shape[1], device=text.device))
        logits: Tensor = self.head(self.blocks(x))
        return logits


def sources() -> tuple[Tensor, int]:
    """The repository's Python files as one row of character numbers, and how many different ones there are."""
    folders = ("attncc", "codegen", "examples", "grammar", "tests")
    files = sorted(f for folder in folders for f in (ROOT / folder).rglob("*.py"))
    text = "".join(f.read_text(encoding="utf-8") for f in files)
    number = {c: n for n, c in enumerate(sorted(set(text)))}
    return torch.tensor([number[c] for c in text]), len(number)


def train(name: str, attend: Attend, text: Tensor, characters: int, options: argparse.Namespace) -> list[float]:
    """The loss of every step; prints how long they took."""
    started = time.perf_counter()
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model = Model(characters, options.context, options.width, options.heads, options.layers, attend).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(options.steps):
        starts = torch.randint(len(text) - options.context, (options.batch, 1))
        rows = text[starts + torch.arange(options.context + 1)].to(device)
        logits = model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    print(f"{name}: {options.steps} steps in {time.perf_counter() - started:.1f} s")
    return losses


def report(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Prints the two curves; whether they agree."""
    print(f"{'step':>5}  {'compiled':>9}  {'PyTorch':>9}  {'apart':>7}")
    steps = len(ours)
    shown = sorted({*range(0, steps, max(1, steps // 10)), steps - 1})
    for n in shown:
        print(f"{n + 1:>5}  {ours[n]:>9.5f}  {theirs[n]:>9.5f}  {abs(ours[n] - theirs[n]):>7.1e}")
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference of {steps} steps: {apart:.1e} (bar {BAR:.0e})")
    return apart <= BAR


def plot(ours: Sequence[float], theirs: Sequence[float], spec: str, path: Path) -> None:
    """Both curves in one picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    steps = range(1, len(ours) + 1)
    axes.plot(steps, theirs, color="#bbbbbb", linewidth=4, label="scaled_dot_product_attention")
    axes.plot(steps, ours, color="#b03030", linewidth=1.2, label=f"compiled from {spec}")
    axes.set(xlabel="step", ylabel="loss, nats a character", title="The same model, two attentions")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> int:
    """0 where the curves agree."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--spec", type=Path, default=SPEC, help="a causal spec without captured tensors")
    parser.add_argument("--plot", type=Path, help="draw both curves into this file")
    options = parser.parse_args()
    text, characters = sources()
    print(f"{len(text):,} characters, {characters} different ones")
    ours = train("compiled", attncc.compile(options.spec), text, characters, options)
    theirs = train("PyTorch", torch_attention, text, characters, options)
    good = report(ours, theirs)
    if options.plot:
        plot(ours, theirs, options.spec.name, options.plot)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
