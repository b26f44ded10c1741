"""Kernels printed as PyTorch: small hand-built programs, what is printed for them, and what it computes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.codegen.torch_printer import print_module
from attncc.expr.build import FALSE, TRUE, ivar, lift, op, rvar
from attncc.expr.nodes import Const, Expr
from attncc.tile import nodes as t

B, H, M, N = (ivar(n) for n in "BHMN")
b, h, i, j, r, d = (ivar(n) for n in "bhijrd")
NEVER = Const(float("-inf"), "real")
I, J, D = t.Axis("i", 4), t.Axis("j", 4), t.Axis("d", 3)
F32: t.Dtype = "f32"


def tensor(name: str, axes: str, *extents: Expr, dtype: t.Dtype = F32) -> t.Tensor:
    return t.Tensor(name, tuple(axes), extents, dtype, strided=True)


def over(*axes: t.Axis, dtype: t.Dtype = F32) -> t.Type:
    return t.Type(axes, dtype)


Q = tensor("q", "bhid", B, H, M, lift(3))
K = tensor("k", "bhjd", B, H, N, lift(3))
GRID = (t.GridAxis("i0", M, "tile", 4, "i"), t.GridAxis("h", H, "batch"), t.GridAxis("b", B, "batch"))
ROWS = t.Let("r", over(I, dtype="i32"), t.Iota(ivar("i0")))
KEYS = t.Let("j", over(J, dtype="i32"), t.Iota(ivar("j0")))
CHANNELS = t.Let("d", over(D, dtype="i32"), t.Iota(lift(0)))


def program(
    body: tuple[t.Stmt, ...], *inputs: t.Tensor, out: t.Tensor, grid: tuple[t.GridAxis, ...] = GRID
) -> t.Program:
    scalars = tuple(t.Scalar(n, "int") for n in "BHMN")
    kernel = t.Kernel("only", grid, (*(x.name for x in inputs), out.name), tuple("BHMN"), body)
    return t.Program("main", inputs, scalars, (kernel,), (t.Alloc(out, 0.0), t.Launch("only")), (out.name,))


def run(p: t.Program, *args: torch.Tensor, room: int = 1 << 24) -> tuple[torch.Tensor, str]:
    """The one output, and the printed kernel; a small `room` cuts the batch."""
    text = print_module(p, None, "a test")
    ast.parse(text)
    scope: dict[str, Any] = {}
    exec(compile(text, "printed", "exec"), scope)
    scope["_ROOM"] = room
    (result,) = scope["main"](*args)
    return result, text[text.index("def only_kernel") : text.index("@torch.no_grad")]


def load(name: str, tensor: str, *index: Expr, type: t.Type, guard: Expr = TRUE, other: float = 0) -> t.Let:
    return t.Let(name, type, t.Load(tensor, index, guard, other))


def let(name: str, body: Expr, *axes: t.Axis, dtype: t.Dtype = F32) -> t.Let:
    return t.Let(name, over(*axes, dtype=dtype), t.Map(body))


OUT_ROWS = tensor("out", "bhid", B, H, M, lift(3))


def rowwise(*body: t.Stmt) -> t.Program:
    """x[i, d] of every program through `body` to y."""
    start = (ROWS, CHANNELS, load("x", "q", b, h, r, d, type=over(I, D), guard=op("lt", r, M)))
    store = t.Store("out", (b, h, r, d), "y", op("lt", r, M))
    return program((*start, *body, store), Q, K, out=OUT_ROWS)


X = torch.randn(2, 3, 7, 3)
Y = torch.randn(2, 3, 5, 3)
x, y = rvar("x"), rvar("y")


# --- in place -------------------------------------------------------------------------------------------------------


def test_input_is_never_written() -> None:
    before = X.clone()
    got, text = run(rowwise(let("y", op("exp2", op("mul", x, 2.0)), I, D)), X, Y)
    assert torch.equal(X, before)
    torch.testing.assert_close(got, torch.exp2(X * 2))
    assert ".exp2_()" in text  # the product is a tensor of ours


def test_value_read_again_survives() -> None:
    body = (let("a", op("mul", x, 3.0), I, D), let("e", op("exp2", rvar("a")), I, D))
    got, text = run(rowwise(*body, let("y", op("add", rvar("a"), rvar("e")), I, D)), X, Y)
    torch.testing.assert_close(got, 3 * X + torch.exp2(3 * X))
    assert "exp2_" not in text


def test_fill_in_place_turns_the_mask_round() -> None:
    mask = op("and", op("le", r, op("add", d, 1)), op("lt", d, 2))
    body = (let("a", op("mul", x, 3.0), I, D), let("y", op("where", mask, rvar("a"), NEVER), I, D))
    got, text = run(rowwise(*body), X, Y)
    rows, columns = torch.arange(7)[:, None], torch.arange(3)
    torch.testing.assert_close(got, (3 * X).masked_fill(~((rows <= columns + 1) & (columns < 2)), -torch.inf))
    assert "masked_fill_(" in text and "~" not in text


def test_product_of_narrow_operands_joins_the_sum() -> None:
    body = (
        let("a", op("mul", x, 3.0), I, D),
        t.Let("u", over(I), t.Reduce("max", "x", "d")),
        t.Let("f", over(D), t.Map(op("real", d))),
        let("y", op("add", rvar("a"), op("mul", rvar("u"), rvar("f"))), I, D),
    )
    got, text = run(rowwise(*body), X, Y)
    torch.testing.assert_close(got, 3 * X + X.amax(-1, keepdim=True) * torch.arange(3.0))
    assert "addcmul_(" in text


reals = st.recursive(
    st.sampled_from([x, rvar("u"), rvar("f"), rvar("a"), lift(0.5), lift(2.0)]),
    lambda e: st.one_of(
        st.builds(op, st.sampled_from(["add", "sub", "mul", "min", "max"]), e, e),
        st.builds(op, st.sampled_from(["neg", "abs", "tanh", "sigmoid", "square"]), e),
        st.builds(lambda c, p, q: op("where", op("lt", r, c), p, q), st.sampled_from([d, lift(2)]), e, e),
    ),
    max_leaves=10,
)


def value(e: Expr, env: dict[str, torch.Tensor]) -> torch.Tensor:
    """An expression in plain torch, one operation after another."""
    args = [value(a, env) for a in getattr(e, "args", ())]
    functions: dict[str, Any] = {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "min": torch.minimum, "max": torch.maximum,
        "neg": torch.neg, "abs": torch.abs, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "square": torch.square,
        "lt": torch.lt, "where": torch.where, "real": lambda v: v.float(),
    }  # fmt: skip
    if isinstance(e, Const):
        return torch.tensor(e.value)
    name: str = e.name  # type: ignore[attr-defined]
    return env[name] if not args else functions[name](*args)


@settings(max_examples=150, deadline=None)
@given(st.lists(reals, min_size=1, max_size=3))
def test_random_expressions(bodies: list[Expr]) -> None:
    """Several Lets over the same operands, added up: what is overwritten is never read again."""
    lets = [let(f"p{n}", op("add", op("mul", e, 1.5), x), I, D) for n, e in enumerate(bodies)]
    total: Expr = rvar("p0")
    for n in range(1, len(bodies)):
        total = op("add", op("tanh", rvar(f"p{n}")), total)
    start = (
        t.Let("u", over(I), t.Reduce("max", "x", "d")),
        t.Let("f", over(D), t.Map(op("real", d))),
        let("a", op("mul", x, 0.5), I, D),
    )
    got, _ = run(rowwise(*start, *lets, let("y", total, I, D)), X, Y)
    env = {"x": X, "u": X.amax(-1, keepdim=True), "f": torch.arange(3.0), "a": X * 0.5}
    env |= {"r": torch.arange(7)[:, None], "d": torch.arange(3)}
    for n, e in enumerate(bodies):
        env[f"p{n}"] = (value(e, env) * 1.5 + X).expand(X.shape)
    torch.testing.assert_close(got, value(total, env).expand(X.shape))


# --- loops ----------------------------------------------------------------------------------------------------------


def summed(over_: t.Ranges | t.Count, order: str = "any", masked: Expr = TRUE) -> t.Program:
    """out[i] = sum over the visited keys of q[i] . k[j]."""
    dot = t.Let("s", over(I, J), t.Dot("x", "y", "d"))
    kept = let("w", op("where", masked, op("mul", rvar("s"), 0.25), 0.0), I, J)
    part = t.Let("part", over(I), t.Reduce("sum", "w", "j"))
    keys = load("y", "k", b, h, j, d, type=over(J, D), guard=op("lt", j, N))
    turn = (KEYS, keys, dot, kept, part, let("new", op("add", rvar("acc"), rvar("part")), I), t.Yield(("new",)))
    loop = t.For("j0", over_, (t.Carry("acc", over(I), "zero"),), turn, "j", order)  # type: ignore[arg-type]
    body = (
        ROWS,
        CHANNELS,
        load("x", "q", b, h, r, d, type=over(I, D), guard=op("lt", r, M)),
        t.Let("zero", over(I), t.Full(lift(0.0))),
        t.Let("first", over(), t.Load("lo", (b,))) if isinstance(over_, t.Ranges) else ROWS,
        loop,
        t.Store("out", (b, h, r), "acc", op("lt", r, M)),
    )
    lo = t.Tensor("lo", ("b",), (B,), "i32")
    return program(body, Q, K, lo, out=tensor("out", "bhi", B, H, M))


def ranges(*pieces: t.Piece, full: bool = False) -> t.Ranges:
    return t.Ranges(4, N, pieces, full)


SCORES = torch.einsum("bhid,bhjd->bhij", X, Y) * 0.25
LO = torch.tensor([0, 1], dtype=torch.int32)


@pytest.mark.parametrize("order", ["any", "asc", "desc"])
def test_loop_stops_at_the_extent(order: str) -> None:
    got, _ = run(summed(ranges(t.Interval(lift(0), lift(2))), order), X, Y, LO)
    torch.testing.assert_close(got, SCORES.sum(-1))


def test_pieces_are_visited_once() -> None:
    pieces = (t.Interval(lift(1), lift(2)), t.Interval(lift(0), lift(1)), t.Interval(lift(2), lift(1)))
    got, _ = run(summed(ranges(*pieces)), X, Y, LO)
    torch.testing.assert_close(got, SCORES.sum(-1))


def test_strided_pieces() -> None:
    keys = torch.randn(2, 3, 23, 3)
    runs = t.Strided(lift(1), lift(1), lift(2), lift(3))
    got, _ = run(summed(ranges(runs)), X, keys, LO)
    seen = [n for n in range(23) if n // 4 in (1, 3, 5)]
    torch.testing.assert_close(got, torch.einsum("bhid,bhjd->bhi", X, keys[:, :, seen]) * 0.25)


def test_bounds_that_vary_with_the_batch_are_widened() -> None:
    """Row b needs keys from 4 * lo[b] on: the loop visits the union, and the predicate keeps each row's own."""
    first = ivar("first")
    own = op("le", op("mul", first, 4), j)
    got, text = run(summed(ranges(t.Interval(first, lift(2))), masked=own), X, Y, LO)
    want = torch.stack([SCORES[0].sum(-1), SCORES[1, :, :, 4:].sum(-1)])
    torch.testing.assert_close(got, want)
    assert ".min()" in text


def test_full_tiles_are_those_full_for_every_batch() -> None:
    got, text = run(summed(ranges(t.Interval(ivar("first"), lift(2)), full=True)), X, Y, LO)
    torch.testing.assert_close(got, SCORES[..., 4:].sum(-1))
    assert ".max()" in text


def test_neighbouring_tiles_are_taken_together() -> None:
    _, text = run(summed(ranges(t.Interval(lift(0), lift(2)))), X, Y, LO)
    assert "_pieces(32768, (0, min(2 * 4, N)))" in text


def test_uneven_counts_walk_the_batch() -> None:
    """A plain count that differs between rows of the batch can't be batched."""
    size = t.Let("size", over(), t.Load("lo", (b,)))
    turn = (let("new", op("add", rvar("acc"), 1.0), I), t.Yield(("new",)))
    loop = t.For("n", t.Count(lift(0), ivar("size")), (t.Carry("acc", over(I), "zero"),), turn)
    start = (ROWS, t.Let("zero", over(I), t.Full(lift(0.0))), size)
    body = (*start, loop, t.Store("out", (b, h, r), "acc", op("lt", r, M)))
    lo = t.Tensor("lo", ("b",), (B,), "i32")
    p = program(body, Q, K, lo, out=tensor("out", "bhi", B, H, M))
    got, _ = run(p, X, Y, LO)
    assert torch.equal(got, LO.float()[:, None, None].expand(2, 3, 7))


def test_carried_values_may_change_places() -> None:
    turn = (t.Yield(("second", "first")),)
    carried = (t.Carry("first", over(I), "zero"), t.Carry("second", over(I), "one"))
    start = (ROWS, t.Let("zero", over(I), t.Full(lift(0.0))), t.Let("one", over(I), t.Full(lift(1.0))))
    loop = t.For("n", t.Count(lift(0), lift(3)), carried, turn)
    body = (*start, loop, t.Store("out", (b, h, r), "first", op("lt", r, M)))
    got, _ = run(program(body, Q, K, out=tensor("out", "bhi", B, H, M)), X, Y)
    assert bool((got == 1).all())


def test_one_start_for_two_carried_values() -> None:
    turn = (
        let("a2", op("add", rvar("a"), 1.0), I),
        let("c2", op("add", rvar("c"), rvar("a2")), I),
        t.Yield(("a2", "c2")),
    )
    carried = (t.Carry("a", over(I), "zero"), t.Carry("c", over(I), "zero"))
    loop = t.For("n", t.Count(lift(0), lift(3)), carried, turn)
    start = (ROWS, t.Let("zero", over(I), t.Full(lift(0.0))))
    body = (*start, loop, t.Store("out", (b, h, r), "c", op("lt", r, M)))
    got, _ = run(program(body, Q, K, out=tensor("out", "bhi", B, H, M)), X, Y)
    assert bool((got == 6).all())


def test_product_that_is_carried_leaves_lent_memory() -> None:
    """A large product in kept memory is copied before the next turn writes there."""
    wide = t.Axis("j", 4096)
    keys = t.Let("j", over(wide, dtype="i32"), t.Iota(ivar("j0")))
    dot = t.Let("s", over(I, wide), t.Dot("x", "y", "d"))
    turn = (keys, load("y", "k", b, h, j, d, type=over(wide, D)), dot, t.Yield(("s",)))
    scope = t.Ranges(4096, lift(4096), (t.Interval(lift(0), lift(1)),))
    loop = t.For("j0", scope, (t.Carry("last", over(I, wide), "zero"),), turn, "j", "asc")
    total = t.Let("total", over(I), t.Reduce("sum", "last", "j"))
    start = (ROWS, CHANNELS, load("x", "q", b, h, r, d, type=over(I, D)))
    zero = t.Let("zero", over(I, wide), t.Full(lift(0.0)))
    body = (*start, zero, loop, total, t.Store("out", (b, h, r), "total", op("lt", r, M)))
    keys_ = torch.randn(2, 3, 4096, 3)
    got, text = run(program(body, Q, K, out=tensor("out", "bhi", B, H, M)), X, keys_)
    torch.testing.assert_close(got, torch.einsum("bhid,bhjd->bhi", X, keys_), rtol=1e-4, atol=1e-3)
    assert "_part(room_0" in text and "s.clone()" in text


def test_branches_give_their_values_back() -> None:
    later = op("lt", 3, ivar("i0"))
    then = (let("p", op("mul", x, 2.0), I, D), t.Yield(("p",)))
    orelse = (t.Yield(("x",)),)
    branch = t.If(later, then, orelse, (t.Carry("y", over(I, D), ""),))
    got, _ = run(rowwise(branch), X, Y)
    want = X.clone()
    want[:, :, 4:] *= 2
    assert torch.equal(got, want)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_heads_that_share_keys() -> None:
    """k has a third of q's heads: h // 3 repeats each, and h = g * 3 + n takes one in three."""
    g, share = ivar("g"), op("floordiv", H, lift(3))
    grouped = t.Tensor("k", ("b", "g", "j", "d"), (B, share, N, lift(3)), "f32", strided=True)
    row = load("y", "k", b, op("floordiv", h, lift(3)), lift(0), d, type=over(D))
    total = let("y2", op("add", x, y), I, D)
    start = (ROWS, CHANNELS, load("x", "q", b, h, r, d, type=over(I, D)))
    body = (*start, row, total, t.Store("out", (b, h, r, d), "y2", op("lt", r, M)))
    q, k = torch.randn(2, 6, 7, 3), torch.randn(2, 2, 5, 3)
    got, _ = run(program(body, Q, grouped, out=OUT_ROWS), q, k)
    torch.testing.assert_close(got, q + k.repeat_interleave(3, 1)[:, :, :1])

    head = op("add", op("mul", g, lift(3)), ivar("n"))
    turn = (
        load("x", "q", b, head, r, d, type=over(I, D)),
        let("new", op("add", rvar("acc"), x), I, D),
        t.Yield(("new",)),
    )
    loop = t.For("n", t.Count(lift(0), lift(3)), (t.Carry("acc", over(I, D), "zero"),), turn)
    grid = (GRID[0], t.GridAxis("g", share, "batch"), GRID[2])
    zero = t.Let("zero", over(I, D), t.Full(lift(0.0)))
    out = t.Tensor("out", ("b", "g", "i", "d"), (B, share, M, lift(3)), "f32")
    store = t.Store("out", (b, g, r, d), "acc", op("lt", r, M))
    got, _ = run(program((ROWS, CHANNELS, zero, loop, store), Q, grouped, out=out, grid=grid), q, k)
    torch.testing.assert_close(got, q.view(2, 2, 3, 7, 3).sum(2))


def test_guarded_loads_never_leave_the_tensor() -> None:
    """i = r + N - M is negative for the first rows: those lanes read `other`."""
    place = op("add", r, op("sub", N, M))
    at = let("i", place, I, dtype="i32")
    lane = load("u", "ids", b, i, type=over(I), guard=op("le", 0, i), other=-5)
    body = (ROWS, CHANNELS, load("x", "q", b, h, r, d, type=over(I, D)), at, lane)
    total = (let("y", op("add", x, rvar("u")), I, D), t.Store("out", (b, h, r, d), "y", op("lt", r, M)))
    ids = tensor("ids", "bn", B, N)
    p = program((*body, *total), Q, K, ids, out=OUT_ROWS)
    for n in (5, 0):
        keys, values = torch.randn(2, 3, n, 3), torch.randn(2, n)
        got, _ = run(p, X, keys, values)
        lanes = torch.cat([torch.full((2, 7 - n), -5.0), values], 1)
        torch.testing.assert_close(got, X + lanes[:, None, :, None])


def test_addition_sums_what_the_index_lacks() -> None:
    """out[h] += x: every batch, row and channel of a head meets in one number."""
    total = (t.Let("u", over(I), t.Reduce("sum", "x", "d")), t.Let("y", over(), t.Reduce("sum", "u", "i")))
    body = (ROWS, CHANNELS, load("x", "q", b, h, r, d, type=over(I, D)), *total)
    add = t.ReduceAdd("out", (h,), "y", "ordered")
    got, _ = run(program((*body, add), Q, K, out=tensor("out", "h", H)), X, Y)
    torch.testing.assert_close(got, X.sum((0, 2, 3)))


def test_addition_where_an_index_points() -> None:
    """out[h, (r + d) % 2] += x."""
    place = let("at", op("mod", op("add", r, d), 2), I, D, dtype="i32")
    body = (ROWS, CHANNELS, load("x", "q", b, h, r, d, type=over(I, D)), place)
    add = t.ReduceAdd("out", (h, ivar("at")), "x", "atomic", op("lt", r, 6))
    got, _ = run(program((*body, add), Q, K, out=tensor("out", "ho", H, lift(2))), X, Y)
    odd = (torch.arange(7)[:, None] + torch.arange(3)) % 2
    want = torch.stack([(X * (odd == n))[:, :, :6].sum((0, 2, 3)) for n in (0, 1)], 1)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_arithmetic_is_as_wide_as_the_accumulator(dtype: torch.dtype) -> None:
    kinds: dict[torch.dtype, t.Dtype] = {torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16"}
    kind = kinds[dtype]
    wide: t.Dtype = "f64" if kind == "f64" else "f32"
    q = t.Tensor("q", ("b", "h", "i", "d"), (B, H, M, lift(3)), kind, strided=True)
    body = (
        ROWS,
        CHANNELS,
        load("x", "q", b, h, r, d, type=over(I, D, dtype=kind)),
        t.Let("w", over(I, D, dtype=wide), t.Cast("x")),
        t.Let("y", over(I, dtype=wide), t.Reduce("sum", "w", "d")),
        t.Store("out", (b, h, r), "y", op("lt", r, M)),
    )
    out = t.Tensor("out", ("b", "h", "i"), (B, H, M), wide)
    x_ = torch.randn(2, 3, 7, 3).to(dtype)
    got, _ = run(program(body, q, K, out=out), x_, Y)
    torch.testing.assert_close(got, x_.to(got.dtype).sum(-1))


@pytest.mark.parametrize("shape", [(0, 3, 7, 3), (2, 0, 7, 3), (2, 3, 0, 3)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    got, _ = run(rowwise(let("y", op("mul", x, 2.0), I, D)), torch.randn(shape), torch.randn(*shape[:2], 5, 3))
    assert got.shape == shape


@pytest.mark.parametrize("room", [1, 1 << 18, 1 << 24])
def test_large_batches_are_cut(room: int) -> None:
    """Heads are taken a part at a time; the parts cover all, and bounds are those of a part."""
    q, k = torch.randn(3, 50, 7, 3), torch.randn(3, 50, 5, 3)
    got, _ = run(rowwise(let("y", op("mul", x, 2.0), I, D)), q, k, room=room)
    assert torch.equal(got, q * 2)
    own = op("le", op("mul", ivar("first"), 4), j)
    p = summed(ranges(t.Interval(ivar("first"), lift(2))), masked=own)
    got, _ = run(p, q, k, torch.tensor([1, 0, 2], dtype=torch.int32), room=room)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.25
    want = torch.stack([scores[0, :, :, 4:].sum(-1), scores[1].sum(-1), torch.zeros(50, 7)])
    torch.testing.assert_close(got, want)


def test_conditions_that_folding_decides() -> None:
    body = (let("y", op("where", op("or", FALSE, op("lt", r, M)), x, 7.0), I, D),)
    got, text = run(rowwise(*body), X, Y)
    assert torch.equal(got, X) and "where" not in text and "arange" not in text


def test_printed_text_is_formatted(tmp_path: Path) -> None:
    """Long calls stand on several lines, as the formatter would put them."""
    wide = [let(f"p{n}", op("exp", op("mul", x, n + 0.5)), I, D) for n in range(3)]
    both = let("y", op("add", rvar("p0"), op("mul", rvar("p1"), rvar("p2"))), I, D)
    pieces = (t.Interval(op("floordiv", op("add", M, n), 4), op("add", M, N)) for n in range(4))
    for name, p in (("rows", rowwise(*wide, both)), ("loop", summed(ranges(*pieces)))):
        path = tmp_path / f"{name}.py"
        path.write_text(print_module(p, None, "a test"))
        command = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--line-length", "120", str(path)]
        assert subprocess.run(command, capture_output=True).returncode == 0, path.read_text()
