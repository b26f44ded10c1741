"""Expressions inside a Triton kernel, and the helper functions that some of them call."""

from __future__ import annotations

from collections.abc import Mapping

from attncc.codegen.gluon_exprs import GLUON, Speller, Text
from attncc.codegen.scalars import CALL, PRODUCT, SUM, Form
from attncc.expr.nodes import Expr, Op, walk

_SHARED = {
    name: Form(f.text.replace("gl.", "tl."), f.level, f.places) for name, f in GLUON.items() if "_gl(" not in f.text
}

TRITON: Mapping[str, Form] = {
    **_SHARED,
    "real": Form("tl.cast({}, tl.float32)"),
    "exp": Form("tl.exp({})"),
    "log": Form("tl.log({})"),
    "sigmoid": Form("tl.sigmoid({})"),
    "tanh": Form("_tanh({})"),
    "expm1": Form("_expm1({})"),
    "log1p": Form("_log1p({})"),
    "relu": Form("tl.maximum({}, 0.0)"),
    "pow": Form("tl.exp2({1} * tl.log2({0}))", 11, (PRODUCT, PRODUCT)),
    "elu": Form("tl.where({0} > 0, {0}, _expm1(tl.minimum({0}, 0.0)))", 11, (SUM,)),
    "softplus": Form("tl.maximum({0}, 0.0) + _log1p(tl.exp(-tl.abs({0})))", SUM, (SUM,)),
    "silu": Form("{0} * tl.sigmoid({0})", PRODUCT, (11,)),
    "floordiv": Form("_floordiv({}, {})"),
    "mod": Form("_mod({}, {})"),
}

FAST_TANH = '''\
@triton.jit
def _tanh(x):
    """The special-function unit's tanh: relative error 2**-11, below bfloat16's rounding."""
    asm: tl.constexpr = "tanh.approx.f32 $0, $1;"
    return tl.inline_asm_elementwise(asm, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
'''

HELPERS: dict[str, str] = {
    "tanh": '''\
@triton.jit
def _tanh(x):
    """tanh by an exponential, and by its series where that would cancel."""
    square = x * x
    series = x * (1.0 + square * (-0.33333333 + square * (0.13333333 + square * (-0.05396825 + square * 0.02186949))))
    large = 1.0 - 2.0 / (tl.exp2(2.8853900817779268 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -large, large))
''',
    "larger": """\
@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)
""",
    "mod": '''\
@triton.jit
def _mod(a, b):
    """The remainder with the sign of the divisor."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
''',
    "floordiv": """\
@triton.jit
def _floordiv(a, b):
    return (a - _mod(a, b)) // b
""",
    "expm1": '''\
@triton.jit
def _expm1(x):
    """exp(x) - 1, by its series where that would cancel."""
    series = x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.04166667 + x * (0.00833333 + x * 0.00138889)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1.0)
''',
    "log1p": '''\
@triton.jit
def _log1p(x):
    """log(1 + x), corrected for what the sum rounds away."""
    total = 1.0 + x
    rest = total - 1.0
    return tl.where(rest == 0.0, x, tl.log(total) * (x / tl.where(rest == 0.0, 1.0, rest)))
''',
}

NEEDS: Mapping[str, tuple[str, ...]] = {
    "tanh": ("tanh",),
    "expm1": ("expm1",),
    "elu": ("expm1",),
    "log1p": ("log1p",),
    "softplus": ("log1p",),
}


DIVIDES: Mapping[str, tuple[str, ...]] = {"floordiv": ("mod", "floordiv"), "mod": ("mod",)}
"""What divisions call that neither a shift nor the machine's own, which rounds to zero, can do."""


class TritonSpeller(Speller):
    """`Speller` with Triton's spellings; a value whose axes are in another order is transposed."""

    forms = TRITON

    def widen(self, t: Text, axes: tuple[str, ...]) -> Text:
        """`t` as a value over `axes`; scalars stay scalars."""
        kept = tuple(a for a in axes if a in t.axes)
        if kept != t.axes:
            order = ", ".join(str(t.axes.index(a)) for a in kept)
            t = Text(f"tl.trans({t.text})" if len(kept) == 2 else f"tl.permute({t.text}, ({order}))", CALL, kept)
        return super().widen(t, axes)


def helpers_of(e: Expr) -> set[str]:
    """The helper functions that `e` calls when printed."""
    return {h for n in walk(e) if isinstance(n, Op) for h in NEEDS.get(n.name, ())}
