"""Programs that work at one place of their grid after another: what the verifier asks of them, and what they do."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from attncc.tile import nodes as t
from attncc.tile.dialect import works
from attncc.tile.interpret import run_program
from attncc.tile.interpret_faults import DeadlockFault, InterpretError, StoredTwiceFault
from attncc.tile.text import dump
from attncc.tile.text_parse import parse
from attncc.tile.verify import verify
from attncc.tile.verify_faults import PartitionError, ScopeError, VerifyError

DOUBLING = """\
program doubled
  input x[h: H, j: N, e: 8] f32
  scalar H: int
  scalar N: int
  kernel doubled(x, y; H, N) warps 4 stages 1 registers 0
    grid j0: N tile 8 of j
    grid h: H batch
    AllocShared(x_s, f32[j 8, e 8])
    AllocBar(full, 1)
    AllocBar(empty, 1, count=4)
    partitions
      partition load warps 1 registers 24
        for n in work asc
          BarWait(empty[0], 1 - n % 2)
          BarExpect(full[0], 256)
          CopyIn(x_s[0], x, [h, j0, 0], full[0])
      partition double warps 4 registers 0
        e: i32[e 8] = Iota(0)
        f: i32[f 8] = Iota(0)
        twice: f32[f 8, e 8] = where(e == f, 2.0, 0.0)
        for m in work asc
          BarWait(full[0], m % 2)
          late: f32[f 8, j 8] = Dot(twice, x_s[0], e, asynchronous=true)
          done: f32[f 8, j 8] = DotWait(late, 0)
          BarArrive(empty[0], count=4)
          at: i32[j 8] = Iota(j0)
          store y[h, at, f] = done where at < N
  Alloc(y[h: H, j: N, e: 8] f32)
  Launch(doubled)
  output y
"""
"""y = 2 x, a tile at a time."""


@cache
def doubling() -> t.Program:
    return parse(DOUBLING)


def replaced(*pairs: tuple[str, str]) -> t.Program:
    text = DOUBLING
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return parse(text)


def rows(h: int, n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.arange(h * n * 8, dtype=np.float32).reshape(h, n, 8)


def test_the_program_is_good_and_comes_back() -> None:
    verify(doubling())
    assert works(doubling().kernels[0]) and parse(dump(doubling())) == doubling()


CLAIMED = (
    ("doubled(x, y; H, N)", "doubled(x, y, taken; H, N)"),
    ("    AllocBar(full, 1)\n", "    AllocBar(full, 1)\n    AllocBar(told, 2)\n    AllocBar(heard, 2, count=4)\n"),
    ("    AllocBar(full, 1)\n", "    AllocBar(full, 1)\n    AllocShared(places, i32[one 1], depth=2)\n"),
    ("for n in work asc", "for n in work from taken places told heard taking asc"),
    ("for m in work asc", "for m in work from taken places told heard asc"),
    ("  Launch(doubled)", "  Alloc(taken[one: 1] i32, fill=0.0)\n  Launch(doubled)"),
)
"""Programs that take the next place which no other has."""


@pytest.mark.parametrize("how", [(), CLAIMED], ids=["strided", "claimed"])
@pytest.mark.parametrize(("h", "n"), [(3, 20), (1, 1), (2, 8), (0, 20), (2, 0)])
def test_every_place_is_worked_at_once(h: int, n: int, how: tuple[tuple[str, str], ...]) -> None:
    program = replaced(*how)
    verify(program)
    assert parse(dump(program)) == program
    for seed in range(20):
        assert (run_program(program, {"x": rows(h, n)}, seed=seed).outputs["y"] == 2 * rows(h, n)).all()


@pytest.mark.parametrize("seed", range(4))
def test_phases_go_on_from_place_to_place(seed: int) -> None:
    """Parities that begin anew at every place are found wrong, whoever counts so."""
    loader = replaced(("1 - n % 2", "1"))
    user = replaced(("BarWait(full[0], m % 2)", "BarWait(full[0], 0)"))
    for program in (loader, user):
        verify(program)
        with pytest.raises(InterpretError):
            for more in range(10):
                run_program(program, {"x": rows(3, 40)}, seed=10 * seed + more)


def test_arrivals_are_counted_by_warp() -> None:
    for count in (1, 3):
        program = replaced(("BarArrive(empty[0], count=4)", f"BarArrive(empty[0], count={count})"))
        with pytest.raises(DeadlockFault):
            for seed in range(10):
                run_program(program, {"x": rows(3, 40)}, seed=seed)


def test_a_place_worked_at_twice_is_stored_twice() -> None:
    program = replaced(("at: i32[j 8] = Iota(j0)", "at: i32[j 8] = Iota(0)"))
    with pytest.raises(StoredTwiceFault):
        run_program(program, {"x": rows(1, 20)})


@pytest.mark.parametrize(
    ("pairs", "error", "match"),
    [
        (
            [("        e: i32[e 8] = Iota(0)\n", "        e: i32[e 8] = Iota(0)\n        early: i32 = j0 + 1\n")],
            ScopeError,
            "j0 is not in scope",
        ),
        (
            [("    AllocBar(full, 1)\n", "    AllocBar(full, 1)\n    early: i32 = h + 1\n")],
            ScopeError,
            "h is not in scope",
        ),
        ([("for n in work asc", "for n in 0 .. N asc")], ScopeError, "h, j0 is not in scope"),
        ([("at: i32[j 8] = Iota(j0)", "j0: i32[j 8] = Iota(0)")], ScopeError, "j0 is defined a second time"),
        ([("for n in work asc", "for n in work")], PartitionError, "goes up"),
        ([("for n in work asc", "for n in work desc")], PartitionError, "goes up"),
        ([*CLAIMED[:3], CLAIMED[3], CLAIMED[5]], PartitionError, "in different orders"),
        ([*CLAIMED, (" taking asc", " asc")], PartitionError, "0 partitions take places"),
        ([*CLAIMED, ("told heard asc", "told heard taking asc")], PartitionError, "2 partitions take places"),
        ([("for n in work asc", "for n in work taking asc")], PartitionError, "1 partitions take places"),
        ([*CLAIMED, ("    AllocBar(heard, 2, count=4)\n", "")], PartitionError, "heard is not allocated"),
        (
            [("          BarWait(empty", "          for k in work asc\n            Fence()\n          BarWait(empty")],
            PartitionError,
            "in no other body",
        ),
        (
            [("      partition double", "        for k in work asc\n          Fence()\n      partition double")],
            PartitionError,
            "load has a loop over work already",
        ),
        (
            [("    AllocBar(full, 1)\n", "    AllocBar(full, 1)\n    for k in work asc\n      Fence()\n")],
            PartitionError,
            "stands in a partition",
        ),
        ([("DotWait(late, 0)", "DotWait(late, 0, after=[never])")], ScopeError, "never is not in scope"),
    ],
)
def test_what_the_verifier_refuses(pairs: list[tuple[str, str]], error: type[VerifyError], match: str) -> None:
    with pytest.raises(error, match=match):
        verify(replaced(*pairs))
