"""One spec's finite set of compiled variants: looked up in memory, then on disk, then built."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from attncc.diagnostics import Source
from attncc.errors import AttnccError, SpecError
from attncc.runtime.cache import Entry, cache, digest, sources_key
from attncc.runtime.interface import Interface, Number, from_data, interface_of, to_data
from attncc.runtime.kernels import Binary, Order, compile_all, load_triton, numbers, triton_version
from attncc.runtime.mistakes import KernelFailed, NotDeterministic, UnfitKernel
from attncc.runtime.text import execute, host_part, keep
from attncc.schedule.variant import Variant

if TYPE_CHECKING:
    from attncc.ir.nodes import Spec
    from attncc.tile.nodes import Program

Which = Literal["forward", "backward"]
Mode = Literal["torch", "cuda", "jit", "interpret"]
"""How printed text becomes a callable: torch functions, our cubins, Triton's own JIT (ROCm), Triton's interpreter."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a variant runs: the mode and, for cubins, the compute capability (90 for sm_90)."""

    mode: Mode
    capability: int = 0


@dataclass(frozen=True)
class Half:
    """A callable forward or backward of one variant."""

    variant: Variant
    which: Which
    text: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]
    function: Callable[..., tuple[Tensor, ...]]
    kernels: tuple[Any, ...] = ()
    """Of mode "cuda": the launchable kernels."""
    steps: tuple[Any, ...] | None = None
    """Of mode "cuda": what the function does, where it only allocates and launches."""
    partitioned: bool = False
    """Whether some kernel is warp-specialised."""
    reason: str = ""
    """Why none is, where the variant asks for it."""

    def bind(self, constants: Mapping[str, Number]) -> dict[str, Number]:
        """The keywords of a call."""
        return {n: constants[n] for n in self.constants}


Key = tuple[Variant, Which, Place]

_stages = threading.Lock()
"""Held while passes and printers run: their expressions are interned, one thread at a time."""


class Family:
    """Everything compiled from one text. Shared by all that compile that text, whatever their constants."""

    def __init__(
        self, key: str, text: str, face: Interface, load: Callable[[], tuple[Spec, Source]], deterministic: bool
    ) -> None:
        self.key = key
        self.text = text
        """The spec's own text."""
        self.face = face
        self.deterministic = deterministic
        self.builds = 0
        """How many halves were compiled here, not read from the cache."""
        self._load = load
        self._spec: tuple[Spec, Source] | None = None
        self._halves: dict[Key, Half] = {}
        self._pending: dict[Key, Future[Half]] = {}
        self._lock = threading.Lock()

    @property
    def spec(self) -> Spec:
        """The spec; read again where only its interface came from the cache."""
        if self._spec is None:
            with _stages:
                self._spec = self._load()
        return self._spec[0]

    def programs(self, variant: Variant) -> Any:
        """The pair of Tile IR programs of `variant`; what is wrong with the spec is shown in its text."""
        spec = self.spec
        try:
            with _stages:
                importlib.import_module("attncc.expr.nodes").placed(spec.places)
                return importlib.import_module("attncc.driver").programs(spec, variant)
        except SpecError as error:
            if self._spec is not None:
                error.source = error.source or self._spec[1]
            raise

    def source(self, pair: Any, variant: Variant) -> str:
        """The printed module of `pair`."""
        with _stages:
            driver = importlib.import_module("attncc.driver")
            spelled = {"triton": numbers(triton_version())} if variant.target == "gluon" else {}
            text: str = driver.source(pair, variant, f"{self.face.name} {self.key[:8]}", **spelled)
        return text

    @property
    def halves(self) -> tuple[Half, ...]:
        """All that is loaded, in order of first use."""
        return tuple(self._halves.values())

    def half(self, variant: Variant, which: Which, place: Place) -> Half:
        """The compiled forward or backward of `variant`; of several threads that want it, one builds."""
        key = (variant, which, place)
        found = self._halves.get(key)
        if found is not None:
            return found
        with self._lock:
            found, task = self._halves.get(key), self._pending.get(key)
            if found is not None:
                return found
            mine = task is None
            if task is None:
                task = self._pending[key] = Future()
        return self._fulfil(key, task) if mine else task.result()

    def _fulfil(self, key: Key, task: Future[Half]) -> Half:
        try:
            half = self._obtain(*key)
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            task.set_exception(error)
            raise
        with self._lock:
            self._halves[key] = half
            del self._pending[key]
        task.set_result(half)
        return half

    def prefetch(self, variant: Variant, which: Which, place: Place) -> None:
        """Begins to build a half that will be wanted; a failure shows when it is."""

        def build() -> None:
            with contextlib.suppress(Exception):
                self.half(variant, which, place)

        if (variant, which, place) not in self._halves:
            threading.Thread(target=build, name="attncc-prefetch").start()

    def _obtain(self, variant: Variant, which: Which, place: Place) -> Half:
        version = "" if place.mode == "torch" else triton_version()
        parts = [self.key, repr(variant), which, repr(place), version, str(self.deterministic)]
        entry, built = cache().get_or_build(
            digest("half", sources_key(), *parts), lambda: self._build(variant, which, place)
        )
        self.builds += built
        half = _load_half(entry, variant, which, place, f"{self.face.name} {which} {self.key[:8]}")
        keep(half.text, f"{self.face.name} {which} {digest(*parts)[:8]}")
        return half

    def _build(self, variant: Variant, which: Which, place: Place) -> Entry:
        """Where a partitioned kernel can't be made or is not worth running, the plain one instead, and the reason."""
        if variant.target != "gluon":
            return self._built(variant, which, place)
        reason, mistaken = _untested(triton_version()), False
        if self.face.states:
            reason = "states have no partitioned kernels"
        if not reason:
            try:
                return self._fitting(variant, which, place)
            except (KernelFailed, NotDeterministic) as failed:
                reason = failed.diagnostic.message
            except SpecError:
                raise
            except Exception as failed:
                mistaken = True
                reason = failed.diagnostic.message if isinstance(failed, AttnccError) else repr(failed)
                warnings.warn(
                    f"the {which} of {self.face.name} runs as plain Triton after a mistake of ours, please report it: "
                    f"{reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        entry = self._built(dataclasses.replace(variant, target="triton"), which, place)
        entry.data["reason"], entry.data["mistake"] = reason, mistaken
        return entry

    def _fitting(self, variant: Variant, which: Which, place: Place) -> Entry:
        """The default plan, or the first one of the ladder whose kernels are worth running."""
        ladder = importlib.import_module("attncc.schedule.hopper_config").LADDER[which]
        rungs = (variant.tiles,) if variant.tiles else ("", *ladder)
        for n, tiles in enumerate(rungs):
            try:
                return self._built(dataclasses.replace(variant, tiles=tiles), which, place)
            except UnfitKernel:
                if n == len(rungs) - 1:
                    raise
        raise AssertionError("a ladder has rungs")

    def _built(self, variant: Variant, which: Which, place: Place) -> Entry:
        pair = self.programs(variant)
        program: Program = pair.forward if which == "forward" else pair.backward
        if self.deterministic and variant.target != "torch" and _adds_atomically(program):
            raise NotDeterministic(f"the {which} of {self.face.name} adds with atomics, in an order that may vary")
        text = self.source(pair, variant)
        signature = importlib.import_module("attncc.codegen.signature")
        dialect = importlib.import_module("attncc.tile.dialect")
        split = dialect.any_partitioned(program)
        data: dict[str, Any] = {
            "inputs": [t.name for t in program.inputs],
            "outputs": list(program.outputs),
            "constants": [s.name for s in signature.constants(program)],
            "partitioned": split,
            "reason": "" if split or variant.target != "gluon" else program.note.removeprefix("not partitioned: "),
        }
        blobs = {"text": text.encode()}
        if place.mode == "cuda":
            load_triton(split)
            functions = execute(text, f"{self.face.name} {which} {self.key[:8]}")
            binaries = compile_all(functions, orders(program), place.capability)
            blobs["host"] = host_part(text).encode()
            data["kernels"] = [_binary_to_data(b) for b in binaries]
            data["steps"] = _steps(program)
            blobs.update({f"cubin {b.name}": b.image for b in binaries})
        return Entry(data, blobs)


def _untested(version: str) -> str:
    """Why partitioned kernels are not printed for a version of Triton; empty where they are."""
    tested = importlib.import_module("attncc.codegen.gluon_spelling").TESTED
    if numbers(version) in tested:
        return ""
    known = ", ".join(".".join(map(str, v)) for v in tested)
    return f"partitioned kernels are tested with Triton {known}, and this is {version}"


def orders(program: Program) -> list[Order]:
    """What to compile for `program`."""
    module = importlib.import_module("attncc.codegen.signature")
    dialect = importlib.import_module("attncc.tile.dialect")
    printed = importlib.import_module("attncc.codegen.scalars").python_name
    return [
        Order(
            module.kernel_function(kernel),
            tuple((printed(a.name), a.type, a.divisible) for a in module.signature(program, kernel)),
            kernel.config.warps,
            kernel.config.stages,
            kernel.config.registers,
            dialect.partitioned(kernel),
        )
        for kernel in program.kernels
    ]


def _steps(program: Program) -> list[list[Any]] | None:
    """See attncc.runtime.prepared.Steps; None where the host does more than allocate and launch."""
    from attncc.tile.nodes import Alloc, Launch

    module = importlib.import_module("attncc.codegen.signature")
    kernels = {k.name: k for k in program.kernels}
    steps: list[list[Any]] = []
    for step in program.steps:
        match step:
            case Alloc(tensor, fill, _, kept):
                steps.append(["kept" if kept else "alloc", tensor.name, fill])
            case Launch(name):
                passed = module.signature(program, kernels[name])
                steps.append(["launch", [a.tensor or None for a in passed]])
            case _:
                return None
    return steps


def _adds_atomically(program: Program) -> bool:
    from attncc.tile.nodes import CopyOut, ReduceAdd

    def found(x: object) -> bool:
        if (isinstance(x, ReduceAdd) and x.how == "atomic") or (isinstance(x, CopyOut) and x.add):
            return True
        if isinstance(x, tuple):
            return any(found(y) for y in x)
        parts = ("body", "then", "orelse", "parts")
        return any(found(getattr(x, p)) for p in parts if hasattr(x, p)) if dataclasses.is_dataclass(x) else False

    return any(found(kernel.body) for kernel in program.kernels)


def _load_half(entry: Entry, variant: Variant, which: Which, place: Place, title: str) -> Half:
    text = entry.blobs["text"].decode()
    kernels: tuple[Any, ...] = ()
    if place.mode == "cuda":
        from attncc.runtime.cuda import Kernel, current_stream, launch
        from attncc.runtime.maps import describable
        from attncc.runtime.zeros import capturing, kept_by

        kernels = tuple(Kernel(_binary_from_data(d, entry)) for d in entry.data["kernels"])
        names = execute(entry.blobs["host"].decode(), f"{title} host", {k.binary.name: k for k in kernels})
        names["_launch"], names["_descriptor"] = launch, describable
        names["_zeros_kept"] = kept_by(current_stream(), capturing())
    else:
        names = execute(text, title)
    data, steps = entry.data, entry.data.get("steps")
    return Half(
        variant,
        which,
        text,
        tuple(data["inputs"]),
        tuple(data["outputs"]),
        tuple(data["constants"]),
        names[which],
        kernels,
        None if steps is None else tuple(steps),
        data["partitioned"],
        data["reason"],
    )


def _binary_to_data(b: Binary) -> list[Any]:
    return [b.name, b.entry, list(b.types), b.warps, b.shared, b.scratch, b.maps]


def _binary_from_data(data: list[Any], entry: Entry) -> Binary:
    name, start, types, warps, shared, scratch, maps = data
    chosen = tuple((swizzle, size, tuple(box)) for swizzle, size, box in maps)
    return Binary(name, start, entry.blobs[f"cubin {name}"], tuple(types), warps, shared, scratch, maps=chosen)


# --- the families of this process -----------------------------------------------------------------------------------

_families: dict[tuple[str, bool], Family] = {}
_lock = threading.Lock()


def family(spec: str | os.PathLike[str], *, deterministic: bool) -> Family:
    """The family of a spec given by path or text. Where its interface is cached, the spec is not even parsed."""
    text = _read(spec)
    loaded: tuple[Spec, Source] | None = None
    if text is None:
        with _stages:
            loaded = importlib.import_module("attncc.driver").load(spec)
        text = loaded[1].text
    key = digest("spec", text)
    with _lock:
        known = _families.get((key, deterministic))
        if known is None:
            known = _families[(key, deterministic)] = _new_family(spec, text, key, loaded, deterministic)
    return known


def _new_family(
    spec: str | os.PathLike[str], text: str, key: str, loaded: tuple[Spec, Source] | None, deterministic: bool
) -> Family:
    @functools.cache
    def load() -> tuple[Spec, Source]:
        if loaded is not None:
            return loaded
        driver = importlib.import_module("attncc.driver")
        again: tuple[Spec, Source] = driver.load(spec)
        if again[1].text != text:  # the file may have changed since
            again = driver.load(text)
        return again

    interface = digest("interface", sources_key(), key)

    def read() -> Entry:
        with _stages:
            return Entry(to_data(interface_of(load()[0])))

    entry, _ = cache().get_or_build(interface, read)
    return Family(key, text, from_data(entry.data), load, deterministic)


def _read(spec: str | os.PathLike[str]) -> str | None:
    """The text of a spec that can be read without ado; None leaves it to the front end and its messages."""
    if isinstance(spec, str) and "\n" in spec:
        return spec
    try:
        path = Path(spec)
        return path.read_bytes().decode("utf-8-sig") if path.is_file() else None
    except (OSError, ValueError):
        return None


def place_of(device: torch.device, mode: Mode) -> Place:
    """Where tensors of `device` run in `mode`."""
    if mode != "cuda":
        return Place(mode)
    major, minor = torch.cuda.get_device_capability(device)
    return Place(mode, 10 * major + minor)
