"""Specs that are right by construction lower, and their IR is closed, sorted and masked."""

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncc.expr.nodes import Const, Expr, Op, Var, children, walk
from attncc.expr.ops import OPS, result_sort
from attncc.grammar import format_source, parse
from attncc.ir.nodes import Contract, Load, Reduce, Weights

HEADER = """\
def bump(x) = x * x + (x if x < 1 else 0)
def twice(x) = bump(bump(x)) - 1
attention a(w = 4, cap = 2.5, flag = true, s: real[h], t: int[b, n], keep: bool[b, n], table: real[8, h],
            cu: offsets):
"""

RULES = {
    "int": """i; j; w; 2; N; t[b, j]; t[b, i]; segment(cu, j); ({int} + {int}); ({int} - {int}); ({int} // 2);
        ({int} % 3); abs({int}); min({int}, {int}, 7); floor({real}); -({int}); ({int} if {bool} else {int})""",
    "bool": """j <= i; i - j < w; keep[b, j]; flag; {int} < {int}; {real} >= {real}; ({bool} and {bool});
        ({bool} or {bool}); not ({bool}); {int} in {0, 1}; {int} not in {2, w}; {int} == {int}""",
    "real": """(q @ k); score; cap; 0.5; s[h]; sqrt(D); ({real} + {real}); ({real} * {real}); ({real} / cap);
        tanh({real}); exp({real}); bump({real}); twice({real}); ({real} if {bool} else {real});
        {real} ** 2; table[{int} % 8, h];
        ({int} * s[h]); max({real}, {real}); sum(t[b, j] * cap over j where {bool}); relu({real} where {bool});
        mean(q * q over d); (rmsnorm(q) @ normalize(k)); ({int} / 2)""",
    "weight": """softmax({key}); softmax({key} where {bool}); softmax({key}, sink = s[h]); sigmoid({key} where {bool});
        relu({key}) ** 2; stick({key}); entmax({key}, alpha = cap); dropout(softmax({key}), 0.1);
        (s[h] * softmax({key}));
        ({weight} - s[h] * softmax({key})); ratio(relu(exp(score)), exp(score) + 1, eps = 1e-6);
        ({weight} + sigmoid({key}))""",
    "key": "score + {real}; (q @ k) * cap - {real}",
}
SLOT = re.compile(r"\{(int|bool|real|weight|key)\}")


@st.composite
def phrase(draw: st.DrawFn, kind: str, depth: int = 3) -> str:
    """A phrase of that kind; below depth 0 one without parts, where the kind has any."""
    rules = [" ".join(r.split()) for r in RULES[kind].split(";")]
    plain = [r for r in rules if not SLOT.search(r)] or rules[:1]
    shape = draw(st.sampled_from(plain if depth <= 0 else rules))
    return SLOT.sub(lambda slot: draw(phrase(slot[1], depth - 1)), shape)


@st.composite
def spec_text(draw: st.DrawFn) -> str:
    """The text of a spec that lowers."""
    lines = ["score = (q @ k) / sqrt(D)", f"mask = {draw(phrase('bool', 2))}", f"let first = {draw(phrase('weight'))}"]
    out = draw(st.sampled_from(["(first + {}) @ v", "first @ v + s[h] * ({} @ v)", "v @ ({})"]))
    needed = " + softmax(score) @ v"  # takes the mask, whatever the rest does
    lines.append("out = " + out.format(draw(phrase("weight"))) + needed)
    return HEADER + "".join(f"    {line}\n" for line in lines)


def free(e: Expr) -> frozenset[str]:
    """Names of the variables that nothing in `e` binds; the score's own `s` is bound by its normaliser."""
    match e:
        case Var(name=name):
            return frozenset({name})
        case Const():
            return frozenset()
        case Contract(a=a, b=b, axis=axis, extent=extent):
            return (free(a) | free(b)) - {axis.name} | free(extent)
        case Reduce(body=body, binders=binders, where=where):
            inner = (free(body) | free(where)) - {b.index.name for b in binders}
            return inner.union(*(free(b.size) for b in binders))
        case Weights(normaliser=n):
            maps = [x for x in (n.phi, n.psi) if x is not None]
            assert all(free(m) - {"s"} <= {"cap", "w", "flag"} for m in maps)
            parts = [e.score, e.mask, *([n.z] if n.z is not None else [])]
            return frozenset().union(*map(free, parts))
        case _:
            return frozenset().union(*map(free, children(e)))


SIZES = set("BHGMNDE")
CONSTANTS = {"w", "cap", "flag"}


def check(e: Expr) -> None:
    for node in walk(e):
        match node:
            case Op(name=name, args=args, sort=sort):
                assert result_sort(name, tuple(a.sort for a in args)) == sort
                joined = [a.sort for a in (args[1:] if name == "where" else args)]
                assert len(set(joined)) <= 1 or OPS[name].rule == "where", (name, joined)
            case Load(index=index):
                assert all(x.sort == "int" for x in index)
            case Contract(a=a, b=b):
                assert a.sort == b.sort == "real"
            case Reduce(where=where):
                assert where.sort == "bool"
            case Weights(score=score, mask=mask):
                assert score.sort == "real" and mask.sort == "bool"
            case _:
                pass


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec_text())
def test_right_by_construction(text: str) -> None:
    spec = parse(text)
    body = spec.out.body
    check(body)
    assert free(body) <= set("bhgie") | SIZES | CONSTANTS
    assert any(isinstance(n, Weights) for n in walk(body))
    assert parse(format_source(text)) == spec
