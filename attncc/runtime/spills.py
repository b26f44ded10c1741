"""Where a kernel's registers are spilled: once, or in the loops whose products run on tensor cores."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile

_LINE = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+([^;]*);")
_JUMP = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")
_WORDS = {"": 4, ".64": 8, ".128": 16}


def spilled_in_loops(image: bytes) -> int | None:
    """Bytes of local memory that a turn of the loops with products moves; None where that can't be told.

    Of a kernel's loops the better third counts: the others hold tiles that need the mask or tables, a turn or two each.
    """
    text = _disassembled(image)
    if text is None:
        return None
    code = [(int(m[1], 16), m[2]) for m in _LINE.finditer(text)]
    at = {address: n for n, (address, _) in enumerate(code)}
    loops = []
    for n, (address, words) in enumerate(code):
        m = _JUMP.search(words)
        begin = at.get(int(m[1], 16)) if m else None
        if begin is not None and code[begin][0] <= address:
            loops.append((begin, n))
    inner = [x for x in loops if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    bodies = [[words for _, words in code[b : e + 1]] for b, e in inner]
    moved = sorted(_moved(body) for body in bodies if any("HGMMA" in w for w in body))
    return moved[(len(moved) - 1) // 3] if moved else 0


def _moved(body: list[str]) -> int:
    found = [m for w in body if (m := re.search(r"\b(?:STL|LDL)((?:\.\w+)*)", w))]
    return sum(next((size for mark, size in _WORDS.items() if mark and mark in m[1]), 4) for m in found)


def _disassembled(image: bytes) -> str | None:
    """The kernel's machine code as text, by the tool that comes with Triton."""
    from triton.backends import nvidia

    tool = os.path.join(os.path.dirname(nvidia.__file__ or nvidia.__path__[0] + "/x"), "bin", "cuobjdump")
    if not os.path.exists(tool):
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(image)
        f.flush()
        done = subprocess.run([tool, "-sass", f.name], capture_output=True, text=True, close_fds=False)
    return done.stdout if done.returncode == 0 else None
