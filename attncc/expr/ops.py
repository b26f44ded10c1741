"""The op table: one row per scalar operation, as data.

Every question about an operation is answered by a table and nowhere else. Here: sorts, the arguments it is monotone
in, its homogeneity and its cost. Beside it, keyed by the same names: derivatives and domains (ops_derivative),
intervals (ops_interval), spellings per printer and expansions (ops_spelling). The dense reference keeps a table of
its own, on purpose.
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
    monotone: tuple[int, ...] = ()
    """Per argument, whatever the others are: 1 never decreasing, -1 never increasing, 0 neither; () is 0 throughout."""
    degree: float | None = None
    """k where f(c * args) = c**k f(args) for every c > 0 (of a where: c scales the two values)."""
    odd: bool = False
    """f(-x) = -f(x) of every real x."""
    fma: int = 1
    """Cost of one fp32 element in instructions of the FMA and ALU pipes, rounded."""
    mufu: int = 0
    """Cost of one fp32 element in special-function instructions (a quarter of the FMA rate)."""

    def direction(self, argument: int) -> int:
        """`monotone` of one argument."""
        return self.monotone[argument] if self.monotone else 0


_UP, _DOWN = (1,), (-1,)

_ROWS: tuple[OpRow, ...] = (
    # arithmetic
    OpRow("add", 2, "join", commutative=True, infix="+", monotone=(1, 1), degree=1),
    OpRow("sub", 2, "join", infix="-", monotone=(1, -1), degree=1),
    OpRow("mul", 2, "join", commutative=True, infix="*", degree=2),
    OpRow("div", 2, "real", infix="/", degree=0, fma=8, mufu=1),
    OpRow("floordiv", 2, "int", infix="//", fma=20),
    OpRow("mod", 2, "int", infix="%", fma=22),
    OpRow("neg", 1, "join", infix="-", monotone=_DOWN, degree=1, odd=True),
    OpRow("abs", 1, "join", degree=1),
    OpRow("min", 2, "join", commutative=True, monotone=(1, 1), degree=1),
    OpRow("max", 2, "join", commutative=True, monotone=(1, 1), degree=1),
    OpRow("pow", 2, "real", infix="**", fma=24, mufu=2),
    OpRow("square", 1, "join", degree=2),
    OpRow("recip", 1, "real", degree=-1, odd=True, fma=7, mufu=1),
    # elementary functions
    OpRow("exp", 1, "real", monotone=_UP, mufu=1),
    OpRow("exp2", 1, "real", monotone=_UP, fma=0, mufu=1),
    OpRow("expm1", 1, "real", monotone=_UP, fma=9, mufu=1),
    OpRow("log", 1, "real", monotone=_UP, mufu=1),
    OpRow("log2", 1, "real", monotone=_UP, fma=0, mufu=1),
    OpRow("log1p", 1, "real", monotone=_UP, fma=9, mufu=1),
    OpRow("sqrt", 1, "real", monotone=_UP, degree=0.5, mufu=1),
    OpRow("rsqrt", 1, "real", monotone=_DOWN, degree=-0.5, fma=0, mufu=1),
    OpRow("sin", 1, "real", odd=True, fma=12),
    OpRow("cos", 1, "real", fma=12),
    OpRow("tanh", 1, "real", monotone=_UP, odd=True, fma=9, mufu=2),
    OpRow("erf", 1, "real", monotone=_UP, odd=True, fma=16, mufu=1),
    # activations
    OpRow("sigmoid", 1, "real", monotone=_UP, fma=9, mufu=2),
    OpRow("softplus", 1, "real", monotone=_UP, fma=12, mufu=2),
    OpRow("relu", 1, "join", monotone=_UP, degree=1),
    OpRow("elu", 1, "real", monotone=_UP, fma=10, mufu=1),
    OpRow("silu", 1, "real", fma=10, mufu=2),
    OpRow("gelu", 1, "real", fma=19, mufu=1),
    # rounding and conversion
    OpRow("floor", 1, "to_int", monotone=_UP, fma=2),
    OpRow("ceil", 1, "to_int", monotone=_UP, fma=2),
    OpRow("real", 1, "to_real", monotone=_UP, degree=1),
    # comparison and logic (> and >= are written with < and <=)
    OpRow("lt", 2, "compare", infix="<", monotone=(-1, 1), degree=0),
    OpRow("le", 2, "compare", infix="<=", monotone=(-1, 1), degree=0),
    OpRow("eq", 2, "compare", commutative=True, infix="==", degree=0),
    OpRow("ne", 2, "compare", commutative=True, infix="!=", degree=0),
    OpRow("and", 2, "bool", commutative=True, infix="and", monotone=(1, 1)),
    OpRow("or", 2, "bool", commutative=True, infix="or", monotone=(1, 1)),
    OpRow("not", 1, "bool", infix="not", monotone=_DOWN),
    OpRow("where", 3, "where", monotone=(0, 1, 1), degree=1),
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
