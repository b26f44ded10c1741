"""Reads out of range are refused at the call, and only those."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attncc
from attncc.grammar import parse
from attncc.reference import evaluate
from attncc.runtime import reads
from attncc.runtime.inputs import made_up
from attncc.runtime.interface import interface_of
from attncc.runtime.mistakes import OutOfRange
from attncc.runtime.warmup import full_sizes

SAFE = "attention safe(slope: real[h], doc: int[b, n], row: real[b, m]):\n"
SAFE += "    score = q @ k + slope[h] * (j - i) + row[b, i]\n    mask = doc[b, i] == doc[b, j] and j <= i\n"
SAFE += "    out = softmax(score) @ v\n"


def spec(header: str, score: str, mask: str = "") -> str:
    lines = [f"attention x({header}):", f"    score = q @ k + {score}", f"    mask = {mask}" if mask else ""]
    return "\n".join([*lines, "    out = softmax(score) @ v", ""])


def test_reads_that_cannot_stray_are_dropped() -> None:
    assert interface_of(parse(SAFE)).reads == ()


CASES = [
    # header, score, mask, M, N, stray
    ("bias: real[b, n]", "bias[b, i]", "", 5, 9, False),
    ("bias: real[b, n]", "bias[b, i]", "", 9, 5, True),
    ("bias: real[b, n]", "bias[b, i]", "j <= i", 9, 5, False),
    ("bias: real[b, n]", "bias[b, j - 1]", "", 5, 5, True),
    ("bias: real[b, n]", "bias[b, j - 1]", "j >= 1", 5, 5, False),
    ("bias: real[b, n]", "(bias[b, j - 1] if j >= 1 else 0)", "", 5, 5, False),
    ("bias: real[b, n]", "(0 if j < 1 else bias[b, j - 1])", "", 5, 5, False),
    ("table: real[8, h]", "table[i - j, h]", "j <= i", 8, 8, False),
    ("table: real[8, h]", "table[i - j, h]", "j <= i", 9, 9, True),
    ("table: real[8, h]", "table[i - j, h]", "j <= i and i - j < 8", 90, 90, False),
    ("table: real[8, h]", "table[i - j, h]", "j <= i and i - j <= 8", 90, 90, True),
    ("table: real[8, h], doc: int[b, n]", "table[i - j, h]", "j <= i and doc[b, i] == doc[b, j]", 9, 9, True),
    ("table: real[8, h], keep: bool[b, n]", "table[i, h]", "keep[b, i]", 9, 8, False),
    ("table: real[8, h]", "table[min(7, max(0, i - j)), h]", "", 90, 70, False),
    ("table: real[8, h]", "table[abs(i - j) % 8, h]", "", 90, 70, False),
    ("table: real[8, h]", "table[h, h]", "", 4, 4, False),
    ("table: real[1, h]", "table[h, h]", "", 4, 4, True),
    ("table: real[8, h], w = 8", "table[i - j, h]", "j <= i and i - j < w", 20, 20, False),
]


@pytest.mark.parametrize(("header", "score", "mask", "M", "N", "stray"), CASES)
def test_small_calls(header: str, score: str, mask: str, M: int, N: int, stray: bool) -> None:
    parsed = parse(spec(header, score, mask))
    face = interface_of(parsed)
    sizes, constants = full_sizes({"H": 2, "M": M, "N": N, "D": 4}), {c.name: c.value for c in parsed.constants}
    tensors = made_up(parsed, constants, sizes, dtype=torch.float64, device=torch.device("cpu"))
    if "doc" in tensors:
        tensors["doc"].zero_()
    for check in (
        lambda: reads.check_reads(face.reads, sizes, constants),
        lambda: evaluate(parsed, tensors, constants),
    ):
        if stray:
            with pytest.raises(OutOfRange, match="is read"):
                check()
        else:
            check()


@pytest.mark.parametrize(("header", "score", "mask", "M", "N", "stray"), [c for c in CASES if c[3] > 8])
def test_large_calls_are_sampled(
    monkeypatch: pytest.MonkeyPatch, header: str, score: str, mask: str, M: int, N: int, stray: bool
) -> None:
    monkeypatch.setattr(reads, "_EXACT", 0)
    parsed = parse(spec(header, score, mask))
    sizes, constants = full_sizes({"H": 2, "M": 10 * M, "N": 10 * N, "D": 4}), {"w": 8}
    if (M, N) == (9, 8):
        sizes = full_sizes({"H": 2, "M": M, "N": N, "D": 4})
    face = interface_of(parsed)
    if stray:
        with pytest.raises(OutOfRange, match="which the mask allows"):
            reads.check_reads(face.reads, sizes, constants)
    else:
        reads.check_reads(face.reads, sizes, constants)


def test_the_message_names_tensor_axis_and_pair() -> None:
    face = interface_of(parse(spec("bias: real[b, n]", "bias[b, i]")))
    with pytest.raises(OutOfRange, match=r"bias is read at -4 on axis n of size 5, at the pair i = -4, j = 0"):
        reads.check_reads(face.reads, full_sizes({"H": 1, "M": 9, "N": 5, "D": 4}), {})
    reads.check_reads(face.reads, full_sizes({"H": 1, "M": 9, "N": 0, "D": 4}), {})


@pytest.mark.parametrize("name", ["lower", "upper"])
def test_a_table_needs_no_place_for_offsets_that_the_mask_keeps_out(name: str) -> None:
    index, mask = ("i - j", "j <= i and i - j < 6") if name == "lower" else ("min(5, i - j)", "j <= i")
    text = (
        f"attention offsets(table: real[6, h]):\n    score = q @ k / sqrt(D) + table[{index}, h]\n"
        f"    mask  = {mask}\n    out   = softmax(score) @ v\n"
    )
    attention: Any = attncc.compile(text)
    torch.manual_seed(0)
    given = {n: torch.randn(1, 2, 20, 16, dtype=torch.float64, requires_grad=True) for n in "qkv"}
    given["table"] = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    out, truth = attention(**given), evaluate(attention._family.spec, given).out
    mine, true = (torch.autograd.grad(x.sum(), list(given.values())) for x in (out, truth))
    torch.testing.assert_close(out, truth)
    for n, a, b in zip(given, mine, true, strict=True):
        torch.testing.assert_close(a, b, msg=f"d_{n}")
