"""Headers and axes: constants with their defaults, captured tensors, indices declared in brackets."""

from __future__ import annotations

import math

from attncc.diagnostics import did_you_mean
from attncc.expr.build import lift, to_real
from attncc.expr.nodes import Const, Expr, Sort, Var
from attncc.grammar import tree as ast
from attncc.grammar.expressions import Elaborator
from attncc.grammar.mistakes import BadAxis, BadBounds, BadDefault, BadType, NotAValue
from attncc.grammar.names import SIZE_OF, Constant, Scope, Tensor
from attncc.ir.nodes import Axis, ConstParam, Param

AXES = {"m": "M", **SIZE_OF}
TYPES: dict[str, Sort] = {"real": "real", "int": "int", "bool": "bool", "offsets": "int"}


def constant(scope: Scope, node: ast.ConstantDecl) -> ConstParam:
    """name = default."""
    value = _number(node.default)
    sort: Sort = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "real"
    scope.add(node.name, Constant(sort), "is a constant")
    return ConstParam(node.name.id, value, sort, node.span)


def _number(node: ast.Expr) -> int | float | bool:
    """The Python value of a default: numbers, inf, true, false, + - * / // % ** and signs."""
    hint = "a default is made of numbers alone"
    match node:
        case ast.Number(value=value):
            return value
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id="true" | "false"):
            return node.id == "true"
        case ast.Unary(op="-" | "+"):
            inner = _number(node.operand)
            if not isinstance(inner, bool):
                return -inner if node.op == "-" else inner
        case ast.Binary(op="+" | "-" | "*" | "/" | "//" | "%" | "**"):
            left, right = _number(node.left), _number(node.right)
            if not isinstance(left, bool) and not isinstance(right, bool):
                return _calculate(node, left, right)
        case ast.Call(function="sqrt", arguments=(argument,)):
            inner = _number(argument)
            return _real(inner, 0.5, node)
        case ast.Name():
            if node.id in ("True", "False"):
                hint = f"did you mean `{node.id.lower()}`?"
            elif node.id in TYPES:
                hint = "a tensor is declared with a colon: `slope: real[h]`"
        case _:
            pass
    raise BadDefault("this is no number", node.span, hint=hint)


def _calculate(node: ast.Binary, a: int | float, b: int | float) -> int | float:
    try:
        match node.op:
            case "+":
                value = a + b
            case "-":
                value = a - b
            case "*":
                value = a * b
            case "/":
                value = a / b
            case "//":
                value = a // b
            case "%":
                value = a % b
            case _:
                return _real(a, b, node)
    except (ZeroDivisionError, OverflowError) as error:
        raise BadDefault(f"this has no value: {error}", node.span) from None
    if math.isnan(value) or (isinstance(value, int) and abs(value) > 2**62):
        raise BadDefault("this has no value", node.span)
    return value


def _real(a: int | float, b: int | float, node: ast.Expr) -> float:
    try:
        return math.pow(a, b)
    except (ValueError, OverflowError) as error:
        raise BadDefault(f"this has no value: {error}", node.span) from None


def tensor(env: Elaborator, node: ast.TensorDecl) -> Param:
    """name: type[axes] in [low, high]."""
    kind = node.type.id
    if kind not in TYPES:
        known = {"float": "real", "double": "real", "half": "real", "long": "int", "integer": "int", "boolean": "bool"}
        hint = f"did you mean `{known[kind]}`?" if kind in known else did_you_mean(kind, TYPES)
        raise BadType(f"`{kind}` is no type; types are real, int, bool and offsets", node.type.span, hint=hint)
    if kind == "offsets" and (node.axes or node.bounds):
        raise BadType("`offsets` has neither axes nor bounds", node.span)
    sort = TYPES[kind]
    axes = tuple(header_axis(env, a) for a in node.axes)
    bounds = None if node.bounds is None else _bounds(node.bounds, sort)
    env.scope.add(node.name, Tensor(sort, axes, kind == "offsets"), "is a parameter")
    return Param(node.name.id, sort, axes, bounds, kind == "offsets", node.span)


def _bounds(ends: tuple[ast.Expr, ast.Expr], sort: Sort) -> tuple[Expr, Expr]:
    try:
        low, high = (_number(e) for e in ends)
    except BadDefault as error:
        raise BadBounds("a bound is a number", error.diagnostic.span, hint="`in [0, 1]`, `in [-inf, 0]`") from None
    if sort == "bool" or isinstance(low, bool) or isinstance(high, bool):
        raise BadBounds("conditions have no bounds", ends[0].span)
    if low > high:
        raise BadBounds(f"the bounds are empty: {low} > {high}", ends[0].span, hint="the smaller stands first")
    if sort == "int" and not isinstance(low, float) and not isinstance(high, float):
        return lift(low), lift(high)
    return to_real(lift(low)), to_real(lift(high))


def header_axis(env: Elaborator, node: ast.AxisDecl) -> Axis:
    """An axis of a parameter."""
    if node.name is not None:
        return declare(env, node)
    size = node.size
    if isinstance(size, ast.Name):
        name = size.id
        if name in ("i", "j"):
            other = "m" if name == "i" else "n"
            hint = f"query rows are `m`, key positions `n`; write `{other}`"
            raise BadAxis(f"`{name}` is a position, no axis of a parameter", size.span, hint=hint)
        if name in AXES:
            return Axis(name, Var(AXES[name], "int"))
        if name in env.scope.indices:
            return Axis(name, env.scope.indices[name])
        if name not in env.scope.meanings and name not in AXES.values():
            hint = f"a new index is declared with its size: `{name}: 4`"
            raise BadAxis(f"`{name}` is no index in scope", size.span, hint=hint)
    return Axis("", extent(env, size))


def let_axes(env: Elaborator, nodes: tuple[ast.AxisDecl, ...]) -> tuple[Axis, ...]:
    """The brackets after `let` and `emit`: indices in scope, and new ones with their sizes."""
    found: list[Axis] = []
    for node in nodes:
        if node.name is not None:
            axis = declare(env, node)
        elif isinstance(node.size, ast.Name) and node.size.id in env.scope.indices:
            axis = Axis(node.size.id, env.scope.indices[node.size.id])
        else:
            name = node.size.id if isinstance(node.size, ast.Name) else ""
            hint = "query rows are at `i` here" if name == "m" else "a new index is declared with its size: `c: N // 4`"
            raise BadAxis(f"`{name}` is no index in scope" if name else "this is no index", node.size.span, hint=hint)
        if any(axis.index == a.index for a in found):
            raise BadAxis(f"`{axis.index}` is listed twice", node.span)
        found.append(axis)
    return tuple(found)


def declare(env: Elaborator, node: ast.AxisDecl) -> Axis:
    """name: size."""
    assert node.name is not None
    size = extent(env, node.size)
    env.scope.add_index(ast.Name(node.span, node.name), size)
    return Axis(node.name, size)


def extent(env: Elaborator, node: ast.Expr) -> Expr:
    """A size: an integer of constants and sizes."""
    value = env.integer(node, "a size")
    if value.free:
        raise NotAValue(f"a size depends on no index, and this has `{min(value.free)}`", node.span)
    if isinstance(value.expr, Const) and value.expr.value < 0:
        raise BadAxis("a size is not negative", node.span)
    return value.expr
