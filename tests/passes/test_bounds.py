"""Bounds of the masks people write: the intervals themselves, and the tiles they give."""

from __future__ import annotations

import numpy as np
import pytest

from attncc.expr.build import FALSE, TRUE, Operand, conj, disj, ivar, op
from attncc.expr.nodes import Expr
from attncc.ir.nodes import Axis, Load, Segment
from attncc.passes.bounds import Bounds, bounds
from tests.passes.mask_tiles import World, brute, dense, support, tiles

b, h, i, j = map(ivar, "bhij")
N, M, w, seg = map(ivar, ("N", "M", "w", "seg"))
CAUSAL = op("le", j, i)
OFFSET = op("sub", N, M)


def le(x: Operand, y: Operand) -> Expr:
    return op("le", x, y)


def lt(x: Operand, y: Operand) -> Expr:
    return op("lt", x, y)


def load(tensor: str, *index: Expr) -> Load:
    return Load(tensor, index, "int")


def flag(tensor: str, *index: Expr) -> Load:
    return Load(tensor, index, "bool")


def keys(mask: Expr) -> Bounds:
    return bounds(mask, "j", "i")


def queries(mask: Expr) -> Bounds:
    return bounds(mask, "i", "j")


WINDOW = conj(CAUSAL, lt(op("sub", i, j), w))
DOCUMENTS = conj(op("eq", load("doc", b, i), load("doc", b, j)), CAUSAL)
SEGMENTS = conj(op("eq", Segment("cu", i), Segment("cu", j)), CAUSAL)
PREFIX = disj(CAUSAL, lt(j, load("prefix", b)))
GLOBAL = disj(le(op("abs", op("sub", i, j)), op("floordiv", w, 2)), flag("keep", b, j), flag("keep", b, i))
BLOCKS = conj(CAUSAL, op("eq", op("floordiv", i, 48), op("floordiv", j, 48)))
SPECS = {
    "all": TRUE,
    "none": FALSE,
    "causal": CAUSAL,
    "window": WINDOW,
    "documents": DOCUMENTS,
    "segments": SEGMENTS,
    "prefix": PREFIX,
    "global": GLOBAL,
    "blocks": BLOCKS,
    "strided": conj(CAUSAL, op("eq", op("mod", op("sub", i, j), 96), 0)),
    "other documents": op("ne", load("doc", b, i), load("doc", b, j)),
    "earlier documents": lt(Segment("cu", j), Segment("cu", i)),
    "heads": lt(op("abs", op("sub", i, j)), load("width", h)),
    "previous token's document": conj(op("eq", load("doc", b, op("sub", i, 1)), load("doc", b, j)), CAUSAL),
    "document of the last token but one": op(
        "eq", op("where", le(2, i), load("doc", b, op("sub", i, 2)), load("doc", b, i)), load("doc", b, j)
    ),
    "flags alike": conj(op("eq", flag("keep", b, i), flag("keep", b, j)), CAUSAL),
    "documents of blocks": op("eq", load("doc", b, op("floordiv", i, 3)), load("doc", b, op("floordiv", j, 3))),
}


def world(n: int, m: int, *, ordered: bool = True, seed: int = 0) -> World:
    r = np.random.default_rng(seed)
    doc = r.integers(0, 5, (2, n))
    cuts = np.sort(r.integers(0, n + 1, 4))
    return World(
        n,
        m,
        {"b": 1, "h": 2, "w": 70, "seg": 40},
        {
            "doc": np.sort(doc, 1) if ordered else doc,
            "cu": np.array([0, *cuts, n]),
            "prefix": np.array([3, 77]),
            "width": np.array([0, 5, 33, 300]),
            "keep": r.random((2, n)) < 0.02,
        },
    )


class TestIntervals:
    def test_causal_stops_after_the_query(self) -> None:
        (a,) = keys(CAUSAL).alternatives
        assert (a.lower, a.upper, a.rows, a.exact) == (op("mul", 1, 0).args[1], op("add", i, 1), TRUE, True)  # type: ignore[attr-defined]
        assert (a.full_lower, a.full_upper, a.residue) == (a.lower, a.upper, ())

    def test_causal_transposed_starts_at_the_key(self) -> None:
        (a,) = queries(CAUSAL).alternatives
        assert (a.lower, a.upper) == (op("max", j, OFFSET), N)

    def test_no_mask_is_everything(self) -> None:
        (a,) = keys(TRUE).alternatives
        (t,) = queries(TRUE).alternatives
        assert (a.upper, t.lower, t.upper) == (N, OFFSET, N) and a.exact and t.exact

    def test_false_has_no_alternative(self) -> None:
        assert keys(FALSE).alternatives == () and keys(conj(CAUSAL, lt(i, j))).alternatives == ()

    def test_a_window_is_bounded_on_both_sides(self) -> None:
        (a,) = keys(WINDOW).alternatives
        assert (a.lower, a.upper) == (op("max", op("add", op("sub", i, w), 1), 0), op("add", i, 1))
        (t,) = queries(WINDOW).alternatives
        assert (t.lower, t.upper) == (op("max", j, OFFSET), op("min", op("add", j, w), N))

    def test_a_block_needs_no_divisibility(self) -> None:
        (a,) = keys(op("eq", op("floordiv", i, 48), op("floordiv", j, 48))).alternatives
        start = op("mul", 48, op("floordiv", i, 48))
        assert a.exact and a.upper is op("min", op("add", start, 48), N)

    def test_a_run_time_block_isolates_only_if_positive(self) -> None:
        mask = op("eq", op("floordiv", i, seg), op("floordiv", j, seg))
        assert bounds(mask, "j", "i", positive=frozenset({"seg"})).alternatives[0].exact
        (a,) = keys(mask).alternatives
        assert not a.exact and a.residue == (mask,) and a.upper is N

    def test_occurrences_on_both_sides_are_collected(self) -> None:
        (a,) = keys(le(op("sub", op("mul", j, 2), j), i)).alternatives
        (c,) = keys(le(op("mul", j, 3), op("add", i, j))).alternatives
        assert a.upper is op("add", i, 1) and a.exact
        assert c.upper is op("min", op("add", op("floordiv", i, 2), 1), N) and c.exact

    def test_a_condition_of_rows_alone_stays_beside_the_interval(self) -> None:
        (_, rows) = keys(PREFIX).alternatives[0], queries(PREFIX).alternatives[1].rows
        assert rows is lt(j, load("prefix", b))

    def test_documents_under_causal_read_the_starts_only(self) -> None:
        found = keys(DOCUMENTS)
        (a,) = found.alternatives
        assert [d.name for d in found.aux] == ["doc_first", "doc_run_first"]
        assert (a.lower, a.upper) == (load("doc_first", b, i), op("add", i, 1))
        assert (a.full_lower, a.full_upper) == (load("doc_run_first", b, i), op("add", i, 1))
        assert a.rows is le(0, i) and not a.exact and len(a.residue) == 1

    def test_segments_ascend_so_their_bounds_are_exact(self) -> None:
        found = keys(SEGMENTS)
        (a,) = found.alternatives
        assert a.exact and (a.lower, a.upper) == (load("cu_first", i), op("add", i, 1))
        assert [(d.kind, d.tensor, d.segments) for d in found.aux] == [("first", "cu", True)]

    def test_a_query_row_axis_needs_no_guard(self) -> None:
        mask = le(j, load("reach", b, i))
        m = {"reach": (Axis("b", ivar("B")), Axis("m", M))}
        assert keys(mask).alternatives[0].rows is le(0, i)
        assert bounds(mask, "j", "i", axes=m).alternatives[0].rows is TRUE

    def test_a_read_in_a_branch_not_taken_needs_no_range(self) -> None:
        before = op("where", le(3, i), load("doc", b, op("sub", i, 3)), 0)
        found = keys(op("eq", before, load("doc", b, j)))
        assert found.mask is op("eq", before, load("doc", b, j))  # 3 <= i says it all

    def test_many_alternatives_fold_into_eight(self) -> None:
        mask = conj(CAUSAL, disj(*(op("eq", op("mod", j, 100 + n), n) for n in range(12))))
        found = keys(mask)
        assert 1 <= len(found.alternatives) <= 8
        assert all(a.upper is op("add", i, 1) and a.residue for a in found.alternatives)

    def test_only_i_by_j_and_j_by_i(self) -> None:
        with pytest.raises(ValueError, match="they are i and j"):
            bounds(CAUSAL, "j", "j")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("n", "m"), [(256, 256), (250, 100), (100, 250), (1, 1), (31, 70)])
@pytest.mark.parametrize("ordered", [True, False])
def test_no_pair_is_lost_and_full_tiles_are_full(name: str, n: int, m: int, ordered: bool) -> None:
    mask, here = SPECS[name], world(n, m, ordered=ordered)
    truth = dense(mask, here)
    some, every = brute(truth, 32)
    for found, some_, every_ in ((keys(mask), some, every), (queries(mask), some.T, every.T)):
        visited, full = tiles(found, here, 32)
        assert (visited >= some_).all() and (full <= every_).all()
        assert (support(found, here) == truth).all()
        assert (dense(found.mask, here) == truth).all()


@pytest.mark.parametrize("name", ["all", "causal", "window", "documents", "segments", "prefix", "heads"])
def test_visited_and_full_are_tight(name: str) -> None:
    """Ordered documents: at most one tile a row too many, and full tiles are all found where intervals agree."""
    mask, here = SPECS[name], world(512, 512)
    some, every = brute(dense(mask, here), 32)
    for found, some_, every_ in ((keys(mask), some, every), (queries(mask), some.T, every.T)):
        visited, full = tiles(found, here, 32)
        assert (visited == some_).all() and (full == every_).all()
