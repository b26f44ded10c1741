"""Which backend runs tensors of a device, and what it prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, assert_never

import torch

from attncc.runtime.family import Mode
from attncc.runtime.mistakes import InterpreterTooLate, NotPartitioned, NoTriton, UnknownBackend, WrongDevice
from attncc.schedule.variant import Target

T = TypeVar("T")
BACKENDS = ("auto", "gluon", "triton", "torch", "interpret")
HOPPER = 90
"""The compute capability that partitioned kernels are made for."""


def mode_of(backend: str, device: torch.device) -> Mode:
    """How a call runs: `auto` goes by where its tensors live."""
    on_gpu = device.type == "cuda"
    match backend:
        case "auto":
            return _gpu_mode() if on_gpu else "torch"
        case "torch":
            return "torch"
        case "triton" | "gluon" if on_gpu:
            return _gpu_mode()
        case "triton" | "gluon":
            raise WrongDevice(
                f"backend={backend!r} needs tensors on a GPU, and q is on {device}",
                hint="backend='interpret' runs the same kernels on the CPU, slowly; backend='torch' is made for it",
            )
        case "interpret":
            interpret()
            return "interpret"
        case _:
            raise UnknownBackend(f"there is no backend {backend!r}", hint=f"one of {', '.join(BACKENDS[1:])}")


def target_of(mode: Mode, backend: str = "triton", capability: int = 0) -> Target:
    """What is printed for a mode: partitioned kernels are tried on Hopper, unless plain ones are asked for."""
    match mode:
        case "torch":
            return "torch"
        case "cuda" if capability == HOPPER and backend in ("auto", "gluon"):
            return "gluon"
        case "cuda" | "jit" | "interpret":
            if backend == "gluon":
                here = f"this is sm_{capability}" if mode == "cuda" else "this GPU is none"
                raise NotPartitioned(f"partitioned kernels are made for sm_{HOPPER}, and {here}")
            return "triton"
        case _:
            assert_never(mode)


def interpret() -> None:
    """Makes sure that Triton is, or will be, imported with its interpreter on."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            import triton  # noqa: F401
        except ImportError as e:
            raise NoTriton("backend='interpret' needs Triton", hint="install triton, or use backend='torch'") from e
    if not _interpreting():
        raise InterpreterTooLate(
            "Triton was imported without its interpreter, which can't be switched on afterwards",
            hint="set TRITON_INTERPRET=1 in the environment before Python starts",
        )


def _interpreting() -> bool:
    """Whether Triton's own library functions were defined for the interpreter."""
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(language.sum, InterpretedFunction) and os.environ.get("TRITON_INTERPRET") == "1"


def _gpu_mode() -> Mode:
    if torch.version.hip is not None:
        return "jit"
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InterpreterTooLate(
            "this process runs Triton's interpreter, so it can't compile kernels for a GPU",
            hint="unset TRITON_INTERPRET, or use backend='interpret' or 'torch'",
        )
    return "cuda"


def quietly(function: Callable[..., T], args: tuple[Any, ...], keywords: Mapping[str, Any]) -> T:
    """A call under Triton's interpreter, which computes with numpy and would warn of every log of 0."""
    import numpy as np

    with np.errstate(all="ignore"):
        return function(*args, **keywords)
