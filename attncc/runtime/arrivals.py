"""Barriers that PTX of a warp-specialised kernel can do without.

rewrite: bar.sync; @first_thread mbarrier.arrive [b], 4;  --> @first_lane mbarrier.arrive [b];
rewrite: bar.sync before a wait for an mbarrier           --> nothing

Triton lets a whole warpgroup meet before one of its threads arrives for all four warps, and before it waits again.
In a loop that reaches shared memory through tensor cores alone, each warp knows by itself when its reads are over, so
each arrives for itself and none waits for the others. No warp gets a phase ahead or behind: a slot is filled again
once all warps have arrived. Memory outside of the loop can't rely on meetings in it, since a loop may take no turn.

Loops stay as they are that touch shared memory in any other way, wait with some threads only, arrive without a
meeting or on a condition, or are entered in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LABEL = re.compile(r"^(\$L__BB\w+):")
_NAMED = re.compile(r"\$L__BB\w+")
_JUMP = re.compile(r"^\s*(?:@!?%\w+\s+)?bra(?:\.uni)?\s+(\$L__BB\w+);")
_MEET = re.compile(r"^\s*bar\.sync\s+\d+, 128;")
_ARRIVE = re.compile(r"^(\s*)@(%p\d+) mbarrier\.arrive\.shared::cta\.b64 _, \[([^\]]+)\](?:, (\d+))?;")
_WAIT = re.compile(r"^\s*mbarrier\.try_wait\.")
_IS_ZERO = re.compile(r"^\s*setp\.eq\.[bsu]32\s+(%p\d+), %r\d+, 0;")
_SETS = re.compile(r"^\s*(?:@!?%\w+\s+)?[a-z][\w.]*\s+(%p\d+)[,;|]")
_ACCESS = re.compile(r"^\s*(?:@!?%\w+\s+)?(?:ld|st|atom|red|multimem)(?:\.[\w:]+)*")
_ELSEWHERE = (".global", ".local", ".param", ".const")
_OTHER = re.compile(
    r"\.shared|\b(?:ldmatrix|stmatrix|mbarrier|mapa|cp|call)\b|\bbar(?:rier)?\.(?!warp)|fence\.proxy|setmaxnreg"
)
"""What the meetings may be there for, in lines that are no meeting, arrival or wait."""
_FIRST = "%attncc_first_lane"
_SETUP = (
    f"\t.reg .pred {_FIRST};\n\t.reg .b32 %attncc_lane;\n"
    f"\tmov.u32 %attncc_lane, %laneid;\n\tsetp.eq.u32 {_FIRST}, %attncc_lane, 0;"
)
WARPS = 4


def arrive_by_warp(ptx: str) -> str:
    """`ptx` with its loops' needless meetings gone; the text itself where there is no such loop."""
    lines = ptx.split("\n")
    first = _first_threads(lines)
    changed = False
    for begin, end in _loops(lines):
        body = lines[begin : end + 1]
        if _lone(body, first):
            lines[begin : end + 1] = [_rewritten(line) for line in body]
            changed = True
    if not changed:
        return ptx
    at = max(n for n, line in enumerate(lines[: _first_instruction(lines)]) if line.lstrip().startswith(".reg"))
    lines.insert(at + 1, _SETUP)
    return "\n".join(line for line in lines if line is not _GONE)


_GONE = "\t// no meeting"


def _loops(lines: list[str]) -> list[tuple[int, int]]:
    """(first line, last line) of each loop without another loop inside, entered at its first line alone."""
    labels = {m[1]: n for n, line in enumerate(lines) if (m := _LABEL.match(line))}
    ends: dict[int, int] = {}
    for n, line in enumerate(lines):
        m = _JUMP.match(line)
        if m and labels.get(m[1], n) < n:
            ends[labels[m[1]]] = n
    loops = list(ends.items())
    named = [(n, labels[x]) for n, line in enumerate(lines) for x in _NAMED.findall(line) if x in labels]
    return [x for x in loops if not any(_cut(x, y) for y in loops) and not _entered(x, named)]


def _cut(x: tuple[int, int], y: tuple[int, int]) -> bool:
    """Whether a part of the loop `x`, and not all of it, is in the loop `y`."""
    return y[0] <= x[1] and x[0] <= y[1] and not (y[0] <= x[0] and x[1] <= y[1])


def _entered(x: tuple[int, int], named: Iterable[tuple[int, int]]) -> bool:
    """Whether something outside of the loop names a place in its middle."""
    return any(x[0] < at <= x[1] and not x[0] <= n <= x[1] for n, at in named)


def _first_threads(lines: list[str]) -> frozenset[str]:
    """Predicates that hold for one thread of a warpgroup, wherever they are read: set once, by a comparison with 0."""
    sets = [m[1] for line in lines if (m := _SETS.match(line))]
    return frozenset(m[1] for line in lines if (m := _IS_ZERO.match(line)) and sets.count(m[1]) == 1)


def _lone(body: list[str], first: frozenset[str]) -> bool:
    """Whether a loop's only use of shared memory is by tensor cores and mbarriers, arrived at by whole warpgroups."""
    met, arrived, multiplies = False, False, False
    for line in (x.partition("//")[0] for x in body):
        m = _ARRIVE.match(line)
        if _MEET.match(line):
            met = True
        elif m:
            if not met or m[2] not in first or m[4] != str(WARPS):
                return False
            met, arrived = False, True
        elif not _WAIT.match(line) and (_OTHER.search(line) or _generic(line)):
            return False
        multiplies = multiplies or "wgmma.mma_async" in line
    return arrived and multiplies


def _generic(line: str) -> bool:
    """Whether a line reads or writes memory that may be shared."""
    m = _ACCESS.match(line)
    return m is not None and not any(space in m[0] for space in _ELSEWHERE)


def _rewritten(line: str) -> str:
    if _MEET.match(line):
        return _GONE
    m = _ARRIVE.match(line)
    return f"{m[1]}@{_FIRST} mbarrier.arrive.shared::cta.b64 _, [{m[3]}];" if m else line


def _first_instruction(lines: list[str]) -> int:
    """The line at which the entry's own instructions begin."""
    entry = next(n for n, line in enumerate(lines) if ".entry" in line)
    opened = next(n for n in range(entry, len(lines)) if lines[n].startswith("{"))
    words = (".reg", ".loc", "//", ".local", "{", "$L__", ".shared")
    return next(n for n in range(opened + 1, len(lines)) if lines[n].strip() and not lines[n].strip().startswith(words))
