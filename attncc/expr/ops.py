"""The op table: one row per scalar operation, as data.

Every question about an operation is answered here and nowhere else: its sorts, its derivative, its interval
rule, the argument it is monotone in, its homogeneity, where it is defined, what it costs and how each printer
spells it. The dense reference keeps a table of its own, on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attncc.expr.nodes import Sort

Rule = Literal["join", "real", "int", "bool", "compare", "where", "to_real", "to_int"]
"""How the result's sort follows from the arguments':

join     int if all are int, else real (ints are promoted)      compare  numbers joined, result bool
real     arguments promoted to real, result real                where    bool, then two joined values
int      ints in, int out                                       to_real  int or bool in, real out
bool     bools in, bool out                                     to_int   real in, int out
"""


@dataclass(frozen=True, slots=True)
class OpRow:
    """One operation. `arity` is exact; `join` ops that fold (and, or, min, max) are binary here."""

    name: str
    arity: int
    rule: Rule
    commutative: bool = False
    infix: str = ""
    """The spec language's operator, where it has one."""


_ROWS: tuple[OpRow, ...] = (
    # arithmetic
    OpRow("add", 2, "join", commutative=True, infix="+"),
    OpRow("sub", 2, "join", infix="-"),
    OpRow("mul", 2, "join", commutative=True, infix="*"),
    OpRow("div", 2, "real", infix="/"),
    OpRow("floordiv", 2, "int", infix="//"),
    OpRow("mod", 2, "int", infix="%"),
    OpRow("neg", 1, "join", infix="-"),
    OpRow("abs", 1, "join"),
    OpRow("min", 2, "join", commutative=True),
    OpRow("max", 2, "join", commutative=True),
    OpRow("pow", 2, "real", infix="**"),
    OpRow("square", 1, "join"),
    OpRow("recip", 1, "real"),
    # elementary functions
    OpRow("exp", 1, "real"),
    OpRow("exp2", 1, "real"),
    OpRow("expm1", 1, "real"),
    OpRow("log", 1, "real"),
    OpRow("log2", 1, "real"),
    OpRow("log1p", 1, "real"),
    OpRow("sqrt", 1, "real"),
    OpRow("rsqrt", 1, "real"),
    OpRow("sin", 1, "real"),
    OpRow("cos", 1, "real"),
    OpRow("tanh", 1, "real"),
    OpRow("erf", 1, "real"),
    # activations
    OpRow("sigmoid", 1, "real"),
    OpRow("softplus", 1, "real"),
    OpRow("relu", 1, "join"),
    OpRow("elu", 1, "real"),
    OpRow("silu", 1, "real"),
    OpRow("gelu", 1, "real"),
    # rounding and conversion
    OpRow("floor", 1, "to_int"),
    OpRow("ceil", 1, "to_int"),
    OpRow("real", 1, "to_real"),
    # comparison and logic (> and >= are written with < and <=)
    OpRow("lt", 2, "compare", infix="<"),
    OpRow("le", 2, "compare", infix="<="),
    OpRow("eq", 2, "compare", commutative=True, infix="=="),
    OpRow("ne", 2, "compare", commutative=True, infix="!="),
    OpRow("and", 2, "bool", commutative=True, infix="and"),
    OpRow("or", 2, "bool", commutative=True, infix="or"),
    OpRow("not", 1, "bool", infix="not"),
    OpRow("where", 3, "where"),
)

OPS: dict[str, OpRow] = {row.name: row for row in _ROWS}


def result_sort(name: str, sorts: tuple[Sort, ...]) -> Sort:
    """The sort of `name` applied to arguments of `sorts`; TypeError where the table forbids it."""
    row = OPS[name]
    if len(sorts) != row.arity:
        raise TypeError(f"{name} takes {row.arity} arguments, not {len(sorts)}")
    numbers = sorts[1:] if row.rule == "where" else sorts
    kinds: dict[Rule, set[str]] = {"bool": {"bool"}, "int": {"int"}, "to_real": {"int", "bool"}}
    allowed = kinds.get(row.rule, {"int", "real"})
    if row.rule in ("where", "compare") and set(numbers) == {"bool"}:
        allowed = {"bool"}
    if not set(numbers) <= allowed or (row.rule == "where" and sorts[0] != "bool"):
        raise TypeError(f"{name} does not take {', '.join(sorts)}")
    match row.rule:
        case "join" | "where":
            return "bool" if "bool" in numbers else "real" if "real" in numbers else "int"
        case "real" | "to_real":
            return "real"
        case "int" | "to_int":
            return "int"
        case "bool" | "compare":
            return "bool"
