"""What is kept of a spec for its calls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from attncc.driver import load
from attncc.expr.build import ivar, lift, op
from attncc.ir.nodes import Axis, ConstParam, Param
from attncc.runtime.interface import from_data, interface_of, size, to_data
from tests.runtime.fake_driver import spec


def test_of_a_spec() -> None:
    face = interface_of(spec())
    assert face.inputs == ("q", "k", "v", "slope", "doc")
    assert face.real == ("q", "k", "v", "slope")
    assert face.lse


def test_round_trip_through_json() -> None:
    blocks = op("floordiv", op("add", ivar("N"), ivar("block")), ivar("block"))
    params: tuple[Param, ...] = (Param("t", "real", (Axis("h", ivar("H")), Axis("", blocks), Axis("r", lift(4)))),)
    params = (*params, Param("cu", "int", (Axis("", ivar("S")),), offsets=True))
    constants = (ConstParam("block", 16, "int"), ConstParam("cap", 1.5, "real"), ConstParam("on", True, "bool"))
    face = interface_of(replace(spec(), constants=constants, params=params))
    assert from_data(json.loads(json.dumps(to_data(face)))) == face
    assert [str(p) for p in face.params] == ["real[h, ..., r]", "offsets"]
    t, cu = face.params
    assert [size(a.size, {"H": 3, "N": 33, "block": 16}) for a in t.axes] == [3, 3, 4]
    assert [size(a.size, {"H": 3}) for a in (*t.axes, *cu.axes)] == [3, None, 4, None]


def test_weights_over_another_index_have_no_lse() -> None:
    folder = Path(__file__).parents[2] / "examples"
    assert not interface_of(load(folder / "recurrent" / "linformer.attn")[0]).lse
    assert interface_of(load(folder / "softmax" / "causal.attn")[0]).lse
