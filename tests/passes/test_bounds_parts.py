"""The parts of bounds: collected sums, proofs, the test of a tile's corners, derived arrays."""

from __future__ import annotations

import random

import numpy as np
import pytest

from attncc.expr.build import FALSE, TRUE, Operand, conj, ivar, op
from attncc.expr.nodes import Const, Expr, free_vars
from attncc.ir.nodes import Load, Reduce
from attncc.passes.bounds import Derived, NextFlag, bounds, box_test
from attncc.passes.bounds.affine import Affine, affine, at_least_zero
from attncc.passes.bounds.derived import Kind
from attncc.passes.bounds.facts import Facts
from tests.passes import random_masks
from tests.passes.mask_tiles import World, corners, dense, derive, support, value

b, i, j, w, N, M = (ivar(x) for x in ("b", "i", "j", "w", "N", "M"))
BOX = {"i": (ivar("i_lo"), ivar("i_hi")), "j": (ivar("j_lo"), ivar("j_hi"))}


def le(x: Operand, y: Operand) -> Expr:
    return op("le", x, y)


class TestAffine:
    def test_like_terms_cancel(self) -> None:
        e = op("sub", op("add", op("mul", 3, i), j), op("mul", op("add", i, 1), 2))
        assert affine(e) == affine(op("sub", op("add", i, j), 2))

    def test_a_quotient_gives_up_what_divides(self) -> None:
        assert affine(op("floordiv", op("add", op("mul", 8, i), op("add", j, 21)), 8)) == affine(
            op("add", op("add", i, op("floordiv", op("add", j, 5), 8)), 2)
        )

    def test_quotients_nest(self) -> None:
        assert affine(op("floordiv", op("floordiv", i, 4), 8)) == affine(op("floordiv", i, 32))

    def test_products_of_names_multiply_out(self) -> None:
        assert affine(op("mul", op("sub", j, i), w)) == affine(op("sub", op("mul", w, j), op("mul", i, w)))

    def test_comparisons_have_no_negative_terms(self) -> None:
        assert at_least_zero(affine(op("sub", i, op("add", j, 1)))) is op("lt", j, i)
        assert at_least_zero(affine(op("sub", 3, j))) is le(j, 3)
        assert at_least_zero(Affine((), -1)) is FALSE

    @pytest.mark.parametrize("seed", range(300))
    def test_collecting_changes_no_value(self, seed: int) -> None:
        e = random_masks.integer(random.Random(seed), 4)
        world = World(300, 300)
        at = np.arange(-100, 300, 7)
        before, after = (value(x, world, at[:, None], at[None]) for x in (e, affine(e).expr()))
        assert (np.broadcast_to(before, (58, 58)) == np.broadcast_to(after, (58, 58))).all()


class TestFacts:
    def test_ranges_of_the_positions(self) -> None:
        facts = Facts()
        assert facts.is_nonneg(affine(op("sub", op("sub", N, 1), i))) and facts.is_nonneg(affine(j))
        assert not facts.is_nonneg(affine(i)) and not facts.is_nonneg(affine(op("sub", i, j)))
        assert facts.is_nonneg(affine(op("sub", op("add", i, M), N)))

    def test_positive_names(self) -> None:
        assert Facts(frozenset({"w"})).is_positive(w) and not Facts().is_positive(w) and Facts().is_positive(N)

    @pytest.mark.parametrize("seed", range(300))
    def test_what_is_proved_holds(self, seed: int) -> None:
        r = random.Random(seed)
        a = affine(random_masks.integer(r, 3)) + r.choice((0, 0, 60))
        if Facts().is_nonneg(a):
            for n, m in ((64, 64), (50, 9), (9, 50)):
                world = World(n, m)
                i_at, j_at = world.positions("i")[:, None], world.positions("j")[None]
                assert (value(a.expr(), world, i_at, j_at) >= 0).all()


class TestCorners:
    def test_names_only_the_corners(self) -> None:
        test = box_test(conj(le(j, i), le(op("sub", i, j), w)), BOX)
        assert free_vars(test.must) | free_vars(test.may) == {"i_lo", "i_hi", "j_lo", "j_hi", "w"}
        assert test.may is conj(le(ivar("j_lo"), ivar("i_hi")), le(ivar("i_lo"), op("add", ivar("j_hi"), w)))

    def test_a_remainder_is_exact_inside_one_period(self) -> None:
        mask = op("lt", op("mod", j, 128), 32)
        world = World(256, 256)
        must, may = corners(mask, world, 32)
        assert (must == may).all() and may[0].tolist() == [True, False, False, False] * 2

    def test_flags_are_looked_up(self) -> None:
        keep = np.zeros((1, 256), bool)
        keep[0, [3, 200]] = True
        keep[0, 64:96] = True
        world = World(256, 256, {"b": 0}, {"keep": keep})
        must, may = corners(Load("keep", (b, j), "bool"), world, 32)
        assert may[0].tolist() == [True, False, True, False, False, False, True, False]
        assert np.flatnonzero(must[0]).tolist() == [2]
        never, perhaps = corners(op("not", Load("keep", (b, j), "bool")), world, 32)
        assert (never == ~may).all() and (perhaps == ~must).all()

    def test_a_read_at_the_tile_is_unknown(self) -> None:
        test = box_test(le(Load("start", (b, i), "int"), j), BOX)
        assert (test.must, test.may, test.aux) == (FALSE, TRUE, ())

    def test_real_comparisons_are_unknown(self) -> None:
        test = box_test(op("lt", Load("bias", (b, j), "real"), 0.5), BOX)
        assert (test.must, test.may) == (FALSE, TRUE)


class TestWhatDoesNotIsolate:
    def test_a_flag_of_the_index_stays_as_residue(self) -> None:
        keep = Load("keep", (b, j), "bool")
        (a,) = bounds(conj(le(j, i), keep), "j", "i").alternatives
        assert a.residue == (keep,) and a.upper is op("add", i, 1) and not a.exact
        assert a.full_lower is a.full_upper and isinstance(a.full_lower, Const)

    def test_a_real_comparison_of_rows_is_a_condition(self) -> None:
        gate = op("lt", Load("gate", (b, i), "real"), 0.5)
        (positive,) = bounds(conj(le(j, i), gate), "j", "i").alternatives
        assert positive.rows is conj(le(0, i), gate) and positive.exact
        unread, negative = bounds(conj(le(j, i), op("not", gate)), "j", "i").alternatives
        assert (unread.rows, negative.rows) == (op("lt", i, 0), op("not", gate))

    def test_a_reduction_is_opaque(self) -> None:
        n = ivar("n")
        some = Reduce("any", op("eq", Load("page", (b, n), "int"), j), (), sort="bool")
        (a,) = bounds(conj(le(j, i), some), "j", "i").alternatives
        assert a.residue == (some,) and a.upper is op("add", i, 1)

    def test_sums_of_many_extremes_end(self) -> None:
        total: Expr = i
        for n in range(40):
            total = op("add", total, op("min", op("mul", j, n + 1), op("add", i, n)))
        found = bounds(le(total, 0), "j", "i")
        assert 1 <= len(found.alternatives) <= 8

    def test_a_square_is_left_to_the_corners(self) -> None:
        mask = le(op("square", op("sub", i, j)), op("square", w))
        world = World(256, 256, {"w": 10})
        (a,) = bounds(mask, "j", "i").alternatives
        assert a.residue == (mask,)
        _, may = corners(mask, world, 32)
        blocks = dense(mask, world).reshape(8, 32, 8, 32).any((1, 3))
        assert (blocks == may).all()

    @pytest.mark.parametrize("limit", [-5, 0, 1, 99, 100, 101])
    @pytest.mark.parametrize("name", ["le", "lt", "eq", "ne"])
    @pytest.mark.parametrize("k", [1, -2])
    def test_a_square_beside_a_constant_isolates(self, limit: int, name: str, k: int) -> None:
        mask = op(name, op("mul", k, op("square", op("sub", i, j))), k * limit)
        world = World(64, 64)
        found = bounds(mask, "j", "i")
        assert all(a.exact for a in found.alternatives)
        assert (support(found, world) == dense(mask, world)).all()


def test_derived_arrays_by_example() -> None:
    world = World(8, 8, arrays={"doc": np.array([[1, 1, 2, 1, 2, 2, 3, 1]]), "keep": np.arange(8) % 3 == 1})

    def of(kind: Kind) -> list[int]:
        return derive(Derived(f"doc_{kind}", kind, "doc", 1), world)[0].tolist()  # type: ignore[no-any-return]

    assert of("first") == [0, 0, 2, 0, 2, 2, 6, 0] and of("last") == [7, 7, 5, 7, 5, 5, 6, 7]
    assert of("run_first") == [0, 0, 2, 3, 4, 4, 6, 7] and of("run_last") == [1, 1, 2, 3, 5, 5, 6, 7]
    with_, without = (derive(NextFlag("n", flag, "keep", 0), world).tolist() for flag in (True, False))
    assert with_ == [1, 1, 4, 4, 4, 7, 7, 7] and without == [0, 2, 2, 3, 5, 5, 6, 8]
