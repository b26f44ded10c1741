"""The Spec IR as text, one declaration, named part or statement a line; `read_spec` gives the equal Spec back.

    spec window_and_sink
    const window: int = 128
    param sink: real[h: H]
    %1 = contract(d < D, q[b, h, i, d], k[b, g, j, d])
    %2 = weights(ratio, j < N, score = %1 / sqrt(real(D)), mask = j <= i, phi = exp(%s), psi = exp(%s), z = ...)
    out = contract(j < N, %2, v[b, g, j, e])

Contractions, reductions, scans, weights and whatever is used twice get a name, which stands for its text; %s is the
score in a normaliser. A state program has its steps before and after `out`, in their order:

    state S[d: D, e: E] = 0.0 per segment(cu, i)
    frozen F = S every 16
    for t < steps
    keep u[e: E] = %1
    assign S[d, e] = ...
    end
"""

from __future__ import annotations

from collections.abc import Iterator

from attncc.expr.nodes import Const, Expr, Op, Sort, Var, children, walk
from attncc.expr.ops import OPS
from attncc.ir.nodes import (
    Assign,
    Axis,
    Binder,
    Contract,
    Gradient,
    Keep,
    Let,
    Load,
    Micro,
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
from attncc.ir.steps import bodies
from attncc.ir.text_read import ATOM, COMPARE, LEVEL, POWER, UNARY, BadText, read_spec

__all__ = ["BadText", "read_spec", "spell_spec"]

_DEEP = 16
"""An expression higher than this gets a name."""


def spell_spec(spec: Spec) -> str:
    """`spec` as text, with a newline at its end."""
    return "\n".join(_Printer(spec).lines()) + "\n"


class _Printer:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.sorts: dict[str, Sort] = {c.name: c.sort for c in spec.constants}
        self.holds: dict[str, Sort] = {"q": "real", "k": "real", "v": "real", **{p.name: p.sort for p in spec.params}}
        self.named: dict[Expr, str] = {}
        self.shared = _shared(list(bodies(spec)))

    def lines(self) -> Iterator[str]:
        """The whole text."""
        yield f"spec {self.spec.name}"
        for c in self.spec.constants:
            yield f"const {c.name}: {c.sort} = {_number(c.value)}"
        for p in self.spec.params:
            yield self._param(p)
        for statement in self.spec.statements:
            yield from self._parts(statement.body)
            match statement:
                case Let():
                    yield self._let(statement)
                    self.holds[statement.name] = statement.body.sort
                case Rebind():
                    *names, channel = (v.name for v in statement.vars)
                    axes = ", ".join([*names, f"{channel}: {self._text(statement.channels)}"])
                    yield f"rebind {statement.tensor}[{axes}] = {self._text(statement.body)}"
        if self.spec.recurrence is None:
            yield from self._out()
        else:
            yield from self._recurrence(self.spec.recurrence)

    def _out(self) -> Iterator[str]:
        yield from self._parts(self.spec.out.body)
        yield f"out = {self._text(self.spec.out.body)}"

    def _recurrence(self, r: Recurrence) -> Iterator[str]:
        for state in r.states:
            yield from self._state(state)
        for f in r.frozen:
            yield f"frozen {f.name} = {f.state} every {self._text(f.every)}"
        yield from self._steps(r.steps)

    def _state(self, s: State) -> Iterator[str]:
        for e in (s.init, s.per):
            if e is not None:
                yield from self._parts(e)
        per = "" if s.per is None else f" per {self._text(s.per)}"
        yield f"state {s.name}[{self._axes(s.axes)}] = {self._text(s.init)}{per}"

    def _steps(self, steps: tuple[Step, ...]) -> Iterator[str]:
        for step in steps:
            match step:
                case Assign():
                    yield from self._parts(step.body)
                    yield f"assign {step.state}[{', '.join(v.name for v in step.vars)}] = {self._text(step.body)}"
                case Keep():
                    yield from self._parts(step.body)
                    self.holds[step.name] = step.body.sort
                    yield f"keep {step.name}[{self._axes(step.axes)}] = {self._text(step.body)}"
                case Micro():
                    yield f"for {self._binder(step.binder)}"
                    yield from self._steps(step.steps)
                    yield "end"
                case Read():
                    yield from self._out()

    def _axes(self, axes: tuple[Axis, ...]) -> str:
        return ", ".join(map(self._axis, axes))

    def _param(self, p: Param) -> str:
        if p.offsets:
            return f"param {p.name}: offsets"
        axes = ", ".join(self._axis(a) for a in p.axes)
        bounds = f" in [{', '.join(self._text(x) for x in p.bounds)}]" if p.bounds else ""
        return f"param {p.name}: {p.sort}[{axes}]{bounds}"

    def _let(self, let: Let) -> str:
        axes = [
            self._axis(a) + ("" if a.index == v.name else f" as {v.name}")
            for a, v in zip(let.axes, let.vars, strict=True)
        ]
        return f"{'emit' if let.emitted else 'let'} {let.name}[{', '.join(axes)}] = {self._text(let.body)}"

    def _axis(self, axis: Axis) -> str:
        size = self._text(axis.size)
        return f"{axis.index}: {size}" if axis.index else size

    def _parts(self, e: Expr) -> Iterator[str]:
        """A line for each node under `e` that gets a name and has none yet."""
        heights: dict[Expr, int] = {}
        for node in walk(e):
            heights[node] = 1 + max((heights[c] for c in children(node)), default=0)
            if node in self.named:
                heights[node] = 1
            elif node is not e and (node in self.shared or _is_part(node) or heights[node] > _DEEP):
                text = self._text(node)
                self.named[node] = f"%{len(self.named) + 1}"
                heights[node] = 1
                yield f"{self.named[node]} = {text}"

    def _text(self, e: Expr) -> str:
        return self._spell(e)[0]

    def _fit(self, e: Expr, level: int) -> str:
        text, own = self._spell(e)
        return text if own >= level else f"({text})"

    def _spell(self, e: Expr) -> tuple[str, int]:
        if e in self.named:
            return self.named[e], ATOM
        match e:
            case Const(value, _):
                return _number(value), UNARY if value < 0 else ATOM
            case Var(name, sort):
                wanted: Sort = self.sorts.get(name, "int")
                return ("%s" if e is S else name + _at(sort, wanted)), ATOM
            case Op():
                return self._operation(e)
            case Load(tensor, index, sort):
                subscripts = ", ".join(self._text(x) for x in index)
                return f"{tensor}[{subscripts}]{_at(sort, self.holds.get(tensor, 'real'))}", ATOM
            case _:
                return self._atom(e), ATOM

    def _operation(self, e: Op) -> tuple[str, int]:
        level = LEVEL.get(e.name, ATOM)
        match e.name, e.args:
            case "not", (x,):
                return f"not {self._fit(x, level)}", level
            case "neg", (x,) if not isinstance(x, Const):
                return f"-{self._fit(x, POWER)}", UNARY
            case _, (a, b) if level < ATOM:
                left = level + 1 if level in (COMPARE, POWER) else level
                return f"{self._fit(a, left)} {OPS[e.name].infix} {self._fit(b, level + 1)}", level
            case _:
                return f"{e.name}({', '.join(self._text(a) for a in e.args)})", ATOM

    def _atom(self, e: Expr) -> str:
        match e:
            case Contract(a, b, axis, extent, sort):
                inside = [self._binder(Binder(axis, extent)), self._text(a), self._text(b)]
                return f"contract({', '.join(inside)}){_at(sort, 'real')}"
            case Reduce(name, body, binders, where, sort):
                inside = [name, *map(self._binder, binders), self._text(body)]
                if where is not Const(True, "bool"):
                    inside.append(f"where = {self._text(where)}")
                return f"reduce({', '.join(inside)}){_at(sort, reduced_sort(name, body))}"
            case Scan(name, body, binder, reverse, exclusive, sort):
                flags = [word for word, on in (("reverse", reverse), ("exclusive", exclusive)) if on]
                inside = [name, self._binder(binder), self._text(body), *flags]
                return f"scan({', '.join(inside)}){_at(sort, body.sort)}"
            case Segment(tensor, at, sort):
                return f"segment({tensor}, {self._text(at)}){_at(sort, 'int')}"
            case Weights():
                return self._weights(e)
            case Gradient(body, of, index, sort):
                inside = [of, self._text(body), *map(self._text, index)]
                return f"gradient({', '.join(inside)}){_at(sort, 'real')}"
            case _:
                raise TypeError(f"{type(e).__name__} does not belong in the Spec IR")

    def _weights(self, e: Weights) -> str:
        n = e.normaliser
        parts = {"score": e.score, "mask": e.mask, "phi": n.phi, "psi": n.psi, "z": n.z, "dropout": e.dropout}
        parts |= {f"option.{name}": value for name, value in n.options}
        given = [f"{name} = {self._text(x)}" for name, x in parts.items() if x is not None]
        return f"weights({', '.join([n.kind, *map(self._binder, e.keys), *given])}){_at(e.sort, 'real')}"

    def _binder(self, b: Binder) -> str:
        return f"{b.index.name} < {self._fit(b.size, COMPARE + 1)}"


def reduced_sort(name: str, body: Expr) -> Sort:
    """The sort of a reduction, unless it says otherwise."""
    return "int" if name == "argmax" else "real" if name == "mean" else body.sort


def _at(sort: Sort, wanted: Sort) -> str:
    return "" if sort == wanted else f"@{sort}"


def _number(x: float | bool) -> str:
    return ("true" if x else "false") if isinstance(x, bool) else repr(x)


def _is_part(e: Expr) -> bool:
    return isinstance(e, Contract | Gradient | Reduce | Scan | Weights)


def _shared(roots: list[Expr]) -> set[Expr]:
    """Nodes with several parents that are more than a leaf or one operation on leaves."""
    parents: dict[Expr, int] = {}
    seen: set[Expr] = set()
    for root in roots:
        for node in walk(root):
            if node not in seen:
                seen.add(node)
                for c in children(node):
                    parents[c] = parents.get(c, 0) + 1
    small = {n for n in seen if not any(children(c) for c in children(n)) or isinstance(n, Load)}
    return {n for n, count in parents.items() if count > 1 and n not in small}
