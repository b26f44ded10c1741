"""The text form: parse(dump(p)) == p for every node, and errors that name the line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncc.expr.build import TRUE, ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Sort, Var
from attncc.expr.ops import OPS
from attncc.tile import nodes as t
from attncc.tile.text import dump, dump_kernel, headline
from attncc.tile.text_expr import read_expr, spell_expr
from attncc.tile.text_lexer import Cursor, TextError, lines
from attncc.tile.text_parse import parse, parse_kernel
from tests.tile.programs.causal import causal, int_

# --- expressions ------------------------------------------------------------------------------------------------------

SORTS: dict[str, Sort] = {"n": "int", "x": "real", "c": "bool", "and": "int", "odd name": "real", "Dot": "real"}


def _leaves() -> st.SearchStrategy[Expr]:
    constants: st.SearchStrategy[Expr] = st.one_of(
        st.integers(-5, 5).map(lambda n: Const(n, "int")),
        st.floats(allow_nan=False).map(lambda x: Const(x, "real")),
        st.booleans().map(lambda b: Const(b, "bool")),
    )
    names = st.sampled_from([*SORTS, "unknown", "true"])
    sorts: st.SearchStrategy[Sort] = st.sampled_from(["int", "real", "bool"])
    return constants | st.builds(Var, names, sorts)


def _grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    def build(name: str, args: list[Expr]) -> Expr:
        try:
            return op(name, *args[: OPS[name].arity])
        except TypeError:
            return args[0]

    return st.builds(build, st.sampled_from(sorted(OPS)), st.lists(inner, min_size=3, max_size=3))


@settings(max_examples=400, deadline=None)
@given(st.recursive(_leaves(), _grown, max_leaves=20))
def test_expressions_come_back(e: Expr) -> None:
    text = spell_expr(e, SORTS)
    cursor = Cursor(lines(text)[0])
    assert read_expr(cursor, SORTS) is e, text
    cursor.end()


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (op("sub", ivar("n"), op("sub", ivar("n"), 1)), "n - (n - 1)"),
        (op("neg", op("add", ivar("n"), 1)), "-(n + 1)"),
        (op("neg", Const(1, "int")), "neg(1)"),
        (op("and", op("le", ivar("n"), 1), op("not", Var("c", "bool"))), "n <= 1 and not c"),
        (op("mul", rvar("x"), op("div", 1.0, rvar("x"))), "x * (1.0 / x)"),
        (rvar("n"), "n@real"),
        (op("where", TRUE, float("-inf"), rvar("x")), "where(true, -inf, x)"),
    ],
)
def test_expressions_read_well(e: Expr, text: str) -> None:
    assert spell_expr(e, SORTS) == text


# --- programs ---------------------------------------------------------------------------------------------------------

I, J = t.Axis("i", 16), t.Axis("j", 8)
TILE, ROW, WORD = t.Type((I, J), "f32"), t.Type((I,), "f32"), t.Type((), "i32")
SLOT, PART = t.Slot("ring", ivar("n")), t.Slot("ring", op("mod", ivar("n"), 2), ("i", 0, 8))
BAR = t.Bar("full", ivar("n"))

EVERY_OP: tuple[t.Op, ...] = (
    t.Full(Const(float("-inf"), "real")),
    t.Iota(op("mul", ivar("n"), 8)),
    t.Map(op("add", rvar("Dot"), 1.0)),
    t.Map(op("max", rvar("x"), rvar("y"))),
    t.Map(op("mul", rvar("x"), rvar("y")), spared=True),
    t.Load("q", (ivar("b"), ivar("i")), op("lt", ivar("i"), ivar("M")), float("-inf")),
    t.Load("q", (ivar("b"),), other=True),
    t.Reduce("max", "s", "j"),
    t.Scan("sum", "s", "j", reverse=True, exclusive=True),
    t.Dot("a", "b", "d"),
    t.Dot(SLOT, PART, "d", "acc", "tf32", True),
    t.DotWait("s", 1),
    t.DotWait("s", 0, ("p", "odd name")),
    t.Cast("p"),
    t.Cast("p", "stochastic"),
    t.SharedLoad(PART),
    t.SplitAxis("x", "i", t.Axis("io", 2), t.Axis("ii", 8)),
    t.JoinAxis("x", "io", "ii", I),
    t.GatherAxis("x", "at", "i"),
    t.Rename("x"),
    t.Pack("x", 4, "i"),
    t.Unpack("x", 4, "i"),
    t.Random("seed", op("add", ivar("i"), ivar("j"))),
    t.TriInverse("x", "i", "j"),
    t.TopK("x", "j", 4),
    t.Convert("p", "a layout, of sorts"),
)

PIECES = (
    t.Interval(int_(0), op("neg", ivar("n"))),
    t.Strided(int_(0), int_(1), ivar("n"), int_(3)),
    t.Listed("list", ivar("n"), ivar("M")),
)
CARRY = (t.Carry("m", ROW, "m_"), t.Carry("flag", t.Type((), "bool"), "flag_"))

EVERY_STMT: tuple[t.Stmt, ...] = (
    t.Store("out", (ivar("b"), ivar("i")), "o"),
    t.Store("out", (ivar("b"), ivar("i")), "o", op("lt", ivar("i"), ivar("M")), "a note"),
    t.ReduceAdd("dq", (ivar("i"),), "x", "atomic", op("lt", ivar("i"), ivar("M")), "with # and \\ and \n"),
    t.For("n", t.Ranges(8, ivar("N"), PIECES, full=True), CARRY, (t.Yield(("m", "flag")),), "j", "desc", 3, "loop"),
    t.For("n", t.Ranges(8, ivar("N"), ()), (), (t.Yield(()),), "j"),
    t.For("tiles", t.Count(ivar("tiles"), ivar("N")), (), (t.Fence(),), order="asc"),
    t.For("item", t.Work(), CARRY, (t.Yield(("m", "flag")),), order="asc", note="places"),
    t.For("item", t.Work(t.Claims("work", "taking", "full", "empty"), True), (), (t.Fence(),), order="asc"),
    t.If(op("lt", ivar("n"), 1), (t.Yield(("a", "b")),), (t.Yield(("c", "d")),), CARRY, "choice"),
    t.If(TRUE, (t.Fence(),), ()),
    t.AllocShared("ring", TILE, 3),
    t.AllocShared("one", TILE),
    t.AllocBar("full", 3, 128),
    t.SharedStore(PART, "p"),
    t.Fence(),
    t.BarExpect(BAR, 4096),
    t.BarWait(BAR, op("mod", ivar("n"), 2)),
    t.BarArrive(BAR),
    t.BarArrive(BAR, 4),
    t.CopyIn(SLOT, "k", (ivar("b"), op("mul", ivar("n"), 8), int_(0)), BAR),
    t.CopyOut(PART, "k", (ivar("b"), int_(0)), add=True),
    t.CopyWait(0),
    t.Partitions((t.Partition("load", 1, 24, (t.Fence(),)), t.Partition("dots", 4, 0, ()))),
)

AN_INPUT = t.Tensor("ids", ("b", "n"), (ivar("B"), op("add", ivar("N"), 1)), "i32", True, False, False, False)

EVERY_STEP: tuple[t.Step, ...] = (
    t.Alloc(AN_INPUT),
    t.Alloc(AN_INPUT, 0.0),
    t.Alloc(AN_INPUT, -1.5, "ids"),
    t.Launch("k"),
    t.Gather(AN_INPUT, "ids", (ivar("b"), op("floordiv", ivar("n"), 2))),
    t.ScatterAdd(AN_INPUT, "ids", (ivar("b"),)),
    t.ScatterAdd(AN_INPUT, "ids", (ivar("b"),), add=True),
    t.SumAxes(AN_INPUT, "ids", ("h", "g")),
    t.FirstLast(AN_INPUT, "ids", "run_last"),
)


def everything() -> t.Program:
    lets = tuple(t.Let(f"x{n}", TILE, o, "note" * (n % 2)) for n, o in enumerate(EVERY_OP))
    grid = (
        t.GridAxis("i0", ivar("M"), "tile", 16, "i", True),
        t.GridAxis("b", ivar("B"), "batch"),
        t.GridAxis("s", int_(4), "split"),
    )
    scalars = (t.Scalar("M", "int"), t.Scalar("x", "real"), t.Scalar("y", "real", op("mul", rvar("x"), 2.0)))
    kernel = t.Kernel("k", grid, ("q", "ids"), ("M", "x"), lets + EVERY_STMT, t.Config(8, 3, 168), "the kernel")
    bare = t.Kernel("a kernel", (), (), (), ())
    return t.Program("all", (AN_INPUT,), scalars, (kernel, bare), EVERY_STEP, ("ids", "q"), "every node")


def test_the_list_above_is_complete() -> None:
    assert {type(o) for o in EVERY_OP} == set(t.Op.__args__)
    assert {type(s) for s in EVERY_STMT} | {t.Let, t.Yield} == set(t.Stmt.__args__)
    assert {type(s) for s in EVERY_STEP} == set(t.Step.__args__)
    assert {type(p) for p in PIECES} == set(t.Piece.__args__)


def test_every_node_comes_back() -> None:
    program = everything()
    assert parse(dump(program)) == program


def test_causal_comes_back_and_reads_well() -> None:
    program = causal()
    text = dump(program)
    assert parse(text) == program
    assert "    grid i0: M tile 16 of i descending\n" in text
    assert "    r: i32[i 16] = Iota(i0)  # rows\n" in text
    assert "      s: f32[i 16, j 8] = where(seen, qk * c0, -inf)\n" in text
    assert "    store out[b, h, r, e] = ot where r < M\n" in text


def test_a_kernel_alone_comes_back() -> None:
    kernel = causal().kernels[0]
    assert parse_kernel(dump_kernel(kernel)) == kernel
    sorts: dict[str, Sort] = {"c0": "real"}
    assert parse_kernel(dump_kernel(kernel, sorts), sorts) == kernel
    assert "@real" in dump_kernel(kernel) and "@real" not in dump_kernel(kernel, sorts)


def test_numbers_keep_their_kind() -> None:
    for other in (0, 1, 0.0, -2.5, True):
        let = t.Let("x", TILE, t.Load("q", (), other=other))
        kernel = t.Kernel("k", (), (), (), (let,))
        (back,) = parse_kernel(dump_kernel(kernel)).body
        assert isinstance(back, t.Let) and isinstance(back.op, t.Load)
        assert (back.op.other, type(back.op.other)) == (other, type(other))


def test_partitioned_programs_read_well() -> None:
    work = t.For("item", t.Work(t.Claims("count", "s", "f", "e"), True), (), (t.BarArrive(BAR, 4),), order="asc")
    text = dump_kernel(t.Kernel("k", (), (), (), (work, t.Let("x", TILE, t.DotWait("s", 0, ("p", "q"))))))
    assert "  for item in work from count s f e taking asc\n" in text
    assert "    BarArrive(full[n], count=4)\n" in text
    assert "  x: f32[i 16, j 8] = DotWait(s, 0, after=[p, q])\n" in text
    assert "count" not in dump_kernel(t.Kernel("k", (), (), (), (t.BarArrive(BAR),)))


def test_headline() -> None:
    let = t.Let("x", TILE, t.Reduce("max", "s", "j"), "a note")
    assert headline(let) == "x: f32[i 16, j 8] = Reduce(max, s, j)"
    assert headline(EVERY_STMT[4]) == "for n in tiles 8 of N: [] along j"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("program p\n  output a b", "line 2: ',' is wanted"),
        ("program p\n  Launch(k\n  output a", r"line 2: '\)' is wanted"),
        ("program p\n  Lunch(k)\n  output a", "line 2: Lunch is no node"),
        ("program p\n   output a", "line 2: an odd indentation"),
        ("program p\n  output a$", "line 2: no word begins"),
        ("program p", "ends too early"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        parse(text)
