"""The section of an emitted module that gives its partitioned kernels what `attncc.runtime.arrivals` gives ours.

The rewriting code is copied as it stands there. It runs when Triton compiles a kernel of the module, and only then.
"""

from __future__ import annotations

import inspect

from attncc.runtime import arrivals

_HEAD = """\
# --- what Triton's PTX can do without -----------------------------------------------------------------------------
#
{reason}
# Without this section everything works, and the partitioned kernels are a few percent slower."""

_TAIL = '''\
def _stages(backend=None, stages=None, options=None, language=None, capability=None):
    """What Triton asks when it compiles: a change of its stages; without arguments, what that change is called."""
    if stages is None:
        return "arrive_by_warp", "arrive_by_warp"
    printed = stages["ptx"]
    stages["ptx"] = lambda source, metadata: arrive_by_warp(printed(source, metadata))


_launch_unchanged = _launch


def _launch(*args, **options):
    knobs = triton.knobs.runtime
    before, knobs.add_stages_inspection_hook = knobs.add_stages_inspection_hook, _stages
    try:
        _launch_unchanged(*args, **options)
    finally:
        knobs.add_stages_inspection_hook = before'''


def section() -> str:
    """The text; it needs `triton` and `_launch` before it."""
    source = inspect.getsource(arrivals)
    reason = "\n".join(f"# {line}".rstrip() for line in (inspect.getdoc(arrivals) or "").splitlines())
    code = source[source.index("import re\n") :].rstrip("\n")
    return f"{_HEAD.format(reason=reason)}\n\n{code}\n\n\n{_TAIL}"
