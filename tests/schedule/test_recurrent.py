"""Tokens one by one: how channels are cut, what the exponents are proved by, and what a step does to memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from attncc import driver
from attncc.expr.nodes import Const
from attncc.grammar import parse
from attncc.ir.nodes import Spec
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.recurrent import Problem, columns_of
from attncc.schedule.variant import Target, Variant
from attncc.tile import nodes as t
from attncc.tile.verify import unproved
from tests.support.interpreted import needs_triton

EXAMPLES = Path(__file__).parents[2] / "examples" / "recurrent"
CORPUS = Path(__file__).parents[1] / "specs" / "corpus" / "recurrences"


def example(name: str) -> Spec:
    return parse((EXAMPLES / f"{name}.attn").read_text(encoding="utf-8"))


def variant(
    spec: Spec, target: Target, D: int, E: int, *, step: bool = False, gradients: tuple[str, ...] = ()
) -> Variant:
    assert spec.recurrence is not None
    first = tuple(s.name for s in spec.recurrence.states) if step else ()
    captured: tuple[tuple[str, t.Dtype], ...] = tuple(
        (n, "f32") for n in (*(p.name for p in spec.params), *(f"{n}_first" for n in first))
    )
    return Variant(
        target, D, E, "f32" if target == "torch" else "bf16", captured, form="recurrent", grouped=False, first=first,
        in_place=step, single=step, gradients=gradients,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sizes", "step", "columns"),
    [
        ("gla", (128, 128), False, 32),
        ("gla", (128, 128), True, 32),
        ("gla", (64, 128), True, 64),
        ("gla", (64, 64), True, 0),
        ("linear_transformer", (128, 128), False, 32),
        ("linear_transformer", (128, 128), True, 32),
        ("chela", (128, 128), False, 0),  # its channels meet
        ("gsa", (128, 128), False, 64),
    ],
)
def test_channels_of_a_program(name: str, sizes: tuple[int, int], step: bool, columns: int) -> None:
    spec = example(name)
    assert columns_of(Problem(spec, variant(spec, "triton", *sizes, step=step))) == columns
    assert columns_of(Problem(spec, variant(spec, "torch", *sizes, step=step))) == 0


@pytest.mark.parametrize("name", ["gla", "gsa", "hgrn2", "lightning", "metala", "rwkv5", "rwkv6", "simple_gla"])
@pytest.mark.parametrize("target", ["torch", "triton"])
def test_every_exponent_of_a_declared_gate_is_proved(name: str, target: Target) -> None:
    spec = example(name)
    pair = driver.programs(spec, variant(spec, target, 16, 32, gradients=("q", "k", "v")))
    for program in (pair.forward, pair.backward):
        assert program is not None
        assert [str(x) for x in unproved(program) if x.check == "exponents_anchored"] == []


def test_a_step_writes_over_its_states_and_makes_nothing_else() -> None:
    spec = example("gla")
    program = driver.programs(spec, variant(spec, "triton", 128, 128, step=True)).forward
    assert [type(s) for s in program.steps] == [t.Alloc, t.Launch] and program.outputs == ("out",)
    (kernel,) = program.kernels
    stores = [s.tensor for s in kernel.body if isinstance(s, t.Store)]
    assert stores == ["out", "S_first"]


@pytest.mark.parametrize("name", ["gla", "rwkv6", "delta_product"])
def test_a_step_waits_for_memory_once(name: str) -> None:
    """One token has no loop over tokens, and all is read before the first sum; turns within it read for the next."""
    spec = parse((CORPUS / f"{name}.attn").read_text()) if name == "delta_product" else example(name)
    (kernel,) = driver.programs(spec, variant(spec, "triton", 128, 128, step=True)).forward.kernels
    assert not {"M", "N"} & set(kernel.scalars)
    loops = [s for s in kernel.body if isinstance(s, t.For)]
    assert len(loops) == (name == "delta_product")
    for body in (kernel.body, *(s.body for s in loops)):
        reads = [isinstance(s, t.Let) and isinstance(s.op, t.Load) for s in body]
        work = [isinstance(s, t.For) or (isinstance(s, t.Let) and isinstance(s.op, t.Reduce)) for s in body]
        assert sum(reads) >= 3 and not any(reads[work.index(True) :])
    for loop in loops:
        end = loop.body[-1]
        assert isinstance(end, t.Yield)
        read = {s.name for s in loop.body if isinstance(s, t.Let) and isinstance(s.op, t.Load)}
        assert len(read) == 3 and read <= set(end.values)


def test_a_state_that_parts_share_is_read_before_it_is_written_over() -> None:
    spec = example("linear_transformer")
    (kernel,) = driver.programs(spec, variant(spec, "triton", 128, 128, step=True)).forward.kernels
    assert [a.name for a in kernel.grid] == ["h", "b"]
    (loop,) = (s for s in kernel.body if isinstance(s, t.For))
    assert loop.over == t.Count(Const(0, "int"), Const(4, "int"))
    read = [s.op.tensor for s in kernel.body if isinstance(s, t.Let) and isinstance(s.op, t.Load)]
    assert read.count("z_first") == 1 and "S_first" not in read
    stores = [s for s in loop.body if isinstance(s, t.Store)]
    assert [s.tensor for s in stores] == ["out", "S_first", "z_first"]


def test_what_has_no_form_token_by_token_is_refused() -> None:
    loops = parse(
        "attention a(steps = 2, x: real[b, h, n, steps, d]):\n    state S[d, e]\n"
        "    for t in steps: S = S + outer(x[b, h, i, t], v)\n    out = q @ S\n"
    )
    assert driver.programs(loops, variant(loops, "torch", 8, 8)).backward is None
    with pytest.raises(NotCompiled, match="the backward of a loop within a token whose turns"):
        driver.programs(loops, variant(loops, "torch", 8, 8, gradients=("q",)))
    turned = parse("attention a:\n    state S[d, e]\n    S = 0.5 * S[e, d] + outer(k, v)\n    out = q @ S\n")
    with pytest.raises(NotCompiled, match="the value of `S` at another `d`"):
        driver.programs(turned, variant(turned, "torch", 8, 8))


@pytest.mark.parametrize("name", ["based", "gsa", "linear_transformer"])
def test_a_state_that_programs_share_is_returned_by_one_of_them(name: str) -> None:
    spec = example(name)
    chosen = replace(variant(spec, "triton", 128, 128, step=True), in_place=False, single=False, last=True)
    (kernel,) = driver.programs(spec, chosen).forward.kernels
    assert kernel.grid[0].name == "e0"


@needs_triton
@pytest.mark.parametrize("name", ["gla", "simple_gla", "rwkv6", "linear_transformer"])
def test_a_step_moves_its_states_in_vectors_once(name: str) -> None:
    """128 x 128 numbers are 4096 vectors of 16 bytes for all threads of a head."""
    from attncc.runtime.family import orders
    from attncc.runtime.kernels import compile_all, load_triton
    from attncc.runtime.text import execute

    load_triton(gluon=False)
    spec = example(name)
    chosen = variant(spec, "triton", 128, 128, step=True)
    pair = driver.programs(spec, chosen)
    (binary,) = compile_all(execute(driver.source(pair, chosen, name), name), orders(pair.forward), 90)
    threads = 32 * binary.warps * (4 if columns_of(Problem(spec, chosen)) else 1)
    for access in ("ld", "st"):
        wide = re.findall(rf"{access}\.global\S*\.v4\.b32", binary.ptx)
        assert len(wide) == 4096 // threads, (access, len(wide))
    assert "local" not in re.sub(r"\.local_", "", binary.ptx)
