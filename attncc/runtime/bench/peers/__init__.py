"""Adapters of libraries, one a file: how a spec's form is said to each. Only this folder names them.

A module has PEERS, a tuple of objects that keep `Peer`. It imports its library when it is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from attncc.runtime.bench.case import Case

if TYPE_CHECKING:
    from attncc.runtime.bench.rows import Kind
    from attncc.runtime.bench.suite import Row


@dataclass(frozen=True)
class Ready:
    """A peer that can be called for one case.

    `forward` gives a result that `turned` brings to [B, H, M, E]; `leaves` are its own q, k and v, () where it has no
    backward; `d_out` is laid out like its result.
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    d_out: Tensor
    turned: Callable[[Tensor], Tensor] = lambda x: x
    note: str = ""
    said: Callable[[], str] = lambda: ""
    """What can be added to the note after a call."""


class Peer(Protocol):
    """A library, or one backend of it."""

    name: str
    package: str
    """The distribution whose version is reported."""

    def available(self, device: torch.device) -> str | None:
        """None where it can run on `device`, else why not."""

    def prepare(self, case: Case) -> Ready | str:
        """The call for a case; in words why not, where the library can't express it."""


@runtime_checkable
class Warmed(Protocol):
    """A peer whose first calls take so long that other processes make them side by side, before any is timed."""

    def warm(self, rows: Sequence[Row], kind: Kind) -> list[Future[None]]:
        """Begins the first calls of the rows that it can express."""


def families() -> tuple[str, ...]:
    """The names of all adapters, without importing one."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def peers(family: str) -> tuple[Peer, ...]:
    """What one adapter offers."""
    found: tuple[Peer, ...] = importlib.import_module(f"{__name__}.{family}").PEERS
    return found
