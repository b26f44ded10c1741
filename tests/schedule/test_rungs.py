"""Plans listed by what a score keeps alive: each is a change of a default, and its kernels are worth running."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attncc.runtime.attention import compile_spec
from attncc.runtime.bench.suite import read_suite
from attncc.runtime.family import Place
from attncc.runtime.variants import forward_variant
from attncc.runtime.warmup import meta_tensors
from attncc.schedule.config import Demand
from attncc.schedule.hopper_config import (
    Burden,
    HopperBackward,
    HopperForward,
    Walk,
    backward_plan,
    changed,
    class_of,
    forward_plan,
)
from attncc.schedule.rungs import BACKWARD, FORWARD
from tests.support.interpreted import needs_compiler

ROWS = {r.name: r for r in read_suite("tiles")}
PLAIN = Demand()


def test_what_lives_has_a_name() -> None:
    assert PLAIN.live == "plain" and Demand(curved=True).live == "curved"
    assert Demand(reads_rows=True, reads_keys=True, general=True).live == "rows keys general"
    assert class_of(80, PLAIN) == (128, "plain") and class_of(16, PLAIN) == (64, "plain")
    assert class_of(192, Demand(reads_pairs=True)) == (256, "pairs")


def test_changes() -> None:
    assert changed(HopperForward(), "") == HopperForward()
    assert changed(HopperForward(), "keys=64 early=True") == HopperForward(keys=64, early=True)
    assert changed(HopperBackward(), "share=keys") == HopperBackward(share="keys")


def test_up_to_64_channels_forwards_take_three_consumers_unless_walks_are_short() -> None:
    causal, full, window = (forward_plan(64, PLAIN, x) for x in (Walk(), Walk(even=True), Walk(short=True)))
    assert [x.consumers for x in (causal, full, window)] == [3, 3, 2]
    assert causal.own and not full.own and not window.own  # where some rows' walks end before others'
    assert causal.lazy and not causal.early
    capped = forward_plan(64, Demand(curved=True))  # a maximum whose factor nothing hides
    assert capped.own and capped.early and not capped.lazy
    assert forward_plan(128, PLAIN).consumers == 2 and not forward_plan(128, PLAIN).own


def test_up_to_64_channels_backwards_with_sums_take_tiles_of_64_queries() -> None:
    plain, sums, brief, curved = (
        backward_plan(64, 64, PLAIN, x) for x in (Burden(), Burden(sums=True), Burden(brief=True), Burden(curved=True))
    )
    assert (plain.rows, plain.share, plain.depth) == (128, "rows", 2)
    assert (sums.rows, sums.share, sums.depth) == (brief.rows, brief.share, brief.depth) == (64, "columns", 4)
    assert sums.lanes and not brief.lanes
    assert (curved.rows, curved.share, curved.hold) == (64, "keys", "product")  # whose registers are taken


def test_listed_classes_get_their_plan() -> None:
    fields = {"pairs": "reads_pairs", "rows": "reads_rows", "keys": "reads_keys", "held": "masks_keys"}
    for (widest, live), text in (*FORWARD.items(), *BACKWARD.items()):
        demand = Demand(**{fields.get(name, name): True for name in live.split() if name != "plain"})
        assert demand.live == live
        if (widest, live) in FORWARD:
            plan = forward_plan(widest, demand)
            assert plan == changed(plan, FORWARD[widest, live])
        if (widest, live) in BACKWARD:
            found = backward_plan(widest, widest, demand)
            assert found == changed(found, BACKWARD[widest, live])
        assert text


@needs_compiler
@pytest.mark.parametrize(("name", "D"), [("bias", 64), ("forgetting", 64)])
def test_kernels_of_listed_plans_are_worth_running(name: str, D: int) -> None:
    pytest.importorskip("triton")
    row = ROWS[name]
    family = compile_spec(row.spec, backend="torch", deterministic=False, constants=row.constants)._family
    sizes = {"H": 2, "N": 256, "D": D}
    tensors = meta_tensors(family.face, row.constants, sizes, torch.bfloat16)
    variant = forward_variant(family.face, tensors, "gluon", interpreted=False)
    entry = family._built(dataclasses.replace(variant, capability=90), "forward", Place("cuda", 90))
    assert entry.data["partitioned"] and not entry.data["reason"]
