"""Names and scopes: what a name means at a place, and which new names are refused."""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from dataclasses import dataclass

from attncc.diagnostics import did_you_mean
from attncc.expr.nodes import Expr, Sort, Var
from attncc.grammar import tree as ast
from attncc.grammar.mistakes import (
    NoKeys,
    NotAValue,
    PythonKeyword,
    RecursiveDef,
    Shadowing,
    UnknownFunction,
    UnknownName,
    UsedTooEarly,
)
from attncc.grammar.values import Value
from attncc.ir.nodes import Axis

SIZE_OF = {"b": "B", "h": "H", "g": "G", "i": "M", "j": "N", "n": "N", "d": "D", "e": "E"}
SIZES = frozenset(SIZE_OF.values())
ROWS = {"q": ("b", "h", "i", "d"), "k": ("b", "g", "j", "d"), "v": ("b", "g", "j", "e")}
LITERALS = frozenset({"inf", "all", "true", "false"})
ASSIGNED = frozenset({"score", "mask", "out"})

ELEMENTWISE = frozenset(
    (
        "abs exp exp2 expm1 log log2 log1p sqrt rsqrt sin cos tanh erf sigmoid softplus relu elu silu gelu floor ceil"
    ).split()
)
REDUCTIONS = frozenset("sum mean max min any argmax".split())
NORMALISERS = frozenset("softmax ratio stick entmax".split())
CHANNELWISE = frozenset("normalize rmsnorm layernorm rope".split())
OTHER = frozenset("cumsum concat outer dropout segment grad top order".split())
FUNCTIONS = ELEMENTWISE | REDUCTIONS | NORMALISERS | CHANNELWISE | OTHER

MEANINGS = {
    **{name: "is an index" for name in SIZE_OF},
    **{name: "is a size" for name in SIZES},
    **{name: "is a tensor of the call" for name in ROWS},
    **{name: "is a literal" for name in LITERALS},
    **{name: "is a function of the language" for name in FUNCTIONS},
    **{name: "is assigned with a plain `=`" for name in ASSIGNED},
    "m": "is the axis of query rows",
    "offsets": "is a type",
}


@dataclass(frozen=True)
class Constant:
    """A constant of the header."""

    sort: Sort


@dataclass(frozen=True)
class Tensor:
    """A captured tensor, or a `let` that is an array."""

    sort: Sort
    axes: tuple[Axis, ...]
    offsets: bool = False


@dataclass(frozen=True)
class Row:
    """q, k or v; `channels` is the extent of its last axis."""

    axes: tuple[str, ...]
    channels: Expr


@dataclass(frozen=True)
class Named:
    """A `let` that stands for its value; `axes` are those in its brackets, in order."""

    value: Value
    axes: tuple[str, ...] | None


@dataclass(frozen=True)
class Function:
    """A `def`."""

    definition: ast.Def


Meaning = Constant | Tensor | Row | Named | Function


class Scope:
    """What names mean; grows as statements are read. `later` are names given a meaning further down."""

    def __init__(self) -> None:
        self.indices: dict[str, Expr] = {name: Var(size, "int") for name, size in SIZE_OF.items()}
        self.meanings: dict[str, Meaning] = {
            name: Row(axes, Var(SIZE_OF[axes[-1]], "int")) for name, axes in ROWS.items()
        }
        self.later: dict[str, int] = {}
        self.taken: dict[str, str] = dict(MEANINGS)

    def child(self) -> Scope:
        """A scope that starts with what this one knows."""
        new = Scope()
        new.indices, new.meanings, new.taken = dict(self.indices), dict(self.meanings), dict(self.taken)
        return new

    def refuse(self, name: ast.Name) -> None:
        """Raises where `name` cannot be a new name."""
        if name.id in self.taken:
            hint = "nothing shadows a name; take another one"
            raise Shadowing(f"`{name.id}` {self.taken[name.id]} already", name.span, hint=hint)
        if keyword.iskeyword(name.id) or keyword.issoftkeyword(name.id):
            hint = f"parameters become Python arguments; try `{name.id}_`"
            if name.id in ("True", "False"):
                hint = f"conditions are written `{name.id.lower()}`"
            raise PythonKeyword(f"`{name.id}` is a keyword of Python", name.span, hint=hint)

    def add(self, name: ast.Name, meaning: Meaning, what: str) -> None:
        """Gives a new name its meaning; `what` completes "`name` ..." in messages."""
        self.refuse(name)
        self.meanings[name.id] = meaning
        self.taken[name.id] = f"{what} of line {name.span.line}"

    def add_index(self, name: ast.Name, size: Expr) -> None:
        """Declares a new index."""
        self.refuse(name)
        self.indices[name.id] = size
        self.taken[name.id] = f"is an index of line {name.span.line}"

    def unknown(self, name: ast.Name) -> Exception:
        """The error for a name without a meaning here."""
        if name.id in self.later:
            line = self.later[name.id]
            return UsedTooEarly(f"`{name.id}` gets its meaning in line {line}", name.span, hint="move that line up")
        if name.id in FUNCTIONS or isinstance(self.meanings.get(name.id), Function):
            return NotAValue(f"`{name.id}` is a function", name.span, hint=f"call it: `{name.id}(...)`")
        if name.id == "j":
            hint = "a step sees one token: `i` is the token, k and v are its rows"
            return NoKeys("`j` does not exist in a state program", name.span, hint=hint)
        if name.id == "m":
            return NotAValue("`m` is an axis of query rows, no value", name.span, hint="the query's position is `i`")
        if name.id in ("True", "False"):
            return UnknownName(f"`{name.id}` is not known", name.span, hint=f"did you mean `{name.id.lower()}`?")
        known = [*self.indices, *SIZES, *self.meanings, *FUNCTIONS, "inf", "true", "false"]
        hint = did_you_mean(name.id, (k for k in known if len(k) > 1 or len(name.id) == 1))
        return UnknownName(f"`{name.id}` is not known here", name.span, hint=hint)

    def unknown_function(self, name: ast.Name) -> Exception:
        """The error for a call of something that is no function."""
        if name.id in self.later:
            line = self.later[name.id]
            message = f"`{name.id}` is defined in line {line}, below its use"
            return UsedTooEarly(message, name.span, hint="move the definition up")
        if name.id in self.taken and name.id not in FUNCTIONS:
            hint = f"read a tensor with brackets: `{name.id}[...]`; a product is written `{name.id} * (...)`"
            return UnknownFunction(f"`{name.id}` {self.taken[name.id]}, no function", name.span, hint=hint)
        known = [*FUNCTIONS, *(n for n, m in self.meanings.items() if isinstance(m, Function))]
        return UnknownFunction(f"no function is called `{name.id}`", name.span, hint=did_you_mean(name.id, known))


def refuse_cycles(definitions: list[ast.Def]) -> None:
    """RecursiveDef where definitions call each other in a circle."""
    calls = {d.name.id: [n for n in walk(d.body) if isinstance(n, ast.Call)] for d in definitions}
    done: set[str] = set()
    for start in calls:
        path: list[str] = []
        stack: list[tuple[str, ast.Call | None]] = [(start, None)]
        while stack:
            name, call = stack.pop()
            if not name:
                done.add(path.pop())
            elif name in path and call is not None:
                circle = " calls ".join(f"`{n}`" for n in [*path[path.index(name) :], name])
                hint = "write it without a call of itself; specs have no recursion"
                raise RecursiveDef(circle, call.place, hint=hint)
            elif name not in done:
                path.append(name)
                stack.append(("", None))
                stack.extend((c.function, c) for c in calls[name] if c.function in calls)


def define(scope: Scope, definition: ast.Def, later: dict[str, int]) -> None:
    """Adds a `def`; its body's names are checked here, called or not."""
    scope.refuse(definition.name)
    own: set[str] = set()
    for parameter in definition.parameters:
        scope.refuse(parameter)
        if parameter.id in own or parameter.id == definition.name.id:
            raise Shadowing(f"`{parameter.id}` is here already", parameter.span, hint="take another name")
        own.add(parameter.id)
    inner = scope.child()
    inner.later = later
    for node in walk(definition.body):
        _check(inner, node, own, definition)
    scope.add(definition.name, Function(definition), "is a function")


def _check(scope: Scope, node: ast.Expr | ast.Slice, own: set[str], definition: ast.Def) -> None:
    match node:
        case ast.Call(function=name, place=place):
            called = ast.Name(place, name)
            if name == definition.name.id:
                hint = "write it without a call of itself; specs have no recursion"
                raise RecursiveDef(f"`{name}` calls itself", place, hint=hint)
            if name not in FUNCTIONS and not isinstance(scope.meanings.get(name), Function):
                raise scope.unknown_function(called)
        case ast.Name(id=name):
            known = name in own or name in scope.indices or name in SIZES or name in LITERALS
            if not known and (name not in scope.meanings or isinstance(scope.meanings[name], Function)):
                raise scope.unknown(node)
        case _:
            pass


def walk(node: ast.Expr | ast.Slice) -> Iterator[ast.Expr | ast.Slice]:
    """Every expression under `node` that is read as a value, itself first."""
    stack: list[ast.Expr | ast.Slice] = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(reversed(_parts(top)))


def _parts(node: ast.Expr | ast.Slice) -> list[ast.Expr | ast.Slice]:
    found: list[ast.Expr | ast.Slice | None]
    match node:
        case ast.Unary(operand=x):
            found = [x]
        case ast.Binary(left=a, right=b) | ast.Contract(left=a, right=b):
            found = [a, b]
        case ast.Choice(then=a, condition=c, other=b):
            found = [a, c, b]
        case ast.Member(item=a, group=b):
            found = [a, b]
        case ast.SetOf(items=items):
            found = list(items)
        case ast.Slice(low=a, high=b):
            found = [a, b]
        case ast.Subscripted(base=base, subscripts=subscripts):
            found = [base, *subscripts]
        case ast.Coordinate(base=base):
            found = [base]
        case ast.Call(arguments=arguments, where=where, options=options):
            found = [*arguments, where, *(o.value for o in options)]
        case ast.Selection(by=by, where=where, including=including, plus=plus):
            found = [by, where, including, plus]
        case ast.Name() | ast.Number():
            found = []
    return [f for f in found if f is not None]
