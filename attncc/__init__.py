"""attncc: a compiler for attention.

    attn = attncc.compile("causal.attn")       # a path, or the text of a spec
    o = attn(q, k, v)                          # q [B, H, M, D], k [B, G, N, D], v [B, G, N, E]
    ref = attncc.reference("causal.attn")      # the dense truth in float64, called the same way

Importing this module imports nothing heavy; torch is imported by the first call of `compile` or `reference`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from attncc.runtime.attention import Attention

__all__ = [
    "Attention",
    "AttnccError",
    "BackendError",
    "CallError",
    "InternalError",
    "SpecError",
    "compile",
    "reference",
]
__version__ = "0.1.0"

_HOMES = {
    "Attention": "attncc.runtime.attention",
    "AttnccError": "attncc.errors",
    "BackendError": "attncc.errors",
    "CallError": "attncc.errors",
    "InternalError": "attncc.errors",
    "SpecError": "attncc.errors",
}


def compile(
    spec: str | PathLike[str],
    *,
    backend: str = "auto",
    deterministic: bool = False,
    tiles: str = "",
    form: str = "auto",
    **constants: int | float | bool,
) -> Attention:
    """Compiles a spec, given by its path or as text, into a callable.

    `backend` is auto (by where the tensors of a call live: CUDA takes triton, with warp-specialised kernels on sm_90
    where a half can have them, the CPU torch), gluon (such kernels or an error), triton, torch or interpret.
    `deterministic` refuses sums whose order is not repeatable. `tiles="tuned"` takes the tiles that `attncc tune`
    found on this machine, where it found better ones; other text changes those of the default plan. A state program
    walks its tokens in chunks (`form="chunk"`) or one by one ("recurrent"); "auto" goes by how many there are, and by
    what the program can do. Further keywords set the constants of the spec's header. Kernels are compiled by the first
    call that needs them, or by `warmup`.
    """
    require_parts()
    from attncc.runtime.attention import compile_spec

    return compile_spec(spec, backend=backend, deterministic=deterministic, constants=constants, tiles=tiles, form=form)


if TYPE_CHECKING:

    def reference(spec: str | PathLike[str], **constants: int | float | bool) -> Callable[..., Any]:
        """The dense float64 truth of a spec: `f(q, k, v, return_lse=False, **captured)`."""


def require_parts() -> None:
    """ImportError with the way out where this folder is not the installed package but the sources' bare one."""
    for part in ("grammar", "codegen"):
        if importlib.util.find_spec(f"attncc.{part}") is None:
            raise ImportError(
                f"attncc was imported from the source folder {__path__[0]}, where attncc.{part} is missing: "
                "start Python from another folder, or install the sources with `pip install -e .`"
            )


def __getattr__(name: str) -> Any:
    if name == "reference":
        require_parts()
        return importlib.import_module("attncc.reference")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'attncc' has no attribute {name!r}")
