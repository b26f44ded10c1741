"""Mistakes in a call are typed errors that name the tensor, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import attncc
from attncc.errors import AttnccError, BackendError, CallError
from attncc.runtime import mistakes
from tests.runtime.fake_driver import TEXT, FakeDriver

Call = dict[str, Any]


def good() -> Call:
    q, k = torch.zeros(2, 4, 6, 8), torch.zeros(2, 2, 5, 8)
    return {"q": q, "k": k, "v": k.clone(), "slope": torch.zeros(4), "doc": torch.zeros(2, 5, dtype=torch.int32)}


def change(**new: Callable[[Any], Any]) -> Callable[[Call], Call]:
    return lambda call: call | {n: f(call.get(n)) for n, f in new.items()}


def drop(name: str) -> Callable[[Call], Call]:
    return lambda call: {n: t for n, t in call.items() if n != name}


CASES: list[tuple[Callable[[Call], Call], type[AttnccError], str]] = [
    (change(q=lambda t: t[0]), mistakes.WrongRank, r"q must be \[B, H, M, D\], not of shape \[4, 6, 8\]"),
    (change(v=lambda t: t[..., 0]), mistakes.WrongRank, r"v must be \[B, G, N, E\]"),
    (change(slope=lambda t: t[0]), mistakes.WrongRank, r"slope must be real\[h\], not of shape \[\]"),
    (change(k=lambda t: t[..., :7]), mistakes.WrongSize, "k has D = 7 where q has 8"),
    (change(v=lambda t: t[:, :, :4]), mistakes.WrongSize, "v has N = 4 where k has 5"),
    (change(k=lambda t: t[:1], v=lambda t: t[:1]), mistakes.WrongSize, "k has B = 1 where q has 2"),
    (change(k=lambda t: t[:, :1]), mistakes.WrongSize, "v has G = 2 where k has 1"),
    (change(slope=lambda t: t[:3]), mistakes.WrongSize, "slope has 3 on axis h where 4 is expected"),
    (change(doc=lambda t: t[:, :1]), mistakes.WrongSize, "doc has 1 on axis n where 5 is expected"),
    (
        change(k=lambda t: t.repeat(1, 2, 1, 1)[:, :3], v=lambda t: t.repeat(1, 2, 1, 1)[:, :3]),
        mistakes.WrongGroups,
        "H = 4 heads, and the G = 3",
    ),
    (change(k=lambda t: t.half()), mistakes.MixedDtypes, "q is torch.float32 and k is torch.float16"),
    (change(q=lambda t: t.int()), mistakes.WrongKind, "q must hold floating-point numbers, not torch.int32"),
    (change(doc=lambda t: t.float()), mistakes.WrongKind, r"doc is int\[b, n\] and must be int32 or int64 or uint8"),
    (change(doc=lambda t: t.bool()), mistakes.WrongKind, "not torch.bool"),
    (change(slope=lambda t: t.int()), mistakes.WrongKind, r"slope is real\[h\]"),
    (change(v=lambda t: t.to("meta")), mistakes.WrongDevice, "q is on cpu and v on meta"),
    (change(slope=lambda t: 0.5), mistakes.NotATensor, "slope must be a torch tensor, not float"),
    (change(q=lambda t: t.tolist()), mistakes.NotATensor, "q must be a torch tensor, not list"),
    (drop("slope"), mistakes.MissingTensor, r"sloped needs the tensor slope: real\[h\]"),
    (change(slopes=lambda t: torch.zeros(4)), mistakes.UnknownTensor, "did you mean `slope`"),
    (change(window=lambda t: torch.tensor(4)), mistakes.UnknownTensor, r"set it with attncc.compile\(..., window"),
    (change(q=lambda t: t.to_sparse()), mistakes.WrongKind, "q must be a dense tensor"),
]


@pytest.mark.parametrize(
    ("broken", "kind", "message"), CASES, ids=[f"{c[1].__name__}-{i}" for i, c in enumerate(CASES)]
)
def test_a_broken_call(
    driver: FakeDriver, broken: Callable[[Call], Call], kind: type[AttnccError], message: str
) -> None:
    attn = attncc.compile(TEXT)
    with pytest.raises(kind, match=message):
        attn(**broken(good()))
    assert driver.prints == 0
    attn(**good())


@pytest.mark.parametrize(
    ("constants", "kind", "message"),
    [
        ({"windw": 3}, mistakes.UnknownConstant, "did you mean `window`"),
        ({"x": 3}, mistakes.UnknownConstant, "its constants are window, cap"),
        ({"window": 0.5}, mistakes.WrongConstant, "window is an int, not 0.5"),
        ({"window": True}, mistakes.WrongConstant, "window is an int, not True"),
        ({"window": 2**31}, mistakes.WrongConstant, "does not fit 32 bits"),
        ({"cap": "1"}, mistakes.WrongConstant, "cap is a real, not '1'"),
    ],
)
def test_a_broken_constant(driver: FakeDriver, constants: Call, kind: type[CallError], message: str) -> None:
    with pytest.raises(kind, match=message):
        attncc.compile(TEXT, **constants)


def test_backends(driver: FakeDriver) -> None:
    with pytest.raises(mistakes.UnknownBackend, match="did you mean `triton`"):
        attncc.compile(TEXT, backend="tritn")
    with pytest.raises(mistakes.WrongDevice, match="needs tensors on a GPU, and q is on cpu"):
        attncc.compile(TEXT, backend="triton")(**good())


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ({"B": 1, "H": 4, "D": 8}, mistakes.MissingTensor),
        ({"H": 4, "N": 8, "D": 8, "Q": 1}, mistakes.UnknownTensor),
        ({"H": 4, "G": 3, "N": 8, "D": 8}, mistakes.WrongGroups),
    ],
)
def test_a_broken_warmup(driver: FakeDriver, sizes: Call, kind: type[CallError]) -> None:
    with pytest.raises(kind):
        attncc.compile(TEXT).warmup(**sizes)


def test_every_mistake_has_its_own_code_and_an_explanation() -> None:
    kinds = [c for c in vars(mistakes).values() if isinstance(c, type) and issubclass(c, AttnccError)]
    kinds = [c for c in kinds if c.__module__ == mistakes.__name__]
    codes = [c.code for c in kinds]
    assert len(codes) == len(set(codes)) >= 20
    for kind in kinds:
        assert kind.code[:2] == ("E5" if issubclass(kind, CallError) else "E6"), kind
        assert issubclass(kind, CallError | BackendError)
        assert "Broken: " in (kind.__doc__ or "") and "Mended: " in (kind.__doc__ or "")
