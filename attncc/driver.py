"""The pipeline from text to source, as one readable list. The only module that sees every stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from attncc.diagnostics import Source
from attncc.errors import SpecError
from attncc.ir.nodes import Spec
from attncc.passes import PIPELINE, Unit, initial
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.programs import Pair, stream
from attncc.schedule.stream import Problem
from attncc.schedule.variant import Variant

__all__ = ["Pair", "load", "programs", "source"]


def load(path_or_text: str | Path) -> tuple[Spec, Source]:
    """The spec in a file, or in the text itself (which has more than one line)."""
    from attncc.grammar import parse, read

    if isinstance(path_or_text, Path) or "\n" not in path_or_text:
        src = read(path_or_text)
        return parse(src.text, src.name), src
    return parse(path_or_text), Source("<spec>", path_or_text)


def analyse(spec: Spec, D: int, E: int, *, until: str = "") -> Unit:
    """`spec` after every pass of the pipeline, or after the one named `until`."""
    from attncc.ir.verify import verify

    unit = initial(spec, D, E)
    verify(unit.spec)
    if spec.recurrence is not None:
        hint = "`attncc.reference` runs it; `attncc check --json` and `attncc explain` show its class"
        raise NotCompiled("state programs are not compiled yet", spec.recurrence.states[0].span, hint=hint)
    for p in PIPELINE:
        unit = p.run(unit)
        verify(unit.spec)
        if p.name == until:
            break
    return unit


def programs(spec: Spec, variant: Variant) -> Pair:
    """The verified Tile IR programs of one variant of `spec`."""
    from attncc.schedule.sums import sums
    from attncc.tile.verify import verify, verify_pair

    if spec.recurrence is not None:
        return _of_states(spec, variant)
    if sums(spec):
        return _of_sums(spec, variant)
    unit = analyse(spec, variant.D, variant.E)
    assert unit.attend is not None and unit.by_row is not None and unit.by_key is not None
    pair = stream(Problem(unit.spec, unit.attend, unit.by_row, unit.by_key, variant))
    verify(pair.forward)
    if pair.backward is not None:
        verify(pair.backward)
        verify_pair(pair.forward, pair.backward)
    return pair


def _of_sums(spec: Spec, variant: Variant) -> Pair:
    """The programs of a spec whose rows read sums over all keys."""
    from attncc.ir.verify import verify as verify_spec
    from attncc.schedule.sums import programs as of_sums
    from attncc.tile.verify import verify

    verify_spec(spec)
    pair = of_sums(spec, variant)
    verify(pair.forward)
    if pair.backward is not None:
        verify(pair.backward, permuted=variant.target == "torch")
    return pair


def _of_states(spec: Spec, variant: Variant) -> Pair:
    """The programs of a state program."""
    from attncc.ir.verify import verify as verify_spec
    from attncc.passes.restarts import without_restarts
    from attncc.schedule.chunk_programs import programs as chunk_programs
    from attncc.schedule.given import with_given
    from attncc.schedule.heads import of_one_token
    from attncc.schedule.recurrent_programs import programs as recurrent_programs
    from attncc.schedule.segments import with_kernels, with_numbers
    from attncc.tile.verify import verify

    verify_spec(spec)
    if variant.form == "chunk":
        made = chunk_programs(with_given(without_restarts(with_numbers(spec)), variant.first), variant)
    else:
        made = recurrent_programs(with_numbers(spec), variant)
    pair = with_kernels(made, spec)
    if variant.single:
        pair = replace(pair, forward=of_one_token(pair.forward))
    verify(pair.forward)
    if pair.backward is not None:
        verify(pair.backward, permuted=variant.target == "torch")
    return pair


def scaled(spec: Spec) -> bool:
    """Whether chunks carry a state of `spec` scaled: it, or what is written to it, may be larger than its type."""
    from attncc.passes.chunked import chunked

    try:
        return any(s.scale for s in chunked(spec, 64, 64).states)
    except SpecError:
        return False


def source(pair: Pair, variant: Variant, title: str, *, triton: tuple[int, int] = (3, 6)) -> str:
    """The printed module of a variant: kernels and host functions `forward` and `backward`.

    Partitioned kernels are spelled for a version of Triton.
    """
    match variant.target:
        case "torch":
            from attncc.codegen.torch_printer import print_module

            return print_module(pair.forward, pair.backward, title)
        case "triton":
            from attncc.codegen.triton_printer import print_module as print_triton

            return print_triton(pair.forward, pair.backward, title)
        case "gluon":
            from attncc.codegen.gluon_printer import print_module as print_gluon

            return print_gluon(pair.forward, pair.backward, title, triton=triton)
