"""Printed text as modules, and the part of it that needs no Triton."""

from __future__ import annotations

import inspect

from attncc.runtime.text import execute, host_part

TEXT = '''"""A module."""

import math

import torch
import triton
import triton.language as tl

HALF = 0.5


def _launch(kernel, programs, args, *, warps, stages):
    kernel[(programs,)](*args)


@triton.jit(do_not_specialize=["N"])
def scale_kernel(x, N):
    tl.store(x, 1.0)


@triton.jit
def other_kernel(x):
    tl.store(x, 1.0)


def forward(q):
    _launch(scale_kernel, math.ceil(HALF), (q,), warps=4, stages=1)
    return (q,)
'''


def test_source_can_be_inspected() -> None:
    names = execute(TEXT.replace("import triton\nimport triton.language as tl", "").split("@triton")[0], "inspected")
    assert inspect.getsource(names["_launch"]).startswith("def _launch(")


def test_the_host_part_has_no_kernels_and_no_triton() -> None:
    host = host_part(TEXT)
    assert "triton" not in host and "tl." not in host and "HALF = 0.5" in host
    calls: list[object] = []
    names = execute(host, "host", {"scale_kernel": "handle"})
    names["_launch"] = lambda *args, **kw: calls.append((args, kw))
    assert names["forward"]("tensor") == ("tensor",)
    assert calls == [(("handle", 1, ("tensor",)), {"warps": 4, "stages": 1})]


def test_triton_stays_where_the_host_uses_it() -> None:
    text = TEXT.replace("math.ceil(HALF)", "triton.cdiv(3, 2)")
    assert "import triton\n" in host_part(text) and "triton.language" not in host_part(text)
