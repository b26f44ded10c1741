"""The verifier of the Tile IR: 14 checks, each a function, run over every program a schedule builds.

A check raises where a rule is broken. Where it can neither prove nor refute (that ranges are disjoint, that an index
stays inside, that a weight's exponent is bounded) it notes so in `unproved`; the interpreter checks those on every
run. What no text can show at all is the interpreter's alone: that ranges contain every true pair and full tiles are
true, that barriers never deadlock, that every output element is stored exactly once.
"""

from __future__ import annotations

from collections.abc import Callable

from attncc.tile import nodes as t
from attncc.tile.verify_hopper import partitions_are_apart
from attncc.tile.verify_loops import order_is_free, ranges_disjoint, steering_is_uniform
from attncc.tile.verify_memory import indices_inside, offsets_fit, one_owner
from attncc.tile.verify_numbers import exponents_anchored, sums_are_wide
from attncc.tile.verify_scope import Checked, Open
from attncc.tile.verify_steps import backward_reads_all, grids_fit, steps_in_order
from attncc.tile.verify_types import names_and_types, permuted_dots, yields_types

Check = Callable[[Checked, t.Kernel], None]

CHECKS: tuple[Check, ...] = (
    names_and_types,  # 1
    yields_types,
    permuted_dots,  # 2
    ranges_disjoint,  # 3
    order_is_free,  # 4
    indices_inside,  # 5
    exponents_anchored,  # 6
    offsets_fit,  # 7
    one_owner,  # 8
    steering_is_uniform,  # 9
    sums_are_wide,  # 10
    partitions_are_apart,  # 11
    grids_fit,  # 14
)
"""In the order they run; later checks rely on names and types being right. 12 (steps_in_order)
is of whole programs, 13 (backward_reads_all) of two."""


def verify(program: t.Program, *, deterministic: bool = False, permuted: bool = False) -> None:
    """Raises a VerifyError for the first broken rule; with `deterministic`, atomics are refused too.

    `permuted` allows what check 2 forbids: for programs that are printed without a compiler behind them.
    """
    _run(program, deterministic, permuted)


def unproved(program: t.Program) -> tuple[Open, ...]:
    """What the checks could neither prove nor refute."""
    return tuple(_run(program, False).unproved)


def _run(program: t.Program, deterministic: bool, permuted: bool = False) -> Checked:
    c = Checked(program, deterministic)
    for kernel in program.kernels:
        for check in CHECKS:
            if not (permuted and check is permuted_dots):
                check(c, kernel)
    steps_in_order(c)
    return c


def verify_pair(forward: t.Program, backward: t.Program) -> None:
    """Raises a PairError unless `backward` reads every input and constant that `forward` reads (check 13)."""
    backward_reads_all(forward, backward)
