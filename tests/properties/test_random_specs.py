"""Random specs, written as text, through the whole compiler on the CPU: output and every gradient."""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import attncc
from attncc.codegen.triton_printer import print_module
from attncc.driver import programs
from attncc.grammar import parse
from attncc.schedule.variant import Variant
from attncc.tile.interpret import run_program
from attncc.tile.nodes import Dtype

SIZES = [(2, 4, 2, 37, 37, 8, 8), (1, 2, 1, 70, 33, 16, 24), (1, 2, 2, 20, 90, 24, 16), (1, 3, 3, 1, 130, 8, 8)]
"""B, H, G, M, N, D, E."""

MASKS = {
    "": (),
    "j <= i": (),
    "j <= i and i - j < 17": (),
    "abs(i - j) <= 9 or j < 4": (),
    "i // 16 == j // 16 and j <= i": (),
    "j <= i and (i - j) % 3 == 0": (),
    "not (j > i or j < i // 4)": (),
    "keep[b, j]": ("keep: bool[b, n]",),
    "j <= i or j < prefix[b]": ("prefix: int[b]",),
    "j >= start[b, h] and j <= i": ("start: int[b, h]",),
    "2 * j <= i + 5": (),
}


@dataclass
class Draft:
    """A spec under construction: its score so far and the parameters it captures."""

    score: str = "q @ k / sqrt(D)"
    params: dict[str, str] = field(default_factory=dict)

    def param(self, name: str, axes: str) -> str:
        """A fresh real parameter."""
        own = f"{name}{len(self.params)}"
        self.params[own] = f"{own}: real[{axes}]" if axes else f"{own}: real"
        return own


def grow(d: Draft, rng: random.Random) -> None:
    """One more step around the score."""
    match rng.randrange(11):
        case 0:
            d.score = f"3 * tanh(({d.score}) / 3)"
        case 1:
            d.score = f"{d.score} + {d.param('slope', 'h')}[h] * (j - i) / 20"
        case 2:
            d.score = f"{d.param('heat', 'h')}[h] * ({d.score})"
        case 3:
            d.score = f"{d.score} + {d.param('row', 'b, h, m')}[b, h, i]"
        case 4:
            d.score = f"{d.score} + {d.param('col', 'b, h, n')}[b, h, j]"
        case 5:
            d.score = f"{d.score} + {d.param('pair', 'h, m, n')}[h, i, j]"
        case 6:
            d.score = f"{d.score} + {d.param('table', '9, h')}[min(max(j - i, -4), 4) + 4, h]"
        case 7:
            d.score = f"({d.score}) * sigmoid({d.score})"
        case 8:
            d.score = f"({d.score} if j % 2 == 0 else {d.param('scale', '')} * ({d.score}))"
        case 9:
            d.score = f"{d.score} + {d.param('kv', 'b, g, n')}[b, g, j] * {d.param('all', '')}"
        case _:
            d.score = f"log(1 + exp({d.score}))"


def draw(seed: int) -> str:
    """The text of a spec."""
    rng = random.Random(seed)
    d = Draft()
    for _ in range(rng.randrange(1, 4)):
        grow(d, rng)
    mask, extra = rng.choice(list(MASKS.items()))
    where = f" where {mask}" if mask else ""
    weight = rng.choice(["softmax", "softmax", "sink", "sigmoid", "ratio"])
    match weight:
        case "sink":
            out = f"softmax({d.score}{where}, sink = {d.param('sink', 'h')}[h])"
        case "ratio":
            out = f"ratio(relu(exp({d.score}) - 1), abs(exp({d.score}) - 1), eps = 1e-3)" if not mask else ""
        case _:
            out = f"{weight}({d.score}{where})"
    out = out or f"softmax({d.score}{where})"
    params = ", ".join([*d.params.values(), *extra])
    return f"attention x{f'({params})' if params else ''}:\n    out = {out} @ v\n"


def captured(text: str, sizes: dict[str, int], rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors for the header of `text`."""
    head = text.split(":\n", 1)[0]
    if "(" not in head:
        return {}
    out: dict[str, torch.Tensor] = {}
    for part in head[head.index("(") + 1 : -1].replace("], ", "];").replace("real, ", "real;").split(";"):
        name, kind = part.split(": ", 1)
        sort, _, axes = kind.partition("[")
        shape = [sizes[a] if a in sizes else int(a) for a in axes.rstrip("]").split(", ") if a]
        match sort:
            case "bool":
                out[name] = torch.rand(shape, generator=rng) < 0.7
            case "int":
                out[name] = torch.randint(0, 12, shape, generator=rng)
            case _:
                out[name] = torch.randn(shape, generator=rng, dtype=torch.float64) * 0.5
    return out


@dataclass(frozen=True)
class Drawn:
    """A spec with its inputs, the output's cotangent, and the truth by name."""

    text: str
    inputs: dict[str, torch.Tensor]
    cotangent: torch.Tensor
    truth: dict[str, torch.Tensor]

    @property
    def reals(self) -> list[str]:
        return [n for n, x in self.inputs.items() if x.is_floating_point()]


def drawn(seed: int) -> Drawn:
    """The spec of a seed, on one of a few shapes."""
    text = draw(seed)
    B, H, G, M, N, D, E = SIZES[seed % len(SIZES)]
    rng = torch.Generator().manual_seed(seed)
    shapes = {"q": (B, H, M, D), "k": (B, G, N, D), "v": (B, G, N, E)}
    inputs = {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()}
    inputs |= captured(text, {"b": B, "h": H, "g": G, "m": M, "n": N}, rng)
    reals = [x.requires_grad_() for x in inputs.values() if x.is_floating_point()]
    cotangent = torch.randn(B, H, M, E, generator=rng, dtype=torch.float64)
    out = attncc.reference(text)(**inputs)
    gradients = torch.autograd.grad(out, reals, cotangent, allow_unused=True)
    given = Drawn(text, inputs, cotangent, {"out": out})
    for name, g in zip(given.reals, gradients, strict=True):
        given.truth[f"d_{name}"] = torch.zeros_like(inputs[name]) if g is None else g
    return given


def close(d: Drawn, name: str, got: torch.Tensor) -> None:
    """Asserts one tensor; the message holds the spec."""
    torch.testing.assert_close(got, d.truth[name], rtol=1e-8, atol=1e-8, msg=lambda m: f"{d.text}\n{name}: {m}")


@pytest.mark.parametrize("seed", range(60))
def test_random_spec_on_the_torch_backend(seed: int) -> None:
    d = drawn(seed)
    given: dict[str, Any] = dict(d.inputs)
    out = attncc.compile(d.text, backend="torch")(**given)
    close(d, "out", out)
    gradients = torch.autograd.grad(out, [d.inputs[n] for n in d.reals], d.cotangent)
    for name, g in zip(d.reals, gradients, strict=True):
        close(d, f"d_{name}", g)


OURS = ("delta", "log_z", "i0", "j0", "d0", "e0", "r", "s", "x", "rest", "tiles", "tl", "shift", "acc0", "q0", "torch")
"""Names that schedules and printers use for themselves."""


def crowded() -> str:
    """A spec whose parameters have all of them."""
    head = ", ".join(f"{n}: real[h]" for n in OURS)
    return f"attention x({head}):\n    out = softmax(q @ k / 4 + {' * '.join(f'{n}[h]' for n in OURS)} * j) @ v\n"


def test_names_of_our_own_are_free() -> None:
    torch.manual_seed(0)
    inputs: dict[str, Any] = {n: torch.randn(1, 2, 9, 8, dtype=torch.float64, requires_grad=True) for n in "qkv"}
    inputs |= {n: torch.randn(2, dtype=torch.float64, requires_grad=True) for n in OURS}
    results = []
    for attn in (attncc.compile(crowded(), backend="torch"), attncc.reference(crowded())):
        out = attn(**inputs)
        results.append((out, *torch.autograd.grad(out.sin().sum(), list(inputs.values()))))
    for name, got, want in zip(("out", *inputs), *results, strict=True):
        torch.testing.assert_close(got, want, msg=name)
    kinds: tuple[tuple[str, Dtype], ...] = tuple((n, "f32") for n in OURS)
    pair = programs(parse(crowded()), Variant("triton", 8, 8, "f32", kinds, gradients=("q", "k", "v", *OURS)))
    for f in ast.parse(print_module(pair.forward, pair.backward, "x")).body:
        if isinstance(f, ast.FunctionDef) and f.name.endswith("_kernel"):
            bound = {n.id for n in ast.walk(f) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            assert not bound & {a.arg for a in f.args.args}, f.name


@pytest.mark.parametrize("seed", range(100, 124))
def test_random_spec_as_gpu_tiles(seed: int) -> None:
    """The Triton target's programs, verified and walked by the Tile IR's interpreter."""
    d = drawn(seed)
    spec = parse(d.text)
    kinds: dict[str, Dtype] = {"real": "f64", "int": "i64", "bool": "bool"}
    variant = Variant(
        "triton",
        d.inputs["q"].shape[3],
        d.inputs["v"].shape[3],
        "f64",
        tuple((p.name, kinds[p.sort]) for p in spec.params),
        gradients=tuple(d.reals),
        grouped=d.inputs["q"].shape[1] != d.inputs["k"].shape[1],
    )
    pair = programs(spec, variant)
    arrays = {n: x.detach().numpy() for n, x in d.inputs.items()}
    forward = run_program(pair.forward, arrays, seed=seed).outputs
    close(d, "out", torch.from_numpy(forward["out"]))
    assert pair.backward is not None
    backward = run_program(pair.backward, {**arrays, **forward, "d_out": d.cotangent.numpy()}, seed=seed).outputs
    for name in d.reals:
        close(d, f"d_{name}", torch.from_numpy(backward[f"d_{name}"]))
