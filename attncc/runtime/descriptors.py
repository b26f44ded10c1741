"""Descriptors of shared memory that some assemblers mistake.

Assemblers before CUDA 12.9 compute, before a loop, the descriptors that products in it take, and where the same address
was already a descriptor's of products elsewhere they may add to the wrong register: the products then read shared
memory that is not the kernel's.
"""

from __future__ import annotations

import re

_LABEL = re.compile(r"^(\$L\w+):")
_BRANCH = re.compile(r"\bbra\s+(?:\.uni\s+)?(\$L\w+)")
_MADE = re.compile(r"^\s*(?:add\.s64|or\.b64)\s+(%rd\d+), (%rd\d+), -?\d+;")
_WIDE = re.compile(r"%rd\d+")


def mistakable(ptx: str) -> bool:
    """Whether products of a loop take descriptors that were made before it, of an address that others take, too."""
    lines = ptx.splitlines()
    labels = {m[1]: n for n, line in enumerate(lines) if (m := _LABEL.match(line))}
    made = {m[1]: (n, m[2]) for n, line in enumerate(lines) if (m := _MADE.match(line))}
    taken = [(n, d) for n, line in enumerate(lines) if "wgmma.mma_async" in line for d in _WIDE.findall(line)]
    for end, line in enumerate(lines):
        found = _BRANCH.search(line)
        start = labels.get(found[1], end) if found else end
        if start < end:
            before = {made[d][1] for n, d in taken if start < n < end and d in made and made[d][0] < start}
            if before & {made[d][1] for n, d in taken if not start < n < end and d in made}:
                return True
    return False
