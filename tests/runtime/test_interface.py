"""What is kept of a spec for its calls."""

from __future__ import annotations

import json

from attncc.expr.build import ivar, op
from attncc.ir.nodes import Axis, ConstParam, Param
from attncc.runtime.interface import Interface, from_data, interface_of, to_data
from tests.runtime.fake_driver import spec


def test_of_a_spec() -> None:
    face = interface_of(spec())
    assert face.inputs == ("q", "k", "v", "slope", "doc")
    assert face.real == ("q", "k", "v", "slope")
    assert face.lse


def test_round_trip_through_json() -> None:
    blocks = op("floordiv", op("add", ivar("N"), ivar("block")), ivar("block"))
    face = Interface(
        "x",
        (ConstParam("block", 16, "int"), ConstParam("cap", 1.5, "real"), ConstParam("on", True, "bool")),
        (Param("t", "real", (Axis("h", ivar("H")), Axis("", blocks))), Param("cu", "int", (), offsets=True)),
        False,
    )
    assert from_data(json.loads(json.dumps(to_data(face)))) == face
