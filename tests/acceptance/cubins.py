"""Kernels compiled for a GPU that need not be there, and what can be read from each stage of Triton's compiler."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from triton.backends.nvidia.compiler import get_ptxas

from attncc import driver
from attncc.expr.nodes import Expr, Op, free_vars, walk
from attncc.runtime.family import orders
from attncc.runtime.kernels import Binary, Order, compile_one
from attncc.runtime.text import execute
from attncc.schedule.variant import Variant
from attncc.tile import nodes as t
from tests.support.specs import SPECS


@dataclass(frozen=True)
class Built:
    """A kernel of the Tile IR and its cubin."""

    kernel: t.Kernel
    heads: str
    capability: int
    binary: Binary
    registers: int
    spilled: int
    """Bytes."""
    warnings: tuple[str, ...]
    """Numbers of the assembler's complaints about serialised products."""

    def __str__(self) -> str:
        return f"{self.kernel.name} of {self.heads} sm_{self.capability}"


def variant(name: str, D: int, capability: int, grouped: bool) -> Variant:
    """The usual one of a spec: bfloat16, aligned rows, every gradient."""
    kinds: dict[str, t.Dtype] = {"real": "f32", "int": "i32", "bool": "bool"}
    params = SPECS[name].params
    captured = tuple((p.name, kinds[p.sort]) for p in params)
    gradients = ("q", "k", "v", *(p.name for p in params if p.sort == "real"))
    return Variant("triton", D, D, "bf16", captured, gradients=gradients, grouped=grouped, capability=capability)


def build(name: str, D: int, capability: int) -> list[Built]:
    """Every kernel of the spec's usual variant, and the one that walks heads where they share keys."""
    return _build(name, D, capability, False) + _build(name, D, capability, True, ("keys_kernel",))


def _build(name: str, D: int, capability: int, grouped: bool, only: tuple[str, ...] = ()) -> list[Built]:
    v = variant(name, D, capability, grouped)
    pair = driver.programs(SPECS[name], v)
    functions = execute(driver.source(pair, v, name), f"{name} {D} {capability}")
    assert pair.backward is not None
    work = [(k, o) for p in (pair.forward, pair.backward) for k, o in zip(p.kernels, orders(p), strict=True)]
    work = [(k, o) for k, o in work if not only or k.name in only]

    heads = "shared heads" if grouped else "single heads"

    def one(item: tuple[t.Kernel, Order]) -> Built:
        binary = compile_one(functions[item[1].name], item[1], capability)
        return Built(item[0], heads, capability, binary, *_assemble(binary.ptx, capability))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, work))


def _assemble(ptx: str, capability: int) -> tuple[int, int, tuple[str, ...]]:
    """(registers a thread, spilled bytes, complaints) as ptxas tells them."""
    arch = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [get_ptxas(capability).path, "-v", f"-arch={arch}", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(int(x) for x in re.findall(r"Used (\d+) registers", said))
    spilled = sum(int(x) for x in re.findall(r"(\d+) bytes spill stores", said))
    return registers, spilled, tuple(re.findall(r"C75\d\d", said))


# --- what the Tile IR says ------------------------------------------------------------------------------------------


def loops(body: tuple[t.Stmt, ...]) -> Iterator[t.For]:
    """The innermost loops, in order."""
    for s in body:
        match s:
            case t.For(body=inner):
                found = list(loops(inner))
                yield from found or [s]
            case t.If(then=then, orelse=orelse):
                yield from loops((*then, *orelse))


def products(kernel: t.Kernel) -> int:
    """The number of tensor core instructions of a kernel on sm_90: a warpgroup multiplies 64 rows by 16 at a time."""
    count = 0
    groups = kernel.config.warps // 4
    for rows, columns, depth in _dots(kernel.body):
        assert rows % (64 * groups) == 0 and columns <= 256
        count += rows // (64 * groups) * depth // 16
    return count


def small_products(kernel: t.Kernel) -> int:
    """The same before sm_90, where a warp multiplies 16 by 16 by 8."""
    return sum(r * c * d // (16 * 16 * 8 * kernel.config.warps) for r, c, d in _dots(kernel.body))


def _dots(body: tuple[t.Stmt, ...], known: dict[str, t.Type] | None = None) -> Iterator[tuple[int, int, int]]:
    """(rows, columns, depth) of every Dot."""
    types = {} if known is None else known
    for s in body:
        match s:
            case t.Let(name, type, op_):
                types[name] = type
                if isinstance(op_, t.Dot):
                    assert isinstance(op_.a, str)
                    depth = next(a.extent for a in types[op_.a].axes if a.name == op_.axis)
                    yield type.axes[0].extent, type.axes[1].extent, depth
            case t.For(body=inner):
                yield from _dots(inner, types)
            case t.If(then=then, orelse=orelse):
                yield from _dots((*then, *orelse), types)


def multiplies(loop: t.For) -> bool:
    """Whether there is a Dot in the loop."""
    return any(isinstance(s, t.Let) and isinstance(s.op, t.Dot) for s in loop.body)


def row_loads(loop: t.For) -> int:
    """Loads of whole rows, or of a number per row: not those of a number for every pair of a row and a key."""
    lets = [s for s in loop.body if isinstance(s, t.Let) and isinstance(s.op, t.Load)]
    return sum(not {"i", "j"} <= set(s.type.names()) for s in lets)


def predicates(loop: t.For) -> list[str]:
    """The values of a loop's body that compare along the loop's axis, and what is loaded or stored under a guard
    that does."""
    types = {s.name: s.type for s in loop.body if isinstance(s, t.Let)}

    def along(e: Expr) -> bool:
        return any(v in types and loop.axis in types[v].names() for v in free_vars(e))

    found = []
    for s in loop.body:
        match s:
            case t.Let(name, _, t.Map(body)) if along(body) and any(_compares(n) for n in walk(body)):
                found.append(name)
            case t.Let(name, _, t.Load(guard=guard)) if along(guard):
                found.append(name)
            case t.Store(tensor, guard=guard) | t.ReduceAdd(tensor, guard=guard) if along(guard):
                found.append(tensor)
    return found


def row_comparisons(loop: t.For) -> int:
    """How many values of a loop's body compare along the rows alone."""
    maps = [s for s in loop.body if isinstance(s, t.Let) and s.type.axes and loop.axis not in s.type.names()]
    return sum(isinstance(s.op, t.Map) and any(_compares(n) for n in walk(s.op.body)) for s in maps)


def _compares(e: Expr) -> bool:
    return isinstance(e, Op) and (e.sort == "bool" or e.name == "where")


# --- what Triton says -----------------------------------------------------------------------------------------------


def ttgir_loops(ttgir: str) -> list[list[str]]:
    """The lines of each innermost scf.for, in order."""
    found: list[list[str]] = []
    open_loops: list[tuple[int, list[str], list[int]]] = []
    for line in ttgir.splitlines():
        indent = len(line) - len(line.lstrip())
        if "scf.for" in line and line.rstrip().split(" loc(")[0].endswith("{"):
            if open_loops:
                open_loops[-1][2].append(1)
            open_loops.append((indent, [], []))
        elif open_loops and indent == open_loops[-1][0] and line.lstrip().startswith("}"):
            _, lines, inner = open_loops.pop()
            if not inner:
                found.append(lines)
        elif open_loops:
            open_loops[-1][1].append(line)
    return found


def counted(lines: list[str], *words: str) -> int:
    """How many lines contain all words."""
    return sum(all(w in line for w in words) for line in lines)


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that a program may have; what is compiled for sm_80 also runs on sm_86 and sm_89."""
    return {80: 99 * 1024, 90: 227 * 1024}[capability]
