"""Helper functions that printed Gluon kernels call, each defined once in the module that calls it.

Their names end in `_gl`: a module may hold plain Triton kernels, whose helpers are other functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from attncc.codegen.triton_exprs import HELPERS as TRITON

FAST_TANH = '''\
@gluon.jit
def _tanh_gl(x):
    """The special-function unit's tanh: relative error 2**-11, below bfloat16's rounding."""
    asm: gl.constexpr = "tanh.approx.f32 $0, $1;"
    return gl.inline_asm_elementwise(asm, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
'''

ADD_SHARED_TO_GLOBAL = '''\
@builtin
def _add_shared_to_global(descriptor, corner, source, _semantic=None):
    """Adds a shared buffer to a box of a tensor; this version of Triton has the operation, and no name for it."""
    corner = _semantic._convert_to_ir_values(corner, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, descriptor.handle, corner, source.handle)
'''


def _gluon(name: str) -> str:
    """A helper of plain Triton kernels in Gluon's words."""
    text = TRITON[name].replace("@triton.jit", "@gluon.jit").replace("tl.", "gl.")
    return text.replace(f"_{name}(", f"_{name}_gl(")


def _chosen(count: int) -> str:
    """A helper for `count` comparisons."""
    sides = ", ".join(f"a{n}, b{n}" for n in range(count))
    return f'''\
@gluon.jit
def _chosen{count}_gl(asm: gl.constexpr, x, {sides}):
    """x where comparisons hold, which stay beside what they choose: there are few registers for truth values."""
    given = [x, {sides}]
    return gl.inline_asm_elementwise(asm, "=f,f{",r" * (2 * count)}", given, dtype=gl.float32, is_pure=True, pack=1)
'''


HELPERS: dict[str, str] = {
    "_add_shared_to_global": ADD_SHARED_TO_GLOBAL,
    "_recip_gl": '''\
@gluon.jit
def _recip_gl(x):
    """The special-function unit's 1 / x: one unit in the last place, and 0 at infinity."""
    asm: gl.constexpr = "rcp.approx.ftz.f32 $0, $1;"
    return gl.inline_asm_elementwise(asm, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
''',
    "_next_place_gl": """\
@gluon.jit
def _next_place_gl(places, full, empty, item, WARPS: gl.constexpr):
    \"\"\"The place behind turn `item`, from the partition that takes places.\"\"\"
    slot = item & 1
    mbarrier.wait(full.index(slot), (item >> 1) & 1)
    place = gl.max(places.index(slot).load(gl.BlockedLayout([1], [32], [WARPS], [0])), 0)
    mbarrier.arrive(empty.index(slot), count=WARPS)
    return place
""",
    "_take_place_gl": """\
@gluon.jit
def _take_place_gl(counter, places, full, empty, item, total):
    \"\"\"Takes the next place that no program has, and passes it on; the last to count sets the counter back.\"\"\"
    taken = gl.atomic_add(counter, 1, sem="relaxed")
    gl.store(counter, 0, mask=taken == total - 1)
    place = taken + gl.num_programs(0)
    slot = item & 1
    mbarrier.wait(empty.index(slot), 1 - ((item >> 1) & 1))
    places.index(slot).store(gl.full([1], place, gl.int32, gl.BlockedLayout([1], [32], [1], [0])))
    mbarrier.arrive(full.index(slot), count=1)
    return place
""",
    "_words_gl": """\
@gluon.jit
def _words_gl(x):
    \"\"\"Pairs of neighbours in a row as 32-bit words: halves of registers are dear where a loop carries them.\"\"\"
    a, b = gl.split(x.reshape([x.shape[0], x.shape[1] // 2, 2]))
    asm: gl.constexpr = "mov.b32 $0, {$1, $2};"
    return gl.inline_asm_elementwise(asm, "=r,h,h", [a, b], dtype=gl.int32, is_pure=True, pack=1)
""",
    "_halves_gl": """\
@gluon.jit
def _halves_gl(words, dtype: gl.constexpr, layout: gl.constexpr):
    \"\"\"The 16-bit values of `_words_gl`.\"\"\"
    asm: gl.constexpr = "mov.b32 {$0, $1}, $2;"
    a, b = gl.inline_asm_elementwise(
        asm, "=h,=h,r", [words], dtype=(gl.int16, gl.int16), is_pure=True, pack=1
    )
    x = gl.join(a, b).reshape([words.shape[0], 2 * words.shape[1]])
    return gl.convert_layout(x.to(dtype, bitcast=True), layout)
""",
    "_scaled_gl": """\
@gluon.jit
def _scaled_gl(asm: gl.constexpr, operands: gl.constexpr, x, factors):
    \"\"\"x times factors by row; a warp all of whose factors are 1 passes over the products.\"\"\"
    given = [x, gl.broadcast(factors, x)[0]]
    each: gl.constexpr = x.shape[1] // 2  # values of a thread
    return gl.inline_asm_elementwise(asm, operands, given, dtype=gl.float32, is_pure=True, pack=each)
""",
    **{f"_chosen{n}_gl": _chosen(n) for n in (1, 2, 3, 4)},
    "_tanh_gl": _gluon("tanh"),
    "_expm1_gl": _gluon("expm1"),
    "_log1p_gl": _gluon("log1p"),
    "_mod_gl": _gluon("mod"),
    "_floordiv_gl": """\
@gluon.jit
def _floordiv_gl(a, b):
    return (a - _mod_gl(a, b)) // b
""",
    "_plus_gl": """\
@gluon.jit
def _plus_gl(a, b):
    return a + b
""",
    "_times_gl": """\
@gluon.jit
def _times_gl(a, b):
    return a * b
""",
    "_larger_gl": _gluon("larger"),
}
"""In order of definition: later ones may call earlier ones."""

IMPORTS: dict[str, str] = {
    "_add_shared_to_global": """\
from triton._C.libtriton import ir
from triton.experimental.gluon.language._core import builtin
""",
}
"""What a helper needs from Triton beyond what every printed module imports."""

_CALL = re.compile(r"\b_\w+(?=\()")


def called(text: str) -> set[str]:
    """The helpers that `text` names, those that these call included."""
    found = {n for n in _CALL.findall(text) if n in HELPERS}
    for name in tuple(found):
        found |= called(HELPERS[name].partition("(")[2])
    return found


def helper_texts(names: Iterable[str], *, fast: bool = False) -> list[str]:
    """The definitions of `names` and of what they call, in order. `fast`: operands are bfloat16."""
    wanted = set(names)
    for name in tuple(wanted):
        wanted |= called(HELPERS[name].partition("(")[2])
    return [FAST_TANH if fast and n == "_tanh_gl" else HELPERS[n] for n in HELPERS if n in wanted]


def helper_imports(names: Iterable[str], lines: str) -> str:
    """The import lines of a module, those that its helpers `names` need put where they sort."""
    wanted = set(names)
    first = "".join(text for n, text in IMPORTS.items() if n in wanted)
    return first + lines
