"""Plans other than the default, as text: `plain.forward.keys=32 partitioned.backward.rows=128`.

A name leads through the dataclasses of a plan: the tier (plain or partitioned), the kernel, the field. What an item
of another tier says is ignored, so that one text serves a spec wherever its halves are partitioned or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from attncc.schedule.config import Plan
from attncc.schedule.hopper_config import HopperBackward, HopperForward, HopperQueries

T = TypeVar("T")
_FORWARD = ("plain.forward", "partitioned.forward")
_BARE = {
    "partitioned.forward": HopperForward,
    "partitioned.backward": HopperBackward,
    "partitioned.queries": HopperQueries,
}
_KERNELS = ("forward", "delta", "keys", "queries")


def items(text: str) -> Iterator[tuple[str, str]]:
    """The pairs of a name and a value; ValueError where there is an item of another form."""
    for item in text.split():
        name, equals, value = item.partition("=")
        if not equals or not value or name.count(".") != 2:
            raise ValueError(f"{item!r} is not of the form tier.kernel.field=value")
        yield name, value


def check(text: str) -> None:
    """ValueError where an item names no field or gives it a value of another kind."""
    for name, value in items(text):
        tier, kernel, field = name.split(".")
        if f"{tier}.{kernel}" in _BARE:
            _replaced(_BARE[f"{tier}.{kernel}"](), field, value)
        elif tier == "plain" and kernel in _KERNELS:
            _replaced(_any_tiles(), field, value)
        else:
            raise ValueError(f"there is no kernel {tier}.{kernel}")


def of(text: str, which: Literal["forward", "backward"]) -> str:
    """The items that concern one half, in order of their names."""
    mine = [f"{n}={v}" for n, v in items(text) if (n.rpartition(".")[0] in _FORWARD) == (which == "forward")]
    return " ".join(sorted(mine))


def overridden(default: T, text: str, tier: str) -> T:
    """The default plan of `tier` (`plain`, `partitioned.forward` and so on) with what `text` changes."""
    found: Any = default
    for name, value in items(text):
        kernel, _, field = name.rpartition(".")
        if kernel == tier:
            found = _replaced(found, field, value)
        elif isinstance(found, Plan) and kernel.startswith(f"{tier}."):
            part = kernel.removeprefix(f"{tier}.")
            found = dataclasses.replace(found, **{part: _replaced(getattr(found, part), field, value)})
    result: T = found
    return result


def _any_tiles() -> Any:
    from attncc.schedule.config import Tiles
    from attncc.tile.nodes import Config

    return Tiles(1, 1, Config())


def _replaced(value: Any, field: str, text: str) -> Any:
    """`value` with one field changed; warps and stages are those of its config."""
    if hasattr(value, "config") and field in ("warps", "stages"):
        return dataclasses.replace(value, config=_replaced(value.config, field, text))
    known = [f.name for f in dataclasses.fields(value) if f.name != "config"]
    if field not in known:
        more = ["warps", "stages"] if hasattr(value, "config") else []
        raise ValueError(f"there is no field {field}; known: {', '.join(known + more)}")
    return dataclasses.replace(value, **{field: _typed(text, getattr(value, field))})


def _typed(text: str, like: object) -> object:
    match like:
        case bool():
            if text in ("True", "False"):
                return text == "True"
        case int():
            if text.isdigit() and int(text) > 0:
                return int(text)
        case str():
            return text
    raise ValueError(f"{text!r} is no {type(like).__name__}, as {like!r} is")
