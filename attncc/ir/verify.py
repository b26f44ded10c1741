"""What must hold of a Spec, whoever built it: names, binding, ranks and sorts. Stages verify what they hand on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

from attncc.diagnostics import Span
from attncc.errors import InternalError
from attncc.expr.nodes import Const, Expr, Op, Sort, Var, walk
from attncc.expr.ops import OPS, result_sort
from attncc.ir.free import INDICES, SIZES, free
from attncc.ir.nodes import (
    Assign,
    Axis,
    Binder,
    ConstParam,
    Contract,
    Gradient,
    Keep,
    Let,
    Load,
    Micro,
    Normaliser,
    Param,
    Read,
    Rebind,
    Recurrence,
    Reduce,
    S,
    Scan,
    Segment,
    Spec,
    State,
    Step,
    Weights,
)


class BadSpec(InternalError):
    """A Spec breaks one of the rules of the Spec IR; `rule` says which."""

    code: ClassVar[str] = "E901"

    def __init__(self, rule: str, message: str, span: Span | None = None) -> None:
        self.rule = rule
        super().__init__(f"[{rule}] {message}", span)


_ROLES: dict[str, tuple[str, ...]] = {"q": ("b", "h", "m", "d"), "k": ("b", "g", "n", "d"), "v": ("b", "g", "n", "e")}
_REBOUND: dict[str, tuple[str, ...]] = {"q": ("b", "h", "i"), "k": ("b", "g", "j"), "v": ("b", "g", "j")}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What a Load needs to know: the sort of an element, and the declared index of each axis."""

    sort: Sort
    axes: tuple[str, ...]
    offsets: bool = False


@dataclass(slots=True)
class _Known:
    """Names in scope where a statement stands."""

    tensors: dict[str, _Tensor] = field(default_factory=dict)
    constants: dict[str, Sort] = field(default_factory=dict)
    carried: dict[str, int] = field(default_factory=dict)
    """States, frozen states and kept values, with the number of their own axes."""
    where: str = ""
    span: Span | None = None

    def fail(self, rule: str, message: str, span: Span | None = None) -> NoReturn:
        """Raises BadSpec, naming the statement."""
        raise BadSpec(rule, f"{self.where}: {message}", span or self.span)


def verify(spec: Spec) -> None:
    """Raises BadSpec at the first rule that `spec` breaks.

    names     a constant, tensor or `let` is declared once, above its uses, and shadows no index, size or q, k, v
    binding   every Var is a size, a constant of the header, or an index bound where it stands
    sizes     extents are integers made of sizes and constants
    rank      a Load has one subscript per axis, an integer; a query-row axis is read at a bare i
    sorts     operations fit the op table, a Load its tensor; masks are bool, contractions and scores real
    atoms     contractions share their axis, reductions have binders, normalisers have what their class needs
    outputs   out lives on b h g i e, a `let` on its axes, a new q, k or v on theirs
    steps     a state program declares what its steps assign and reads its states for out exactly once
    """
    known = _Known({name: _Tensor("real", axes) for name, axes in _ROLES.items()}, where=spec.name, span=spec.span)
    for constant in spec.constants:
        _constant(constant, known)
    for param in spec.params:
        _param(param, known)
    for statement in spec.statements:
        known.where, known.span = f"{spec.name}, {_title(statement)}", statement.span
        match statement:
            case Let():
                _let(statement, known)
            case Rebind():
                _rebind(statement, known)
    if spec.recurrence is None:
        _out(spec, known)
        return
    _recurrence(spec, spec.recurrence, known)


def _out(spec: Spec, known: _Known) -> None:
    known.where, known.span = f"{spec.name}, out", spec.out.span
    _body(spec.out.body, ("b", "h", "g", "i", "e"), known)
    _real(spec.out.body, "out", known)


def _title(statement: Let | Rebind) -> str:
    return f"let {statement.name}" if isinstance(statement, Let) else f"new {statement.tensor}"


# --- declarations ---------------------------------------------------------------------------------------------------


def _new_name(name: str, known: _Known) -> None:
    if name in known.tensors or name in known.constants:
        known.fail("names", f"{name} is declared twice")
    if name in INDICES or name in SIZES:
        known.fail("names", f"{name} shadows an index or a size")


def _constant(c: ConstParam, known: _Known) -> None:
    _new_name(c.name, known)
    kinds: dict[Sort, type] = {"bool": bool, "int": int, "real": float}
    if type(c.value) is not kinds[c.sort]:
        known.fail("sorts", f"constant {c.name} = {c.value!r} is not {c.sort}", c.span)
    known.constants[c.name] = c.sort


def _param(p: Param, known: _Known) -> None:
    _new_name(p.name, known)
    for axis in p.axes:
        _size(axis.size, f"an axis of {p.name}", known)
    if p.offsets and (p.sort != "int" or p.axes):
        known.fail("sorts", f"offsets {p.name} are integers without named axes", p.span)
    for bound in p.bounds or ():
        if not isinstance(bound, Const) and {v.name for v in free(bound)} - set(known.constants):
            known.fail("binding", f"the bounds of {p.name} are no constants", p.span)
    known.tensors[p.name] = _Tensor(p.sort, tuple(a.index for a in p.axes), p.offsets)


def _let(let: Let, known: _Known) -> None:
    _new_name(let.name, known)
    names = tuple(v.name for v in let.vars)
    if len(names) != len(let.axes) or len(set(names)) != len(names):
        known.fail("outputs", f"{len(let.axes)} axes need as many different variables, not {', '.join(names)}")
    for axis in let.axes:
        _size(axis.size, "an axis", known)
    _body(let.body, names, known)
    known.tensors[let.name] = _Tensor(let.body.sort, tuple(map(_kind, let.axes, names)))


def _kind(axis: Axis, var: str) -> str:
    return "m" if var == "i" else axis.index


def _rebind(new: Rebind, known: _Known) -> None:
    names = tuple(v.name for v in new.vars)
    fixed = _REBOUND[new.tensor]
    if names[:-1] != fixed or names[-1:] == () or names[-1] in fixed:
        known.fail("outputs", f"{new.tensor} is over {', '.join(fixed)} and a channel, not {', '.join(names)}")
    _size(new.channels, "its number of channels", known)
    _body(new.body, names, known)
    _real(new.body, new.tensor, known)


# --- expressions ----------------------------------------------------------------------------------------------------


def _size(e: Expr, what: str, known: _Known) -> None:
    if e.sort != "int":
        known.fail("sizes", f"the size of {what} is {e.sort}, not int")
    outside = {v.name for v in free(e)} - set(SIZES) - set(known.constants)
    if outside:
        known.fail("sizes", f"the size of {what} depends on {_list(outside)}")
    _body(e, (), known)


def _real(e: Expr, what: str, known: _Known) -> None:
    if e.sort != "real":
        known.fail("sorts", f"{what} is {e.sort}, not real")


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _body(e: Expr, indices: tuple[str, ...], known: _Known) -> None:
    """Every node of `e`, and that only `indices` (g where there is h), sizes and constants are free."""
    for node in walk(e):
        _node(node, known)
    allowed = {*indices, *SIZES, *known.constants, *(("g",) if "h" in indices else ())}
    outside = free(e)
    if S in outside and S.name not in known.constants:
        known.fail("binding", "the score's variable stands outside a normaliser")
    names = {v.name for v in outside} - allowed
    if names:
        rule = "outputs" if names <= set(INDICES) else "binding"
        known.fail(rule, f"{_list(names)} is not bound; free here: {_list(indices) or 'nothing'}")


def _node(e: Expr, known: _Known) -> None:
    match e:
        case Var():
            _var(e, known)
        case Op():
            _op(e, known)
        case Load():
            _load(e, known)
        case Contract():
            _contract(e, known)
        case Reduce():
            _reduce(e, known)
        case Scan():
            _scan(e, known)
        case Segment():
            _segment(e, known)
        case Gradient():
            _gradient(e, known)
        case Weights():
            _weights(e, known)


def _var(v: Var, known: _Known) -> None:
    if v is S and v.name not in known.constants:
        return
    wanted: Sort = known.constants.get(v.name, "int")
    if v.sort != wanted and v is not S:
        known.fail("sorts", f"{v.name} is {wanted}, and stands as {v.sort}")


def _op(e: Op, known: _Known) -> None:
    if e.name not in OPS:
        known.fail("sorts", f"{e.name} is no operation")
    sorts = tuple(a.sort for a in e.args)
    try:
        wanted = result_sort(e.name, sorts)
    except TypeError as error:
        known.fail("sorts", str(error))
    mixed = len(set(sorts[1:] if e.name == "where" else sorts)) > 1
    strict = OPS[e.name].rule == "real" and set(sorts) != {"real"}
    if e.sort != wanted or mixed or strict:
        known.fail("sorts", f"{e.name} of {', '.join(sorts)} stands as {e.sort}")


def _load(e: Load, known: _Known) -> None:
    tensor = known.tensors.get(e.tensor)
    if tensor is None:
        known.fail("names", f"tensor {e.tensor} is not known here", e.span)
    if tensor.offsets:
        known.fail("rank", f"offsets {e.tensor} are read by segment alone", e.span)
    if e.tensor in known.carried and tuple(e.index[:2]) != (Var("b", "int"), Var("h", "int")):
        known.fail("rank", f"{e.tensor} is read at another b or h", e.span)
    if len(e.index) != len(tensor.axes):
        known.fail("rank", f"{e.tensor} has {len(tensor.axes)} axes and {len(e.index)} subscripts", e.span)
    for axis, x in zip(tensor.axes, e.index, strict=True):
        if x.sort != "int":
            known.fail("rank", f"a subscript of {e.tensor} is {x.sort}", e.span)
        if axis == "m" and x is not Var("i", "int"):
            known.fail("rank", f"the query rows of {e.tensor} are read at a bare i", e.span)
    if e.sort != tensor.sort:
        known.fail("sorts", f"{e.tensor} holds {tensor.sort} and is read as {e.sort}", e.span)


def _binders(binders: tuple[Binder, ...], what: str, known: _Known) -> None:
    names = [b.index.name for b in binders]
    if not names or len(set(names)) != len(names):
        known.fail("atoms", f"{what} over {', '.join(names) or 'nothing'}")
    for b in binders:
        if b.index.sort != "int" or b.index.name in SIZES or b.index.name in known.constants:
            known.fail("names", f"{b.index.name} can't be bound by {what}")
        _size(b.size, b.index.name, known)


def _contract(e: Contract, known: _Known) -> None:
    _binders((Binder(e.axis, e.extent),), "a contraction", known)
    for x in (e.a, e.b, e):
        _real(x, "an operand of a contraction" if x is not e else "a contraction", known)
    if not (e.axis in free(e.a) and e.axis in free(e.b)):
        known.fail("atoms", f"a contraction over {e.axis.name}, which only one operand has", e.span)


def _reduce(e: Reduce, known: _Known) -> None:
    _binders(e.binders, e.op, known)
    if e.where.sort != "bool":
        known.fail("sorts", f"the where of {e.op} is {e.where.sort}", e.span)
    fits = (e.body.sort == "bool") == (e.op == "any")
    wanted = "int" if e.op == "argmax" else "real" if e.op == "mean" else e.body.sort
    if not fits or e.sort != wanted:
        known.fail("sorts", f"{e.op} of {e.body.sort} stands as {e.sort}", e.span)


def _scan(e: Scan, known: _Known) -> None:
    _binders((e.binder,), "a scan", known)
    if e.body.sort == "bool" or e.sort != e.body.sort:
        known.fail("sorts", f"a scan of {e.body.sort} stands as {e.sort}", e.span)


def _segment(e: Segment, known: _Known) -> None:
    tensor = known.tensors.get(e.tensor)
    if tensor is None or not tensor.offsets:
        known.fail("names", f"segment reads {e.tensor}, which is not declared offsets", e.span)
    if e.at.sort != "int" or e.sort != "int":
        known.fail("sorts", f"segment at a {e.at.sort} stands as {e.sort}", e.span)


def _gradient(e: Gradient, known: _Known) -> None:
    if known.carried.get(e.of) != len(e.index):
        known.fail("steps", f"a gradient by {e.of}, which is no state with {len(e.index)} axes", e.span)
    _real(e.body, "what a gradient is taken of", known)
    _real(e, "a gradient", known)


def _weights(e: Weights, known: _Known) -> None:
    _binders(e.keys, "weights", known)
    if e.mask.sort != "bool":
        known.fail("sorts", f"a mask is {e.mask.sort}, not bool", e.span)
    _real(e.score, "a score", known)
    _real(e, "a weight", known)
    if e.dropout is not None:
        _real(e.dropout, "a probability", known)
        if {v.name for v in free(e.dropout)} - set(known.constants):
            known.fail("binding", "a dropout probability is a constant", e.span)
    _normaliser(e.normaliser, {k.index for k in e.keys}, known)


def _normaliser(n: Normaliser, keys: set[Var], known: _Known) -> None:
    if (n.psi is not None) != (n.kind == "ratio") or (n.z is not None and n.kind != "ratio"):
        known.fail("atoms", f"a normaliser of class {n.kind} with{'' if n.psi is not None else 'out'} psi")
    for name, f in (("phi", n.phi), ("psi", n.psi), ("z", n.z)):
        if f is not None:
            _real(f, name, known)
            if free(f) & keys:
                known.fail("binding", f"{name} of a normaliser depends on its keys")
    if n.z is not None and S in free(n.z) and S.name not in known.constants:
        known.fail("binding", "z of a normaliser depends on the score")


# --- state programs -------------------------------------------------------------------------------------------------


def _recurrence(spec: Spec, r: Recurrence, known: _Known) -> None:
    """The states, the steps in their order, and out where it is read."""
    states = {s.name: s for s in r.states}
    for state in r.states:
        known.where, known.span = f"{spec.name}, state {state.name}", state.span
        _carried(state.name, state.axes, state.vars, known)
        _body(state.init, ("b", "h", "g", "i", *(v.name for v in state.vars)), known)
        _real(state.init, "what a state starts with", known)
        if state.per is not None:
            _body(state.per, ("b", "h", "g", "i"), known)
            if state.per.sort != "int":
                known.fail("sorts", f"the key of a state is {state.per.sort}, not int")
    for f in r.frozen:
        known.where, known.span = f"{spec.name}, frozen {f.name}", f.span
        if f.state not in states:
            known.fail("steps", f"{f.state} is no state")
        _size(f.every, "a span of tokens", known)
        _carried(f.name, states[f.state].axes, states[f.state].vars, known)
    for state in r.states:
        _declare(state.name, state.axes, known)
    for f in r.frozen:
        _declare(f.name, states[f.state].axes, known)
    _steps(spec, r.steps, states, (), known)
    if sum(isinstance(s, Read) for s in r.steps) != 1:
        known.fail("steps", "out is read once, outside of loops")


def _carried(name: str, axes: tuple[Axis, ...], variables: tuple[Var, ...], known: _Known) -> None:
    _new_name(name, known)
    names = tuple(v.name for v in variables)
    if names != tuple(a.index for a in axes) or len(set(names)) != len(names) or set(names) & set("bhgijn"):
        known.fail("steps", f"the axes of {name} need variables of their own, not {_list(names)}")
    for axis in axes:
        _size(axis.size, "an axis", known)


def _declare(name: str, axes: tuple[Axis, ...], known: _Known) -> None:
    _new_name(name, known)
    known.tensors[name] = _Tensor("real", ("b", "h", *(a.index for a in axes)))
    known.carried[name] = len(axes)


def _steps(
    spec: Spec, steps: tuple[Step, ...], states: dict[str, State], loops: tuple[str, ...], known: _Known
) -> None:
    place = ("b", "h", "g", "i", *loops)
    for step in steps:
        match step:
            case Assign(name, variables, body):
                known.where, known.span = f"{spec.name}, {name} =", step.span
                if name not in states or variables != states[name].vars:
                    known.fail("steps", f"{name} is no state over {_list(v.name for v in variables)}")
                _body(body, (*place, *(v.name for v in variables)), known)
                _real(body, name, known)
            case Keep(name, axes, variables, body):
                known.where, known.span = f"{spec.name}, keep {name}", step.span
                _carried(name, axes, variables, known)
                _body(body, (*place, *(v.name for v in variables)), known)
                _real(body, name, known)
                _declare(name, axes, known)
            case Micro(binder, inner):
                known.where, known.span = f"{spec.name}, for {binder.index.name}", step.span
                _binders((binder,), "a loop", known)
                _steps(spec, inner, states, (*loops, binder.index.name), known)
            case Read():
                if loops:
                    known.fail("steps", "out is read outside of loops")
                _out(spec, known)
