"""Every check of the Tile IR's verifier: a program that passes, and one that breaks exactly this rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from attncc.expr.build import TRUE, conj, ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Var
from attncc.tile import nodes as t
from attncc.tile import verify_faults as faults
from attncc.tile.verify import CHECKS, unproved, verify, verify_pair
from attncc.tile.verify_loops import at_most, steered_by
from attncc.tile.verify_scope import Checked, Origins
from attncc.tile.verify_steps import grids_fit, used_inputs, used_scalars
from tests.tile.programs.alter import Change, altered, let, swap, without
from tests.tile.programs.causal import N, causal, i0, int_
from tests.tile.test_interpret_partitions import ring, through_shared

LOWEST = float("-inf")
I, J, E = t.Axis("i", 16), t.Axis("j", 8), t.Axis("e", 8)


def refuses(
    error: type[faults.VerifyError], change: Change, match: str = ".", program: t.Program | None = None
) -> None:
    with pytest.raises(error, match=match):
        verify(altered(program or causal(), change))


def loop(**fields: Any) -> Change:
    """Other fields for every loop."""
    return lambda s: swap(s, **fields) if isinstance(s, t.For) else s


def store(name: str, **fields: Any) -> Change:
    """Other fields for the store to this tensor."""
    return lambda s: swap(s, **fields) if isinstance(s, t.Store) and s.tensor == name else s


def before(name: str, *new: t.Stmt) -> t.Program:
    """The causal program with statements put before the Let of this name."""
    kernel = causal().kernels[0]

    def put(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
        out: list[t.Stmt] = []
        for s in body:
            if isinstance(s, t.Let) and s.name == name:
                out += new
            out.append(replace(s, body=put(s.body)) if isinstance(s, t.For) else s)
        return tuple(out)

    return replace(causal(), kernels=(replace(kernel, body=put(kernel.body)),))


@pytest.mark.parametrize("program", [causal(), causal("bf16"), causal("f64"), ring(), through_shared()])
def test_good_programs_pass(program: t.Program) -> None:
    verify(program)
    assert unproved(program) == ()


def test_all_checks_are_listed_and_say_what_they_check() -> None:
    numbers = [check.__doc__.split(".")[0].split(",")[0] for check in CHECKS if check.__doc__]
    assert sorted({int(n) for n in numbers}) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14]  # 12 and 13 see whole programs


def test_codes_are_distinct_and_documented() -> None:
    classes = faults.VerifyError.__subclasses__()
    assert len({c.code for c in classes}) == len(classes) == 14
    assert all(c.__doc__ for c in classes)


# --- 1, 2: names, types, dots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("shift"), "shift is not in scope"),
        (let("d", name="r"), "r is defined a second time"),
        (let("qk", type=t.Type((I, t.Axis("j", 4)), "f32")), "its axes are i 16, j 8"),
        (let("m1", type=t.Type((I,), "i32")), "its expression is real"),
        (let("kt", type=t.Type((J, t.Axis("d", 8)), "bf16")), "its element type is f32"),
        (let("m1", op=t.Map(op("max", rvar("m"), rvar("s")))), "s has the axis j"),
        (let("i", op=t.Map(op("floor", rvar("r")))), "r is i32, read as real"),
        (let("kt", op=t.Load("keys", (ivar("j"),))), "keys is no tensor"),
        (let("kt", op=t.Load("k", (ivar("j"),))), "1 indices for the 4 axes"),
        (let("top", op=t.Reduce("max", "s", "d")), "no axis d"),
        (lambda s: t.Yield(s.values[:2]) if isinstance(s, t.Yield) else s, "2 values are yielded"),
        (lambda s: t.Yield(("m1", "l1", "s")) if isinstance(s, t.Yield) else s, "acc: .* becomes s"),
        (store("out", value="empty"), "bool stored to f32|axis"),
    ],
)
def test_1_names_and_types(change: Change, match: str) -> None:
    refuses(faults.ScopeError, change, match)


def test_1_errors_name_kernel_and_statement() -> None:
    with pytest.raises(faults.ScopeError) as caught:
        verify(altered(causal(), without("shift")))
    assert "kernel forward: shift is not in scope\n  in: i: i32[i 16] = r + shift" in str(caught.value)


def test_2_permuted_dots() -> None:
    back = t.Let("back", t.Type((J, E), "f32"), t.Dot("p", "x", "i"))
    x = t.Let("x", t.Type((I, E), "f32"), t.Map(op("mul", rvar("acc"), 1.0)))
    with pytest.raises(faults.PermutedDotError, match=r"p lies as \(i, j\), the dot wants \(j, i\)"):
        verify(before("fade", x, back))
    renamed = t.Let("p2", t.Type((t.Axis("n", 16), J), "f32"), t.Rename("p"))
    right = t.Let("right", t.Type((t.Axis("n", 16), E), "f32"), t.Dot("p2", "vt", "j"))
    verify(before("fade", renamed, right))


@pytest.mark.parametrize("body", [op("add", rvar("acc"), rvar("fade")), op("mul", rvar("acc"), 2.0), rvar("acc")])
def test_2_only_products_with_a_factor_by_row_are_spared(body: Expr) -> None:
    verify(altered(causal(), let("faded", op=t.Map(op("mul", rvar("acc"), rvar("fade")), spared=True))))
    change = let("faded", op=t.Map(body, spared=True))
    refuses(faults.ScopeError, change, "only a product with a factor by rows is spared")


# --- 3, 4, 9: loops --------------------------------------------------------------------------------------------------


def pieces(*spans: tuple[Expr | int, Expr | int]) -> t.Ranges:
    both = [tuple(int_(x) if isinstance(x, int) else x for x in span) for span in spans]
    return t.Ranges(8, N, tuple(t.Interval(lo, hi) for lo, hi in both))


def test_3_overlaps_are_refused_or_left_open() -> None:
    refuses(faults.OverlapError, loop(over=pieces((0, 4), (3, 5))), "two pieces overlap")
    refuses(faults.OverlapError, loop(over=pieces((ivar("g"), N), (ivar("g"), N))), "two pieces overlap")
    refuses(faults.OverlapError, loop(over=pieces((-1, 2))), "before tile 0")
    refuses(faults.OverlapError, loop(axis=""), "named axis")
    open_ = unproved(altered(causal(), loop(over=pieces((0, ivar("g")), (ivar("shift"), N)))))
    assert [(o.check, o.kernel, o.what) for o in open_] == [("ranges_disjoint", "forward", "two pieces")]
    later = op("max", ivar("shift"), ivar("g"))
    assert not unproved(altered(causal(), loop(over=pieces((0, ivar("g")), (later, N)))))


def test_3_sees_loops_that_carry_on() -> None:
    """A second loop that starts from the first one's results walks on: its pieces must not overlap the first's."""
    kernel = causal().kernels[0]
    at = next(n for n, s in enumerate(kernel.body) if isinstance(s, t.For))
    first = kernel.body[at]
    assert isinstance(first, t.For)

    def second(over: t.Ranges) -> t.Program:
        names = {"m": "m2", "l": "l2", "acc": "acc2"}
        carried = tuple(replace(c, name=names[c.name], start=c.name) for c in first.carried)
        again = t.For("j1", over, carried, (t.Yield(("m2", "l2", "acc2")),), "j")
        body = (*kernel.body[: at + 1], again, *kernel.body[at + 1 :])
        return replace(causal(), kernels=(replace(kernel, body=body),))

    assert isinstance(first.over, t.Ranges) and isinstance(first.over.pieces[0], t.Interval)
    with pytest.raises(faults.OverlapError):
        verify(second(first.over))
    assert not unproved(second(t.Ranges(8, N, (t.Interval(first.over.pieces[0].hi, N),))))


def test_at_most_looks_through_names() -> None:
    origins = Origins(Checked(causal()), causal().kernels[0])
    shift, g = ivar("shift"), ivar("g")
    assert at_most(origins, shift, op("max", g, shift)) and at_most(origins, op("min", g, shift), shift)
    assert at_most(origins, shift, op("sub", ivar("N"), ivar("M")))
    assert not at_most(origins, shift, g) and not at_most(origins, op("max", g, shift), shift)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("l1", op("sub", rvar("row_sum"), rvar("l"))),
        ("l1", rvar("row_sum")),
        ("l1", op("mul", rvar("l"), op("add", rvar("l"), rvar("row_sum")))),
        ("m1", op("max", op("mul", rvar("m"), 0.5), rvar("top"))),
    ],
)
def test_4_updates_that_depend_on_the_order(name: str, body: Expr) -> None:
    refuses(faults.OrderError, let(name, op=t.Map(body)), "depends on the order")
    verify(altered(altered(causal(), let(name, op=t.Map(body))), loop(order="asc")))


def test_9_computed_values_steer_nothing() -> None:
    score = t.Let("worst", t.Type((), "f32"), t.Reduce("max", "top", "i"))
    branch = t.If(op("lt", 0.0, rvar("worst")), (t.Fence(),), ())
    with pytest.raises(faults.SteeringError, match="depends on qk, a computed value"):
        verify(before("m1", score, branch))
    refuses(faults.SteeringError, loop(over=t.Count(int_(0), ivar("r"))), "r steers it and is no scalar")


def test_9_says_on_what_a_scalar_depends() -> None:
    c, kernel = Checked(causal()), causal().kernels[0]
    assert steered_by(c, kernel, ivar("g")) == {"h"}
    assert steered_by(c, kernel, op("add", i0, ivar("shift"))) == {"i0"}
    assert steered_by(c, kernel, ivar("j")) == {"j0", "i0"}


# --- 5, 7, 8: memory --------------------------------------------------------------------------------------------------


def load(name: str, **fields: Any) -> Change:
    """Other fields for the Load that a Let is bound to."""
    return lambda s: swap(s, op=swap(s.op, **fields)) if isinstance(s, t.Let) and s.name == name else s


def test_5_unguarded_indices() -> None:
    refuses(faults.ExtentError, load("kt", guard=TRUE), "nothing bounds the index on axis j of k")
    refuses(faults.ExtentError, store("out", guard=TRUE), "axis i of out")
    refuses(faults.ExtentError, load("qt", guard=op("lt", ivar("d"), 4)), "axis i of q")
    full = t.Ranges(8, N, (t.Interval(int_(0), int_(1)),), full=True)
    program = altered(causal(), loop(over=full))
    verify(altered(altered(program, load("kt", guard=TRUE)), load("vt", guard=TRUE)))


def test_5_what_is_not_proved_is_left_open() -> None:
    nearly = altered(causal(), load("kt", guard=op("lt", ivar("j"), op("mul", N, 2))))
    assert [(o.check, o.what) for o in unproved(nearly)] == [("indices_inside", "axis j of k")]


def test_7_products_of_positions() -> None:
    flat = op("add", op("mul", ivar("j"), N), ivar("M"))
    guard = conj(op("lt", flat, N), op("le", 0, flat))
    refuses(faults.OffsetError, load("kt", index=(ivar("b"), ivar("g"), flat, ivar("d")), guard=guard), "64|32 bits")


def test_8_owners() -> None:
    shared_heads = (ivar("b"), ivar("g"), ivar("r"))
    refuses(
        faults.OwnershipError,
        store("lse", index=shared_heads, guard=conj(op("lt", ivar("r"), ivar("M")), op("lt", ivar("g"), ivar("H")))),
        "differ in h",
    )
    pinned = conj(op("lt", ivar("r"), ivar("M")), op("eq", ivar("h"), 0))
    verify(
        altered(
            causal(), store("lse", index=(ivar("b"), int_(0), ivar("r")), guard=conj(pinned, op("lt", 0, ivar("H"))))
        )
    )


def test_8_atomics_are_not_deterministic() -> None:
    def atomic(s: t.Stmt) -> t.Stmt:
        if isinstance(s, t.Store) and s.tensor == "lse":
            return t.ReduceAdd("lse", s.index, s.value, "atomic", s.guard)
        return s

    program = altered(causal(), atomic)
    steps = tuple(replace(s, fill=0.0) if isinstance(s, t.Alloc) else s for s in program.steps)
    program = replace(program, steps=steps)
    verify(program)
    with pytest.raises(faults.OwnershipError, match="atomic"):
        verify(program, deterministic=True)


# --- 6, 10: numbers ---------------------------------------------------------------------------------------------------


def test_6_a_maximum_from_minus_infinity() -> None:
    start = let("m_", op=t.Full(Const(LOWEST, "real")))
    refuses(faults.UnanchoredError, start, "m1 may still be -inf")
    tested = op("where", op("eq", rvar("m1"), LOWEST), 0.0, rvar("m1"))
    program = altered(altered(causal(), start), let("p", op=t.Map(op("exp2", op("sub", rvar("s"), tested)))))
    verify(altered(program, let("fade", op=t.Map(op("exp2", op("sub", rvar("m"), tested))))))


def test_6_a_maximum_that_moves_rarely_is_as_low_as_where_it_starts() -> None:
    lazy = op("where", op("lt", op("add", rvar("m"), 8.0), rvar("top")), rvar("top"), rvar("m"))
    program = altered(altered(causal(), loop(order="asc")), let("m1", op=t.Map(lazy)))
    verify(program)
    refuses(faults.UnanchoredError, let("m_", op=t.Full(Const(LOWEST, "real"))), "m1 may still be -inf", program)


def test_6_exponents_without_a_bound_are_left_open() -> None:
    plain = altered(causal(), let("p", op=t.Map(op("exp2", rvar("s")))))
    assert [(o.check, o.what) for o in unproved(plain)] == [("exponents_anchored", "the argument of exp2 has no bound")]
    bounded = op("exp2", op("mul", op("tanh", rvar("s")), 30.0))
    assert not unproved(altered(causal(), let("p", op=t.Map(bounded))))


def test_10_narrow_sums() -> None:
    half = t.Type((I, J), "bf16")
    refuses(faults.PrecisionError, let("qk", type=half), "accumulated in bf16", causal("bf16"))
    early = t.Let("early", t.Type((I, J), "bf16"), t.Cast("qk"))
    late = t.Let("late", t.Type((I, J), "f32"), t.Map(op("mul", rvar("early"), 2.0)))
    with pytest.raises(faults.PrecisionError, match="early was narrowed"):
        verify(before("top", early, late))


# --- 11: partitions ---------------------------------------------------------------------------------------------------


def parts(change: Callable[[t.Partitions], t.Stmt]) -> Change:
    return lambda s: change(s) if isinstance(s, t.Partitions) else s


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: None if isinstance(s, t.BarArrive) else s, "nothing signals the barrier empty"),
        (lambda s: None if isinstance(s, t.BarWait) and s.bar.name == "full" else s, "nothing waits for"),
        (lambda s: t.BarArrive(s.bar) if isinstance(s, t.BarExpect) else s, "expects no bytes"),
        (lambda s: None if isinstance(s, t.AllocBar) and s.name == "full" else s, "full is not allocated"),
        (lambda s: replace(s, depth=2000) if isinstance(s, t.AllocShared) else s, "bytes of shared memory"),
        (
            parts(lambda s: swap(s, parts=tuple(replace(p, registers=256) for p in s.parts) * 2)),
            "second time|registers",
        ),
        (parts(lambda s: swap(s, parts=tuple(replace(p, registers=20) for p in s.parts))), "multiple of 8"),
    ],
)
def test_11_partitions(change: Change, match: str) -> None:
    with pytest.raises((faults.PartitionError, faults.ScopeError), match=match):
        verify(altered(ring(), change))


def test_11_register_values_and_producers() -> None:
    kernel = ring().kernels[0]
    wide = t.Type((t.Axis("e", 8),), "i32")
    outside = t.Let("outside", wide, t.Iota(int_(0)))

    def with_body(*body: t.Stmt) -> t.Program:
        return replace(ring(), kernels=(replace(kernel, body=body),))

    inside = altered(ring(), let("e", op=t.Map(ivar("outside")))).kernels[0].body
    with pytest.raises(faults.PartitionError, match="outside lies in registers"):
        verify(with_body(outside, *inside))
    with pytest.raises(faults.PartitionError, match="statements follow"):
        verify(with_body(*kernel.body, t.Fence()))
    copy = t.CopyIn(t.Slot("x_s", ivar("m")), "x", (int_(0), int_(0)), t.Bar("full", ivar("m")))
    second = altered(
        ring(), lambda s: replace(s, body=(copy, *s.body)) if isinstance(s, t.For) and s.index == "m" else s
    )
    with pytest.raises(faults.PartitionError, match="x_s is written by load and by double"):
        verify(second)


# --- 12, 13, 14: programs --------------------------------------------------------------------------------------------


def test_12_steps() -> None:
    program = causal()
    out, lse, launch = program.steps
    with pytest.raises(faults.StoreError, match="launched before lse exists"):
        verify(replace(program, steps=(out, launch, lse)))
    with pytest.raises(faults.StoreError, match="no step writes the output"):
        verify(replace(program, steps=(out, lse)))
    with pytest.raises(faults.StoreError, match="2 launches store the output"):
        verify(replace(program, steps=(out, lse, launch, launch)))
    with pytest.raises(faults.StoreError, match="lse is allocated a second time"):
        verify(replace(program, steps=(out, lse, lse, launch)))
    with pytest.raises(faults.StoreError, match="SumAxes reads lse before"):
        summed = t.SumAxes(t.Tensor("x", ("b",), (ivar("B"),), "f32"), "lse", ("h", "i"))
        verify(replace(program, steps=(out, lse, summed, launch)))


def test_13_the_backward_reads_what_the_forward_reads() -> None:
    forward = causal()
    assert used_inputs(forward) == {"q", "k", "v"} and used_scalars(forward) == {*"BHGMN", "scale"}
    backward = replace(forward, name="backward", outputs=("d_q", "d_k", "d_v"))
    verify_pair(forward, backward)
    kernel = backward.kernels[0]
    lost = replace(backward, kernels=(replace(kernel, body=tuple(s for s in kernel.body if not isinstance(s, t.For))),))
    with pytest.raises(faults.PairError, match="never reads the tensor k, v"):
        verify_pair(forward, lost)
    no_scale = replace(kernel, scalars=("H", "G", "M", "N"))
    with pytest.raises(faults.PairError, match="constant scale"):
        verify_pair(forward, replace(backward, kernels=(no_scale,)))
    verify_pair(forward, replace(lost, outputs=("d_v",)))


@pytest.mark.parametrize(
    "axis",
    [
        t.GridAxis("i0", ivar("M"), "tile", 16, ""),
        t.GridAxis("i0", ivar("M"), "tile", 0, "i"),
        t.GridAxis("i0", ivar("h"), "tile", 16, "i"),
        t.GridAxis("i0", int_(2**40), "tile", 16, "i"),
        t.GridAxis("h", ivar("M"), "tile", 16, "i"),
    ],
)
def test_14_grids(axis: t.GridAxis) -> None:
    kernel = ring().kernels[0]
    grid = (axis, t.GridAxis("h", ivar("H"), "batch"))
    program = replace(
        ring(), scalars=(t.Scalar("M", "int"), t.Scalar("H", "int")), kernels=(replace(kernel, grid=grid),)
    )
    with pytest.raises(faults.GridError, match="kernel ring"):
        grids_fit(Checked(program), program.kernels[0])


def test_truth_values_may_be_named() -> None:
    """A guard that is a named value is looked through."""
    inside = t.Let("inside", t.Type((J,), "bool"), t.Map(op("lt", ivar("j"), N)))
    program = altered(before("kt", inside), load("kt", guard=Var("inside", "bool")))
    verify(program)
    assert not unproved(program)
