"""An empty cache, and the driver of one hand-printed spec."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attncc.runtime import attention, cache, family
from tests.runtime.fake_driver import FakeDriver


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder and a process that has compiled nothing."""
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(family, "_families", {})
    attention._attention.cache_clear()
    cache._open.cache_clear()
    yield tmp_path / "cache"
    attention._attention.cache_clear()
    cache._open.cache_clear()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, fresh: Path) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setitem(sys.modules, "attncc.driver", fake)
    return fake
