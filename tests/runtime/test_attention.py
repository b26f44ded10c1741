"""Calling a compiled spec: results, gradients, variants, torch.compile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attncc
from attncc.runtime.attention import Attention
from attncc.runtime.family import _families
from attncc.runtime.mistakes import NoSingleLse
from tests.runtime.fake_driver import TEXT, FakeDriver


def tensors(
    B: int = 2,
    H: int = 4,
    G: int = 2,
    M: int = 12,
    N: int = 12,
    D: int = 8,
    E: int = 8,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    torch.manual_seed(0)
    made: dict[str, Any] = {"q": torch.randn(B, H, M, D), "k": torch.randn(B, G, N, D), "v": torch.randn(B, G, N, E)}
    made["slope"] = torch.randn(H)
    made = {n: t.to(dtype) for n, t in made.items()}
    for t in made.values():
        t.requires_grad_()
    return made | {"doc": torch.randint(0, 2, (B, N))}


def dense(q: Tensor, k: Tensor, v: Tensor, slope: Tensor, doc: Tensor, cap: float = 2.0) -> tuple[Tensor, Tensor]:
    repeat = q.shape[1] // k.shape[1]
    i, j = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2], torch.arange(k.shape[2])
    score = q @ k.repeat_interleave(repeat, 1).mT / cap + slope[:, None, None] * (j - i)
    mask = (j <= i) & (doc[:, None, None, :] == doc[:, None, i[:, 0].clamp_min(0), None])
    score = score.masked_fill(~mask, float("-inf"))
    return score.softmax(-1).nan_to_num(0) @ v.repeat_interleave(repeat, 1), score.logsumexp(-1)


def gradients(outputs: Tensor | tuple[Tensor, ...], inputs: dict[str, Any]) -> dict[str, Tensor]:
    leaves = [n for n, t in inputs.items() if t.requires_grad]
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((o.sin() * (i + 1)).sum() for i, o in enumerate(given))
    assert isinstance(total, Tensor)
    return dict(zip(leaves, torch.autograd.grad(total, [inputs[n] for n in leaves]), strict=True))


def compiled(**options: Any) -> Attention:
    return attncc.compile(TEXT, **options)


@pytest.mark.parametrize("E", [8, 24])
@pytest.mark.parametrize("return_lse", [False, True])
def test_outputs_and_every_gradient(driver: FakeDriver, return_lse: bool, E: int) -> None:
    inputs = tensors(E=E)
    attn = compiled()
    came = attn(**inputs, return_lse=return_lse)
    true = dense(**inputs)
    pairs = zip(came, true, strict=True) if return_lse else [(came, true[0])]
    for a, b in pairs:
        torch.testing.assert_close(a, b)
    found, expected = gradients(came, inputs), gradients(true if return_lse else true[0], inputs)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_gradient_of_lse_alone(driver: FakeDriver) -> None:
    inputs = tensors()
    _, lse = compiled()(**inputs, return_lse=True)
    _, true = dense(**inputs)
    found, expected = gradients(lse, inputs), gradients(true, {n: t for n, t in inputs.items() if n != "v"})
    assert found.pop("v").abs().max() == 0
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_only_the_wanted_gradients_are_computed(driver: FakeDriver) -> None:
    inputs = tensors()
    inputs["k"].requires_grad_(False)
    inputs["slope"].requires_grad_(False)
    attn = compiled()
    attn(**inputs).sum().backward()
    assert attn.variants[-1].gradients == ("q", "v")
    assert inputs["k"].grad is None


def test_sizes_constants_and_layouts_make_no_variants(driver: FakeDriver) -> None:
    attn = compiled()
    attn(**tensors()).sum().backward()
    assert (len(attn.variants), attn.builds) == (2, 2)
    changes: list[dict[str, Any]] = [{"B": 1}, {"H": 8}, {"G": 4}, {"M": 5}, {"N": 30}, {"M": 30, "N": 3}, {"M": 0}]
    for sizes in changes:
        attn(**tensors(**sizes)).sum().backward()
    other = compiled(window=7, cap=1.5)
    other(**tensors()).sum().backward()
    assert other is not attn and other.constants == {"window": 7, "cap": 1.5}
    assert (len(other.variants), other.builds, len(attn.variants), driver.prints) == (2, 2, 2, 2)
    attn(**tensors(D=16))
    assert len(attn.variants) == 3


def test_a_repeated_call_makes_no_new_plan(driver: FakeDriver) -> None:
    attn, inputs = compiled(), tensors()
    attn(**inputs)
    plans = dict(attn._plans)
    attn(**inputs)
    attn(**tensors())
    assert attn._plans == plans and len(plans) == 1


def test_constants_reach_the_program(driver: FakeDriver) -> None:
    inputs = tensors()
    torch.testing.assert_close(compiled(cap=3)(**inputs), dense(**inputs, cap=3.0)[0])
    assert not torch.allclose(compiled(window=1)(**inputs), dense(**inputs)[0])


def test_transposed_and_expanded_views(driver: FakeDriver) -> None:
    inputs = tensors(G=4)
    moved = inputs | {"q": inputs["q"].transpose(1, 2).contiguous().transpose(1, 2)}
    moved["slope"] = inputs["slope"][:1].expand(4)
    out = compiled()(**moved)
    torch.testing.assert_close(out, dense(**moved)[0])
    assert out.stride() == moved["q"].stride()


def test_lse_is_refused_where_there_is_none(driver: FakeDriver) -> None:
    attn = compiled()
    attn._lse = False
    with pytest.raises(NoSingleLse, match="sloped has no lse"):
        attn(**tensors(), return_lse=True)


def test_second_gradients_are_refused(driver: FakeDriver) -> None:
    inputs = tensors()
    (grad,) = torch.autograd.grad(compiled()(**inputs).sin().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(grad.sum())


def test_warmup_by_sizes_and_by_tensors(driver: FakeDriver) -> None:
    attn = compiled()
    attn.warmup(B=2, H=4, G=2, N=12, D=8, dtype=torch.float64)
    assert [v.gradients for v in attn.variants] == [(), ("q", "k", "v", "slope")]
    inputs = tensors()
    inputs["doc"] = inputs["doc"].int()
    inputs["slope"] = inputs["slope"].detach().float().requires_grad_()
    attn(**inputs).sum().backward()
    assert attn.builds == 2
    attn.warmup(**tensors(D=16), gradients=False)
    assert len(attn.variants) == 3


def test_source_and_explain(driver: FakeDriver) -> None:
    attn = compiled()
    assert "def backward" not in attn.source("forward") and "def forward" in attn.source("forward")
    assert "def backward" in attn.source("backward")
    attn(**tensors())
    report = attn.explain()
    assert "slope: real[h]" in report and "window = 100" in report and "forward" in report
    assert repr(attn) == "<attention sloped, backend=auto, window=100, cap=2.0>"


def test_the_printed_text_is_kept_where_asked(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTNCC_KEEP", str(tmp_path / "kept"))
    compiled()(**tensors())
    (kept,) = (tmp_path / "kept").iterdir()
    assert "def forward" in kept.read_text()


@pytest.mark.parametrize("return_lse", [False, True])
def test_torch_compile_without_graph_breaks(driver: FakeDriver, return_lse: bool) -> None:
    attn, inputs = compiled(), tensors(E=24)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def model(q: Tensor, k: Tensor, v: Tensor, slope: Tensor, doc: Tensor) -> Any:
        came = attn(q * 2, k, v, slope=slope, doc=doc, return_lse=return_lse)
        return tuple(x + 1 for x in came) if return_lse else came + 1

    came = model(**inputs)
    eager = attn(**inputs | {"q": inputs["q"] * 2}, return_lse=return_lse)
    expected = tuple(x + 1 for x in eager) if return_lse else eager + 1
    torch.testing.assert_close(came, expected)
    for a, b in zip(gradients(came, inputs).values(), gradients(expected, inputs).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_operators_pass_torchs_own_checks(driver: FakeDriver) -> None:
    attn, inputs = compiled(), tensors(E=24)
    inputs["q"] = inputs["q"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(attn._ops.forward, tuple(inputs.values()))


def test_fake_tensors_give_shapes_and_strides(driver: FakeDriver) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    attn = compiled()
    with FakeTensorMode():
        q = torch.empty(2, 12, 4, 8).transpose(1, 2)
        k, doc = torch.empty(2, 2, 12, 8), torch.empty(2, 12, dtype=torch.int32)
        out, lse = attn(q, k, k, slope=torch.empty(4), doc=doc, return_lse=True)
    assert (out.shape, out.stride(), lse.shape) == (q.shape, q.stride(), (2, 4, 12))
    assert driver.prints == 0


def test_equal_specs_share_one_family(driver: FakeDriver, tmp_path: Path) -> None:
    path = tmp_path / "sloped.attn"
    path.write_text(TEXT)
    known = len(_families)  # of other tests in this process
    assert attncc.compile(path) is compiled() is attncc.compile(str(path))
    assert len(_families) <= known + 1


def test_a_refusal_points_into_its_own_text() -> None:
    """Two specs share the expression that is refused; each shows where it has it, whichever is asked first."""
    start, step = (
        "attention {}(W: real[h, d, f: D]):\n    state S[d, e]\n",
        "    S = W @ S[f] + outer(k, v)\n    out = q @ S\n",
    )
    texts = [start.format("first") + step, start.format("second") + "\n\n" + step]
    both = [attncc.compile(text, backend="torch", form="chunk") for text in texts]
    q, W = torch.zeros(1, 1, 8, 4), torch.zeros(1, 4, 4)
    for at in (1, 0, 1):
        with pytest.raises(attncc.SpecError) as caught:
            both[at](q, q, q, W=W)
        span = caught.value.diagnostic.span
        assert span is not None and (span.line, span.column, span.width) == (3 + 2 * at, 9, 8)
        assert "W @ S[f]" in str(caught.value).splitlines()[1]
