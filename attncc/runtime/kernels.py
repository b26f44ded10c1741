"""Triton kernels -> cubins: compiled in parallel, without Triton's own cache and its start-up cost."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from attncc.debug import integer
from attncc.runtime.arrivals import arrive_by_warp
from attncc.runtime.mistakes import KernelFailed, NoTriton
from attncc.runtime.text import parsing


@dataclass(frozen=True, slots=True)
class Order:
    """A kernel to compile: its printed function's name, its arguments as (name, type, divisor), its configuration."""

    name: str
    args: tuple[tuple[str, str, int], ...]
    warps: int
    stages: int
    registers: int = 0
    """A thread's at entry; 0 leaves them to the assembler."""
    partitioned: bool = False
    """Printed in Gluon: its warps have code of their own."""


Map = tuple[int, int, tuple[int, ...]]
"""What Triton chose for a descriptor: the hardware's number of the swizzle, bytes of an element, one copy's box."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A compiled kernel: the image, its entry point, and what a launch must know."""

    name: str
    entry: str
    image: bytes
    types: tuple[str, ...]
    warps: int
    shared: int
    scratch: int = 0
    """Bytes of global scratch memory per program."""
    ptx: str = ""
    ttgir: str = ""
    """Triton's own text of the kernel after its last pass over tiles."""
    maps: tuple[Map, ...] = ()
    """Of its descriptors, in order."""


_loading = threading.Lock()


def load_triton(gluon: bool) -> None:
    """Imports Triton's compiler, one thread at a time: its modules import each other in circles."""
    with _loading:
        try:
            importlib.import_module("triton.compiler")
            importlib.import_module("triton.language")
            if gluon:
                importlib.import_module("triton.experimental.gluon.language.nvidia.hopper")
                importlib.import_module("triton.experimental.gluon.nvidia.hopper")
        except ModuleNotFoundError as e:
            raise NoTriton("this backend needs Triton", hint="install triton, or use backend='torch'") from e


def triton_version() -> str:
    """Triton's version, without importing it where its package says."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        pass
    try:
        import triton
    except ImportError as e:
        raise NoTriton("this backend needs Triton", hint="install triton, or use backend='torch'") from e
    return str(triton.__version__)


def numbers(version: str) -> tuple[int, int]:
    """Major and minor of a version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def compile_all(functions: dict[str, Any], orders: Sequence[Order], capability: int) -> list[Binary]:
    """The binaries of `orders` for compute capability `capability` (90 for sm_90), compiled side by side.

    Threads are enough: Triton's compiler passes release the interpreter lock and ptxas is a process. Its front end
    runs one thread at a time.
    """
    workers = integer("ATTNCC_WORKERS") or min(8, os.cpu_count() or 1)
    if len(orders) < 2 or workers < 2:
        return [compile_one(functions[o.name], o, capability) for o in orders]
    with ThreadPoolExecutor(workers, thread_name_prefix="attncc-compile") as pool:
        return list(pool.map(lambda o: compile_one(functions[o.name], o, capability), orders))


def compile_one(function: Any, order: Order, capability: int) -> Binary:
    """One kernel through Triton's stages to a cubin."""
    from triton.backends.compiler import GPUTarget

    from attncc.runtime.assemble import assemble, assembled_well, fits

    signature = {name: kind for name, kind, _ in order.args}
    attrs = {(at,): [["tt.divisibility", by]] for at, (_, _, by) in enumerate(order.args) if by > 1}
    if tuple(function.arg_names) != tuple(signature):
        raise KernelFailed(
            f"kernel {order.name} takes {', '.join(function.arg_names)} and is launched with {', '.join(signature)}"
        )
    target = GPUTarget("cuda", capability, 32)
    try:
        asm, meta = _stages(_source(function, signature, attrs, order), target, _options(order))
        if order.partitioned:
            asm["ptx"] = arrive_by_warp(asm["ptx"])
            asm["cubin"], said = assemble(asm["ptx"], capability)
    except Exception as e:
        first = str(e).strip().splitlines()
        raise KernelFailed(
            f"Triton can't compile kernel {order.name} for sm_{capability}: {first[0] if first else type(e).__name__}"
        ) from e
    if order.partitioned:
        assembled_well(order.name, said, asm["cubin"])
        fits(order.name, meta["shared"], 32 * meta["num_warps"] * order.registers)
    if meta.get("num_ctas", 1) != 1 or meta.get("profile_scratch_size"):
        raise KernelFailed(f"kernel {order.name} needs a cluster launch or a profiler's scratch memory")
    return Binary(
        name=order.name,
        entry=meta["name"],
        image=asm["cubin"],
        types=tuple(kind for _, kind, _ in order.args),
        warps=meta.get("num_warps", order.warps),
        shared=meta["shared"],
        scratch=meta.get("global_scratch_size") or 0,
        ptx=asm["ptx"],
        ttgir=asm["ttgir"],
        maps=tuple((m["swizzle"], m["elem_size"], tuple(m["block_size"])) for m in meta.get("tensordesc_meta") or ()),
    )


def _source(function: Any, signature: dict[str, str], attrs: dict[Any, Any], order: Order) -> Any:
    """The kernel as Triton's compiler takes it, in the dialect it is printed in."""
    if order.partitioned:
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource(function, signature, {}, attrs)
    from triton.compiler import ASTSource

    return ASTSource(function, signature, {}, attrs)


def _options(order: Order) -> dict[str, Any]:
    options: dict[str, Any] = {"num_warps": order.warps, "num_stages": order.stages, "enable_fp_fusion": True}
    if order.registers:
        options["maxnreg"] = order.registers
    return options


def _stages(source: Any, target: Any, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every stage's text or image, and the metadata.

    Triton's own driver of the stages begins by hashing its whole installation, about two seconds in each process.
    Partitioned kernels stop at PTX: what the assembler says of them is wanted, and Triton keeps that to itself.
    """
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    from attncc.runtime.assemble import assemble, mistaken

    backend = make_backend(target)
    parsed = backend.parse_options({**options, **source.parse_options()})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, parsed, source.language)
    with parsing:
        module = source.make_ir(
            target, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context
        )
    meta: dict[str, Any] = {"target": target, **parsed.__dict__}
    asm: dict[str, Any] = {}
    if source.language.name == "GLUON":
        del stages["cubin"]
    for name, stage in stages.items():
        if name == "cubin" and mistaken(asm["ptx"], target.arch):
            asm[name], _ = assemble(asm["ptx"], target.arch)
            continue
        module = stage(module, meta)
        asm[name] = module if isinstance(module, bytes) else str(module)
    return asm, meta
