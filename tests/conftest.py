"""Options and fixtures for all tests: the seed, the GPU marker, and memory that is NaN until written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes of as many threads as there are cores wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--seed N: of the covering arrays and every random input."""
    parser.addoption("--seed", type=int, default=0, help="seed of shapes and inputs (printed in the header)")


def pytest_report_header(config: pytest.Config) -> str:
    """The seed, so that a failure can be run again."""
    return f"seed: {config.getoption('--seed')} (rerun with --seed)"


def pytest_configure(config: pytest.Config) -> None:
    """The markers of this file."""
    config.addinivalue_line("markers", "unpoisoned: leaves torch.empty alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where torch sees no CUDA device."""
    wants = [item for item in items if item.get_closest_marker("gpu")]
    if wants:
        import torch

        if not torch.cuda.is_available():
            for item in wants:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run."""
    return int(request.config.getoption("--seed"))


@pytest.fixture(autouse=True)
def poisoned_empty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.empty and its kin give NaN (integers: a wild value), so that reading before writing shows."""
    torch = sys.modules.get("torch")
    if torch is not None and not request.node.get_closest_marker("unpoisoned"):
        for home, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (torch.Tensor, "new_empty"),
            (torch.Tensor, "new_empty_strided"),
        ):
            monkeypatch.setattr(home, name, _poisoned(getattr(home, name)))
    yield


def _poisoned(make: Any) -> Any:
    def poisoned(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        if made.requires_grad:
            return made
        if made.is_floating_point() or made.is_complex():
            return made.fill_(float("nan"))
        return made.fill_(True) if made.dtype.itemsize < 2 else made.fill_(-0x5A5A)

    return poisoned
