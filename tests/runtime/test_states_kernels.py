"""States in and out on a GPU, and by the same kernels on Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import attncc
from tests.runtime.test_states import (
    NO_BACKWARD,
    OUTSIDE,
    STATEFUL,
    compiled,
    file,
    given,
    loop,
    results,
    some_states,
    wide,
    worst,
)
from tests.support.interpreted import all_near, needs_triton


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCC_CACHE", "off")


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [*STATEFUL, *OUTSIDE])
def test_on_a_gpu(name: str) -> None:
    """Out, states and gradients in float32, in the form that is taken and token by token; then a step.

    One test compiles a spec once for all lengths, and every length has one truth for all forms.
    """
    torch.set_float32_matmul_precision("highest")
    sizes: dict[str, Any] = {"D": 16, "E": 16 if name == "ttt_linear" else 100}
    sizes |= {"H": 1, "G": 1} if name == "mamba1" else {}
    found = [x for tokens in (1, 19, 130) for x in distances(name, sizes | {"M": tokens, "N": tokens})]
    assert not [x for x in found if not x[-1] < 2e-5], found


def distances(name: str, sizes: dict[str, Any]) -> Iterator[tuple[str, int, str, str, float]]:
    """(spec, tokens, form, the worst tensor, how far it is from the token loop) for every form."""
    gradients = name not in NO_BACKWARD["recurrent"]
    attn: Any = attncc.compile(file(name))
    inputs = given(attn, torch.float32, **sizes)
    first = some_states(attn, inputs)
    truth = results(loop(attn), wide(inputs), wide(first), gradients)
    here, start = ({n: x.cuda() for n, x in values.items()} for values in (inputs, first))
    for form in ("auto", "recurrent"):
        attn = attncc.compile(file(name), form=form)
        mine = {n: x.cpu() for n, x in results(compiled(attn), here, start, gradients).items()}
        distance, where = worst(mine, truth)
        yield noted(name, sizes["N"], form, where, distance)
    if sizes["N"] == 1:
        out = attn.step(**here, state=start).cpu()
        stepped = {"out": out} | {f"last {n}": x.cpu() for n, x in start.items()}
        distance, where = worst(stepped, {n: truth[n] for n in stepped})
        yield noted(name, 1, "step", where, distance)


def noted(*found: Any) -> Any:
    """What was found, written to the file that FIGURES names, too: a run that is cut short leaves what it knew."""
    if os.environ.get("FIGURES"):
        with Path(os.environ["FIGURES"]).open("a", encoding="utf-8") as file:
            file.write(" ".join(str(x) for x in found) + "\n")
    return found


# --- the same kernels on Triton's interpreter -------------------------------------------------------------------------

_INTERPRET = """
import torch
import attncc
from tests.runtime.test_states import DOCUMENTS, compiled, file, given, loop, results, some_states, wide, worst
for name, form, gradients, sizes in (
    ("gla", "recurrent", True, dict(D=6, E=70, M=6, N=7)),
    ("linear_transformer", "recurrent", False, dict(E=70, M=5, N=6)),
    ("simple_gla", "chunk", False, dict(D=16, E=70, M=8, N=9)),
    ("gsa", "recurrent", False, dict(M=5, N=5)),
    ("rebased", "recurrent", False, dict(D=5, M=5, N=5)),
    ("cosformer", "recurrent", False, dict(M=5, N=5)),
    ("gated_delta", "recurrent", True, dict(M=7, N=7)),
    ("delta_product", "recurrent", False, dict(M=5, N=5)),
    ("ttt_linear", "recurrent", True, dict(M=5, N=5)),
    ("offsets", "recurrent", True, dict(M=9, N=9)),
    ("sums", "chunk", False, dict(M=9, N=9)),
    ("based", "chunk", True, dict(D=5, E=20, M=19, N=19)),
):
    spec = DOCUMENTS.get(name) or file(name)
    attn = attncc.compile(spec, backend="interpret", form=form)
    inputs = given(attn, torch.float32, **({"B": 1} | sizes))
    first = some_states(attn, inputs)
    got = results(compiled(attn), inputs, first, gradients)
    distance, where = worst(got, results(loop(attn), wide(inputs), wide(first), gradients))
    assert distance < 1e-5, (name, where, distance)
    inputs = {n: x for n, x in given(attn, torch.float32, **({"B": 1} | sizes | {"M": 1, "N": 1})).items()}
    if "cu" not in inputs:
        with torch.no_grad():
            out, last = attn(**inputs, state=first, return_state=True)
            stepped = attn.step(**inputs, state=first)
        torch.testing.assert_close(stepped, out)
        torch.testing.assert_close(first, last)
print("all near")
"""


@needs_triton
def test_interpreted_triton(tmp_path: Path) -> None:
    all_near(_INTERPRET, tmp_path)
