"""Which tier a half takes, and why; repeated calls. A driver that records stands for a Hopper GPU."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import attncc
from attncc.errors import InternalError
from attncc.runtime import assemble, attention
from attncc.runtime.attention import Attention
from attncc.runtime.backends import mode_of, target_of
from attncc.runtime.family import Place
from attncc.runtime.mistakes import NotPartitioned, WrongDevice
from tests.runtime.fake_cuda import Recorder
from tests.support.interpreted import needs_compiler

pytestmark = needs_compiler
SPECS = Path(__file__).parents[2] / "examples" / "softmax"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all tests that compile the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def hopper(lib: Recorder, fresh: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Tensors of the CPU count as a Hopper's; kernels are compiled and never run, so all are fit."""
    monkeypatch.setenv("ATTNCC_CACHE", str(shared))
    monkeypatch.setattr(assemble, "SPILLED_BYTES", 10**6)
    monkeypatch.setattr(assemble, "SERIALISED", ())
    monkeypatch.setattr(attention, "mode_of", lambda backend, device: "torch" if backend == "torch" else "cuda")
    monkeypatch.setattr(attention, "place_of", lambda device, mode: Place(mode, 90))
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return lib


@pytest.fixture
def anew(hopper: Recorder, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The same with an empty cache."""
    monkeypatch.setenv("ATTNCC_CACHE", str(fresh))
    return hopper


def inputs(N: int = 200, D: int = 64, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.zeros(2, 4, N, D, dtype=dtype) for _ in range(3))
    return q, k, v


def compiled(name: str = "causal", **options: Any) -> Attention:
    return attncc.compile(SPECS / f"{name}.attn", **options)


def test_auto_partitions_on_hopper(hopper: Recorder) -> None:
    attn = compiled()
    out, lse = attn(*inputs(), return_lse=True)
    assert (out.shape, lse.shape) == ((2, 4, 200, 64), (2, 4, 200))
    (half,) = attn._family.halves
    assert half.partitioned and half.reason == "" and half.variant.target == "gluon"
    (call,) = hopper.launches()
    assert call[5].value == 32 * half.kernels[0].binary.warps >= 256
    assert "forward  gluon bf16 D=64 E=64" in attn.explain() and "partitioned, " in attn.explain()
    assert "@gluon.jit" in attn.source()


def test_triton_stays_plain(hopper: Recorder) -> None:
    attn = compiled(backend="triton")
    attn(*inputs())
    assert [v.target for v in attn.variants] == ["triton"] and "forward  triton" in attn.explain()


@pytest.mark.parametrize("mistake", ["spills", "waits"])
def test_an_unfit_kernel_gives_way_to_a_plain_one(
    anew: Recorder, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    if mistake == "spills":
        monkeypatch.setattr(assemble, "SPILLED_BYTES", -1)
    else:
        true = assemble.assembled_well
        monkeypatch.setattr(assemble, "SERIALISED", ("C7511",))
        notice = "ptxas info : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized"
        monkeypatch.setattr(
            "attncc.runtime.assemble.assembled_well", lambda name, said, image=b"": true(name, said + notice)
        )
    attn = compiled()
    attn(*inputs())
    (half,) = attn._family.halves
    assert not half.partitioned and "@gluon.jit" not in half.text
    reason = "kernel forward_kernel spills " if mistake == "spills" else "(C7511)"
    assert reason in half.reason
    assert f"not partitioned: {half.reason}" in attn.explain()
    with pytest.raises(NotPartitioned, match="the forward can't be partitioned: "):
        compiled(backend="gluon")(*inputs())
    assert attn.builds == 1


def test_a_half_says_why_it_is_plain(hopper: Recorder) -> None:
    attn = compiled()
    attn(*inputs(dtype=torch.float32))
    (half,) = attn._family.halves
    assert not half.partitioned and "f32" in half.reason and "note" not in half.reason
    assert "forward  triton f32" in attn.explain() and f"not partitioned: {half.reason}" in attn.explain()
    with pytest.raises(NotPartitioned, match="f32"):
        compiled(backend="gluon")(*inputs(dtype=torch.float32))


def test_states_get_the_kernels_of_plain_triton(hopper: Recorder) -> None:
    spec = SPECS.parent / "recurrent" / "simple_gla.attn"
    tensors = [t.requires_grad_() for t in inputs()]
    decay = torch.zeros(2, 4, 200, dtype=torch.bfloat16, requires_grad=True)
    for backend in ("auto", "triton"):
        attncc.compile(spec, backend=backend).warmup(*tensors, decay=decay)
    halves = {(h.variant.target, h.which): h for h in attncc.compile(spec)._family.halves}
    for which in ("forward", "backward"):
        assert halves["gluon", which].text == halves["triton", which].text
        assert "states" in halves["gluon", which].reason and halves["gluon", which].variant.kept
    with pytest.raises(NotPartitioned, match="states"):
        attncc.compile(spec, backend="gluon").warmup(*tensors, decay=decay)


def test_where_order_matters_sums_in_bulk_are_not_used(hopper: Recorder) -> None:
    attn = compiled(deterministic=True)
    q, k, v = (t.requires_grad_() for t in inputs())
    attn(q, k, v)
    attn.warmup(q, k, v)
    forward, backward = sorted(attn._family.halves, key=lambda h: h.which == "backward")
    assert forward.partitioned and backward.partitioned and not backward.reason
    assert "queries_kernel" in backward.text and "copy_add" not in backward.text


@pytest.mark.parametrize("mistake", [InternalError("broken"), KeyError("broken")])
def test_a_mistake_of_ours_is_survived_and_told(
    anew: Recorder, monkeypatch: pytest.MonkeyPatch, mistake: Exception
) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise mistake

    monkeypatch.setattr("attncc.codegen.gluon_printer.print_module", fail)
    attn = compiled()
    with pytest.warns(RuntimeWarning, match="the forward of causal runs as plain Triton .*broken"):
        attn(*inputs())
    assert "broken" in attn._family.halves[0].reason and len(anew.launches()) == 1


def test_an_untested_triton_is_left_alone(anew: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncc.codegen.gluon_spelling.TESTED", ((3, 1),))
    attn = compiled()
    attn(*inputs())
    assert "partitioned kernels are tested with Triton 3.1, and this is " in attn._family.halves[0].reason


def test_where_partitioned_kernels_can_be_asked_for() -> None:
    assert target_of("cuda", "auto", 90) == target_of("cuda", "gluon", 90) == "gluon"
    assert (
        target_of("cuda", "auto", 80) == target_of("cuda", "auto", 100) == target_of("cuda", "triton", 90) == "triton"
    )
    with pytest.raises(NotPartitioned, match="made for sm_90, and this is sm_80"):
        target_of("cuda", "gluon", 80)
    with pytest.raises(NotPartitioned):
        target_of("jit", "gluon")
    with pytest.raises(WrongDevice, match="backend='gluon' needs tensors on a GPU"):
        mode_of("gluon", torch.device("cpu"))


def test_a_warm_start_reads_the_same_half(hopper: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()(*inputs())
    monkeypatch.setattr("attncc.runtime.family._families", {})
    attention._attention.cache_clear()
    attn = compiled()
    attn(*inputs())
    assert attn.builds == 0 and attn._family.halves[0].partitioned
    first, second = hopper.launches()
    assert [x.value for x in first[1:9]] == [x.value for x in second[1:9]]


# --- repeated calls


def read(lib: Recorder, kernels: list[Any], known: dict[int, str]) -> list[tuple[Any, ...]]:
    """Every launch so far: kernel sizes and arguments, addresses by name, "new" where the call made the tensor."""
    seen = []
    for call, kernel in zip(lib.launches(), kernels, strict=True):
        block = memoryview(ctypes.string_at(call[-2][0], kernel.layout.size))
        values: list[Any] = list(kernel.packer.unpack(block))
        for n, value in enumerate(values):
            if isinstance(value, bytes):
                m = lib.maps[int.from_bytes(value, "little") - 1]
                values[n] = {**m, "address": known.get(m["address"], "new")}
        for p in kernel.layout.parameters:
            if p.pointer:
                at = kernel.layout.offsets.index(p.offset)
                values[at] = known.get(values[at], "new")
        seen.append((*(x.value for x in call[1:9]), *values))
    return seen


@pytest.mark.parametrize(("name", "backend"), [("causal", "auto"), ("alibi", "triton")])
def test_repeated_calls_pass_what_the_host_function_passes(
    hopper: Recorder, monkeypatch: pytest.MonkeyPatch, name: str, backend: str
) -> None:
    attn = compiled(name, backend=backend)
    more = {"slope": torch.ones(4)} if name == "alibi" else {}
    for prepared in (True, False):
        hopper.calls.clear()
        if not prepared:
            monkeypatch.setattr("attncc.runtime.prepared.prepare", lambda *_: None)
            attn._plans.clear()
        for _ in range(2):
            q, k, v = inputs()
            hopper.calls.clear()
            plan, tensors = attn.plan(q, k, v, more)
            out, lse = plan.forward(tensors)
            d_out = torch.zeros_like(out)
            grads = plan.backward(tensors, out, lse, d_out, None, (True, True, True, *[True for _ in more]))
            known = {
                t.data_ptr(): n
                for n, t in zip([*attn.inputs, "out", "lse", "d_out"], [*tensors, out, lse, d_out], strict=True)
            }
        short = [p is not None for p in plan.prepared.values()]
        assert short == [prepared, prepared and name == "causal"]  # the gradient of a slope is summed on the host
        halves = [plan.half, *plan.backwards.values()]
        named = {k.binary.name: k for h in halves for k in h.kernels}
        order = [named[n] for n in launched(halves)]
        found = read(hopper, order, known)
        shapes = [(g.shape, g.stride(), g.dtype) for g in (out, lse, *grads) if g is not None]
        if prepared:
            expected = found, shapes
    assert (found, shapes) == expected


def test_the_counter_of_places_is_one_for_each_stream(hopper: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    captured, made = [False], dict[int, Tensor]()
    fill = torch.zeros

    def zeros(*shape: Any, **options: Any) -> Tensor:
        new = fill(*shape, **options)
        return made.setdefault(new.data_ptr(), new)

    for module in ("zeros", "prepared"):
        monkeypatch.setattr(f"attncc.runtime.{module}.capturing", lambda: lambda: captured[0])
    monkeypatch.setattr("attncc.runtime.zeros._made", {})
    monkeypatch.setattr("attncc.runtime.family._families", {})
    attention._attention.cache_clear()
    attn, tensors = compiled(), inputs()
    monkeypatch.setattr(torch, "zeros", zeros)
    seen = []
    for stream, graph in ((1, False), (1, False), (2, False), (1, True), (1, False), (2, True), (2, False)):
        hopper.stream, captured[0] = stream, graph
        attn(*tensors)
        (kernel,) = attn._family.halves[0].kernels
        block = memoryview(ctypes.string_at(hopper.launches()[-1][-2][0], kernel.layout.size))
        (counter,) = made.keys() & {x for x in kernel.packer.unpack(block) if isinstance(x, int)}
        seen.append(counter)
    one, _, two, graph_one, _, graph_two, _ = seen
    assert seen == [one, one, two, graph_one, one, graph_two, two] and len({one, two, graph_one, graph_two}) == 4


def launched(halves: list[Any]) -> list[str]:
    """The kernels that one forward and one backward launch, in order."""
    names: list[str] = []
    for half in halves:
        body = half.text[half.text.index(f"\ndef {half.which}(") :].split("\ndef ")[1]
        names += [part.split(",")[0].split("(")[-1].strip() for part in body.split("_launch(")[1:]]
    return names


def test_no_tensor_of_a_call_is_kept(hopper: Recorder) -> None:
    attn = compiled()
    tensors = inputs()
    kept = [weakref.ref(t) for t in (*tensors, attn(*tensors))]
    del tensors
    gc.collect()
    assert [r() for r in kept] == [None] * 4


def test_streams_are_read_at_every_call(hopper: Recorder) -> None:
    attn, tensors = compiled(), inputs()
    for stream in (1, 2, 2, 1):
        hopper.stream = stream
        attn(*tensors)
    assert [c[9].value for c in hopper.launches()] == [1, 2, 2, 1]


def test_a_repeated_call_makes_no_new_maps(hopper: Recorder) -> None:
    attn, (q, k, v) = compiled(), inputs()
    attn(q, k, v)
    made = len(hopper.maps)
    kept = [attn(q, k, v) for _ in range(3)]
    assert len({t.data_ptr() for t in kept}) == 3
    assert {m["address"] for m in hopper.maps[made:]} <= {t.data_ptr() for t in kept}


def test_several_threads_have_blocks_of_their_own(hopper: Recorder) -> None:
    from concurrent.futures import ThreadPoolExecutor

    attn = compiled()
    calls: list[Callable[[], Tensor]] = [lambda n=n: attn(*inputs(200)) for n in range(16)]  # type: ignore[misc]
    attn(*inputs(200))
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda f: f(), calls))
    assert len(hopper.launches()) == 17 and all(o.shape == (2, 4, 200, 64) for o in outs)


def test_no_programs_are_not_launched(hopper: Recorder) -> None:
    attn, (q, k, v) = compiled(), inputs()
    for _ in range(2):
        assert attn(q[:, :, :0], k, v).shape == (2, 4, 0, 64)
    assert hopper.launches() == []
