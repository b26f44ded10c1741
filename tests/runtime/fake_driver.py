"""A driver of one hand-printed spec, so that the runtime is tested without the stages before it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from attncc.diagnostics import Source
from attncc.errors import SpecError
from attncc.expr.build import ivar, lift, op
from attncc.ir.nodes import Axis, Binder, ConstParam, Load, Normaliser, Out, Param, S, Spec, Weights
from attncc.schedule.variant import Variant
from attncc.tile.nodes import Program, Scalar, Tensor

TEXT = "attention sloped(slope: real[h], doc: int[b, n], window = 100, cap = 2.0):\n    out = softmax(q @ k) @ v\n"
HOST = """
import torch

def _weights(q, k, slope, doc, window, cap):
    (B, H, M, D), (G, N) = q.shape, k.shape[1:3]
    k = k.repeat_interleave(H // G, 1)
    i = torch.arange(M, device=q.device)[:, None] + (N - M)
    j = torch.arange(N, device=q.device)
    s = (q @ k.mT) / cap + slope[:, None, None] * (j - i)
    allowed = (j <= i) & (i - j < window) & (doc[:, None, None, :] == doc[:, None, i[:, 0].clamp_min(0)][..., None])
    return s.masked_fill(~allowed, float("-inf"))

def _forward(q, k, v, slope, doc, window, cap):
    s = _weights(q, k, slope, doc, window, cap)
    lse = s.logsumexp(-1)
    p = (s - lse[..., None]).exp().nan_to_num(0)
    return (p @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)).to(q.dtype), lse

def forward(q, k, v, slope, doc, *, window, cap):
    out, lse = _forward(q, k, v, slope, doc, window, cap)
    return torch.empty_like(q).copy_(out) if q.shape == out.shape else out, lse
"""
BACKWARD = """
def backward(q, k, v, slope, doc, out, lse, d_out{lse}, *, window, cap):
    leaves = dict(q=q, k=k, v=v, slope=slope)
    leaves = {{n: t.detach().requires_grad_() for n, t in leaves.items()}}
    with torch.enable_grad():
        out, lse = _forward(leaves["q"], leaves["k"], leaves["v"], leaves["slope"], doc, window, cap)
        names = {names!r}
        total = (out * d_out).sum() {plus}
        return torch.autograd.grad(total, [leaves[n] for n in names])
"""


def spec() -> Spec:
    b, h, g, j, e = (ivar(n) for n in "bhgje")
    score = op("mul", Load("slope", (h,), "real"), op("real", j))
    weights = Weights(score, lift(True), Normaliser("ratio", op("exp", S), op("exp", S)), (Binder(j, ivar("N")),))
    return Spec(
        "sloped",
        (ConstParam("window", 100, "int"), ConstParam("cap", 2.0, "real")),
        (
            Param("slope", "real", (Axis("h", ivar("H")),)),
            Param("doc", "int", (Axis("b", ivar("B")), Axis("n", ivar("N")))),
        ),
        (),
        Out(op("mul", weights, Load("v", (b, g, j, e), "real"))),
    )


def _tensor(name: str, axes: str, sizes: str) -> Tensor:
    return Tensor(name, tuple(axes), tuple(ivar(s) for s in sizes), "f32", strided=True)


def _program(name: str, variant: Variant) -> Program:
    inputs = [_tensor("q", "bhid", "BHMD"), _tensor("k", "bgjd", "BGND"), _tensor("v", "bgje", "BGNE")]
    inputs += [_tensor("slope", "h", "H"), _tensor("doc", "bj", "BN")]
    outputs: tuple[str, ...] = ("out", "lse")
    if name == "backward":
        inputs += [_tensor("out", "bhie", "BHME"), _tensor("lse", "bhi", "BHM"), _tensor("d_out", "bhie", "BHME")]
        inputs += [_tensor("d_lse", "bhi", "BHM")] if variant.lse_gradient else []
        outputs = tuple(f"d_{n}" for n in variant.gradients)
    scalars = (Scalar("window", "int"), Scalar("cap", "real"), *(Scalar(s, "int") for s in "BHGMN"))
    return Program(name, tuple(inputs), scalars, (), (), outputs)


class FakeDriver:
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.loads = 0
        self.prints = 0

    def load(self, spec_or_path: str | Path) -> tuple[Spec, Source]:
        self.loads += 1
        text = str(spec_or_path) if "\n" in str(spec_or_path) else Path(spec_or_path).read_text()
        if "broken" in text:
            raise SpecError("it is broken")
        return spec(), Source("sloped.attn", text)

    def programs(self, spec: Spec, variant: Variant) -> SimpleNamespace:
        backward = _program("backward", variant) if variant.gradients else None
        return SimpleNamespace(forward=_program("forward", variant), backward=backward)

    def source(self, pair: SimpleNamespace, variant: Variant, title: str) -> str:
        self.prints += 1
        if pair.backward is None:
            return HOST
        with_lse = variant.lse_gradient
        plus = "+ (lse * d_lse).sum()" if with_lse else ""
        return HOST + BACKWARD.format(names=variant.gradients, lse=", d_lse" if with_lse else "", plus=plus)
