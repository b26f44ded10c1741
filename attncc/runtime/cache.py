"""The disk cache: entries under keys of our own, checked when read, written atomically, built once across processes.

An entry is a file: a line that names the format, the SHA-256 of what follows, a line of JSON, then the blobs the JSON
lists. Whatever does not check out is rebuilt. Where the folder can't be written, entries stay in memory and one
warning says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from attncc.debug import setting

_FORMAT = b"attncc cache 1\n"
_LOCK_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Entry:
    """Plain data and binary parts by name."""

    data: dict[str, Any]
    blobs: dict[str, bytes] = field(default_factory=dict)


def digest(*parts: str) -> str:
    """A key made of `parts`."""
    h = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        h.update(len(raw).to_bytes(8, "little"))
        h.update(raw)
    return h.hexdigest()[:40]


@lru_cache(maxsize=1)
def sources_key() -> str:
    """A hash of the sources of every part of attncc: another compiler never reads this one's entries."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    roots = [home]
    for part in ("grammar", "codegen"):
        spec = importlib.util.find_spec(f"attncc.{part}")
        if spec is not None and spec.origin is not None and not spec.origin.startswith(home + os.sep):
            roots.append(os.path.dirname(spec.origin))
    h = hashlib.sha256()
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(f for f in files if f.endswith((".py", ".lark"))):
                path = os.path.join(folder, name)
                h.update(os.path.relpath(path, root).encode())
                with open(path, "rb") as f:
                    h.update(f.read())
    return h.hexdigest()


class Cache:
    """One folder of entries, or memory where there is none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.writable = folder is not None
        self.memory: dict[str, Entry] = {}

    def get(self, key: str) -> Entry | None:
        """The entry, or None where there is none or it is damaged."""
        if key in self.memory:
            return self.memory[key]
        if self.folder is None:
            return None
        try:
            raw = self._path(key).read_bytes()
        except OSError:
            return None
        return _parse(raw)

    def put(self, key: str, entry: Entry) -> None:
        """Stores an entry: readers see it whole or not at all."""
        if not self.writable:
            self.memory[key] = entry
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(_format(entry))
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as e:
            self._unwritable(e)
            self.memory[key] = entry

    def get_or_build(self, key: str, build: Callable[[], Entry]) -> tuple[Entry, bool]:
        """The entry, and whether it was built here. Of several processes that miss the same key, one builds.

        What stands in for something that failed by a mistake is not kept.
        """
        found = self.get(key)
        if found is not None:
            return found, False
        with self._lock(key):
            found = self.get(key)
            if found is not None:
                return found, False
            entry = build()
            if not entry.data.get("mistake"):
                self.put(key, entry)
            return entry, True

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / key[2:]

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        lock = None
        if self.writable:
            import filelock

            path = self._path(key)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = filelock.FileLock(f"{path}.lock", timeout=_LOCK_SECONDS)
                lock.acquire()
            except filelock.Timeout:
                lock = None  # the other process is stuck: building twice is harmless
            except (OSError, NotImplementedError) as e:
                lock = None
                self._unwritable(e)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _unwritable(self, reason: Exception) -> None:
        self.writable = False
        warnings.warn(
            f"attncc can't write its cache {self.folder} ({reason}); compiled kernels are kept in memory only. "
            "ATTNCC_CACHE names another folder.",
            RuntimeWarning,
            stacklevel=2,
        )


def _format(entry: Entry) -> bytes:
    listed = {name: len(blob) for name, blob in entry.blobs.items()}
    head = json.dumps({"data": entry.data, "blobs": listed}).encode()
    body = b"".join([head, b"\n", *entry.blobs.values()])
    return b"".join([_FORMAT, hashlib.sha256(body).digest(), body])


def _parse(raw: bytes) -> Entry | None:
    start = len(_FORMAT) + 32
    body = raw[start:]
    if raw[: len(_FORMAT)] != _FORMAT or hashlib.sha256(body).digest() != raw[len(_FORMAT) : start]:
        return None
    head, _, rest = body.partition(b"\n")
    parsed = json.loads(head)
    blobs, at = {}, 0
    for name, size in parsed["blobs"].items():
        blobs[name] = rest[at : at + size]
        at += size
    return Entry(parsed["data"], blobs)


@lru_cache(maxsize=8)
def _open(named: str) -> Cache:
    if named == "off":
        return Cache(None)
    if named:
        return Cache(Path(named).expanduser())
    import platformdirs

    return Cache(Path(platformdirs.user_cache_dir("attncc", appauthor=False)))


def cache() -> Cache:
    """The cache that ATTNCC_CACHE names now, else the user's."""
    return _open(setting("ATTNCC_CACHE"))
