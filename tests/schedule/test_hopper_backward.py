"""The partitioned backward, run by the interpreter of the Tile IR, against the reference and the plain programs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attncc.driver import analyse
from attncc.grammar import parse
from attncc.reference import evaluate
from attncc.schedule.heads import without_groups
from attncc.schedule.hopper_config import HopperBackward
from attncc.schedule.hopper_programs import backward_program
from attncc.schedule.programs import stream
from attncc.schedule.runs import with_runs
from attncc.schedule.stream import Problem
from attncc.schedule.variant import Layout, Target, Variant
from attncc.tile.interpret import run_program
from attncc.tile.nodes import AllocShared, Dtype, Partitions, Program
from attncc.tile.verify import verify, verify_pair
from tests.schedule.test_stream import captured
from tests.support.specs import SPECS

KINDS: dict[str, Dtype] = {"real": "f32", "int": "i32", "bool": "bool"}
SHAPES = [
    (1, 2, 2, 270, 300, 64, 64),
    (2, 4, 1, 130, 200, 96, 96),
    (1, 2, 1, 200, 130, 128, 128),
    (1, 1, 1, 40, 300, 64, 128),
    (1, 1, 1, 100, 30, 128, 64),
]
"""B, H, G, M, N, D, E: no tile divides a length; more and fewer queries than keys; heads that share keys."""


class Case:
    """One spec, by name or as text, at one shape: rounded inputs, and what the reference makes of them."""

    def __init__(self, name: str, shape: tuple[int, ...], gradients: tuple[str, ...] | None = None) -> None:
        B, H, G, M, N, D, E = self.shape = shape
        self.spec = SPECS[name] if name in SPECS else parse(name)
        torch.manual_seed(0)
        sizes = {"q": (B, H, M, D), "k": (B, G, N, D), "v": (B, G, N, E)}
        tensors = {n: _rounded(torch.randn(s, dtype=torch.float64)) for n, s in sizes.items()}
        tensors |= captured(self.spec, {"b": B, "h": H, "g": G, "m": M, "n": N})
        self.names = tuple(n for n, x in tensors.items() if x.is_floating_point() and n in (gradients or tensors))
        for n in self.names:
            tensors[n].requires_grad_()
        self.constants = {c.name: 100 if c.name == "window" else c.value for c in self.spec.constants}
        done = evaluate(self.spec, tensors, self.constants, return_lse=name != "sigmoid_attention")
        d_out = _rounded(torch.randn_like(done.out))
        grads = torch.autograd.grad((done.out * d_out).sum(), [tensors[n] for n in self.names])
        self.wanted = {n: g.numpy() for n, g in zip(self.names, grads, strict=True)}
        self.arrays = {n: x.detach().numpy() for n, x in tensors.items()}
        self.arrays |= {"out": _rounded(done.out.detach()).numpy(), "d_out": d_out.numpy()}
        if done.lse is not None:
            self.arrays["lse"] = done.lse.detach().numpy()

    def problem(self, target: Target = "gluon", **changes: Any) -> Problem:
        _, H, G, _, _, D, E = self.shape
        kinds = tuple((p.name, KINDS[p.sort]) for p in self.spec.params)
        v = Variant(target, D, E, "bf16", kinds, gradients=self.names, grouped=H != G)
        unit = analyse(self.spec, D, E)
        assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
        return Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, replace(v, **changes))

    def backward(self, plan: HopperBackward | None = None, target: Target = "gluon") -> Program:
        p = self.problem(target)
        if plan is None:
            pair = stream(p)
            assert pair.backward is not None
            verify_pair(pair.forward, pair.backward)
            return pair.backward
        program = backward_program(*with_runs(p), plan)
        assert isinstance(program, Program)
        return program if p.variant.grouped else without_groups(program)

    def run(self, program: Program, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        verify(program)
        inputs = {x.name: self.arrays[x.name] for x in program.inputs}
        return run_program(program, inputs, self.constants, seed=seed).outputs

    def check(self, program: Program, seed: int = 0) -> None:
        """Gradients of q, k, v agree with the reference within the rounding of the inputs' dtype."""
        found = self.run(program, seed)
        for n in set(self.names) & {"q", "k", "v"}:
            assert distance(found[f"d_{n}"], self.wanted[n]) < 8e-3, n


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).double()


def distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def is_partitioned(program: Program) -> bool:
    return any(isinstance(s, Partitions) for k in program.kernels for s in k.body)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradients_match_the_reference(name: str, shape: tuple[int, ...]) -> None:
    case = Case(name, shape)
    program = case.backward()
    assert is_partitioned(program) and not program.note
    case.check(program)


@pytest.mark.parametrize("name", ["alibi", "gpt_oss", "sigmoid_attention", "t5"])
@pytest.mark.parametrize("shape", [(2, 2, 2, 128, 128, 64, 64), (1, 4, 2, 128, 192, 128, 128)], ids=str)
def test_captured_gradients_match_the_plain_program(name: str, shape: tuple[int, ...]) -> None:
    case = Case(name, shape)
    here, plain = (case.run(case.backward(target=x)) for x in ("gluon", "triton"))
    for p in case.spec.params:
        if p.sort == "real":
            assert distance(here[f"d_{p.name}"], plain[f"d_{p.name}"]) < 2e-3


BY_ROW = {
    "heat[h, i] * (q @ k) / sqrt(D)": "heat: real[h, m]",
    "q @ k / sqrt(D) + heat[h, i, j]": "heat: real[h, m, n]",
}


@pytest.mark.parametrize("shape", [(1, 2, 2, 270, 300, 64, 64), (1, 4, 2, 130, 100, 128, 128)], ids=str)
@pytest.mark.parametrize("score", BY_ROW)
def test_reads_by_row_end_where_the_rows_do(score: str, shape: tuple[int, ...]) -> None:
    text = (
        f"attention heated({BY_ROW[score]}):\n    score = {score}\n    mask  = j <= i\n    out   = softmax(score) @ v\n"
    )
    case = Case(text, shape)
    program = case.backward()
    assert is_partitioned(program)
    case.check(program)
    assert distance(case.run(program)["d_heat"], case.wanted["heat"]) < 8e-3


TABLES = {
    "both sides": ("table: real[7, h]", "table[max(-3, min(3, j - i)) + 3, h]", "j < N", ""),
    "one side": ("table: real[6, h]", "table[min(5, abs(i - j)), h]", "j <= i", ""),
    "both sides of some behind": ("table: real[7, h]", "table[max(40, min(46, j - i)) - 40, h]", "j < N", ""),
    "one value": ("table: real[6]", "table[min(5, abs(i - j))]", "j < N", ""),
    "both sides and a constant": ("table: real[7, h]", "table[max(-3, min(3, j - i)) + 3, h]", "j < N", ", sink = 0.5"),
    "one side and a constant": ("table: real[6, h]", "table[min(5, i - j), h]", "j <= i", ", sink = 0.5"),
    "the other side": ("table: real[6, h]", "table[min(5, j - i), h]", "i <= j", ", sink = 0.5"),
}
"""A parameter, a term that is one number far from the diagonal, on each of its sides, a mask, and a constant term."""


@pytest.mark.parametrize("shape", [(1, 2, 2, 390, 300, 64, 64), (1, 4, 2, 200, 450, 128, 128)], ids=str)
@pytest.mark.parametrize("table", TABLES)
def test_tables_of_one_value_far_away(table: str, shape: tuple[int, ...]) -> None:
    param, term, mask, constant = TABLES[table]
    case = Case(
        f"attention far({param}):\n    score = q @ k / sqrt(D) + {term}\n    mask  = {mask}\n"
        f"    out   = softmax(score{constant}) @ v\n",
        shape,
    )
    program = case.backward()
    assert is_partitioned(program)
    assert "queries_kernel" not in {k.name for k in program.kernels}, "it would add at every pair"
    case.check(program)
    every_pair = case.run(case.backward(target="triton"))["d_table"]
    assert distance(case.run(program)["d_table"], every_pair) < 2e-3


@pytest.mark.parametrize("axes", ["b, h, m, n", "h, m, n", "m, n", "b, m, n"])
def test_gradients_of_pairs_add_up_in_one_order(axes: str) -> None:
    at = axes.replace("m", "i").replace("n", "j")
    text = f"attention biased(w: real[{axes}]):\n    mask = j <= i\n    out  = softmax(q @ k / sqrt(D) + w[{at}]) @ v\n"
    case = Case(text, (2, 4, 2, 130, 150, 64, 64))
    program = stream(case.problem(ordered=True)).backward
    assert program is not None and is_partitioned(program)
    verify(program, deterministic=True)
    case.check(program)
    found, again = (case.run(program, seed)["d_w"] for seed in (0, 1))
    assert (found == again).all() and distance(found, case.wanted["w"]) < 8e-3


PLANS = {
    "at once": HopperBackward(lag=False),
    "calm": HopperBackward(calm=True),
    "product": HopperBackward(hold="product"),
    "calm product": HopperBackward(hold="product", calm=True),
    "own keys": HopperBackward(share="keys"),
    "own keys at once": HopperBackward(share="keys", lag=False),
    "three slots": HopperBackward(share="keys", depth=3),
}


@pytest.mark.parametrize("lanes", [False, True])
def test_sums_for_captures_are_completed_after_the_last_turn(lanes: bool) -> None:
    text = "attention x(w: real[h, n], u: real[h]):\n    score = q @ k / sqrt(D) + w[h, j] + u[h] * sin(j / 7.0)\n"
    case = Case(text + "    mask  = j <= i\n    out   = softmax(score) @ v\n", (1, 2, 2, 150, 200, 64, 64))
    program = case.backward(HopperBackward(share="keys", lanes=lanes))
    case.check(program)
    found = case.run(program)
    assert all(distance(found[f"d_{n}"], case.wanted[n]) < 8e-3 for n in "wu")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["sliding_window", "gemma2"])
def test_every_plan_computes_the_same(name: str, plan: str) -> None:
    side = 64 if PLANS[plan].share == "keys" else 128
    case = Case(name, (1, 2, 1, 150, 200, side, side))
    case.check(case.backward(PLANS[plan]))


@pytest.mark.parametrize("name", ["causal", "alibi"])
def test_wide_tiles_start_at_the_statistics(name: str) -> None:
    case = Case(name, (1, 2, 2, 200, 300, 64, 64))
    case.check(case.backward(HopperBackward(rows=128, share="rows", started=True)))
    case.check(case.backward(HopperBackward(rows=128, share="rows", started=False)))


def rows_per_turn(name: str, gradients: tuple[str, ...]) -> int:
    """Queries in one box of q."""
    program = Case(name, (1, 1, 1, 32, 32, 64, 64), gradients).backward()
    kernel = next(k for k in program.kernels if k.name == "keys_kernel")
    (tile,) = (s.type for s in kernel.body if isinstance(s, AllocShared) and s.name == "q_tile")
    return tile.axes[0].extent


def test_crowded_registers_take_fewer_rows() -> None:
    three = ("q", "k", "v")
    assert [rows_per_turn(n, three) for n in ("causal", "full", "gpt_oss", "t5", "alibi")] == [128] * 5
    assert [rows_per_turn(n, three) for n in ("gemma2", "softpick")] == [64] * 2


@pytest.mark.parametrize("name", ["alibi", "gpt_oss", "packed_documents", "sigmoid_attention"])
def test_sums_in_one_order_leave_queries_to_a_plain_kernel(name: str) -> None:
    case = Case(name, (1, 4, 2, 130, 200, 64, 64))
    program = stream(case.problem(ordered=True)).backward
    assert program is not None and is_partitioned(program)
    assert "queries_kernel" in [k.name for k in program.kernels]
    verify(program, deterministic=True)
    first, second = (case.run(program, seed) for seed in (0, 1))
    assert all((first[n] == second[n]).all() for n in first)
    case.check(program)


@pytest.mark.parametrize("seed", range(8))
def test_no_interleaving_races(seed: int) -> None:
    case = Case("causal", (1, 2, 1, 130, 140, 64, 64))
    case.check(case.backward(), seed)


@pytest.mark.parametrize("gradients", [("q",), ("k",), ("v",), ("q", "v"), ("k", "v"), ("slope",)], ids=str)
def test_gradients_nobody_wants_are_not_computed(gradients: tuple[str, ...]) -> None:
    case = Case("alibi", (1, 2, 2, 70, 140, 64, 64), gradients)
    program = case.backward()
    assert is_partitioned(program)
    assert program.outputs == tuple(f"d_{n}" for n in gradients)
    case.check(program)


def test_keys_that_nobody_sees_get_nothing() -> None:
    case = Case("causal", (1, 1, 1, 20, 300, 64, 64))
    case.names = ("q", "k", "v")
    program = case.backward()
    case.check(program)
    windowed = Case("sliding_window", (1, 1, 1, 20, 300, 64, 64))
    windowed.constants["window"] = 8
    found = windowed.run(windowed.backward())
    assert not found["d_k"][0, 0, :260].any()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dtype": "f32"}, "f32"),
        ({"capability": 80}, "sm_80"),
        ({"D": 160, "E": 160}, "beyond 128"),
        ({"layouts": (("d_out", Layout(aligned=False)),)}, "d_out"),
        ({"layouts": (("d_k", Layout(aligned=False)),)}, "d_k"),
    ],
)
def test_what_cannot_be_partitioned_says_why(changes: dict[str, Any], why: str) -> None:
    p = Case("causal", (1, 1, 1, 64, 64, 64, 64)).problem(**changes)
    backward = stream(p).backward
    assert backward is not None and not is_partitioned(backward)
    assert why in backward.note
