"""Suites: rows of cases with the ratios they should reach, as data in TOML files."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attncc.runtime.interface import Number

FOLDER = Path(__file__).parent / "suites"
_GOAL = re.compile(r"([\d.]+)(?:\s*/\s*([\d.]+))?\s+([\w-]+)")


@dataclass(frozen=True)
class Bound:
    """At least `forward` and `backward` times as fast as a contestant; "tile" is the anchor, per visited tile."""

    forward: float
    backward: float
    over: str


@dataclass(frozen=True)
class Goal:
    """Reached where one of its bounds is. Written `1.5 / 1.4 sdpa or 1.0 tile`: forward / backward."""

    text: str
    bounds: tuple[Bound, ...]
    most: bool = False
    """The backward of the contestant may take that many times as long, and no more: `<= 1.15 gradients`."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a spec at a shape."""

    name: str
    spec: str
    """The text of the spec."""
    shape: Mapping[str, int]
    constants: Mapping[str, Number] = field(default_factory=dict)
    fills: Mapping[str, str] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    without: tuple[str, ...] = ()
    """Peers that sit this row out: what they take to compile is not worth their figures."""
    anchor: str = ""
    """The text of the spec whose time per visited tile is the measure; none if empty."""
    learned: bool = False
    """Everyone computes the gradients of captured tensors, too."""

    @property
    def label(self) -> str:
        """`causal B2 H16 N8192 D128`, sizes that follow from others left out."""
        follows = {"G": "H", "M": "N", "E": "D"}
        shown = {n: s for n, s in self.shape.items() if n not in follows or s != self.shape.get(follows[n])}
        return f"{self.name} {' '.join(f'{n}{s}' for n, s in shown.items())}"


def read_suite(named: str, only: str = "") -> list[Row]:
    """The rows of a suite that is shipped, or of a TOML file, whose labels match one of the `only` patterns.

    ValueError, with what to write instead, where there is no such suite or it can't be read.
    """
    path = FOLDER / f"{named}.toml" if (FOLDER / f"{named}.toml").is_file() else Path(named)
    if not path.is_file():
        shipped = ", ".join(sorted(f.stem for f in FOLDER.glob("*.toml")))
        raise ValueError(f"there is no suite {named!r}; shipped: {shipped}; else name a TOML file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        rows = list(_rows(data))
    except (tomllib.TOMLDecodeError, KeyError, ValueError, AttributeError) as e:
        raise ValueError(f"{path} is no suite: {e}") from None
    return [r for r in rows if matches(r.label, only)]


def matches(label: str, only: str) -> bool:
    """Whether a label holds one of the comma-separated patterns and none behind a `-`; `*` stands for anything."""
    patterns = [p.strip() for p in only.split(",") if p.strip()]
    without = [p.removeprefix("-") for p in patterns if p.startswith("-")]
    wanted = [p for p in patterns if not p.startswith("-")] or [""]
    holds = lambda p: fnmatch.fnmatchcase(label, f"*{p}*")  # noqa: E731
    return any(map(holds, wanted)) and not any(map(holds, without))


def _rows(data: Mapping[str, Any]) -> Iterator[Row]:
    specs = data["specs"]
    for row in data["row"]:
        anchor = specs[row["anchor"]] if "anchor" in row else ""
        goals = tuple(parse_goal(g) for g in row.get("goals", ()))
        for shape in row["shapes"]:
            sizes = {n: int(s) for n, s in (p.split("=") for p in shape.split(","))}
            given = row.get("constants", {}), row.get("tensors", {})
            without, learned = tuple(row.get("without", ())), bool(row.get("learned", False))
            yield Row(row["name"], specs[row["spec"]], sizes, *given, goals, without, anchor, learned)


def parse_goal(text: str) -> Goal:
    """`1.5 / 1.4 sdpa or 1.0 tile`: forward / backward; one number is both."""
    bounds = []
    most = text.startswith("<=")
    for part in text.removeprefix("<=").split(" or "):
        found = _GOAL.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{part!r} is no goal")
        forward, backward, over = found.groups()
        bounds.append(Bound(float(forward), float(backward or forward), over))
    return Goal(text, tuple(bounds), most)
