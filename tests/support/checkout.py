"""A copy of the sources as a fresh checkout has them."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_LEFT_BY_TOOLS = shutil.ignore_patterns(
    ".git", ".*_cache", ".venv", ".scratch", ".hypothesis", ".benchmarks", "__pycache__", "*.egg-info", "build", "dist"
)


def checkout(place: Path) -> Path:
    """Copies the sources to `place` without what tools leave among them."""
    shutil.copytree(ROOT, place, symlinks=True, ignore=_LEFT_BY_TOOLS)
    return place
