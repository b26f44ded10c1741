"""Every operation of the table has a Gluon spelling that compiles."""

from __future__ import annotations

from pathlib import Path

from attncc.codegen.gluon_exprs import GLUON, LOG2E, base_two
from attncc.codegen.gluon_helpers import HELPERS, called, helper_texts
from attncc.codegen.gluon_printer import print_gluon
from attncc.expr.build import ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Sort
from attncc.expr.ops import OPS, OpRow, Rule
from attncc.tile.nodes import Axis, Dtype, Iota, Let, Load, Map, Program, Stmt, Store, Tensor, Type
from tests.codegen.gluon_cubin import compile_kernel
from tests.codegen.gluon_small import small

I = Axis("i", 128)
SIZE = Const(128, "int")
DTYPES: dict[Sort, Dtype] = {"int": "i32", "real": "f32", "bool": "bool"}


def operands(row: OpRow) -> list[tuple[Sort, ...]]:
    """The sorts of arguments an operation is tried with."""
    kinds: dict[Rule, list[Sort]] = {
        "join": ["int", "real"],
        "compare": ["int", "real"],
        "real": ["real"],
        "to_int": ["real"],
        "int": ["int"],
        "bool": ["bool"],
        "to_real": ["int", "bool"],
        "where": ["int", "real"],
    }
    first: tuple[Sort, ...] = ("bool",) if row.rule == "where" else ()
    return [first + (kind,) * (row.arity - len(first)) for kind in kinds[row.rule]]


def applied(row: OpRow, sorts: tuple[Sort, ...], kind: str) -> Expr:
    """The operation on values whose names end in `kind`."""
    args: list[Expr] = []
    for n, sort in enumerate(sorts):
        number = "2" if n % 2 else ""
        real = rvar(f"x{number}_{kind}")
        args.append(ivar(f"n{number}_{kind}") if sort == "int" else op("lt", real, 0.5) if sort == "bool" else real)
    return op(row.name, *args)


def every_operation() -> Program:
    """Each operation on vectors and on scalars, its results stored."""
    kinds: list[tuple[str, Dtype]] = [("x", "f32"), ("x2", "f32"), ("n", "i32"), ("n2", "i32")]
    loaded = [Tensor(n, ("i",), (SIZE,), d) for n, d in kinds]
    rows = Const(4 * len(OPS), "int")
    stored = [Tensor("reals", ("r", "i"), (rows, SIZE), "f32"), Tensor("ints", ("r", "i"), (rows, SIZE), "i32")]
    body: list[Stmt] = [Let("i", Type((I,), "i32"), Iota(Const(0, "int")))]
    for t in loaded:
        body.append(Let(f"{t.name}_v", Type((I,), t.dtype), Load(t.name, (ivar("i"),))))
        body.append(Let(f"{t.name}_s", Type((), t.dtype), Load(t.name, (Const(5, "int"),))))
    for n, row in enumerate(OPS.values()):
        for m, sorts in enumerate(operands(row)):
            for kind in "vs":
                value = applied(row, sorts, kind)
                value = op("where", value, 1, 0) if value.sort == "bool" else value
                name, place = f"{row.name}_{m}_{kind}", 4 * n + 2 * m + (kind == "s")
                axes, at = ((I,), ivar("i")) if kind == "v" else ((), Const(0, "int"))
                body.append(Let(name, Type(axes, DTYPES[value.sort]), Map(value)))
                body.append(Store(f"{value.sort}s", (Const(place, "int"), at), name))
    return small(tuple(body), (*loaded, *stored))


def test_every_operation_has_a_spelling() -> None:
    assert set(OPS) <= set(GLUON)


def test_every_operation_compiles(tmp_path: Path) -> None:
    program = every_operation()
    cubin = compile_kernel(program, program.kernels[0], tmp_path)
    assert cubin.products == 0


def test_helpers_are_defined_where_they_are_called_and_nowhere_else() -> None:
    text = print_gluon(every_operation())
    for name in HELPERS:
        assert (f"def {name}(" in text) == (f"{name}(" in text.replace(f"def {name}(", ""))
    assert called("_floordiv_gl(a, b)") == {"_floordiv_gl", "_mod_gl"}
    assert [t.partition("def ")[2].partition("(")[0] for t in helper_texts({"_floordiv_gl"})] == [
        "_mod_gl",
        "_floordiv_gl",
    ]


def test_bfloat16_takes_the_special_unit_for_tanh() -> None:
    (slow,), (fast,) = helper_texts({"_tanh_gl"}), helper_texts({"_tanh_gl"}, fast=True)
    assert "tanh.approx" in fast
    assert "tanh.approx" not in slow


def test_exponentials_fold_the_change_of_base() -> None:
    x = rvar("x")
    assert base_two(op("exp", op("mul", x, 2.0))) is op("exp2", op("mul", x, 2.0 * LOG2E))
    assert base_two(op("exp", op("mul", -0.5, x))) is op("exp2", op("mul", x, -0.5 * LOG2E))
    assert base_two(op("exp", op("neg", x))) is op("exp2", op("mul", x, -LOG2E))
    assert base_two(op("exp", op("add", x, 1.0))) is op("exp2", op("mul", op("add", x, 1.0), LOG2E))
