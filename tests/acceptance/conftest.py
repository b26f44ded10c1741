"""Cells as parameters, drawn from --seed; a compile cache that the workers of one run share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.cells import Cell, device_cells, interpreted_cells, torch_cells
from tests.support.specs import SEVEN

KINDS: Mapping[str, Callable[[int], list[Cell]]] = {
    "torch": torch_cells,
    "interpreted": interpreted_cells,
    "device": device_cells,
}


def pytest_configure(config: pytest.Config) -> None:
    """The marker of this folder."""
    config.addinivalue_line("markers", "cells(kind): runs with every spec on every cell of that kind")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The parameters `name` and `cell` of a test marked cells(kind)."""
    marker = metafunc.definition.get_closest_marker("cells")
    if marker is not None:
        made = KINDS[marker.args[0]](int(metafunc.config.getoption("--seed")))
        metafunc.parametrize("cell", made, ids=str)
        metafunc.parametrize("name", SEVEN)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder of this run, the same for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(autouse=True)
def shared_cache(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test compiles, the next one loads."""
    monkeypatch.setenv("ATTNCC_CACHE", str(shared_folder / "compiled"))
    yield
