"""Barriers that PTX of a warp-specialised kernel can do without.

rewrite: bar.sync; @first_thread mbarrier.arrive [b], 4;  --> @first_lane mbarrier.arrive [b];
rewrite: bar.sync before a wait for an mbarrier           --> nothing

Triton lets a whole warpgroup meet before one of its threads arrives for all four warps, and before it waits again.
In a loop that reaches shared memory through tensor cores alone, each warp knows by itself when its reads are over, so
each arrives for itself and none waits for the others. Loops with any other access to shared memory stay as they are.
"""

from __future__ import annotations

import re

_LABEL = re.compile(r"^(\$L__BB\w+):")
_JUMP = re.compile(r"^\s*(?:@!?%\w+\s+)?bra(?:\.uni)?\s+(\$L__BB\w+);")
_MEET = re.compile(r"^\s*bar\.sync\s+\d+, 128;")
_ARRIVE = re.compile(r"^(\s*)@%p\d+ mbarrier\.arrive\.shared::cta\.b64 _, \[([^\]]+)\](?:, (\d+))?;")
_OTHER = re.compile(
    r"\b(?:ld|st|atom|red)\.(?:volatile\.)?shared|ldmatrix|stmatrix|cp\.async|cp\.reduce|barrier\.sync|mbarrier\.init"
    r"|fence\.proxy|setmaxnreg"
)
"""Accesses whose order the meetings may be there for."""
_FIRST = "%attncc_first_lane"
_SETUP = (
    f"\t.reg .pred {_FIRST};\n\t.reg .b32 %attncc_lane;\n"
    f"\tmov.u32 %attncc_lane, %laneid;\n\tsetp.eq.u32 {_FIRST}, %attncc_lane, 0;"
)
WARPS = 4


def arrive_by_warp(ptx: str) -> str:
    """`ptx` with its loops' needless meetings gone; the text itself where there is no such loop."""
    lines = ptx.split("\n")
    changed = False
    for begin, end in _loops(lines):
        body = lines[begin : end + 1]
        if _lone(body):
            lines[begin : end + 1] = [_rewritten(line) for line in body]
            changed = True
    if not changed:
        return ptx
    at = max(n for n, line in enumerate(lines[: _first_instruction(lines)]) if line.lstrip().startswith(".reg"))
    lines.insert(at + 1, _SETUP)
    return "\n".join(line for line in lines if line is not _GONE)


_GONE = "\t// no meeting"


def _loops(lines: list[str]) -> list[tuple[int, int]]:
    """(first line, last line) of each loop without another loop inside."""
    labels = {m[1]: n for n, line in enumerate(lines) if (m := _LABEL.match(line))}
    found = []
    for n, line in enumerate(lines):
        m = _JUMP.match(line)
        if m and labels.get(m[1], n) < n:
            found.append((labels[m[1]], n))
    return [x for x in found if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in found)]


def _lone(body: list[str]) -> bool:
    """Whether a loop's only use of shared memory is by tensor cores and mbarriers, arrived at by whole warpgroups."""
    arrivals = [m for line in body if "mbarrier.arrive" in line for m in [_ARRIVE.match(line)]]
    counted = bool(arrivals) and all(m is not None and m[3] == str(WARPS) for m in arrivals)
    return counted and any("wgmma.mma_async" in x for x in body) and not any(_OTHER.search(x) for x in body)


def _rewritten(line: str) -> str:
    if _MEET.match(line):
        return _GONE
    m = _ARRIVE.match(line)
    return f"{m[1]}@{_FIRST} mbarrier.arrive.shared::cta.b64 _, [{m[2]}];" if m else line


def _first_instruction(lines: list[str]) -> int:
    """The line at which the entry's own instructions begin."""
    entry = next(n for n, line in enumerate(lines) if ".entry" in line)
    opened = next(n for n in range(entry, len(lines)) if lines[n].startswith("{"))
    words = (".reg", ".loc", "//", ".local", "{", "$L__", ".shared")
    return next(n for n in range(opened + 1, len(lines)) if lines[n].strip() and not lines[n].strip().startswith(words))
