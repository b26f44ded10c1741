"""The partitioned forward, run by the interpreter of the Tile IR under random interleavings, against the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attncc.codegen.gluon_printer import print_module
from attncc.codegen.gluon_spelling import TESTED
from attncc.driver import analyse, load
from attncc.ir.nodes import Spec
from attncc.reference import evaluate
from attncc.schedule.programs import stream
from attncc.schedule.stream import Problem
from attncc.schedule.variant import Layout, Variant
from attncc.tile.dialect import partitioned, works
from attncc.tile.interpret import run_program
from attncc.tile.nodes import Dtype, For, Kernel, Let, Load, Partitions, Program
from attncc.tile.text import dump
from attncc.tile.text_parse import parse
from attncc.tile.verify import verify
from tests.schedule.test_stream import captured
from tests.support.compare import error

EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"
NAMES = sorted(p.stem for p in EXAMPLES.glob("*.attn"))

TEXTS = {
    "row_bias": """attention row_bias(bias: real[h, m]):
    score = q @ k / sqrt(D) + bias[h, i]
    mask  = j <= i
    out   = softmax(score) @ v
""",
    "key_bias": """attention key_bias(bias: real[h, n]):
    score = q @ k / sqrt(D) + bias[h, j]
    out   = softmax(score) @ v
""",
    "pair_bias": """attention pair_bias(bias: real[h, m, n]):
    score = q @ k / sqrt(D) + bias[h, i, j]
    mask  = j <= i
    out   = softmax(score) @ v
""",
    "band_and_first": """attention band_and_first:
    mask = i - j < 9 and j + 4 < i or j < 3 and i > 30
    out  = softmax(q @ k / sqrt(D)) @ v
""",
    "two_bands": """attention two_bands(live: bool[b, m]):
    mask = (i - j < 5 and j <= i or i - j < 41 and j + 32 < i) and live[b, i]
    out  = softmax(q @ k / sqrt(D)) @ v
""",
    "nothing": """attention nothing:
    mask = j > i + 1000
    out  = softmax(q @ k / sqrt(D)) @ v
""",
    "ahead": """attention ahead(sink: real[h]):
    mask = j > i + 20
    out  = softmax(q @ k / sqrt(D), sink = sink[h]) @ v
""",
    "clipped": """attention clipped(table: real[7, h]):
    score = q @ k / sqrt(D) + table[max(-3, min(3, j - i)) + 3, h]
    out   = softmax(score) @ v
""",
    "clipped_behind": """attention clipped_behind(table: real[7, h]):
    score = q @ k / sqrt(D) + table[max(40, min(46, j - i)) - 40, h]
    out   = softmax(score) @ v
""",
    "before": """attention before(table: real[6, h], other: real[9]):
    score = q @ k / sqrt(D) + table[min(5, abs(i - j)), h] * other[8 - min(8, abs(j - i))]
    mask  = j <= i
    out   = softmax(score) @ v
""",
}
"""Biases by row, by key and by pair, several bands, rows without keys, and tables that are one number far away."""

SMALL: dict[str, Any] = {"rows": 16, "keys": 16}
KINDS: dict[str, Dtype] = {"real": "f32", "int": "i32", "bool": "bool"}
WITHOUT_LSE = {"sigmoid_attention"}
Shape = tuple[int, int, int, int, int, int, int]
"""B, H, G, M, N, D, E."""


@cache
def spec_of(name: str) -> Spec:
    return load(TEXTS[name] if name in TEXTS else EXAMPLES / f"{name}.attn")[0]


def tiles(**plan: object) -> str:
    return " ".join(f"partitioned.forward.{n}={x}" for n, x in plan.items())


class Case:
    """One spec at one shape: inputs that f16 holds, and what the reference makes of them."""

    def __init__(self, name: str, shape: Shape, **inputs: Tensor) -> None:
        B, H, G, M, N, D, E = self.shape = shape
        self.spec = spec_of(name)
        torch.manual_seed(0)
        sizes = {"q": (B, H, M, D), "k": (B, G, N, D), "v": (B, G, N, E)}
        made = {n: torch.randn(s, dtype=torch.float64) for n, s in sizes.items()}
        if name == "t5":  # whose product is not scaled
            made["q"] *= D**-0.5
        made |= captured(self.spec, {"b": B, "h": H, "g": G, "m": M, "n": N}) | inputs
        self.tensors = {n: x.half().double() if x.is_floating_point() else x for n, x in made.items()}
        self.constants = {c.name: 12 if c.name == "window" else c.value for c in self.spec.constants}
        self.want = evaluate(self.spec, self.tensors, self.constants, return_lse=name not in WITHOUT_LSE)

    def problem(self, **changes: Any) -> Problem:
        _, H, G, _, _, D, E = self.shape
        kinds = tuple((p.name, KINDS[p.sort]) for p in self.spec.params)
        how: dict[str, Any] = {"target": "gluon", "D": D, "E": E, "dtype": "f16", "captured": kinds, "grouped": H != G}
        variant = Variant(**{**how, **changes})
        unit = analyse(self.spec, variant.D, variant.E)
        assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
        return Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, variant)

    def program(self, resident: bool | None = None, **plan: object) -> Program:
        """The verified program; `resident` decides what the plan leaves to the room there is."""
        if resident is not None:
            plan = {**plan, "resident": resident}
        program = stream(self.problem(tiles=tiles(**plan))).forward
        assert resident is None or works(kernel(program)) == resident
        assert not program.note and partitioned(kernel(program))
        verify(program)
        return program

    def check(self, program: Program, seed: int = 0) -> None:
        """out within the rounding of f16, lse of f32; infinities agree."""
        found = run_program(program, {n: x.numpy() for n, x in self.tensors.items()}, self.constants, seed=seed).outputs
        assert error(torch.from_numpy(found["out"]), self.want.out) < 6e-4
        if self.want.lse is not None and "lse" in found:
            assert error(torch.from_numpy(found["lse"]), self.want.lse) < 2e-6


def kernel(program: Program) -> Kernel:
    return next(k for k in program.kernels if k.name == "forward_kernel")


SHAPES: Mapping[str, Shape] = {
    "square": (2, 2, 2, 50, 50, 16, 16),
    "more rows": (1, 4, 1, 70, 33, 40, 40),
    "more keys": (1, 2, 1, 20, 90, 64, 16),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*NAMES, *TEXTS])
def test_out_and_lse_match_the_reference(name: str, shape: str) -> None:
    case = Case(name, SHAPES[shape])
    case.check(case.program(**SMALL, resident=shape != "more rows"))


@pytest.mark.parametrize("name", [*NAMES, *TEXTS])
def test_default_plans_match_the_reference(name: str) -> None:
    case = Case(name, (1, 2, 1, 150, 190, 64, 64))
    case.check(case.program())


@pytest.mark.parametrize("name", [*NAMES, *TEXTS])
def test_printed_modules_are_python(name: str) -> None:
    program = Case(name, (1, 2, 1, 8, 8, 128, 128)).program()
    assert parse(dump(program)) == program
    for version in TESTED:
        text = print_module(program, None, name, triton=version)
        compile(text, name, "exec")
        assert text.count("@gluon.jit") >= 4 and "def forward(" in text


CHANNELS = [
    *((D, D) for D in (16, 40, 64, 96, 128, 192, 256)),
    *((16, 64), (40, 96), (64, 128), (128, 64), (96, 192), (192, 128), (64, 256), (256, 40)),
]


@pytest.mark.parametrize(("D", "E"), CHANNELS)
def test_every_number_of_channels(D: int, E: int) -> None:
    case = Case("causal", (1, 2, 1, 37, 41, D, E))
    case.check(case.program(**SMALL))
    case.check(case.program())


PLANS: dict[str, dict[str, Any]] = {
    "three slots": {"depth": 3},
    "three consumers": {"consumers": 3, "registers": 160},
    "one consumer": {"consumers": 1},
    "rounded": {"rounded": True},
    "in turns": {"turns": True},
    "in turns by three": {"turns": True, "consumers": 3, "registers": 160},
    "awaited early": {"early": True},
    "awaited late": {"early": False, "turns": False, "consumers": 2, "registers": 240},
    "awaited late, not rounded": {"early": False, "rounded": False, "turns": False, "consumers": 2, "registers": 240},
    "sums completed every turn": {"lanes": False},
    "values awaited at a turn's end": {"settled": True},
    "at a turn's end, early": {"settled": True, "early": True, "rounded": True, "lanes": False},
    "queries of one place": {"fetched": False},
    "a lazy maximum": {"lazy": True},
    "a lazy maximum, awaited early": {"lazy": True, "early": True},
    "a maximum that moves at once": {"lazy": False},
    "tall": {"rows": 32, "keys": 16},
    "wide": {"rows": 16, "keys": 32, "depth": 3},
}


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "placed"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["window", "sigmoid_attention"])
def test_every_plan_computes_the_same(name: str, plan: str, resident: bool) -> None:
    case = Case(name, (1, 2, 1, 50, 60, 16, 16))
    case.check(case.program(**{**SMALL, **PLANS[plan]}, resident=resident), seed=1)


OWN: dict[str, dict[str, Any]] = {
    "two consumers": {},
    "tall": {"rows": 32, "keys": 16},
    "wide": {"rows": 16, "keys": 32},
    "in turns by three": {"turns": True, "consumers": 3, "registers": 160, "depth": 4, "early": True},
    "in turns by three, late": {"turns": True, "consumers": 3, "registers": 160, "lazy": True, "early": False},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", OWN)
@pytest.mark.parametrize("name", ["causal", "alibi", "full"])
def test_consumers_pass_over_what_only_others_see(name: str, plan: str, shape: str) -> None:
    case = Case(name, SHAPES[shape])
    program = case.program(**SMALL | OWN[plan], own=True)
    assert "tiles that no row of this consumer sees" in dump(program)
    case.check(program, seed=2)


@pytest.mark.parametrize("name", ["window", "packed_documents"])
def test_where_masked_tiles_lie_on_both_sides_all_take_all_turns(name: str) -> None:
    case = Case(name, (1, 2, 2, 60, 60, 16, 16))
    assert dump(case.program(**SMALL, own=True)) == dump(case.program(**SMALL))


def test_statistics_of_two_sums_in_turns() -> None:
    case = Case("softpick", (1, 2, 1, 50, 60, 16, 16))
    plans: tuple[dict[str, Any], ...] = ({}, {"rounded": True}, {"lanes": False})
    for plan in plans:
        case.check(case.program(**SMALL, **plan))


@pytest.mark.parametrize("step", [0.5, 3.0, 5.0, 11.0])
@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
def test_a_lazy_maximum_follows_scores_that_rise(step: float, early: bool) -> None:
    """From one tile of keys to the next that is visited, by less and by more than the maximum waits for."""
    before = torch.arange(96).flip(0) // 16
    k = torch.zeros(1, 1, 96, 16, dtype=torch.float64)
    k[..., 0] = step * before * 4 * math.log(2)  # score = step * before, in base two
    q = torch.zeros(1, 2, 40, 16, dtype=torch.float64)
    q[..., 0] = 1.0
    q[:, 1] *= -1.0
    case = Case("full", (1, 2, 1, 40, 96, 16, 16), q=q, k=k)
    program = case.program(**SMALL, lazy=True, early=early)
    assert "spared=true" in dump(program)
    case.check(program)


EDGES: Mapping[str, Shape] = {
    "no keys": (1, 2, 1, 20, 0, 16, 16),
    "no rows": (1, 2, 1, 0, 20, 16, 16),
    "nothing": (2, 1, 1, 0, 0, 16, 16),
    "no batch": (0, 2, 1, 5, 5, 16, 16),
    "one of each": (1, 1, 1, 1, 1, 16, 16),
    "one row": (1, 4, 1, 1, 100, 16, 16),
    "one key": (1, 4, 1, 100, 1, 16, 16),
    "a tile": (1, 1, 1, 32, 16, 16, 16),
    "a row more": (1, 1, 1, 33, 17, 16, 16),
    "four heads on one": (2, 8, 2, 40, 40, 16, 16),
}


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("name", ["full", "causal", "window", "gpt_oss", "sigmoid_attention", "two_bands"])
def test_edges_of_sizes(name: str, shape: str) -> None:
    case = Case(name, EDGES[shape])
    case.check(case.program(**SMALL, resident=name not in ("causal", "gpt_oss")))


def test_batches_that_see_nothing() -> None:
    """Keys of one batch are padding throughout, those of the other in whole tiles and at the end."""
    keep = torch.ones(2, 60, dtype=torch.bool)
    keep[0] = False
    keep[1, 16:32] = keep[1, 50:] = False
    case = Case("padding", (2, 2, 1, 40, 60, 16, 16), keep=keep)
    assert case.want.lse is not None and bool(case.want.lse[0].isinf().all())
    case.check(case.program(**SMALL))


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "placed"])
def test_documents_out_of_order(resident: bool) -> None:
    doc = torch.randint(0, 3, (2, 100), generator=torch.Generator().manual_seed(1))
    doc[1] = doc[1].sort().values
    case = Case("packed_documents", (2, 2, 1, 100, 100, 16, 16), doc=doc)
    case.check(case.program(**SMALL, resident=resident))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dtype": "f32"}, "warpgroup products of f32 are not printed"),
        ({"capability": 80}, "warpgroup products need sm_90, this is sm_80"),
        ({"capability": 100}, "warpgroup products need sm_90, this is sm_100"),
        ({"D": 264}, "channels beyond 256 do not fit the accumulators"),
        ({"tiles": tiles(depth=1)}, "with one slot, values wait"),
        ({"E": 264}, "channels beyond 256 do not fit the accumulators"),
        *(({"layouts": ((n, Layout(aligned=False)),)}, f"rows of {n} are not 16-byte aligned") for n in "qkv"),
        *(
            ({"layouts": ((n, Layout(unit=False)),)}, f"the last stride of {n} is not 1")
            for n in ("q", "k", "v", "out")
        ),
    ],
    ids=str,
)
def test_what_cannot_be_partitioned_says_why(changes: dict[str, Any], why: str) -> None:
    case = Case("causal", (1, 1, 1, 8, 8, 64, 64))
    program = stream(case.problem(**changes)).forward
    assert not partitioned(kernel(program))
    assert program.note.startswith("not partitioned: ") and why in program.note
    verify(program)


def test_products_that_are_spared_are_printed_so() -> None:
    """O by the factors of a lazy maximum, a helper's; by those of one that moves at once, a product's."""
    case = Case("full", (1, 1, 1, 8, 8, 128, 96))
    lazy, moving = (print_module(case.program(lazy=x), None, "full", triton=TESTED[0]) for x in (True, False))
    assert "_scaled_gl(SCALED_32, SCALED_32_OPERANDS, acc" in lazy
    assert "_scaled_gl(SCALED_16, SCALED_16_OPERANDS, acc" in lazy
    assert "_scaled_gl" not in moving


def test_other_targets_have_nothing_to_say() -> None:
    case = Case("causal", (1, 1, 1, 8, 8, 64, 64))
    program = stream(case.problem(target="triton")).forward
    assert not partitioned(kernel(program)) and program.note == ""


def test_far_strides_are_no_obstacle() -> None:
    case = Case("causal", (1, 1, 1, 8, 8, 64, 64))
    program = stream(case.problem(layouts=(("k", Layout(near=False)), ("out", Layout(near=False))))).forward
    assert partitioned(kernel(program)) and program.note == ""


def test_results_do_not_depend_on_the_interleaving() -> None:
    case = Case("gemma2", (1, 2, 1, 40, 60, 16, 16))
    program = case.program(**SMALL)
    arrays = {n: x.numpy() for n, x in case.tensors.items()}
    first, *others = (run_program(program, arrays, case.constants, seed=s).outputs for s in range(5))
    for other in others:
        assert all(np.array_equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("name", ["clipped", "before"])
def test_tiles_far_away_read_their_tables_outside_of_the_loop(name: str) -> None:
    body = kernel(Case(name, SHAPES["more keys"]).program(**SMALL)).body
    consumer = next(s for s in body if isinstance(s, Partitions)).parts[0]
    places = next(s for s in consumer.body if isinstance(s, For))
    loops = {s.note: s for s in places.body if isinstance(s, For)}
    reads = {
        note: any(isinstance(s, Let) and isinstance(s.op, Load) for s in loop.body) for note, loop in loops.items()
    }
    near, far = "keys: tiles inside the mask", "keys: tiles where tables have one value"
    assert reads[near] and not reads[far]
