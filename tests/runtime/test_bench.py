"""bench: densities, forms, functions made for peers, suites, and whole runs on the CPU."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import attncc
from attncc.cli import commands
from attncc.driver import load
from attncc.grammar import parse
from attncc.reference import evaluate
from attncc.runtime.bench import measure
from attncc.runtime.bench.case import Case, build
from attncc.runtime.bench.form import Form
from attncc.runtime.bench.peers import families, peers
from attncc.runtime.bench.prefetch import build as build_half
from attncc.runtime.bench.prefetch import prefetch, shortened, side_by_side, wanted
from attncc.runtime.bench.suite import FOLDER, parse_goal, read_suite
from attncc.runtime.trial import BARS, error
from attncc.runtime.warmup import full_sizes

EXAMPLES = Path(__file__).parents[2] / "examples" / "softmax"
CPU = torch.device("cpu")


def case(
    name: str,
    fills: dict[str, str] | None = None,
    backward: bool = True,
    dtype: torch.dtype = torch.float32,
    **given: int,
) -> Case:
    """An example at a small shape."""
    spec = load(EXAMPLES / f"{name}.attn")[0]
    sizes = full_sizes({"B": 2, "H": 4, "G": 2, "M": 40, "N": 52, "D": 16} | given)
    constants = {c.name: c.value for c in spec.constants}
    constants |= {"window": 9} if "window" in constants else {}
    path = EXAMPLES / f"{name}.attn"
    more: dict[str, Any] = {"fills": fills, "backward": backward}
    return build(name, path, spec, constants, sizes, dtype=dtype, device=CPU, **more)


def bench(*arguments: object) -> Result:
    """The command."""
    return CliRunner().invoke(commands, ["bench", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path_factory.getbasetemp() / "bench-cache"))


# --- forms ----------------------------------------------------------------------------------------------------------


def form(name: str) -> Form:
    found = case(name).form
    assert isinstance(found, Form), found
    return found


def test_plain_forms() -> None:
    for name, band in (("full", (None, None)), ("causal", (None, 0)), ("window", (8, 0))):
        assert form(name).plain and form(name).band == band and form(name).sink is None
        assert form(name).scale == pytest.approx(0.25)


def test_other_forms() -> None:
    capped = form("gemma2")
    assert capped.cap == 50.0 and capped.scale == pytest.approx(0.25 / 50) and capped.band == (8, 0)
    assert form("alibi").cap is None and not form("alibi").plain and form("alibi").band == (None, 0)
    assert form("packed_documents").band is None and form("padding").band is None
    assert form("gpt_oss").sink is not None


def test_what_has_no_form_says_why() -> None:
    assert case("sigmoid_attention").form == "its weights are not a softmax"
    assert case("softpick").form == "its weights are not a softmax"


@pytest.mark.parametrize(
    ("mask", "band"),
    [
        ("i >= j", (None, 0)),
        ("i - j <= 4 and j - i <= 3", (4, 3)),
        ("j < i + 1 and j > i - 5", (4, 0)),
        ("2 * j <= 2 * i", None),
        ("i + j < 9", None),
        ("j <= i or j < 4", None),
        ("j < 4", None),
    ],
)
def test_bands(mask: str, band: tuple[int | None, int | None] | None) -> None:
    text = f"attention x:\n    mask = {mask}\n    out = softmax(q @ k) @ v\n"
    small = build("x", text, parse(text), {}, full_sizes({"H": 1, "N": 8, "D": 4}), dtype=torch.float32, device=CPU)
    assert isinstance(small.form, Form) and small.form.band == band


# --- work -----------------------------------------------------------------------------------------------------------


def dense(name: str, fills: dict[str, str] | None = None) -> tuple[Case, torch.Tensor]:
    """Which pairs count, by the reference: v as the identity gives the weights themselves."""
    one = case(name, fills, backward=False, E=52)
    tensors = dict(one.tensors)
    tensors["v"] = torch.eye(52).expand(2, 2, 52, 52)
    return one, evaluate(one.spec, tensors, one.constants).out > 0


@pytest.mark.parametrize("name", ["full", "causal", "window", "packed_documents", "padding", "prefix_lm", "t5"])
def test_pairs_are_those_of_the_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncc.runtime.bench.case.TILE", 16)
    one, held = dense(name)
    assert one.work.pairs == held.sum().item() / 8
    padded = torch.nn.functional.pad(held, (0, -52 % 16, 0, -40 % 16))
    tiles = padded.reshape(2, 4, 3, 16, 4, 16).any(-1).any(-2)
    assert one.work.tiles == tiles.sum().item() / 8
    assert one.flops("forward") == 2 * 8 * one.work.pairs * (16 + 52)
    assert one.flops("backward") == 2 * 8 * one.work.pairs * (3 * 16 + 2 * 52)


def test_fills() -> None:
    steps = case("packed_documents", {"doc": "steps:16"}).tensors["doc"]
    assert steps.shape == (2, 52) and steps[1].tolist() == [j // 16 for j in range(52)]
    halves = case("alibi", {"slope": "halves"}).tensors["slope"]
    assert halves.tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert case("alibi", {"slope": "all:0.5"}).tensors["slope"].tolist() == [0.5] * 4
    falling = case("alibi", {"slope": "falling:0.1"}).tensors["slope"].diff()
    assert bool((falling <= 0).all() and (falling >= -0.2).all())


# --- peers ----------------------------------------------------------------------------------------------------------


def test_the_adapters() -> None:
    assert set(families()) == {"flex", "sdpa", "fa4", "fla"}
    names = {p.name: p.available(CPU) for family in families() for p in peers(family)}
    assert names["flex"] is None and names["sdpa"] is None
    assert all(names[n] for n in ("sdpa-cudnn", "sdpa-fa2", "fa4"))


EXPRESSED = {"full", "causal", "window", "gemma2", "alibi", "packed_documents", "padding", "prefix_lm", "gpt_oss", "t5"}


@pytest.mark.parametrize("name", sorted(EXPRESSED))
def test_the_general_adapter_computes_the_spec(name: str) -> None:
    (peer,) = peers("flex")
    one = case(name, backward=False, M=40, N=52)
    ready = peer.prepare(one)
    assert not isinstance(ready, str), ready
    with torch.no_grad():
        out = ready.turned(ready.forward())
    truth = evaluate(one.spec, one.tensors, one.constants).out
    assert error(out, truth) < 1e-5


def test_what_the_adapters_refuse() -> None:
    (flex,), (fa4,) = peers("flex"), peers("fa4")
    sdpa = next(p for p in peers("sdpa") if p.name == "sdpa")
    assert flex.prepare(case("sigmoid_attention")) == "its weights are not a softmax"
    assert flex.prepare(case("causal", M=60)) == "there are more queries than keys"
    assert sdpa.prepare(case("causal")) == "its causal mask starts at the first key"
    assert sdpa.prepare(case("alibi")) == "its score is more than a scaled product"
    assert sdpa.prepare(case("window", M=52)) == "its mask is neither full nor causal"
    assert fa4.prepare(case("alibi")) == "its score is more than a scaled product and a cap"
    assert fa4.prepare(case("packed_documents")) == "its mask is no band of keys"
    assert fa4.prepare(case("causal")) == "it does not compute in torch.float32"


def test_options_of_a_fixed_function() -> None:
    from attncc.runtime.bench.peers.fa4 import _options

    def options(name: str) -> Any:
        one = case(name)
        assert isinstance(one.form, Form)
        return _options(one, one.form)

    assert options("full") == {"softmax_scale": 0.25}
    assert options("causal") == {"softmax_scale": 0.25, "causal": True}
    assert options("gemma2") == {"softmax_scale": 0.25, "softcap": 50.0, "causal": True, "window_size": (8, 0)}
    assert options("gpt_oss")["learnable_sink"].shape == (4,)


def _banded(q: Any, k: Any, v: Any, softmax_scale: float, causal: bool = False, **more: Any) -> tuple[Any, None]:
    """What FA4 documents of the options that the adapter sets, densely; [B, N, H, D], bottom-right aligned."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    left, right = more.pop("window_size", (None, None))
    score = q.float() @ k.float().mT * softmax_scale
    if cap := more.pop("softcap", 0.0):
        score = cap * torch.tanh(score / cap)
    i = torch.arange(q.shape[2]).view(-1, 1) + k.shape[2] - q.shape[2]
    j = torch.arange(k.shape[2])
    held = (j <= i + (0 if causal else j.numel() if right is None else right)) & (
        j >= i - (len(j) if left is None else left)
    )
    score = score.masked_fill(~held, -torch.inf)
    sink = more.pop("learnable_sink", None)
    if sink is not None:
        score = torch.cat([score, sink.float().view(1, -1, 1, 1).expand(*score.shape[:3], 1)], -1)
    assert not more
    weights = score.softmax(-1)[..., : k.shape[2]]
    return (weights.to(v.dtype) @ v).transpose(1, 2), None


@pytest.mark.parametrize("name", ["full", "causal", "window", "gemma2", "gpt_oss"])
def test_the_fixed_function_computes_the_spec(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", SimpleNamespace(flash_attn_func=_banded))
    (peer,) = peers("fa4")
    one = case(name, dtype=torch.bfloat16)
    plan = measure.Plan(("torch",), (SimpleNamespace(name="fa4", available=lambda d: None, prepare=peer.prepare),))
    ours, theirs = measure.measure(one, dataclasses.replace(plan, rounds=1, measure_ms=0))
    assert (ours.status, theirs.status, theirs.note) == ("timed", "timed", "")
    assert set(theirs.errors) == {"out", "d_q", "d_k", "d_v"} and len(theirs.backward) == 1


# --- measuring ------------------------------------------------------------------------------------------------------


class _Wrong:
    name = "wrong"
    package = "torch"

    def available(self, device: torch.device) -> str | None:
        return None

    def prepare(self, one: Case) -> Any:
        from attncc.runtime.bench.peers import Ready

        q = one.tensors["q"]
        return Ready(lambda: 2 * q, (), one.d_out)


class _Broken(_Wrong):
    name = "broken"

    def prepare(self, one: Case) -> Any:
        raise RuntimeError("no such kernel\nand a long story")


def test_a_wrong_peer_is_shown_and_not_timed() -> None:
    plan = measure.Plan(("torch",), (_Wrong(), _Broken()), rounds=2, measure_ms=0)
    ours, wrong, broken = measure.measure(case("causal"), plan)
    assert (ours.status, wrong.status, broken.status) == ("timed", "wrong", "failed")
    assert len(ours.forward) == len(ours.backward) == 2 and not wrong.forward
    assert wrong.note.startswith("out is") and broken.note == "RuntimeError: no such kernel"
    assert set(ours.errors) == {"out", "d_q", "d_k", "d_v"} and max(ours.errors.values()) < 1e-5


def test_what_is_compiled_ahead_is_what_a_call_needs() -> None:
    text = (EXAMPLES / "alibi.attn").read_text() + "\n# of its own\n"
    spec, sizes = parse(text), full_sizes({"B": 2, "H": 4, "N": 700, "D": 16})
    more: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
    short = build("x", text, spec, {}, shortened(sizes), **more)
    assert short.sizes["N"] == 256 and prefetch([short], ("torch",), CPU) == []
    halves = wanted(short, "torch", 90)
    assert pickle.loads(pickle.dumps(halves)) == halves
    for task in side_by_side(halves, 1):
        task.result()
    for half in reversed(halves):
        build_half(half)
    attention = attncc.compile(text, backend="torch")
    assert attention.builds == 0, "another process compiled them"
    assert [v.gradients for v in attention.variants] == [(), ("q", "k", "v")]
    measure.measure(build("x", text, spec, {}, sizes, **more), measure.Plan(("torch",), (), rounds=1, measure_ms=0))
    assert len(attention.variants) == 2


def test_forward_alone_and_backward_alone() -> None:
    for which in (("forward",), ("backward",)):
        one = case("causal", backward="backward" in which)
        (ours,) = measure.measure(one, measure.Plan(("torch",), (), which, rounds=1, measure_ms=0))
        assert bool(ours.forward) == ("forward" in which) and bool(ours.backward) == ("backward" in which)


# --- suites ---------------------------------------------------------------------------------------------------------


def test_goals() -> None:
    goal = parse_goal("1.5 / 1.4 flex or 1.0 tile")
    assert [(b.forward, b.backward, b.over) for b in goal.bounds] == [(1.5, 1.4, "flex"), (1.0, 1.0, "tile")]
    with pytest.raises(ValueError, match="'fast' is no goal"):
        parse_goal("fast")


@pytest.mark.parametrize(("suite", "least"), [("softmax", 20), ("tiles", 15), ("recurrent", 9)])
def test_the_shipped_suites(suite: str, least: int) -> None:
    assert sorted(f.stem for f in FOLDER.glob("*.toml")) == ["recurrent", "softmax", "tiles"]
    rows = read_suite(suite)
    assert len(rows) == len({r.label for r in rows}) and len(rows) > least
    known = {"tile", "gradients", *(p.name for family in families() for p in peers(family))}
    for row in rows:
        spec = parse(row.spec)
        assert set(row.constants) <= {c.name for c in spec.constants}
        assert set(row.fills) - {"q", "k", "v"} == {p.name for p in spec.params}
        assert {b.over for g in row.goals for b in g.bounds} <= known
        full_sizes(row.shape)


def test_rows_are_examples() -> None:
    rows = read_suite("softmax")
    same = {"window": "window", "slopes": "alibi", "documents": "packed_documents", "causal": "causal"}
    for row in rows:
        if row.name in same:
            example = load(EXAMPLES / f"{same[row.name]}.attn")[0]
            assert parse(row.spec).out == example.out, row.name
    assert [r.name for r in read_suite("softmax", "softcap*D64, sink B*D64")] == ["softcap", "sink"]


TINY = """
[specs]
causal = '''
attention causal:
    mask = j <= i
    out  = softmax(q @ k / sqrt(D)) @ v
'''
sink = '''
attention sink(sink: real[h], window = 99):
    mask = j <= i and i - j < window
    out  = softmax(q @ k / sqrt(D), sink = sink[h]) @ v
'''
[[row]]
name = "causal"
spec = "causal"
shapes = ["B=1,H=2,N=40,D=16"]
goals = ["0.000001 sdpa", "1 fa4"]
[[row]]
name = "sink"
spec = "sink"
shapes = ["B=1,H=2,N=40,D=16"]
constants = { window = 7 }
tensors = { sink = "normal:1" }
anchor = "causal"
goals = ["1000000 tile", "<= 1000 gradients"]
"""


def test_a_suite_runs(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    out, table = (tmp_path / n for n in ("out.json", "table.md"))
    result = bench(
        *("--suite", tmp_path / "tiny.toml", "--device", "cpu", "--rounds", 2, "--milliseconds", 0),
        *("--json", out, "--markdown", table),
    )
    assert result.exit_code == 0, result.output
    assert "without fa4: runs on cuda only" in result.output
    assert "forward reached (" in result.output and "backward MISSED (" in result.output
    found = json.loads(out.read_text())
    assert found["torch"] == torch.__version__ and [r["row"] for r in found["rows"]] == [
        "causal B1 H2 N40 D16",
        "sink B1 H2 N40 D16",
    ]
    causal, sink = ({c["name"]: c for c in r["contestants"]} for r in found["rows"])
    assert causal["sdpa"]["status"] == "timed" and len(causal["sdpa"]["backward"]["rounds_ms"]) == 2
    assert causal["fa4"]["status"] == "absent" and sink["anchor"]["note"] == "causal"
    assert causal["sdpa"]["forward"]["ours_over_it"]["median"] == pytest.approx(
        causal["sdpa"]["forward"]["ms"] / causal["attncc"]["forward"]["ms"]
    )
    assert max(causal["sdpa"]["errors"].values()) < 1e-5
    per_tile, most = found["rows"][1]["goals"]
    assert (per_tile["goal"], per_tile["of"]) == ("1000000 tile", "attncc")
    assert per_tile["forward"] == {
        "holds": False,
        "ratio": pytest.approx(sink["anchor"]["forward"]["ours_over_it"]["median"]),
        "bar": 1e6,
        "over": "tile",
    }
    assert most["forward"] is None and most["backward"]["holds"] and most["backward"]["bar"] == 1000
    assert sink["gradients"]["status"] == "timed" and sink["gradients"]["note"] == "with those of sink"
    assert "gradients" not in causal
    lines = table.read_text().splitlines()
    assert lines[2].startswith(
        "| row | attncc | flex | sdpa | over flex | over sdpa | per tile | captured gradients | goals |"
    )
    assert lines[5].endswith("| missed forward: 1000000 tile; backward: 1000000 tile |")
    assert lines[7] == "| row | half | goal | ratio | bar | |" and len(lines) == 9 + 2 + 3 + 2 * 2
    assert lines[-1].startswith("Geometric mean over sdpa: forward ") and lines[-1].endswith(" (1 rows).")
    assert lines[9].startswith("| causal B1 H2 N40 D16 | forward | 0.000001 sdpa | ")
    assert lines[9].endswith(" sdpa | >= 0.00 | holds |") and lines[11].endswith(
        "tile | >= 1000000.00 | short by 100% |"
    )
    assert lines[13].endswith(" gradients | <= 1000.00 | holds |")


def test_a_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: tuple[object, ...] = (
        EXAMPLES / "causal.attn",
        "--shape",
        "H=2,N=24,D=16",
        "--rounds",
        1,
        "--milliseconds",
        0,
        "--vs",
        "sdpa",
    )
    options = (*options, "--device", "cpu", "--chart", tmp_path / "chart.png")
    with monkeypatch.context() as m:
        m.setattr("importlib.util.find_spec", lambda name: None)
        missing = bench(*options)
    assert missing.exit_code == 2 and "--chart needs matplotlib: pip install 'attncc[bench]'" in missing.stderr
    pytest.importorskip("matplotlib", reason="needs the extra: pip install -e '.[bench]'")
    assert bench(*options).exit_code == 0
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ("--shape", "H=2,N=24,D=16", "--rounds", 1, "--milliseconds", 0, "--device", "cpu")
    found = bench(EXAMPLES / "alibi.attn", *shape, "--vs", "sdpa", "--fill", "slope=halves", "--json")
    assert found.exit_code == 0, found.output
    data = json.loads(found.stdout)
    assert data["ok"] and data["rows"][0]["contestants"][0]["status"] == "timed"
    assert data["rows"][0]["contestants"][-1]["note"] == "its score is more than a scaled product"
    monkeypatch.setitem(BARS, "f32", 1e-30)
    found = bench(EXAMPLES / "causal.attn", *shape, "--vs", "sdpa")
    assert found.exit_code == 1 and "WRONG: out is" in found.output


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 2, "name FILEs or a --suite"),
        (["--suite", "hard"], 2, "there is no suite 'hard'; shipped: recurrent, softmax, tiles"),
        (["--suite", "softmax", "--only", "nothing"], 2, "no row matches 'nothing'"),
        ([EXAMPLES / "causal.attn"], 2, "--shape is missing"),
        ([EXAMPLES / "causal.attn", "--shape", "H=2,N=8,D=16", "--vs", "slow"], 2, "there is no peer 'slow'; known: "),
        ([EXAMPLES / "alibi.attn", "--shape", "H=2,N=8,D=16", "--fill", "slope=x"], 2, "can't be filled so: 'x'"),
        ([EXAMPLES / "causal.attn", "--shape", "H=2,N=8"], 1, "the size D is missing"),
        (["none.attn", "--shape", "H=2,N=8,D=4"], 1, "error[E101]"),
    ],
)
def test_mistakes(options: list[object], status: int, message: str) -> None:
    found = bench(*options, "--device", "cpu")
    assert found.exit_code == status and message in found.stderr, found.output
