"""Lowered specs, evaluated by the dense reference, equal formulas written by hand."""

import torch
from torch import Tensor

from attncc.grammar import parse
from attncc.reference import reference_callable

B, H, G, M, N, D, E = 2, 4, 2, 5, 7, 8, 6


def run(body: str, header: str = "", dims: int = E, **captured: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output, and q, k, v with the heads of k and v repeated."""
    lines = "".join(f"    {line}\n" for line in body.split("; "))
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, h, n, c).double() for h, n, c in ((H, M, D), (G, N, D), (G, N, dims)))
    out = reference_callable(parse(f"attention a({header}):\n{lines}"))(q, k, v, **captured)
    assert isinstance(out, Tensor)
    return out, q, k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)


def positions() -> tuple[Tensor, Tensor]:
    return torch.arange(M)[:, None] + N - M, torch.arange(N)[None]


def attend(score: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    score = score if mask is None else score.masked_fill(~mask, -torch.inf)
    return torch.softmax(score, -1) @ v


def test_slices_and_named_weights() -> None:
    lam = torch.rand(H).double()
    body = ("let a1 = softmax(q[:D // 2] @ k[:D // 2] where j <= i); "
            "let a2 = softmax(q[D // 2:] @ k[D // 2:] where j <= i); out = (a1 - lam[h] * a2) @ v")  # fmt: skip
    out, q, k, v = run(body, "lam: real[h]", lam=lam)
    i, j = positions()
    parts = [attend(q[..., s] @ k[..., s].mT, v, j <= i) for s in (slice(0, D // 2), slice(D // 2, D))]
    torch.testing.assert_close(out, parts[0] - lam[:, None, None] * parts[1])


def test_rope() -> None:
    out, q, k, v = run("q = rope(q, at = i, dims = 4); k = rope(k, at = j, dims = 4); out = softmax(q @ k) @ v")

    def turn(x: Tensor, at: Tensor) -> Tensor:
        angle = at[:, None] * 10000.0 ** (-torch.arange(2).double() / 2)
        a, b, rest = x[..., :2], x[..., 2:4], x[..., 4:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest), -1)

    i, j = positions()
    torch.testing.assert_close(out, attend(turn(q, i[:, 0].double()) @ turn(k, j[0].double()).mT, v))


def test_norms() -> None:
    out, q, k, v = run("q = layernorm(q); k = rmsnorm(normalize(k)); out = softmax(q @ k) @ v")
    q = torch.nn.functional.layer_norm(q, (D,))
    k = k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(out, attend(q @ k.mT, v))


def test_running_sum() -> None:
    f = -torch.rand(B, H, N).double()
    body = "let c[b, h, n] = cumsum(f over n); out = softmax(q @ k + c[b, h, i] - c[b, h, j] where j <= i) @ v"
    out, q, k, v = run(body, "f: real[b, h, n]", f=f)
    c = f.cumsum(-1)
    i, j = positions()
    torch.testing.assert_close(out, attend(q @ k.mT + c[..., N - M :, None] - c[..., None, :], v, j <= i))


def test_pooled_keys() -> None:
    body = ("let kc[b, g, c: ceil(N / 3), d] = mean(k over j where j // 3 == c); "
            "let vc[b, g, c, e] = sum(v over j where j // 3 == c); out = softmax(q @ kc over c) @ vc")  # fmt: skip
    out, q, k, v = run(body)
    blocks = [slice(0, 3), slice(3, 6), slice(6, 7)]
    kc = torch.stack([k[:, :, s].mean(2) for s in blocks], 2)
    vc = torch.stack([v[:, :, s].sum(2) for s in blocks], 2)
    torch.testing.assert_close(out, attend(q @ kc.mT, vc))


def test_elementwise_weights_beside_a_normaliser() -> None:
    body = "mask = j <= i; out = (softmax(q @ k) + relu(q @ k) ** 2 - sigmoid(q @ k where j < i)) @ v"
    out, q, k, v = run(body)
    i, j = positions()
    s = q @ k.mT
    extra = (s.relu() ** 2 * (j <= i) - s.sigmoid() * (j < i)) @ v
    torch.testing.assert_close(out, attend(s, v, j <= i) + extra)


def test_ratio() -> None:
    body = "score = q @ k; out = ratio(relu(exp(score) - 1), abs(exp(score) - 1), eps = 1e-6) @ v"
    out, q, k, v = run(body)
    x = (q @ k.mT).exp() - 1
    torch.testing.assert_close(out, x.relu() / (x.abs().sum(-1, keepdim=True) + 1e-6) @ v)


def test_a_new_value_row() -> None:
    out, q, k, _ = run("v = k[:6]; out = softmax(q @ k) @ v")
    torch.testing.assert_close(out, attend(q @ k.mT, k[..., :6]))
