"""Tiles as text, what a search tries, and whole searches on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import attncc
from attncc.cli import commands
from attncc.runtime.bench import tune
from attncc.runtime.mistakes import WrongTiles
from attncc.runtime.trial import BARS
from attncc.schedule import overrides
from attncc.schedule.candidates import Group, groups
from attncc.schedule.config import Demand, plan
from attncc.schedule.hopper_config import HopperBackward, HopperForward, backward_plan, forward_plan
from attncc.schedule.variant import Variant

CAUSAL = Path(__file__).parents[2] / "examples" / "softmax" / "causal.attn"
BF16 = Variant("triton", 64, 64, "bf16")


# --- text -----------------------------------------------------------------------------------------------------------


def test_plain_tiles_change() -> None:
    default = plan(BF16, Demand())
    text = "plain.forward.keys=32 plain.keys.warps=8 plain.keys.stages=1 partitioned.forward.depth=3"
    found = overrides.overridden(default, text, "plain")
    assert (found.forward.keys, found.forward.rows) == (32, default.forward.rows)
    assert (found.keys.config.warps, found.keys.config.stages) == (8, 1)
    assert found.queries == default.queries and overrides.overridden(default, "", "plain") is default


def test_partitioned_plans_change() -> None:
    forward = overrides.overridden(forward_plan(128, Demand()), "partitioned.forward.turns=True", "partitioned.forward")
    assert forward.turns and forward.keys == forward_plan(128, Demand()).keys
    text = "partitioned.backward.share=rows partitioned.backward.rows=128 plain.forward.rows=9"
    backward = overrides.overridden(backward_plan(128, 128, Demand()), text, "partitioned.backward")
    assert (backward.share, backward.rows) == ("rows", 128)


def test_halves() -> None:
    text = "plain.queries.rows=32 partitioned.forward.depth=3 plain.forward.keys=32 partitioned.backward.rows=128"
    assert overrides.of(text, "forward") == "partitioned.forward.depth=3 plain.forward.keys=32"
    assert overrides.of(text, "backward") == "partitioned.backward.rows=128 plain.queries.rows=32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys=3", "not of the form tier.kernel.field=value"),
        ("plain.forward.keys", "not of the form"),
        ("plain.backward.keys=3", "there is no kernel plain.backward"),
        ("plain.forward.columns=3", "there is no field columns; known: rows, keys, warps, stages"),
        ("plain.forward.keys=many", "'many' is no int, as 1 is"),
        ("plain.forward.config=3", "there is no field config"),
        ("partitioned.forward.turns=1", "'1' is no bool, as False is"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(WrongTiles, match=message):
        attncc.compile(CAUSAL, tiles=text)


@given(st.sampled_from((64, 128)), st.sampled_from(("triton", "torch", "gluon")), st.booleans(), st.booleans())
def test_all_candidates_are_plans(D: int, target: Any, forward: bool, backward: bool) -> None:
    found = groups(Variant(target, D, D, "bf16"), {"forward": forward, "backward": backward})
    assert found[0].which == "forward" and {g.which for g in found} == {"forward", "backward"}
    for group in found:
        assert len(set(group.texts)) == len(group.texts) > 1
        assert sum(len(g.texts) for g in found if g.kernel == group.kernel) > 8
        for text in group.texts:
            overrides.check(text)
            assert overrides.of(text, group.which) == " ".join(sorted(text.split()))
            assert all(item.startswith(f"{group.kernel}.") for item in text.split())
        if group.kernel.startswith("partitioned"):
            plan = HopperForward() if group.which == "forward" else HopperBackward()
            assert len({overrides.overridden(plan, t, group.kernel) for t in group.texts}) == len(group.texts)
    assert sum(len(g.texts) for g in found) > 16


# --- callables ------------------------------------------------------------------------------------------------------


def test_a_callable_with_other_tiles(fresh: Path) -> None:
    q, k, v = (torch.randn(1, 2, 100, 16, requires_grad=True) for _ in range(3))
    default, other = attncc.compile(CAUSAL), attncc.compile(CAUSAL, tiles="plain.forward.rows=32 plain.keys.keys=64")
    out = other(q, k, v)
    assert torch.allclose(out, default(q, k, v), atol=1e-6)
    out.sum().backward()
    assert [v.tiles for v in other.variants] == ["plain.forward.rows=32", "", "plain.keys.keys=64"]


# --- searches -------------------------------------------------------------------------------------------------------


def search(*options: object) -> Any:
    """What the command says as data."""
    arguments = ["tune", str(CAUSAL), "--shape", "H=2,N=150,D=16", "--device", "cpu", *map(str, options)]
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in options else result.output


QUICK = ("--rounds", 1, "--milliseconds", 0, "--limit", 3)


def test_a_search_keeps_what_it_found(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_GAIN", 1e9)  # whoever is fastest wins
    found = search(*QUICK, "--json")
    assert found["ok"] and set(found["gains"]) == {"plain.forward", "plain.keys"}
    assert {t["status"] for t in found["tried"]} <= {"kept", "lost", "slower", "same"}
    attn = attncc.compile(CAUSAL, tiles="tuned")
    q, k, v = (torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3))
    attn(q, k, v).sum().backward()
    used = {v.tiles for v in attn.variants}
    assert {overrides.of(found["tiles"], "forward"), overrides.of(found["tiles"], "backward")} <= used
    other = attncc.compile(CAUSAL, tiles="tuned")(*(torch.randn(1, 2, 40, 24) for _ in range(3)))
    assert other.shape[-1] == 24, "other dimensions take the default"


def test_nothing_wrong_may_win(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_GAIN", 1e9)
    monkeypatch.setitem(BARS, "f32", 1e-30)
    found = search(*QUICK, "--forward", "--json")
    assert found["tiles"] == "" and {t["status"] for t in found["tried"]} <= {"wrong", "same"}


def test_what_cannot_be_compiled_is_refused(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ("partitioned.forward.depth=3", "plain.forward.rows=32")
    monkeypatch.setattr(tune, "groups", lambda *_: (Group("forward", "partitioned.forward", texts),))
    said = search(*QUICK, "--forward")
    assert "refused" in said and "it is not partitioned" in said
    assert "the default tiles are the fastest" in said
    assert attncc.compile(CAUSAL, tiles="tuned")(*(torch.randn(1, 2, 40, 16) for _ in range(3))).isfinite().all()


def test_texts_merge() -> None:
    assert tune.merged("plain.forward.keys=32 plain.keys.rows=64", "plain.forward.keys=64") == (
        "plain.forward.keys=64 plain.keys.rows=64"
    )
