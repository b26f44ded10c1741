"""bench: the suite of recurrences, and the peer that has a function for each."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from attncc.cli import commands
from attncc.driver import load
from attncc.reference import evaluate
from attncc.runtime.bench.case import Case
from attncc.runtime.bench.measure import Plan, measure
from attncc.runtime.bench.peers import Ready, Warmed, peers
from attncc.runtime.bench.rows import Kind, case_of
from attncc.runtime.bench.suite import Row, read_suite
from attncc.runtime.bench.warming import first_call
from attncc.runtime.trial import error

CPU = torch.device("cpu")
ROWS = {r.name: r for r in read_suite("recurrent")}
SHAPE = {"B": 2, "H": 3, "N": 40, "D": 16}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path_factory.getbasetemp() / "bench-cache"))


def small(name: str) -> tuple[Row, Case]:
    """A row at a small shape, in single precision."""
    row = ROWS[name]
    fills = {n: how.removesuffix(" as bfloat16") for n, how in row.fills.items()}
    row = Row(row.name, row.spec, SHAPE, row.constants, fills, row.goals, learned=row.learned)
    return row, case_of(row, Kind(CPU, torch.float32))[0]


def _walk(q: Any, k: Any, v: Any, keep: Any, scale: float, beta: Any = None, bonus: Any = None, rank: Any = ()) -> Any:
    """Token by token; [B, T, H, D]. `keep` is by channel, `rank` what a rank-one change reads and writes."""
    state, out = torch.zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for t in range(q.shape[1]):
        key, value = k[:, t, :, :, None], v[:, t, :, None, :]
        if bonus is not None:
            out.append((q[:, t, :, None, :] @ (state + bonus[..., None] * key * value))[..., 0, :])
        changed = keep[:, t, :, :, None].expand_as(state) * state
        for seen, written in rank:
            changed = changed + written[:, t, :, :, None] * (seen[:, t, :, None, :] @ state)
        if beta is not None:
            value = beta[:, t, :, None, None] * (value - k[:, t, :, None, :] @ changed)
        state = changed + key * value
        if bonus is None:
            out.append((q[:, t, :, None, :] @ state)[..., 0, :])
    return scale * torch.stack(out, 1), None


def _ones(q: Any) -> Any:
    return torch.ones_like(q[..., :1])


def _simple(q: Any, k: Any, v: Any, scale: float, g: Any = None, g_gamma: Any = None) -> Any:
    keep = g.exp()[..., None] if g is not None else g_gamma.exp().view(1, 1, -1, 1).expand(*q.shape[:3], 1)
    return _walk(q, k, v, keep, scale)


def _forgetting(q: Any, k: Any, v: Any, g: Any) -> Any:
    q, k, v, total = (x.transpose(1, 2) for x in (q, k, v, g.cumsum(1)))
    score = q @ k.mT / q.shape[-1] ** 0.5 + total[..., :, None] - total[..., None, :]
    held = torch.ones(score.shape[-2:], dtype=torch.bool).tril()
    return (score.masked_fill(~held, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def _linear(q: Any, k: Any, v: Any, scale: float, normalize: bool) -> Any:
    assert not normalize
    return _walk(q, k, v, _ones(q), scale)


OPS = SimpleNamespace(
    chunk_linear_attn=_linear,
    chunk_simple_gla=_simple,
    chunk_gla=lambda q, k, v, g, scale: _walk(q, k, v, g.exp(), scale),
    chunk_rwkv6=lambda r, k, v, w, u, scale: _walk(r, k, v, w.exp(), scale, bonus=u),
    chunk_delta_rule=lambda q, k, v, beta, scale: _walk(q, k, v, _ones(q), scale, beta),
    chunk_gated_delta_rule=lambda q, k, v, g, beta, scale: _walk(q, k, v, g.exp()[..., None], scale, beta),
    chunk_kda=lambda q, k, v, g, beta, scale: _walk(q, k, v, g.exp(), scale, beta),
    chunk_rwkv7=lambda r, w, k, v, a, b, scale: _walk(r, k, v, w.exp(), scale, rank=((a, b),)),
    parallel_forgetting_attn=_forgetting,
)
"""What the library documents of its functions, naively."""


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_has_a_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla.ops", OPS)
    row, one = small(name)
    (peer,) = peers("fla")
    ready = peer.prepare(one)
    assert not isinstance(ready, str), ready
    assert len(ready.leaves) == 3 + (len(one.reals) if row.learned else 0)
    with torch.no_grad():
        found = ready.turned(ready.forward())
    tensors = {n: t.detach() for n, t in one.tensors.items()}
    assert error(found, evaluate(one.spec, tensors, one.constants).out) < 1e-5


@pytest.mark.parametrize("name", ["channel decay", "read before the write"])
def test_a_row_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla.ops", OPS)
    _, one = small(name)
    (peer,) = peers("fla")
    other = SimpleNamespace(name="fla", available=lambda d: None, prepare=peer.prepare)
    ours, theirs = measure(one, Plan(("torch",), (other,), rounds=1, measure_ms=0))
    assert (ours.status, theirs.status, theirs.note) == ("timed", "timed", "")
    assert set(theirs.errors) == {"out", "d_q", "d_k", "d_v"} and len(theirs.backward) == 1
    assert one.flops("forward") == 2 * 2 * 2 * 3 * 40 * 16 * 16


def test_what_the_peer_refuses() -> None:
    (peer,) = peers("fla")
    assert peer.available(CPU) and isinstance(peer, Warmed)
    assert peer.warm(list(ROWS.values()), Kind(CPU, torch.float32)) == []
    other = load("attention x:\n    state S[d, e]\n    S = 2 * S + outer(k, v)\n    out = q @ S\n")[0]
    _, one = small("linear")
    assert peer.prepare(one.with_spec("", other)) == "it has no such function"


def test_first_calls_are_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is begun where a process could not help; a call itself asks a peer for both halves."""
    (flex,) = peers("flex")
    assert isinstance(flex, Warmed) and flex.warm(list(ROWS.values()), Kind(CPU, torch.float32)) == []
    row, _ = small("forgetting")
    asked: list[str] = []

    def prepare(one: Case) -> Any:
        asked.append(one.name)
        return Ready(lambda: one.tensors["q"] * 2.0, (one.tensors["q"],), one.d_out)

    monkeypatch.setattr("attncc.runtime.bench.warming.peers", lambda _: [SimpleNamespace(name="x", prepare=prepare)])
    first_call("any", "x", row, Kind(CPU, torch.float32))
    first_call("any", "none of it", row, Kind(CPU, torch.float32))
    assert asked == ["forgetting"]


def test_the_suite_runs(tmp_path: Path) -> None:
    text = Path(__file__).parents[2] / "attncc/runtime/bench/suites/recurrent.toml"
    (tmp_path / "small.toml").write_text(text.read_text().replace("B=4,H=16,N=8192,D=128", "B=1,H=2,N=40,D=16"))
    more = ("--only", "linear*", "--vs", "fla", "--device", "cpu", "--rounds", "1", "--milliseconds", "0")
    result = CliRunner().invoke(commands, ["bench", "--suite", str(tmp_path / "small.toml"), *more])
    assert result.exit_code == 0, result.output
    assert "without fla: flash-linear-attention is not installed" in result.output


@pytest.mark.parametrize(
    ("only", "rows"),
    [
        ("linear,kept", ["linear", "kept"]),
        ("*decay,-delta", ["channel decay", "token decay"]),
        ("-decay,-delta,-l", ["kept", "forgetting"]),
    ],
)
def test_rows_are_chosen(only: str, rows: list[str]) -> None:
    found = [r.label.rsplit(" B4", 1)[0] for r in read_suite("recurrent", only)]
    assert [n for n in found if n != "read before the write"] == rows
