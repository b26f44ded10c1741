"""The seven specs on a GPU: 12 cells a spec in half, bfloat16 and single precision, and every odd stride.

Every kernel is compiled first, by several processes, into the cache that the tests read: by one of a run's workers,
while the others wait. On Hopper all of it runs twice: as plain Triton, and with partitioned kernels wherever a half
can have them (`-k auto`).
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from attncc.runtime.backends import HOPPER, target_of
from attncc.runtime.family import Family, Place
from attncc.runtime.variants import forward_variant
from tests.acceptance import holds, recompiling, strided
from tests.acceptance.strided import CASES, Case
from tests.support.cells import Cell, device_cells
from tests.support.inputs import make_inputs
from tests.support.specs import SEVEN

pytestmark = pytest.mark.gpu
Task = tuple[str, Cell, str, int, str]
BACKENDS = ("triton", "auto")
MOST_PROCESSES = 16
"""A container's share of its machine is not to be seen from inside."""


def compile_half(task: Task) -> None:
    """Compiles the forward or the backward of a cell for a compute capability; runs without a GPU."""
    name, cell, which, capability, backend = task
    inputs = make_inputs(name, cell)
    family = holds.compiled(name, inputs)._family
    views = inputs.views()
    tensors = tuple(views[n] for n in family.face.inputs)
    variant = forward_variant(family.face, tensors, target_of("cuda", backend, capability), interpreted=False)
    variant = dataclasses.replace(variant, capability=capability)
    if which == "backward":
        variant = dataclasses.replace(variant, gradients=family.face.real, lse_gradient=inputs.has_lse)
    family.half(variant, "backward" if which == "backward" else "forward", Place("cuda", capability))


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Both tiers; `auto` is another one on Hopper only."""
    name = str(request.param)
    if name == "auto" and _capability() != HOPPER:
        pytest.skip("partitioned kernels need sm_90")
    return name


def _capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@pytest.fixture(scope="module")
def warm(shared_folder: Path, request: pytest.FixtureRequest, backend: str) -> Iterator[None]:
    """Every kernel of the cells in the cache, and no backward compiled that no test runs."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ATTNCC_CACHE", str(shared_folder / "compiled"))
    patch.setenv("ATTNCC_WORKERS", "1")
    patch.setattr(Family, "prefetch", lambda *_: None)
    done = shared_folder / f"compiled for {backend}"
    with FileLock(shared_folder / "compiling"):
        if not done.exists():
            _compile_all(int(request.config.getoption("--seed")), backend)
            done.touch()
    patch.delenv("ATTNCC_WORKERS")
    yield
    patch.undo()


def _compile_all(seed: int, backend: str) -> None:
    cells, halves = device_cells(seed), ("backward", "forward")
    tasks = [(n, c, h, _capability(), backend) for h in halves for c in cells for n in SEVEN]
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(compile_half, tasks):
            pass


@pytest.mark.cells("device")
def test_results_and_gradients(warm: None, backend: str, name: str, cell: Cell, seed: int) -> None:
    holds.hold(name, cell, backend=backend, device="cuda", seed=seed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_views(backend: str, case: Case, seed: int) -> None:
    strided.hold(case, backend=backend, device="cuda", seed=seed)


def test_sizes_and_constants_compile_nothing(backend: str) -> None:
    recompiling.sizes_and_constants(backend, "cuda")


def test_unaligned_rows_are_a_variant(backend: str) -> None:
    recompiling.unaligned_rows(backend, "cuda")
