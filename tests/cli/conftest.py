"""A runner for commands, and a cache of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attncc.cli import commands

EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path_factory.getbasetemp() / "cli-cache"))


@pytest.fixture
def cli() -> Callable[..., Result]:
    """`cli("check", path)`; a traceback fails the test."""

    def call(*args: object) -> Result:
        result = CliRunner().invoke(commands, [str(a) for a in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def data(cli: Callable[..., Result]) -> Callable[..., Any]:
    """The parsed output of a command with --json."""
    return lambda *args: json.loads(cli(*args, "--json").stdout)
