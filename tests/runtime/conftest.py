"""An empty cache, and the driver of one hand-printed spec."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attncc.runtime import attention, cache, cuda, family, prepared
from tests.runtime.fake_cuda import Recorder
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


@pytest.fixture
def lib(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The driver of this test; torch's current stream is 4242."""
    found = Recorder()
    monkeypatch.setattr(cuda, "driver", lambda: found)
    for module in (cuda, prepared):
        monkeypatch.setattr(module, "current_stream", lambda: lambda device: found.stream)
    monkeypatch.setattr(cuda, "_bound", threading.local())
    return found
