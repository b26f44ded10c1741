"""Default configurations of every kernel of the seven specs, compiled for sm_80 and sm_90 without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attncc.tile import nodes as t
from tests.acceptance import cubins
from tests.acceptance.cubins import Built
from tests.support.specs import SEVEN

SPILLED = 32
"""Bytes that a kernel may spill."""


@pytest.mark.parametrize("capability", [80, 90], ids="sm_{}".format)
@pytest.mark.parametrize("D", [64, 128], ids="D{}".format)
@pytest.mark.parametrize("name", SEVEN)
def test_every_kernel(name: str, D: int, capability: int) -> None:
    kernels = cubins.build(name, D, capability)
    assert {b.kernel.name for b in kernels} >= {"forward_kernel", "keys_kernel", "queries_kernel"}
    faults = [f"{b}: {fault}" for b in kernels for fault in (*_resources(b), *_products(b))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("capability", [80, 90], ids="sm_{}".format)
@pytest.mark.parametrize("D", [192, 256], ids="D{}".format)
def test_wide_heads(D: int, capability: int) -> None:
    """The score with the most registers; its tiles are too small for products of warp groups."""
    faults = [f"{b}: {fault}" for b in cubins.build("gemma2", D, capability) for fault in _resources(b)]
    assert not faults, "\n".join(faults)


def _resources(b: Built) -> Iterator[str]:
    """Registers, shared memory and loads."""
    if b.spilled > SPILLED:
        yield f"{b.spilled} bytes spilled, with {b.registers} registers"
    if b.warnings:
        yield f"ptxas serialises products: {b.warnings}"
    if b.binary.shared > cubins.shared_limit(b.capability):
        yield f"{b.binary.shared} bytes of shared memory"
    loops = list(cubins.loops(b.kernel.body))
    for loop, lines in zip(loops, cubins.ttgir_loops(b.binary.ttgir), strict=True):
        if cubins.multiplies(loop):
            yield from _loop_faults(loop, lines)


def _products(b: Built) -> Iterator[str]:
    """The tensor core instructions are those that the Tile IR predicts."""
    if b.capability >= 90:
        found, predicted = b.binary.ptx.count("wgmma.mma_async"), cubins.products(b.kernel)
    else:
        found, predicted = b.binary.ptx.count("mma.sync"), cubins.small_products(b.kernel)
    if found != predicted:
        yield f"{found} tensor core instructions where {predicted} are predicted"


def _loop_faults(loop: t.For, lines: list[str]) -> Iterator[str]:
    """Every load of rows is an asynchronous copy; in a full tile nothing is compared but scalars and rows' maxima.

    Of those as many as the Tile IR says.
    """
    loads, copies = cubins.row_loads(loop), cubins.counted(lines, "ttg.async_copy_global_to_local")
    if copies < loads:
        yield f"{loop.note}: {copies} asynchronous copies for {loads} loads"
    if not (isinstance(loop.over, t.Ranges) and loop.over.full):
        return
    if names := cubins.predicates(loop):
        yield f"{loop.note}: {', '.join(names)} compare or are guarded"
    rows = cubins.row_comparisons(loop)
    for word, predicted in (("arith.cmpi", 0), ("arith.cmpf", rows), ("arith.select", rows)):
        if (count := cubins.counted(lines, word, ": tensor<")) > predicted:
            yield f"{loop.note}: {count} {word} over tiles, {predicted} predicted"
