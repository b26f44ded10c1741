"""Random state programs inside the algebra, written as text, with inputs that go to the ends of what is declared."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attncc.expr.nodes import Const
from attncc.ir.nodes import Param, Spec
from attncc.reference import evaluate
from tests.support.compare import error

AXES = ("d, e", "d, e", "d, e", "e, d", "d", "e", "", "d, r", "r, e", "d, f, e")
ALONG = {"d": "q", "e": "v", "r": "wr[h, r]", "f": "q[f]"}
"""What a read sums each axis with; out's own e is not summed in reads of two axes."""


@dataclass
class Draft:
    """A program under construction."""

    rng: random.Random
    params: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def param(self, name: str, axes: str, bounds: str = "") -> str:
        """A fresh real parameter, read at its own place."""
        own = f"{name}{len(self.params)}"
        known = {"n": "i"}
        sizes = {"r": "r: 3", "f": "f: D"}
        declared = ", ".join(sizes.get(a, a) for a in axes.split(", "))
        self.params[own] = f"{own}: real[{declared}]{bounds}"
        return f"{own}[{', '.join(known.get(a, a) for a in axes.split(', '))}]"

    def factor(self, axis: str) -> str:
        """Something along one axis of a write."""
        rng = self.rng
        if axis == "f":
            return "k[f]"
        plain = {"d": "k", "e": "v"}.get(axis) or self.rows()
        return rng.choice([plain, plain, f"relu({plain})", f"({plain} + 0.5)", f"tanh({plain})"])

    def rows(self) -> str:
        """A row along r."""
        self.params["fr"] = "fr: real[b, h, n, r: 3]"
        return "fr[b, h, i, r]"

    def gate(self, axes: list[str], scalar: bool) -> str:
        """A factor of at most 1, and what stands behind the state."""
        rng = self.rng
        kinds = ["", "0.9", "head", "exp", "sigmoid", "keep", "two"] + ([] if scalar or not axes else ["channel"] * 4)
        kind = rng.choice(kinds)
        match kind:
            case "head":
                return self.param("hold", "h", " in [0, 1]")
            case "exp":
                return f"exp({self.param('fade', 'b, h, n', ' in [-inf, 0]')})"
            case "sigmoid":
                return f"sigmoid({self.param('raw', 'b, h, n')})"
            case "keep":
                return f"(1 - {self.param('lose', 'b, h, n', ' in [0, 1]')})"
            case "two":
                return f"sigmoid({self.param('raw', 'h')}) * exp({self.param('fade', 'b, n', ' in [-5, 0]')})"
            case "channel":
                axis = rng.choice(axes)
                own = f"exp({self.param('fade', f'b, h, n, {axis}', ' in [-inf, 0]')})"
                if len(axes) == 2 and rng.random() < 0.25:
                    other = axes[1 - axes.index(axis)]
                    own += f" * (sigmoid({self.param('raw', f'b, h, n, {other}')})"
                return own
            case _:
                return kind


def read_of(name: str, axes: list[str]) -> tuple[str, bool]:
    """(an expression that reads a state, whether it has e)."""
    match axes:
        case []:
            return f"{name} * 0.3", False
        case ["d"]:
            return f"q @ {name}", False
        case ["e"]:
            return f"{name} * v", True
        case ["d", "e"]:
            return f"q @ {name}", True
        case ["e", "d"]:
            return f"{name} @ q", True
        case ["d", "r"]:
            return f"softmax(q @ {name} over r) @ wr[h, r]", False
        case ["r", "e"]:
            return f"wr[h, r] @ {name}", True
        case _:
            return f"q[f] @ (q @ {name}) / 4", True


def program(seed: int) -> str:
    """One random program of one to three states."""
    rng = random.Random(seed)
    d = Draft(rng)
    states: list[tuple[str, list[str]]] = []
    for n in range(rng.choice([1, 1, 2, 2, 3])):
        axes = [a for a in rng.choice(AXES).split(", ") if a]
        states.append((f"S{n}", axes))
    early, late, kept = [], [], []
    before = rng.random() < 0.3
    done: list[tuple[str, list[str]]] = []
    for name, axes in states:
        late += _changes(d, name, axes, done)
        if not before:
            done.append((name, axes))
        if rng.random() < 0.15:
            kept.append(name)
            early.append(f"let old{name} = {read_of(name, axes)[0]}")
    out = _out(d, states, kept)
    body = [*early, out, *late] if before else [*early, *late, out]
    if any("wr[" in line for line in body):
        d.params["wr"] = "wr: real[h, r: 3]"
    declared = [_declared(name, axes) for name, axes in states]
    header = ", ".join(d.params.values())
    text = f"attention a({header}):\n" + "".join(f"    {line}\n" for line in (f"state {', '.join(declared)}", *body))
    for size in ("r: 3", "f: D"):  # said where it stands first
        first, found, rest = text.partition(size)
        text = first + found + rest.replace(size, size[0])
    return text


def _declared(name: str, axes: list[str]) -> str:
    sizes = {"r": "r: 3", "f": "f: D"}
    return name + (f"[{', '.join(sizes.get(a, a) for a in axes)}]" if axes else "")


def _changes(d: Draft, name: str, axes: list[str], done: list[tuple[str, list[str]]]) -> list[str]:
    rng = d.rng
    gate = d.gate([a for a in axes if a != "f"], len(axes) == 3)
    held = f"{gate} * {name}{')' * (gate.count('(') - gate.count(')'))}" if gate else name
    lines: list[str] = []
    parts = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        factors = [d.factor(a) for a in axes]
        scalars = [d.param("step", "b, h, n")] if rng.random() < 0.3 else []
        if rng.random() < 0.15 and not any(x in gate for x in ("r]", "d]", "e]", "hold", "lose")):
            scalars.append(f"exp({d.param('grow', 'b, h, n')})")
        if done and rng.random() < 0.4:
            other, own = rng.choice(done)
            text, has_e = read_of(other, own)
            if not has_e:
                scalars.append(f"tanh({text})")
            elif "e" in axes:
                factors[axes.index("e")] = f"tanh({text})"
        if not axes:
            parts.append(" * ".join([*scalars, "k @ k / D"]))
        elif len(axes) == 1:
            parts.append(" * ".join([*scalars, factors[0]]))
        elif len(axes) == 2:
            parts.append(" * ".join([*scalars, f"outer({factors[0]}, {factors[1]})"]))
        else:
            parts.append(" * ".join([*scalars, f"outer({factors[0]} * {factors[1]}, {factors[2]})"]))
    if gate and rng.random() < 0.3:
        lines += [f"{name} = {held}", f"{name} = {name} + {' - '.join(parts)}"]
    else:
        lines.append(f"{name} = {held} + {' - '.join(parts)}")
    return lines


def _out(d: Draft, states: list[tuple[str, list[str]]], kept: list[str]) -> str:
    rng = d.rng
    terms, below = [], []
    for name, axes in states:
        text, has_e = read_of(name, axes)
        if name in kept and rng.random() < 0.5:
            text = f"old{name}"
        if not has_e and rng.random() < 0.4:
            below.append(f"abs({text})")
        else:
            terms.append(f"({text})" if has_e else f"({text}) * v")
    total = " + ".join(terms) if terms else "v"
    if rng.random() < 0.2:
        total = f"tanh({total})"
    if below:
        total = f"({total}) / max({' + '.join(below)}, 1)"
    if rng.random() < 0.2:
        total += f" + {d.param('skip', 'h, e')} * v"
    return f"out = {total}"


def made(spec: Spec, seed: int, sizes: dict[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs for a program: within the declared bounds, and here and there at their ends."""
    rng = torch.Generator().manual_seed(seed)
    b, h, g, n, m, D, E = (sizes[x] for x in "BHGNMDE")
    shapes = {"q": (b, h, m, D), "k": (b, g, n, D), "v": (b, g, n, E)}
    found = {x: torch.randn(s, generator=rng, dtype=torch.float64) for x, s in shapes.items()}
    known = {"b": b, "h": h, "g": g, "n": n, "d": D, "f": D, "e": E, "r": 3}
    for p in spec.params:
        found[p.name] = _values(
            p, torch.randn([known[a.index] for a in p.axes], generator=rng, dtype=torch.float64), rng
        )
    return {x: v.to(dtype) for x, v in found.items()}


def _values(p: Param, x: Tensor, rng: torch.Generator) -> Tensor:
    if p.bounds is None:
        return x
    low, high = (float(b.value) for b in p.bounds if isinstance(b, Const))
    x = torch.sigmoid(x) * (high - low) + low if low > -torch.inf else high - x.abs()
    ends = [low, high] if low > -torch.inf else [0.0, -1e4, -torch.inf]
    where = torch.rand(x.shape, generator=rng)
    for k, end in enumerate(ends):
        x = torch.where((where > 0.05 * k) & (where < 0.05 * (k + 1)), end, x)
    return x


def sizes_of(seed: int) -> dict[str, int]:
    """Sizes for a program; several heads share a key in some."""
    rng = random.Random(seed + 7)
    n = rng.choice([1, 2, 7, 16, 17, 23, 33])
    steps = "".join(line for line in program(seed).splitlines() if "out =" not in line)
    m = n if "q" in steps or rng.random() < 0.6 else rng.randrange(n + 1)
    return {
        "B": 1,
        "H": 2,
        "G": rng.choice([1, 2]),
        "N": n,
        "M": m,
        "D": rng.choice([2, 3, 5]),
        "E": rng.choice([1, 4, 5]),
    }


def far(call: Any, seed: int, dtype: torch.dtype, device: str = "cpu", *, gradients: bool = True) -> dict[str, float]:
    """How far a compiled program is from the token loop in float64: its out and every gradient."""
    spec: Spec = call._family.spec
    given = made(spec, seed, sizes_of(seed), dtype)
    results = []
    for which in (call, lambda **x: evaluate(spec, x).out):
        wide = which is not call
        leaves = {n: (x.double() if wide else x.to(device)).clone().requires_grad_(gradients) for n, x in given.items()}
        out = which(**leaves)
        found = {"out": out.detach().cpu()}
        if gradients:
            weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out)
            grads = torch.autograd.grad(
                (out * weight).sum() + 0 * leaves["q"].sum(), list(leaves.values()), allow_unused=True
            )
            found |= {
                f"d_{n}": torch.zeros(x.shape) if y is None else y.cpu()
                for (n, x), y in zip(leaves.items(), grads, strict=True)
            }
        results.append(found)
    got, wanted = results
    size = max((wanted[n] for n in wanted if n.startswith("d_")), key=lambda x: float(x.norm()), default=wanted["out"])
    return {n: error(got[n], wanted[n], wanted["out"] if n == "out" else size) for n in wanted}
