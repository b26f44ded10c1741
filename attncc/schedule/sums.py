"""Arrays that are sums over all keys, and rows that read nothing of the keys but them: two programs in one.

rewrite: let S[b, g, d, e] = sum(f(k, v) over j); out = h(q, S)
     --> a state program over kv heads that writes f and ends in S, and one without states whose out is h
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from attncc.expr.build import TRUE, ivar, op
from attncc.expr.nodes import Const, Expr, Var, substitute, walk
from attncc.ir.nodes import (
    Assign,
    Contract,
    Let,
    Load,
    Param,
    Read,
    Rebind,
    Recurrence,
    Reduce,
    Spec,
    State,
    Weights,
)
from attncc.passes.chunk_axes import put
from attncc.schedule.chunk_programs import programs as of_states
from attncc.schedule.given import last_of
from attncc.schedule.programs import Pair
from attncc.schedule.prune import prune
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t

B, H, G, N, I, J = (ivar(x) for x in "BHGNij")
ZERO = Const(0.0, "real")


def sums(spec: Spec) -> tuple[Let, ...]:
    """The arrays over b and g that are sums over all keys, if the spec has such and reads keys in no other way."""
    found = tuple(s for s in spec.statements if isinstance(s, Let) and _summed(s) is not None)
    rest = [s.body for s in spec.statements if s not in found] + [spec.out.body]
    pairs = (n for body in rest for n in walk(body) if isinstance(n, Weights | Contract | Reduce))
    return () if spec.recurrence is not None or any(_over_keys(n) for n in pairs) else found


def _over_keys(n: Expr) -> bool:
    match n:
        case Weights():
            return any(x.size is N for x in n.keys)
        case Contract(_, _, _, extent):
            return extent is N
        case Reduce(_, _, binders):
            return any(x.size is N for x in binders)
        case _:
            return False


def _summed(s: Let) -> Expr | None:
    """What is summed over the keys."""
    lead = tuple(a.index for a in s.axes[:2])
    match s.body:
        case Reduce("sum", body, (binder,), where) if binder.size is N and lead == ("b", "g") and not s.emitted:
            at = put(body if where is TRUE else op("where", where, body, ZERO), {binder.index: I})
            return None if any(_over_keys(n) for n in walk(at)) else at
        case _:
            return None


def programs(spec: Spec, variant: Variant) -> Pair:
    """The programs of a spec that has such sums."""
    arrays = sums(spec)
    first, second = _first(spec, arrays), _second(spec, arrays)
    real: t.Dtype = "f64" if variant.dtype == "f64" else "f32"
    made = {last_of(s.name): s for s in arrays}
    own = {n for s in first.recurrence.steps if isinstance(s, Assign) for n in _read(first, s.body)}  # type: ignore[union-attr]
    wanted = variant.gradients
    a = of_states(first, replace(variant, grouped=False, last=True, gradients=tuple(n for n in wanted if n in own)))
    captured = (*variant.captured, *((n, real) for n in made))
    more = tuple(made) if wanted else ()
    b = of_states(second, replace(variant, captured=captured, gradients=(*wanted, *more)))
    ahead = _without_out(_per_kv_head(a.forward) if variant.grouped else a.forward)
    forward = _joined("forward", ahead, b.forward, frozenset(made))
    if not wanted:
        return Pair(forward, None)
    assert b.backward is not None
    back = _joined("backward", ahead, b.backward, frozenset(made))
    if a.backward is None:
        return Pair(forward, replace(back, outputs=tuple(f"d_{n}" for n in wanted)))
    after = _per_kv_head(a.backward) if variant.grouped else a.backward
    both = frozenset(f"d_{n}" for n in wanted if n in own)
    return Pair(forward, _followed(back, after, both, tuple(f"d_{n}" for n in wanted), real))


def _read(spec: Spec, e: Expr) -> set[str]:
    names = {n.tensor for n in walk(e) if isinstance(n, Load)}
    rows: dict[str, Expr] = {s.tensor: s.body for s in spec.statements if isinstance(s, Rebind)}
    return names | {n for x in names & set(rows) for n in {m.tensor for m in walk(rows[x]) if isinstance(m, Load)}}


def _first(spec: Spec, arrays: tuple[Let, ...]) -> Spec:
    """The state program whose states end in the arrays; its heads are the kv heads."""
    states, steps = [], []
    for s in arrays:
        body, own = _summed(s), s.vars[2:]
        assert body is not None
        states.append(State(s.name, s.axes[2:], own, ZERO, span=s.span))
        load = Load(s.name, (ivar("b"), ivar("h"), *own), "real", s.span)
        steps.append(Assign(s.name, own, op("add", load, body), s.span))
    rest = tuple(s for s in spec.statements if s not in arrays)
    r = Recurrence(tuple(states), (), (*steps, Read()))
    return replace(spec, statements=rest, out=replace(spec.out, body=ZERO), recurrence=r)


def _second(spec: Spec, arrays: tuple[Let, ...]) -> Spec:
    """The rows, which read the arrays as captured tensors."""
    names = {s.name: last_of(s.name) for s in arrays}
    params = (*spec.params, *(Param(names[s.name], "real", s.axes, span=s.span) for s in arrays))
    table: dict[Expr, Expr] = {}
    for e in (spec.out.body, *(s.body for s in spec.statements if s not in arrays)):
        for n in walk(e):
            if isinstance(n, Load) and n.tensor in names:
                table[n] = replace(n, tensor=names[n.tensor])
    rest = tuple(replace(s, body=substitute(s.body, table)) for s in spec.statements if s not in arrays)
    out = replace(spec.out, body=substitute(spec.out.body, table))
    return replace(spec, params=params, statements=rest, out=out, recurrence=Recurrence((), (), (Read(),)))


# --- programs as data -------------------------------------------------------------------------------------------------


def _renamed(x: Any, names: dict[str, str], table: dict[Expr, Expr]) -> Any:
    """Other names for tensors and kernels, other expressions for sizes."""
    match x:
        case Expr():
            return substitute(x, table)
        case tuple():
            return tuple(_renamed(y, names, table) for y in x)
        case _ if dataclasses.is_dataclass(x) and not isinstance(x, type):
            fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
            named = {"tensor", "tensors", "source", "like", "kernel", "outputs"}
            named |= {"name"} if isinstance(x, t.Tensor | t.Kernel) else set()
            return replace(
                x, **{n: _name(v, names, table) if n in named else _renamed(v, names, table) for n, v in fields.items()}
            )
        case _:
            return x


def _name(v: Any, names: dict[str, str], table: dict[Expr, Expr]) -> Any:
    if isinstance(v, str):
        return names.get(v, v)
    if isinstance(v, tuple) and all(isinstance(y, str) for y in v):
        return tuple(names.get(y, y) for y in v)
    return _renamed(v, names, table)


def _per_kv_head(p: t.Program) -> t.Program:
    """A program over H heads, over G."""
    found: t.Program = _renamed(p, {}, {H: G})

    def scalars(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys("G" if n == "H" else n for n in names))

    kernels = tuple(replace(k, scalars=scalars(k.scalars)) for k in found.kernels)
    sizes = {s.name: s for s in found.scalars if s.name != "H"} | {"G": t.Scalar("G", "int")}
    return replace(found, kernels=kernels, scalars=tuple(sizes.values()))


def _without_out(p: t.Program) -> t.Program:
    """A program that does not write its rows."""

    def less(body: tuple[t.Stmt, ...]) -> tuple[t.Stmt, ...]:
        kept = (s for s in body if not (isinstance(s, t.Store) and s.tensor == "out"))
        return tuple(replace(s, body=less(s.body)) if isinstance(s, t.For) else s for s in kept)

    kernels = tuple(
        prune(replace(k, body=less(k.body), tensors=tuple(n for n in k.tensors if n != "out"))) for k in p.kernels
    )
    steps = tuple(s for s in p.steps if not (isinstance(s, t.Alloc) and s.tensor.name == "out"))
    return replace(p, kernels=kernels, steps=steps, outputs=tuple(n for n in p.outputs if n != "out"))


def _apart(p: t.Program, kept: frozenset[str], mark: str) -> t.Program:
    """Its kernels and scratch under names of their own."""
    given = {x.name for x in p.inputs} | kept
    scratch = [n for s in p.steps for n in _written(s) if n not in given]
    names = {n: f"{mark}_{n}" for n in (*scratch, *(k.name for k in p.kernels))}
    found: t.Program = _renamed(p, names, {})
    return found


def _written(s: t.Step) -> tuple[str, ...]:
    match s:
        case t.Alloc(tensor):
            return (tensor.name,)
        case t.Launch():
            return ()
        case _:
            return (s.out.name,)


def _joined(name: str, ahead: t.Program, p: t.Program, made: frozenset[str]) -> t.Program:
    """`ahead`, which makes tensors that `p` takes, and then `p`."""
    first = _apart(ahead, made, "sums")
    inputs = {x.name: x for x in (*first.inputs, *p.inputs) if x.name not in made}
    scalars = {s.name: s for s in (*p.scalars, *first.scalars)}
    return t.Program(
        name,
        tuple(inputs.values()),
        tuple(scalars.values()),
        (*first.kernels, *p.kernels),
        (*first.steps, *p.steps),
        p.outputs,
    )


def _followed(
    p: t.Program, after: t.Program, both: frozenset[str], outputs: tuple[str, ...], real: t.Dtype
) -> t.Program:
    """`p`, then `after`, which takes gradients that `p` makes; `both` are those to which both have a share."""
    last = _apart(after, frozenset(), "sums_of")
    p = _renamed(p, {n: f"{n}_rows" for n in both}, {})
    steps: list[t.Step] = [*p.steps, *last.steps]
    shares = {x.name: x for s in steps for x in _tensors(s)}
    for name in sorted(both):
        one, two = shares[f"{name}_rows"], shares[f"sums_of_{name}"]
        total = t.Tensor(f"{name}_both", one.axes, one.extents, real)
        steps.append(t.Alloc(total, 0.0))
        for x in (one, two):
            steps.append(t.ScatterAdd(total, x.name, tuple(Var(a, "int") for a in x.axes), True))
        steps.append(t.SumAxes(replace(one, name=name), total.name, ()))
    scalars = {s.name: s for s in (*p.scalars, *last.scalars)}
    kernels = (*p.kernels, *last.kernels)
    return replace(p, scalars=tuple(scalars.values()), kernels=kernels, steps=tuple(steps), outputs=outputs)


def _tensors(s: t.Step) -> tuple[t.Tensor, ...]:
    match s:
        case t.Alloc(tensor):
            return (tensor,)
        case t.Launch():
            return ()
        case _:
            return (s.out,)
