"""The disk cache: warm starts, damaged entries, folders that can't be written, two processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

import attncc
from attncc.runtime import attention, family
from attncc.runtime.cache import Cache, Entry, cache, digest, sources_key
from tests.runtime.fake_driver import TEXT, FakeDriver
from tests.runtime.test_attention import dense, tensors

ENTRY = Entry({"a": [1, "x"], "b": None}, {"one": b"\x00\n\xff" * 100, "two": b""})


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what is in memory, as a new process would."""
    monkeypatch.setattr(family, "_families", {})
    attention._attention.cache_clear()


def test_entries_come_back(tmp_path: Path) -> None:
    found = Cache(tmp_path)
    assert found.get("k" * 40) is None
    found.put("k" * 40, ENTRY)
    assert found.get("k" * 40) == ENTRY
    assert not list(tmp_path.rglob(".new-*"))


@pytest.mark.parametrize("keep", [0, 5, 14, 40, 100, -1])
def test_a_cut_entry_counts_as_missing(tmp_path: Path, keep: int) -> None:
    found = Cache(tmp_path)
    found.put("k" * 40, ENTRY)
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    path.write_bytes(path.read_bytes()[:keep])
    assert found.get("k" * 40) is None


def test_any_flipped_byte_counts_as_missing(tmp_path: Path) -> None:
    found = Cache(tmp_path)
    found.put("k" * 40, ENTRY)
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    raw = path.read_bytes()
    for at in range(0, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert found.get("k" * 40) is None


def test_a_warm_start_neither_parses_nor_prints(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors()
    attncc.compile(TEXT)(**inputs).sum().backward()
    assert (driver.loads, driver.prints) == (1, 2)
    restart(monkeypatch)
    attn = attncc.compile(TEXT, window=50)
    torch.testing.assert_close(attn(**inputs), dense(**inputs)[0])
    assert (driver.loads, driver.prints, attn.builds) == (1, 2, 0)


def test_damaged_entries_are_rebuilt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    inputs = tensors()
    attncc.compile(TEXT)(**inputs)
    for path in fresh.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
    restart(monkeypatch)
    attn = attncc.compile(TEXT)
    torch.testing.assert_close(attn(**inputs), dense(**inputs)[0])
    assert (driver.loads, driver.prints, attn.builds) == (2, 2, 1)


def test_a_folder_that_cannot_be_written_warns_once(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path / "file" / "cache"))
    inputs = tensors()
    with pytest.warns(RuntimeWarning, match="can't write its cache") as seen:
        out = attncc.compile(TEXT)(**inputs)
        out.sum().backward()
    assert len([w for w in seen if "cache" in str(w.message)]) == 1
    torch.testing.assert_close(out, dense(**inputs)[0])
    restart(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attncc.compile(TEXT)(**inputs).shape == out.shape
    assert driver.prints == 2


def test_off_keeps_everything_in_memory(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attncc.compile(TEXT)(**tensors())
    assert not fresh.exists() and cache().folder is None


def test_keys_do_not_run_together() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert len(sources_key()) == 64


def test_of_several_threads_one_builds(tmp_path: Path) -> None:
    built = []

    def build() -> Entry:
        built.append(1)
        time.sleep(0.05)
        return ENTRY

    def work() -> None:
        assert Cache(tmp_path).get_or_build("k" * 40, build)[0] == ENTRY

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(built) == 1


_PROCESS = """
import sys, time
from pathlib import Path
from attncc.runtime.cache import Cache, Entry
def build():
    with open(sys.argv[2], "a") as f:
        f.write("built ")
    time.sleep(0.3)
    return Entry({}, {"x": b"1"})
print(Cache(Path(sys.argv[1])).get_or_build("k" * 40, build)[0].blobs["x"])
"""


def test_of_two_processes_one_builds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    args = [sys.executable, "-c", _PROCESS, str(tmp_path / "cache"), str(log)]
    running = [subprocess.Popen(args, stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    assert [p.communicate(timeout=60)[0].strip() for p in running] == [b"b'1'", b"b'1'"]
    assert log.read_text() == "built "


def test_a_failed_build_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    found = Cache(tmp_path)

    def fails() -> Entry:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        found.get_or_build("k" * 40, fails)
    assert found.get_or_build("k" * 40, lambda: ENTRY) == (ENTRY, True)
