"""What a search over plans tries: changes of the default plan, in groups that are settled one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from attncc.schedule.variant import Variant

Which = Literal["forward", "backward"]
Values = Sequence[int | bool | str]
BOTH: Values = (False, True)


@dataclass(frozen=True)
class Group:
    """Texts for `attncc.schedule.overrides` that change one kernel, and which half to time by them."""

    which: Which
    kernel: str
    """With its tier: `plain.keys`."""
    texts: tuple[str, ...]


def groups(v: Variant, partitioned: Mapping[Which, bool]) -> tuple[Group, ...]:
    """The groups for a variant, of whose halves the default plan partitions those that `partitioned` says."""
    found: list[Group] = []
    if partitioned["forward"]:
        found.append(Group("forward", "partitioned.forward", tuple(_split_forward())))
        found.append(_few("forward", {"own": BOTH}))
    else:
        found.append(Group("forward", "plain.forward", tuple(_plain("plain.forward", v))))
    if partitioned["backward"]:
        found.append(Group("backward", "partitioned.backward", tuple(_split_backward())))
        found.append(_few("backward", {"depth": (2, 4), "lanes": BOTH}))
        found.append(_few("backward", {"apart": BOTH}))
    else:
        fused = v.target == "torch" and v.dtype in ("f32", "f64")
        for kernel in ("plain.keys",) if fused else ("plain.keys", "plain.queries"):
            found.append(Group("backward", kernel, tuple(_plain(kernel, v))))
    return tuple(found)


def _plain(kernel: str, v: Variant) -> Iterator[str]:
    sides: dict[str, Values]
    if v.target == "torch":
        sides = {"rows": (64, 128, 256, 512), "keys": (64, 128, 256, 512)}
    elif v.dtype in ("f32", "f64"):
        sides = {"rows": (16, 32, 64), "keys": (16, 32, 64), "warps": (4, 8), "stages": (1, 2)}
    else:
        small: Values = (64, 128) if kernel == "plain.forward" else (32, 64, 128)
        sides = {"rows": small, "keys": (32, 64, 128), "warps": (4, 8), "stages": (2, 3, 4)}
    yield from _product(kernel, sides)


def _few(which: Which, sides: Mapping[str, Values]) -> Group:
    """What is settled once a partitioned kernel's other fields are."""
    kernel = f"partitioned.{which}"
    return Group(which, kernel, tuple(_product(kernel, sides)))


def _split_forward() -> Iterator[str]:
    switches: dict[str, Values] = {n: BOTH for n in ("lazy", "early", "settled", "turns")}
    for consumers, registers in ((2, 240), (3, 160)):
        sides: dict[str, Values] = {"consumers": (consumers,), "registers": (registers,)}
        sides |= {"keys": (64, 128), "depth": (2, 3, 4), **switches}
        yield from _product("partitioned.forward", sides)


def _split_backward() -> Iterator[str]:
    sides: dict[str, Values] = {
        "rows": (64, 128),
        "share": ("columns", "rows", "keys"),
        "lag": BOTH,
        "calm": BOTH,
        "started": BOTH,
        "hold": ("weights", "product"),
    }
    yield from _product("partitioned.backward", sides)


def _product(kernel: str, sides: Mapping[str, Values]) -> Iterator[str]:
    for chosen in itertools.product(*sides.values()):
        yield " ".join(f"{kernel}.{name}={value}" for name, value in zip(sides, chosen, strict=True))
