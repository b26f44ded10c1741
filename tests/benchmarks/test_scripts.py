"""The scripts of this folder, as far as they run without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attncc.driver import load, programs
from attncc.runtime.interface import interface_of
from attncc.runtime.warmup import full_sizes
from attncc.schedule.variant import Variant
from attncc.tile.dialect import any_partitioned
from attncc.tile.nodes import Dtype
from tests.benchmarks import gradients, rungs, sanitize
from tests.benchmarks.shown import table

CPU = torch.device("cpu")
KINDS: dict[str, Dtype] = {"real": "f32", "int": "i32", "bool": "bool"}


def test_tables() -> None:
    shown = table(("name", "cost", "holds"), [["one", 1.23456, True], ["another", None, False]])
    assert shown.splitlines() == ["name     cost  holds", "one      1.23  holds", "another        SHORT"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path_factory.getbasetemp() / "scripts-cache"))


@pytest.mark.parametrize("row", gradients.ROWS, ids=lambda row: row.name)
def test_every_row_of_gradients_has_a_partitioned_backward(row: gradients.Row) -> None:
    spec = load(row.text)[0]
    face = interface_of(spec)
    captured = tuple((p.name, KINDS[p.sort]) for p in spec.params)
    pair = programs(spec, Variant("gluon", 64, 64, "bf16", captured, gradients=face.real))
    assert pair.backward is not None and any_partitioned(pair.backward)
    assert set(row.fills) == {p.name for p in spec.params}


def test_gradients_are_measured() -> None:
    row = next(r for r in gradients.ROWS if r.name == "bias[h, j]")
    sizes = full_sizes({"B": 1, "H": 2, "N": 48, "D": 16})
    found = gradients.measure(row, gradients.ways(row, sizes, CPU, "torch"), 1, CPU)
    assert found["same bits"] and found["ordered same"] and found["varies"] == "nothing"
    assert found["apart"] < 1e-6 and set(found["rounds_ms"]) == {"plain", "captured", "ordered"}


def test_counts_of_the_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"memcheck": "========= ERROR SUMMARY: 3 errors\n", "racecheck": "========= RACECHECK SUMMARY: 0 hazards"}
    monkeypatch.setattr(sanitize, "child", lambda cell, before: (0, said.get(before[2], "killed")))
    cell = sanitize.cells("auto")[0]
    found = {
        tool: sanitize.under(tool, cell, "compute-sanitizer", ()) for tool in ("memcheck", "racecheck", "initcheck")
    }
    assert [f["errors"] for f in found.values()] == [3, 0, None]
    assert found["memcheck"]["said"] and not found["racecheck"]["said"] and found["initcheck"]["said"] == "killed"


def test_a_cell_of_the_sanitizer_is_right() -> None:
    if torch.cuda.is_available():
        pytest.skip("runs as a cell of the script")
    cell = sanitize.Cell("alibi", 16, 30, 50, backend="torch")
    assert sanitize.call(cell)["worst"] < 1e-2 and str(cell) == "alibi D 16 M 30 N 50"


def test_plans_are_written_as_they_are_read() -> None:
    names: dict[str, Any] = {}
    forward, backward = {(64, "keys"): "early=False", (128, "plain"): ""}, {(128, "rows"): "calm=True"}
    exec(rungs.written(forward, backward), names)
    assert names["FORWARD"] == {(64, "keys"): "early=False"} and names["BACKWARD"] == backward
    assert names["MEASURED"] is torch.cuda.is_available()
