"""The grid of shapes, layouts and hard inputs that attention is tested on, as a pairwise covering array.

    for cell in torch_cells(seed): ...         # every pair of levels of two factors occurs in some cell

Cells are reproducible from their seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, int], tuple[str, int]]

LAYOUTS = ("contiguous", "transposed", "broadcast", "unaligned")
"""Of q, k and v: plain; a [B, N, H, D] buffer seen as [B, H, N, D]; batch stride 0; rows off any alignment."""

FEATURES = ("plain", "empty rows", "large means", "outliers")
CHANNELS = (24, 40, 64, 80, 96, 100, 128, 192, 256)
LENGTHS = (1, 31, 64, 129, 300, 1000)


@dataclass(frozen=True)
class Cell:
    """One case. H query heads on G key heads; E is v's channels."""

    B: int
    heads: tuple[int, int]
    M: int
    N: int
    D: int
    E: int
    layout: str
    feature: str
    dtype: str

    @property
    def H(self) -> int:
        """Query heads."""
        return self.heads[0]

    @property
    def G(self) -> int:
        """Key heads."""
        return self.heads[1]

    def __str__(self) -> str:
        shape = f"B{self.B}-H{self.H}.{self.G}-M{self.M}-N{self.N}-D{self.D}-E{self.E}"
        return f"{shape}-{self.layout}-{self.feature.replace(' ', '_')}-{self.dtype}"


def covering(
    factors: Mapping[str, Sequence[Any]],
    seed: int,
    allowed: Callable[[Row], bool] = lambda row: True,
    count: int | None = None,
) -> list[Row]:
    """Rows in which every allowed pair of levels of two factors occurs; the first `count` of them where given.

    Greedy: each row starts from an uncovered pair and takes, factor by factor, the level that covers most new pairs.
    `allowed` also sees rows that are not complete yet and must accept those that may become good.
    """
    rng = random.Random(seed)
    levels = {name: list(values) for name, values in factors.items()}
    open_pairs = [
        ((a, x), (b, y))
        for a, b in combinations(levels, 2)
        for x, y in product(range(len(levels[a])), range(len(levels[b])))
    ]
    left = dict.fromkeys(open_pairs)
    rows: list[Row] = []
    while left and (count is None or len(rows) < count):
        first = rng.choice(list(left))
        tries = [row for _ in range(12) if (row := _row(first, levels, left, allowed, rng)) is not None]
        if not tries:
            del left[first]
            continue
        best = max(tries, key=lambda row: sum(p in left for p in _pairs(row)))
        for pair in _pairs(best):
            left.pop(pair, None)
        rows.append({name: levels[name][at] for name, at in best.items()})
    return rows


def _pairs(row: Mapping[str, int]) -> list[Pair]:
    return list(combinations(sorted(row.items()), 2))


def _row(
    first: Pair,
    levels: Mapping[str, list[Any]],
    left: Mapping[Pair, None],
    allowed: Callable[[Row], bool],
    rng: random.Random,
) -> dict[str, int] | None:
    row = dict(first)
    names = [n for n in levels if n not in row]
    rng.shuffle(names)
    for name in ["", *names]:
        if name:
            options = list(range(len(levels[name])))
            rng.shuffle(options)
            options = [x for x in options if allowed(_named({**row, name: x}, levels))]
            if not options:
                return None
            gain = {x: sum(tuple(sorted((p, (name, x)))) in left for p in row.items()) for x in options}
            row[name] = max(options, key=gain.__getitem__)
        elif not allowed(_named(row, levels)):
            return None
    return row


def _named(row: Mapping[str, int], levels: Mapping[str, list[Any]]) -> Row:
    return {name: levels[name][at] for name, at in row.items()}


def _possible(row: Row) -> bool:
    """Empty rows of a causal mask need M > N; the dense truth of a cell must fit in memory."""
    m, n = row.get("M"), row.get("N")
    if row.get("feature") == "empty rows":
        if n == 1000 or (m is not None and m <= (n or 0)):
            return False
    heads: tuple[int, int] = row.get("heads", (1, 1))
    return bool((m or 1) * (n or 1) * heads[0] * row.get("B", 1) <= 8_000_000)


def cells(seed: int, *, count: int | None = None, **changes: Sequence[Any]) -> list[Cell]:
    """A covering array over the factors of `Cell`; keywords replace the levels of a factor. E = 0 means E = D."""
    factors: dict[str, Sequence[Any]] = {
        "B": (1, 2),
        "heads": ((2, 2), (8, 1)),
        "M": LENGTHS,
        "N": (0, *LENGTHS),
        "D": CHANNELS,
        "E": (0, 48, 128),
        "layout": LAYOUTS,
        "feature": FEATURES,
        "dtype": ("float32",),
        **changes,
    }
    return [Cell(**{**row, "E": row["E"] or row["D"]}) for row in covering(_sorted(factors), seed, _possible, count)]


def _sorted(factors: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    return dict(sorted(factors.items()))


def torch_cells(seed: int) -> list[Cell]:
    """The whole array, at least 60 cells, for the printed PyTorch on a CPU in fp32 and fp64."""
    return cells(seed, dtype=("float32", "float64"))


def interpreted_cells(seed: int, count: int = 8) -> list[Cell]:
    """A few small cells for Triton's interpreter, which has no right bf16."""
    short = (1, 31, 64, 129)
    return cells(
        seed, count=count, M=short, N=short, D=(24, 40, 64, 100), E=(0, 48), heads=((1, 1), (8, 1)), B=(1,),
        dtype=("float32", "float16"),
    )  # fmt: skip


def device_cells(seed: int, count: int = 12) -> list[Cell]:
    """Cells for a GPU, in all its types."""
    return cells(seed, count=count, dtype=("float16", "bfloat16", "float32"))
