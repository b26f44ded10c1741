"""Published recurrences as specs of a few lines, with the class of each state: what the classifier must find."""

from __future__ import annotations

from typing import NamedTuple

Kinds = tuple[tuple[str, int], ...]


class System(NamedTuple):
    """A spec's header and lines, and the classes of its states by name: (gate, rank) for each micro-step."""

    header: str
    lines: str
    kinds: dict[str, Kinds]
    order: str = "inclusive"

    def text(self, name: str = "system") -> str:
        """The spec's text."""
        body = "".join(f"    {line.strip()}\n" for line in self.lines.split(";"))
        return f"attention {name}({self.header}):\n{body}" if self.header else f"attention {name}:\n{body}"


I, C, S, DK, DV, H = (((k, 0),) for k in ("identity", "constant", "scalar", "key", "value", "elementwise"))
I1, S1, D1 = (((k, 1),) for k in ("identity", "scalar", "key"))
N: Kinds = (("nonlinear", 0),)
SUM = "S = S + outer(k, v)"
READ = "out = q @ S"
TOKEN, CHANNEL, VALUE = "lg: real[b, h, n]", "lg: real[b, h, n, d]", "lg: real[b, h, n, e]"
DELTA = "S = S + beta[b, h, i] * outer(k, v - k @ S)"

SYSTEMS: dict[str, System] = {
    # identity
    "linear": System("", f"state S[d, e]; {SUM}; {READ}", {"S": I}),
    "normalised": System(
        "", f"state S[d, e], z[d]; {SUM}; z = z + k; out = (q @ S) / (q @ z + 1e-6)", {"S": I, "z": I}
    ),
    "random features": System(
        "W: real[r: 16, d]", "let f = exp(W @ k); state S[r, e]; S = S + outer(f, v); out = exp(W @ q) @ S", {"S": I}
    ),
    "squares": System("", "state S[d, f: D, e]; S = S + outer(k * k[f], v); out = q[f] @ (q @ S)", {"S": I}),
    "cosines": System("", f"k = relu(k) * cos(i / 100); state S[d, e]; {SUM}; {READ}", {"S": I}),
    # constant and token scalar
    "constant decay": System("gamma: real[h]", "state S[d, e]; S = gamma[h] * S + outer(k, v); out = q @ S", {"S": C}),
    "slopes": System("slope: real[h]", f"state S[d, e]; S = exp(-slope[h]) * S; {SUM}; {READ}", {"S": C}),
    "scalar gates": System(TOKEN, f"state S[d, e]; S = exp(lg[b, h, i]) * S + outer(k, v); {READ}", {"S": S}),
    "time steps": System(
        "dt: real[b, h, n], A: real[h], D0: real[h]",
        "state S[d, e]; S = exp(dt[b, h, i] * A[h]) * S + outer(k, dt[b, h, i] * v); out = q @ S + D0[h] * v",
        {"S": S},
    ),
    "exponential input gates": System(
        f"{TOKEN}, u: real[b, h, n]",
        "state S[d, e], z[d]; let f = sigmoid(lg[b, h, i]); let w = exp(u[b, h, i]); S = f * S + w * outer(k, v); "
        "z = f * z + w * k; out = (q @ S) / max(abs(q @ z), 1)",
        {"S": S, "z": S},
    ),
    "two moments": System(
        f"{TOKEN}, beta: real[b, h, n]",
        "state A[d, f: D], S[d, e]; A = exp(lg[b, h, i]) * A + beta[b, h, i] * outer(k, 1) * k[f]; "
        "S = exp(lg[b, h, i]) * S + beta[b, h, i] * outer(k, v); out = q @ S + (q[f] @ (q @ A)) * v",
        {"A": S, "S": S},
    ),
    # channels
    "channel gates": System(CHANNEL, f"state S[d, e]; S = exp(lg[b, h, i]) * S + outer(k, v); {READ}", {"S": DK}),
    "tied input gates": System(
        CHANNEL, f"let a = exp(lg[b, h, i]); state S[d, e]; S = a * S + outer(1 - a, v); {READ}", {"S": DK}
    ),
    "static channel decay": System(
        "w: real[h, d], u: real[h, d]",
        "state S[d, e]; out = q @ (S + u * outer(k, v)); S = exp(-exp(w)) * S + outer(k, v)",
        {"S": DK},
        "exclusive",
    ),
    "channel decay and a bonus": System(
        "w: real[b, h, n, d], u: real[h, d]",
        "state S[d, e]; out = q @ (S + u * outer(k, v)); S = exp(w[b, h, i]) * S + outer(k, v)",
        {"S": DK},
        "exclusive",
    ),
    "self-augmented": System(
        "a: real[b, h, n, d], w: real[h, d]",
        "state S[d, e]; S = a[b, h, i] * S + outer(1 - a[b, h, i], v); "
        "out = q @ S + sigmoid(q @ (w * (1 - a[b, h, i]))) * v",
        {"S": DK},
    ),
    "tempered gates": System(
        "lg: real[b, h, n, d], tau: real[b, h, n, d]",
        "state S[d, e]; let a = exp(-softplus(lg[b, h, i]) * sigmoid(tau[b, h, i])); "
        f"S = a * S + outer(normalize(k) * sigmoid(lg[b, h, i]) ** tau[b, h, i], v); {READ}",
        {"S": DK},
    ),
    "value gates": System(VALUE, f"state S[d, e]; S = S * exp(lg[b, h, i]); {SUM}; {READ}", {"S": DV}),
    "slots": System(
        "lg: real[b, h, n, r: 8]",
        "state A[d, r], C[r, e]; let s = 1 - exp(lg[b, h, i]); A = exp(lg[b, h, i]) * A + outer(k, s); "
        "C = exp(lg[b, h, i]) * C + outer(s, v); out = softmax(q @ A over r) @ C",
        {"A": DV, "C": DK},
    ),
    "separable gates": System(
        "x: real[b, h, n, d], y: real[b, h, n, e]",
        f"state S[d, e]; S = outer(sigmoid(x[b, h, i]), sigmoid(y[b, h, i])) * S + outer(k, v); {READ}",
        {"S": (("separable", 0),)},
    ),
    # elementwise
    "vector gates": System(VALUE, "state z[e]; z = exp(lg[b, h, i]) * z + v; out = q[e] * z", {"z": H}),
    "vector numerator": System(
        "w: real[e], u: real[e]",
        "state a[e], c[e]; let now = exp(u + k[e]); out = sigmoid(q[e]) * (a + now * v) / (c + now); "
        "a = exp(-w) * a + exp(k[e]) * v; c = exp(-w) * c + exp(k[e])",
        {"a": H, "c": H},
        "exclusive",
    ),
    "state space": System(
        "dt: real[b, n, e], A: real[e, d]",
        f"state S[d, e]; S = exp(dt[b, i] * A) * S + outer(k, dt[b, i] * v); {READ}",
        {"S": H},
    ),
    "diagonal delta": System(
        "dt: real[b, h, n, e]",
        f"state S[d, e]; S = (1 - outer(k ** 2, dt[b, h, i])) * S + outer(k, v); {READ}",
        {"S": H},
    ),
    "time-invariant": System(
        "A: real[r: 16, e], B0: real[r, e]",
        "state X[r, e]; X = A * X + B0 * v; out = sum(X over r) * q[e]",
        {"X": H},
    ),
    # rank one
    "delta": System("beta: real[b, h, n]", f"state S[d, e]; {DELTA}; {READ}", {"S": I1}),
    "gated delta": System(
        f"{TOKEN}, beta: real[b, h, n]", f"state S[d, e]; S = exp(lg[b, h, i]) * S; {DELTA}; {READ}", {"S": S1}
    ),
    "channel-gated delta": System(
        f"{CHANNEL}, beta: real[b, h, n]", f"state S[d, e]; S = exp(lg[b, h, i]) * S; {DELTA}; {READ}", {"S": D1}
    ),
    "erase and write gates": System(
        f"{CHANNEL}, x: real[b, h, n, d], y: real[b, h, n, e]",
        "state S[d, e]; S = exp(lg[b, h, i]) * S; S = S + outer(k, y[b, h, i] * v - (x[b, h, i] * k) @ S); out = q @ S",
        {"S": D1},
    ),
    "undecayed read": System(
        f"{TOKEN}, beta: real[b, h, n], c: real[h]",
        "state S[d, e]; let miss = beta[b, h, i] * (v - (sigmoid(c[h]) * k) @ S); "
        "S = exp(lg[b, h, i]) * S + outer(k, miss); out = (q - c[h] * k) @ S",
        {"S": S1},
    ),
    "free vectors": System(
        "w: real[b, h, n, d], x: real[b, h, n, d], y: real[b, h, n, d]",
        f"state S[d, e]; S = exp(w[b, h, i]) * S + outer(y[b, h, i], x[b, h, i] @ S) + outer(k, v); {READ}",
        {"S": D1},
    ),
    "identity plus free vectors": System(
        "x: real[b, h, n, d], y: real[b, h, n, d]",
        f"state S[d, e]; S = S + outer(y[b, h, i], x[b, h, i] @ S) + outer(k, v); {READ}",
        {"S": I1},
    ),
    "products": System(
        f"steps = 3, {TOKEN}, beta: real[b, h, n, steps], kk: real[b, h, n, steps, d], vv: real[b, h, n, steps, e]",
        "state S[d, e]; S = exp(lg[b, h, i]) * S; for t in steps: S = S + beta[b, h, i, t] * "
        "outer(kk[b, h, i, t], vv[b, h, i, t] - kk[b, h, i, t] @ S); out = q @ S",
        {"S": (*S, *I1)},
    ),
    "value-side rule": System(
        f"{VALUE}, beta: real[b, h, n]",
        "state S[d, e]; S = S * exp(lg[b, h, i]); S = S + beta[b, h, i] * outer(k - S @ v, v); out = q @ S",
        {"S": (("value", 1),)},
    ),
    "preconditioned delta": System(
        f"{TOKEN}, a: real[b, h, n], beta: real[b, h, n], c: real[h]",
        "state A[d], S[d, e]; A = exp(a[b, h, i]) * A + beta[b, h, i] * k ** 2; let w = k * exp(-log(A + c[h])); "
        "S = exp(lg[b, h, i]) * S; S = S + beta[b, h, i] * outer(w, v - k @ S); out = q @ S",
        {"A": S, "S": S1},
    ),
    "hybrid with an exact step": System(
        "beta: real[b, h, n]",
        "state S[d, e]; let c = beta[b, h, i] / (1 + beta[b, h, i] * (k @ k)); "
        "S = S + c * outer(k, v - k @ S); out = q @ S",
        {"S": I1},
    ),
    # frozen and non-linear
    "a learner in chunks": System(
        "eta: real[b, h, n], w: real[h, e], c: real[h, e]",
        "state W[d, e]; frozen W0 = W every 16; W = W - eta[b, h, i] * "
        "grad(0.5 * sum((layernorm(k @ W0) * w + c - (v - k[e])) ** 2 over e), W0); "
        "out = q[e] + layernorm(q @ W) * w + c",
        {"W": I},
    ),
    "two layers in chunks": System(
        "eta: real[b, h, n]",
        "state W[d, r: 8], U[r, e]; frozen W0 = W every 16; frozen U0 = U every 16; "
        "W = W - eta[b, h, i] * grad(sum((gelu(k @ W0) @ U0 - v) ** 2 over e), W0); "
        "U = U - eta[b, h, i] * grad(sum((gelu(k @ W0) @ U0 - v) ** 2 over e), U0); out = gelu(q @ W) @ U",
        {"W": I, "U": I},
    ),
    "momentum in chunks": System(
        "eta: real[b, h, n], theta: real[b, h, n], a: real[b, h, n]",
        "state P[d, e], W[d, e]; frozen W0 = W every 64; "
        "P = eta[b, h, i] * P - theta[b, h, i] * grad(sum((silu(k @ W0) - v) ** 2 over e), W0); "
        "W = (1 - a[b, h, i]) * W + P; out = q @ W",
        {"P": S, "W": S},
    ),
    "online least squares": System(
        "eta: real[b, h, n]",
        "state W[d, e]; W = W - eta[b, h, i] * grad(0.5 * sum((k @ W - v) ** 2 over e), W); out = q @ W",
        {"W": I1},
    ),
    "a learner with a norm": System(
        "eta: real[b, h, n], w: real[h, e]",
        "state W[d, e]; W = W - eta[b, h, i] * grad(sum((layernorm(k @ W) * w - v) ** 2 over e), W); out = q @ W",
        {"W": N},
    ),
    "slots off their direction": System(
        "eta: real[b, h, n]",
        "state S[d, e]; let u = normalize(S over d); "
        "S = S + eta[b, h, i] * (outer(k, v) - u * sum(u * outer(k, v) over d)); out = q @ S",
        {"S": N},
    ),
    "a squashed state": System("", "state S[d, e]; S = tanh(S + outer(k, v)); out = q @ S", {"S": N}),
    # restarts
    "documents as a gate": System(
        "doc: int[b, n]",
        f"state S[d, e]; S = S if doc[b, i] == doc[b, max(i - 1, 0)] else 0; {SUM}; {READ}",
        {"S": S},
    ),
}

OUTSIDE: dict[str, tuple[str, str]] = {
    "a full matrix": ("W: real[h, d, f: D]", "state S[d, e]; S = W @ S[f] + outer(k, v)"),
    "a full matrix of the token": ("W: real[b, n, d, f: D]", "state S[d, e]; S = S + W[b, i] @ S[f] + outer(k, v)"),
    "two products": (
        "x: real[b, h, n, d], y: real[b, h, n, d]",
        "state S[d, e]; S = S + outer(k, x[b, h, i] @ S) + outer(y[b, h, i], k @ S) + outer(k, v)",
    ),
    "a product on either side": ("", "state S[d, e]; S = S - outer(k, k @ S) - outer(S @ v, v)"),
    "both sides at once": ("", "state S[d, e]; S = S + outer(k, v) * (k @ (S @ v))"),
    "the total": ("", "state S[d, e]; S = S + outer(k, v) * sum(S over d, e)"),
    "a transpose": ("", "state S[d, f: D]; S = S[f, d] + outer(k, 1) * k[f]; out = (q[f] @ (q @ S)) * v"),
    "a shift": ("", "state S[d, e]; S = (S[d - 1] if d > 0 else 0) + outer(k, v)"),
    "a reversal": ("", "state S[d, e]; S = S[3 - d] + outer(k, v)"),
    "a rotation of halves": ("", "state S[d, e]; S = S[(d + 2) % 4] * 0.5 + outer(k, v)"),
    "a mean along keys and rows": ("", "state S[d, e]; S = S + outer(k, v) - mean(S over d) - mean(S over e)"),
    "a gate on one side, a product on the other": (
        VALUE,
        "state S[d, e]; S = (S - outer(k, k @ S)) * lg[b, h, i] + outer(k, v)",
    ),
    "a matrix that differs by column": (
        "x: real[b, h, n, d], y: real[b, h, n, e]",
        "state S[d, e]; S = S + outer(x[b, h, i], y[b, h, i] * (k @ S)) + outer(k, v)",
    ),
    "an old value": (
        "x: real[b, h, n, d]",
        "state S[d, e]; let old = x[b, h, i] @ S; S = S - outer(k, k @ S); "
        "S = S - outer(x[b, h, i], x[b, h, i] @ S) + outer(k, v - old)",
    ),
    "a rotation of two states": (
        TOKEN,
        "state S[d, e], P[d, e]; let old = S; S = cos(lg[b, h, i]) * S - sin(lg[b, h, i]) * P + outer(k, v); "
        "P = sin(lg[b, h, i]) * old + cos(lg[b, h, i]) * P; out = q @ (S + P)",
    ),
    "two states in a circle": (
        "",
        "state S[d, e], z[d]; S = S + outer(z, v); z = z + S @ v; out = q @ S",
    ),
    "three states in a circle": (
        "",
        "state x[d], y[d], z[d]; x = x + tanh(z) + k; y = y + tanh(x); z = z + tanh(y); out = (q @ z) * v",
    ),
    "a place of the token": ("at: int[b, n]", "state S[d, e]; S = S + S[at[b, i]] + outer(k, v)"),
    "a loop of two products": (
        "steps = 2, x: real[b, h, n, d], kk: real[b, h, n, steps, d]",
        "state S[d, e]; for t in steps: S = S + outer(kk[b, h, i, t], k @ S) + outer(k, x[b, h, i] @ S)",
    ),
    "a band": (
        "",
        "state S[d, e]; S = 0.5 * S + 0.25 * S[max(d - 1, 0)] + 0.25 * S[min(d + 1, 3)] + outer(k, v)",
    ),
    "a triangle": ("", "state S[d, e]; S = cumsum(S over d) + outer(k, v)"),
    "a value from before a loop": (
        "kk: real[b, h, n, 2, d]",
        "state S[d, e]; let old = k @ S; for t in 2: S = S + outer(kk[b, h, i, t], v - old)",
    ),
}
"""Header and lines, without `out = q @ S`: linear changes that are in no class."""
