"""Arrays a prologue computes from a captured tensor in O(N), which bounds read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["first", "last", "run_first", "run_last"]


@dataclass(frozen=True, slots=True)
class Derived:
    """For each position n along `axis` of `tensor`, another position.

    first, last            the first and the last with the value at n: none lies outside, others may lie between
    run_first, run_last    the ends of the unbroken run of equal values around n: all between have the value

    With `segments`, the tensor holds offsets (S + 1 of them), the array has one axis of N positions and the value at n
    is the number of the segment n lies in; it ascends, so the two pairs agree and only first and last are asked for.
    Otherwise the array has the tensor's own axes.
    """

    name: str
    kind: Kind
    tensor: str
    axis: int
    segments: bool = False


@dataclass(frozen=True, slots=True)
class NextFlag:
    """Of a tensor of flags, for each position n along `axis`: the first at or after n whose flag is `flag`.

    The length of the axis where none is. The array has the tensor's own axes.
    """

    name: str
    flag: bool
    tensor: str
    axis: int
