"""Host functions: printed, executed with recording launches, and compared with plain torch."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.codegen.host import LAUNCH, helpers, print_host
from attncc.codegen.scalars import PRODUCT, python_name, spell
from attncc.codegen.signature import Arg, constants, kernel_function, signature, sizes
from attncc.codegen.writer import Writer
from attncc.expr.build import ivar, lift, op, rvar
from attncc.expr.nodes import Expr, Var
from attncc.tile.nodes import (
    Alloc,
    FirstLast,
    Gather,
    GridAxis,
    Kernel,
    Launch,
    Program,
    Scalar,
    ScatterAdd,
    Step,
    SumAxes,
    Tensor,
)

B, H, M, N = (ivar(n) for n in "BHMN")


def run(program: Program, *args: torch.Tensor, **named: Any) -> tuple[torch.Tensor, ...]:
    """The printed function of `program` called; launches are recorded in `run.launches`."""
    w = Writer()
    for text in helpers(program):
        w.lines(text)
    print_host(w, program)
    scope: dict[str, Any] = {"torch": torch, "math": math}
    launched: list[Any] = []
    scope.update({kernel_function(k): k.name for k in program.kernels})
    scope["_launch"] = lambda *a, **k: launched.append((*a, k))
    exec(w.text(), scope)
    result: tuple[torch.Tensor, ...] = scope[program.name](*args, **named)
    run.launches = launched  # type: ignore[attr-defined]
    return result


def tensor(name: str, axes: str, extents: tuple[Expr, ...], dtype: str = "f32", **more: Any) -> Tensor:
    return Tensor(name, tuple(axes), extents, dtype, **more)  # type: ignore[arg-type]


def simple(steps: tuple[Step, ...], *outputs: str, inputs: tuple[Tensor, ...], scalars: str = "BHMN") -> Program:
    return Program("host", inputs, tuple(Scalar(s, "int") for s in scalars), (), steps, outputs)


D8 = lift(8)
Q = tensor("q", "bhid", (B, H, M, D8), strided=True)


def test_launch_passes_pointers_strides_and_scalars() -> None:
    half = Scalar("half", "real", op("mul", rvar("cap"), 0.5))
    grid = (GridAxis("i0", M, "tile", 64, "i"), GridAxis("h", H, "batch"), GridAxis("b", B, "batch"))
    lse = tensor("lse", "bhi", (B, H, M))
    kernel = Kernel("forward_kernel", grid, ("q", "lse"), ("M", "half"), ())
    scalars = (*(Scalar(n, "int") for n in "BHM"), Scalar("cap", "real"), half)
    program = Program(
        "host", (Q,), scalars, (kernel,), (Alloc(lse, fill=-math.inf), Launch("forward_kernel")), ("lse",)
    )
    assert sizes(program) == {"B": ("q", 0), "H": ("q", 1), "M": ("q", 2)}
    assert [s.name for s in constants(program)] == ["cap"]
    assert signature(program, kernel) == (
        Arg("pointer", "q", "*fp32", 16, "q"),
        *(Arg("stride", f"q_s{a}", "i64", 4) for a in "bhi"),
        Arg("pointer", "lse", "*fp32", 16, "lse"),
        Arg("scalar", "M", "i32"),
        Arg("scalar", "half", "fp32"),
    )
    q = torch.randn(2, 100, 3, 8).transpose(1, 2)
    (out,) = run(program, q, cap=3.0)
    assert out.shape == (2, 3, 100) and bool((out == -math.inf).all())
    ((name, count, args, config),) = run.launches  # type: ignore[attr-defined]
    assert (name, count, config) == ("forward_kernel", 2 * 3 * 2, {"warps": 4, "stages": 2})
    assert args[0] is q and args[1:4] == q.stride()[:3] and args[4] is out and args[5:] == (100, 1.5)


def test_launch_default_is_python() -> None:
    scope: dict[str, Any] = {}
    exec(LAUNCH, scope)
    seen: list[Any] = []

    class Fake:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *a, **k: seen.append((grid, a, k))

    scope["_launch"](Fake(), 0, (1,), warps=4, stages=2)
    scope["_launch"](Fake(), 3, (1, 2), warps=8, stages=1)
    assert seen == [((3,), (1, 2), {"num_warps": 8, "num_stages": 1})]


def test_unaligned_and_scattered_strides() -> None:
    odd = tensor("q", "bhid", (B, H, M, D8), "bf16", strided=True, unit=False, aligned=False)
    program = Program("p", (odd,), (), (k := Kernel("k", (), ("q",), (), ()),), (), ())
    assert signature(program, k) == (
        Arg("pointer", "q", "*bf16", 0, "q"),
        *(Arg("stride", f"q_s{a}", "i64", 0) for a in "bhid"),
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (3, 2, 1, 0)])
@pytest.mark.parametrize("extent", [8, 5])
def test_alloc_like_keeps_the_order_of_strides(order: tuple[int, ...], extent: int) -> None:
    out = tensor("out", "bhie", (B, H, M, lift(extent)), strided=True)
    shape = (2, 3, 7, 8)
    q = torch.empty([shape[a] for a in order]).permute([order.index(a) for a in range(4)])
    (got,) = run(simple((Alloc(out, like="q"),), "out", inputs=(Q,), scalars="BHM"), q)
    assert got.shape == (2, 3, 7, extent)
    assert sorted(range(4), key=got.stride, reverse=True) == sorted(range(4), key=q.stride, reverse=True)


def test_alloc_like_a_broadcast_tensor_is_dense_with_unit_rows() -> None:
    out = tensor("out", "bhie", (B, H, M, lift(5)), strided=True)
    q = torch.empty(2, 1, 7, 8).expand(2, 3, 7, 8)
    (got,) = run(simple((Alloc(out, fill=0.0, like="q"),), "out", inputs=(Q,), scalars="BHM"), q)
    assert got.is_contiguous() and got.stride(-1) == 1 and not got.any()


class Made:
    """A tensor on any device."""

    def to(self, device: torch.device) -> Made:
        return self


def test_zeros_that_launches_leave_are_made_once_a_stream() -> None:
    counter = Tensor("taken", ("one",), (lift(1),), "i32")
    program = simple((Alloc(counter, fill=0.0, kept=True),), "taken", inputs=(Q,), scalars="BHM")
    assert run(program, torch.ones(1, 1, 1, 8))[0].tolist() == [0]
    seen = SimpleNamespace(cuda_stream=1, captured=False)
    cuda = SimpleNamespace(is_current_stream_capturing=lambda: seen.captured, current_stream=lambda device: seen)
    scope: dict[str, Any] = {"torch": SimpleNamespace(zeros=lambda *_, **__: Made(), int32=torch.int32, cuda=cuda)}
    w = Writer()
    for text in helpers(program):
        w.lines(text)
    exec(w.text(), scope)

    def taken(stream: int, captured: bool) -> Any:
        seen.cuda_stream, seen.captured = stream, captured
        return scope["_zeros_kept"]((1,), torch.int32, torch.device("cuda", 0))

    one, again, two, graph, other = (taken(*x) for x in ((1, False), (1, False), (2, False), (1, True), (1, True)))
    assert one is again and len({id(x) for x in (one, two, graph, other)}) == 4 and taken(1, False) is one


def test_gather_and_its_adjoint() -> None:
    # out[h, n] = table[max(n - 3, 0) // 2, h]
    place = op("floordiv", op("max", op("sub", ivar("n"), 3), 0), 2)
    table = tensor("table", "th", (M, H))
    out = tensor("out", "hn", (H, N))
    back = tensor("back", "th", (M, H))
    other = tensor("x", "n", (N,))
    index: tuple[Expr, ...] = (place, ivar("h"))
    twice = ScatterAdd(back, "out", index, add=True)
    steps = (Gather(out, "table", index), ScatterAdd(back, "out", index), twice)
    program = simple(steps, "out", "back", inputs=(table, other), scalars="MHN")
    t, x = torch.randn(6, 2), torch.zeros(11)
    got, adjoint = run(program, t, x)
    rows = torch.tensor([max(n - 3, 0) // 2 for n in range(11)])
    assert torch.equal(got, t[rows].T)
    assert torch.allclose(adjoint, 2 * torch.zeros(6, 2).index_add_(0, rows, t[rows]))


def test_gather_of_a_logarithm_is_exact() -> None:
    bucket = op("floor", op("div", op("log2", op("real", op("add", ivar("n"), 1))), 1.0))
    table, out, x = tensor("table", "t", (M,), "i64"), tensor("out", "n", (N,), "i64"), tensor("x", "n", (N,))
    program = simple((Gather(out, "table", (bucket,)),), "out", inputs=(table, x), scalars="MN")
    (got,) = run(program, torch.arange(20), torch.zeros(1024))
    assert got.tolist() == [(n + 1).bit_length() - 1 for n in range(1024)]


def test_sum_axes_orders_and_casts() -> None:
    part = tensor("part", "bhi", (B, H, M))
    out = tensor("out", "ih", (M, H), "bf16")
    x = torch.randn(3, 4, 5)
    (got,) = run(simple((SumAxes(out, "part", ("b",)),), "out", inputs=(part,), scalars="BHM"), x)
    assert got.is_contiguous() and torch.equal(got, x.sum(0).T.to(torch.bfloat16))


ids = st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(ids)
def test_first_and_last_of_ids(rows: list[list[int]]) -> None:
    source = tensor("ids", "bn", (B, N), "i64")
    made = {k: tensor(k, "bn", (B, N), "i32") for k in ("first", "last", "run_first", "run_last")}
    steps = tuple(FirstLast(t, "ids", k) for k, t in made.items())  # type: ignore[arg-type]
    got = run(simple(steps, *made, inputs=(source,), scalars="BN"), torch.tensor(rows))
    first, last, run_first, run_last = (t.tolist() for t in got)
    for r, row in enumerate(rows):
        for n, x in enumerate(row):
            assert first[r][n] == row.index(x)
            assert last[r][n] == len(row) - 1 - row[::-1].index(x)
            assert all(row[m] == x for m in range(run_first[r][n], run_last[r][n] + 1))
            assert run_first[r][n] <= n <= run_last[r][n]
            assert run_first[r][n] == 0 or row[run_first[r][n] - 1] != x
            assert run_last[r][n] == len(row) - 1 or row[run_last[r][n] + 1] != x


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (2, 3, 4)])
def test_first_last_of_no_positions_or_more_axes(shape: tuple[int, ...]) -> None:
    extents = (B, H, N)[: len(shape)]
    source = tensor("ids", "bhn"[: len(shape)], extents, "i32")
    out = tensor("out", "bhn"[: len(shape)], extents, "i32")
    program = simple((FirstLast(out, "ids", "last"),), "out", inputs=(source,), scalars="BHN"[: len(shape)])
    (got,) = run(program, torch.zeros(shape, dtype=torch.int32))
    assert got.shape == shape and got.dtype == torch.int32 and bool((got == shape[-1] - 1).all())


x, y, z = (rvar(n) for n in "xyz")


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (op("mul", op("add", x, y), z), "(x + y) * z"),
        (op("sub", x, op("sub", y, z)), "x - (y - z)"),
        (op("neg", op("add", x, y)), "-(x + y)"),
        (op("exp2", op("neg", x)), "2.0 ** -x"),
        (op("where", op("lt", x, y), x, op("min", y, z)), "x if x < y else min(y, z)"),
        (op("not", op("and", op("lt", x, y), op("le", y, z))), "not (x < y and y <= z)"),
        (op("floordiv", op("neg", ivar("n")), 4), "-n // 4"),
        (op("mul", x, -math.inf), "x * -math.inf"),
    ],
)
def test_scalars_carry_the_fewest_parentheses(e: Expr, text: str) -> None:
    assert spell(e) == text


def test_scalar_in_a_tighter_place() -> None:
    assert spell(op("add", x, y), place=PRODUCT) == "(x + y)"
    assert python_name("lambda") == "lambda_" and spell(Var("torch", "int")) == "torch_"


def grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    both = st.sampled_from(["add", "sub", "mul", "min", "max"])
    divided = st.builds(op, st.sampled_from(["floordiv", "mod"]), inner, st.sampled_from([2, 3, 7]))
    return st.builds(op, both, inner, inner) | divided | st.builds(op, st.just("neg"), inner)


integers = st.recursive(st.sampled_from([ivar("m"), ivar("n"), lift(3)]), grown, max_leaves=12)


def value(e: Expr, env: dict[str, int]) -> int:
    """The value of an integer expression, written apart from the printer."""
    args = [value(a, env) for a in getattr(e, "args", ())]
    match getattr(e, "name", ""):
        case "add":
            return args[0] + args[1]
        case "sub":
            return args[0] - args[1]
        case "mul":
            return args[0] * args[1]
        case "floordiv":
            return args[0] // args[1]
        case "mod":
            return args[0] % args[1]
        case "neg":
            return -args[0]
        case "min" | "max" as which:
            return min(args) if which == "min" else max(args)
        case "m" | "n" as name:
            return env[name]
    return int(e.value)  # type: ignore[attr-defined]


@settings(max_examples=100, deadline=None)
@given(integers, st.integers(-9, 9), st.integers(-9, 9))
def test_printed_integers_mean_the_expression(e: Expr, m: int, n: int) -> None:
    assert eval(spell(e), {"m": m, "n": n}) == value(e, {"m": m, "n": n})
