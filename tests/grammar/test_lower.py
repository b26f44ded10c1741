"""What the language's constructs are in the Spec IR."""

import math

import pytest

from attncc.errors import SpecError
from attncc.expr.build import TRUE, conj, ivar, lift, op, to_real
from attncc.expr.nodes import Const, Expr, Op, Var, walk
from attncc.grammar import parse
from attncc.grammar.mistakes import NotCompiled
from attncc.ir.nodes import (
    Axis,
    Binder,
    ConstParam,
    Contract,
    Let,
    Load,
    Normaliser,
    Param,
    Rebind,
    Reduce,
    S,
    Scan,
    Segment,
    Spec,
    Weights,
)

B, H, G, I, J, D, E = map(ivar, "bhgijde")
Q, K, V = Load("q", (B, H, I, D), "real"), Load("k", (B, G, J, D), "real"), Load("v", (B, G, J, E), "real")
QK = Contract(Q, K, D, ivar("D"))
SCORE = op("div", QK, op("sqrt", ivar("D")))
KEYS = (Binder(J, ivar("N")),)
CAUSAL = op("le", J, I)
EXP = op("exp", S)
SOFTMAX = Normaliser("ratio", EXP, EXP)
NONE = Normaliser("none", S)


def spec(body: str, header: str = "") -> Spec:
    lines = "".join(f"    {line}\n" for line in body.split("; "))
    return parse(f"attention a({header}):\n{lines}")


def out(body: str, header: str = "") -> Expr:
    return spec(body, header).out.body


def attend(weights: Expr) -> Expr:
    return Contract(weights, V, J, ivar("N"))


def weights(score: Expr, mask: Expr = TRUE, normaliser: Normaliser = SOFTMAX) -> Weights:
    return Weights(score, mask, normaliser, KEYS)


def test_causal() -> None:
    text = "attention causal:\n    score = q @ k / sqrt(D)\n    mask = j <= i\n    out = softmax(score) @ v\n"
    causal = parse(text)
    assert causal.name == "causal" and not (causal.constants or causal.params or causal.statements)
    assert causal.out.body is attend(weights(SCORE, CAUSAL))
    assert causal.out.span is not None and causal.out.span.line == 4


def test_constants_stay_names() -> None:
    made = spec("out = softmax(q @ k * cap where i - j < w or not flag) @ v", "cap = 50.0, w = 8, flag = false")
    assert made.constants == (
        ConstParam("cap", 50.0, "real"),
        ConstParam("w", 8, "int"),
        ConstParam("flag", False, "bool"),
    )
    mask = op("or", op("lt", op("sub", I, J), Var("w", "int")), op("not", Var("flag", "bool")))
    assert made.out.body is attend(weights(op("mul", QK, Var("cap", "real")), mask))


DEFAULTS: dict[str, float] = {
    "192 ** -0.5": 192**-0.5, "-3": -3, "7 // 2": 3, "-7 % 4": 1, "1e3": 1000.0, "inf": math.inf, "sqrt(16)": 4.0,
    "√16": 4.0, "true": True, "(2 + 3) * 4 / 5": 4.0,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), DEFAULTS.items())
def test_defaults(text: str, value: float) -> None:
    (constant,) = spec("out = q[e]", f"c = {text}").constants
    assert constant.value == value and type(constant.value) is type(value)


def test_parameters() -> None:
    header = (
        "s: real[h] in [-inf, 0], doc: int[b, n], g8: real[b, h, m, 3], x: real[t: 4, d], y: real[t, 2], cu: offsets"
    )
    params = spec("out = q[e]", header).params
    assert params[0].bounds == (Const(-math.inf, "real"), Const(0.0, "real"))
    assert [p.sort for p in params] == ["real", "int", "real", "real", "real", "int"]
    assert params[2].axes == (
        Axis("b", ivar("B")),
        Axis("h", ivar("H")),
        Axis("m", ivar("M")),
        Axis("", lift(3)),
    )
    assert params[3].axes == (Axis("t", lift(4)), Axis("d", ivar("D")))
    assert params[4].axes == (Axis("t", lift(4)), Axis("", lift(2)))
    assert params[5] == Param("cu", "int", (), None, True)


def test_sink_is_exp_in_z() -> None:
    made = out("out = softmax(q @ k, sink = s[h]) @ v", "s: real[h]")
    z = op("exp", Load("s", (H,), "real"))
    assert made is attend(weights(QK, TRUE, Normaliser("ratio", EXP, EXP, z)))


def test_comparisons_are_turned_and_division_floors() -> None:
    made = out("out = softmax(q @ k where i > j and i >= j and j // 2 != i % 3) @ v")
    mask = conj(op("lt", J, I), op("le", J, I), op("ne", op("floordiv", J, 2), op("mod", I, 3)))
    assert made is attend(weights(QK, mask))


def test_members() -> None:
    made = out("out = softmax(q @ k where i - j in {0, 3} or j not in {1}) @ v")
    gap = op("sub", I, J)
    mask = op("or", op("or", op("eq", gap, 0), op("eq", gap, 3)), op("not", op("eq", J, 1)))
    assert made is attend(weights(QK, mask))


def test_segments() -> None:
    made = out("out = softmax(q @ k where segment(cu, i) == segment(cu, j)) @ v", "cu: offsets")
    assert made is attend(weights(QK, op("eq", Segment("cu", I), Segment("cu", J))))


# --- masks and weights ---


def test_elementwise_weights_take_their_where() -> None:
    assert out("out = sigmoid(q @ k where j <= i) @ v") is attend(weights(op("sigmoid", QK), CAUSAL, NONE))
    squared = weights(op("square", op("relu", QK)), CAUSAL, NONE)
    assert out("out = relu(q @ k where j <= i) ** 2 @ v") is attend(squared)


def test_elementwise_weights_take_the_mask() -> None:
    made = out("mask = j <= i; out = relu(q @ k) ** 2 @ v")
    assert made is attend(weights(op("square", op("relu", QK)), CAUSAL, NONE))


def test_an_own_where_replaces_the_mask_and_a_choice_does_not() -> None:
    own = out("mask = j <= i; out = softmax(q @ k where j < i) @ v + softmax(q @ k) @ v")
    first, second = attend(weights(QK, op("lt", J, I))), attend(weights(QK, CAUSAL))
    assert own is op("add", first, second)
    choice = out("mask = j <= i; out = (q @ k if j < i else 0) @ v")
    assert choice is attend(weights(QK, conj(CAUSAL, op("lt", J, I)), NONE))


def test_terms_are_weights_of_their_own() -> None:
    made = out("mask = j <= i; out = (softmax(q @ k) - s[h] * softmax(q @ k) + sigmoid(q @ k)) @ v", "s: real[h]")
    soft = weights(QK, CAUSAL)
    difference = op("sub", soft, op("mul", Load("s", (H,), "real"), soft))
    assert made is attend(op("add", difference, weights(op("sigmoid", QK), CAUSAL, NONE)))


def test_named_weights_and_the_other_order() -> None:
    assert out("let p = softmax(q @ k); out = v @ p") is attend(weights(QK))


def test_ratio_finds_its_score() -> None:
    made = out("score = q @ k; out = ratio(relu(exp(score) - 1), abs(exp(score) - 1), eps = 1e-6) @ v")
    shifted = op("sub", EXP, 1.0)
    normaliser = Normaliser("ratio", op("relu", shifted), op("abs", shifted), lift(1e-6))
    assert made is attend(weights(QK, TRUE, normaliser))
    assert out("out = ratio(exp(q @ k / sqrt(D)), exp(q @ k / sqrt(D))) @ v") is attend(weights(SCORE))
    square = op("square", op("relu", S))
    unnamed = out("out = ratio(relu(q @ k) ** 2, relu(q @ k) ** 2) @ v")
    assert unnamed is attend(weights(QK, TRUE, Normaliser("ratio", square, square)))


def test_scan_threshold_dropout() -> None:
    assert out("out = stick(q @ k) @ v") is attend(weights(QK, TRUE, Normaliser("scan", op("sigmoid", S))))
    entmax = Normaliser("threshold", S, options=(("alpha", lift(1.5)),))
    assert out("out = entmax(q @ k) @ v") is attend(weights(QK, TRUE, entmax))
    dropped = Weights(QK, TRUE, SOFTMAX, KEYS, Var("p", "real"))
    assert out("out = dropout(softmax(q @ k), p) @ v", "p = 0.1") is attend(dropped)


# --- definitions ---


def test_definitions_are_expanded_by_value() -> None:
    text = "def f(x, y) = x - y\ndef g2(y, x) = f(x, 2 * y)\nattention a:\n    out = softmax(g2(q @ k, 1)) @ v\n"
    assert parse(text).out.body is attend(weights(op("sub", 1, op("mul", 2, QK))))


def test_a_definition_sees_the_statements_above_it() -> None:
    made = out("let s2 = q @ k; def f(x) = x + s2; out = softmax(f(1)) @ v")
    assert made is attend(weights(op("add", 1, QK)))


def test_t5_buckets_are_an_integer_index() -> None:
    header = "table: real[32, h]"
    made = out("def half(x) = x if x < 8 else min(15, 8 + floor(log(x / 8))); "
               "out = softmax(q @ k + table[half(abs(j - i)), h]) @ v", header)  # fmt: skip
    (load,) = [n for n in walk(made) if isinstance(n, Load) and n.tensor == "table"]
    x = op("abs", op("sub", J, I))
    far = op("min", 15, op("add", 8, op("floor", op("log", op("div", x, 8)))))
    assert load.index == (op("where", op("lt", x, 8), x, far), H)
    assert load.index[0].sort == "int"


# --- let, emit, q = ---


def test_running_sums_are_arrays() -> None:
    made = spec(
        "let c[b, h, n] = cumsum(f over n); out = softmax(q @ k + c[b, h, i] - c[b, h, j]) @ v", "f: real[b, h, n]"
    )
    (let,) = made.statements
    body = Scan("sum", Load("f", (B, H, J), "real"), Binder(J, ivar("N")))
    assert let == Let("c", (Axis("b", ivar("B")), Axis("h", ivar("H")), Axis("n", ivar("N"))), (B, H, J), body)
    read = [n for n in walk(made.out.body) if isinstance(n, Load) and n.tensor == "c"]
    assert {r.index for r in read} == {(B, H, I), (B, H, J)}


def test_a_let_over_both_positions_stands_for_its_value() -> None:
    made = spec("let s2[b, h, i, j] = q @ k; out = softmax(s2[b, h, i, j - 1]) @ v")
    before = Load("k", (B, G, op("sub", J, 1), D), "real")
    assert made.statements == ()
    assert made.out.body is attend(weights(Contract(Q, before, D, ivar("D"))))


def test_bound_indices_are_not_captured() -> None:
    made = spec("let s2[b, h, i, j] = q @ k; let y[b, h, i, d] = sum(s2[b, h, i, j] * k over j); out = y[b, h, i, e]")
    (let,) = made.statements
    assert isinstance(let, Let)
    assert let.body is Reduce("sum", op("mul", QK, K), KEYS)
    inner = out("let s2[b, g, i, j] = sum(v * (i + j) over e); out = sum(s2[b, g, i, 2 * e] over e)")
    (reduce,) = [n for n in walk(inner) if isinstance(n, Reduce) and any(isinstance(m, Reduce) for m in walk(n.body))]
    (nested,) = [n for n in walk(reduce.body) if isinstance(n, Reduce)]
    assert nested.binders[0].index is not E and reduce.binders[0].index is E
    fresh = nested.binders[0].index
    even = op("mul", 2, E)
    assert nested.body is op("mul", Load("v", (B, G, even, fresh), "real"), op("add", I, even))


def test_emit_is_returned() -> None:
    (let,) = spec("let w = softmax(q @ k); out = w @ v; emit rest[b, h, i] = 1 - sum(w over j)").statements
    assert isinstance(let, Let) and let.emitted
    assert [a.index for a in let.axes] == ["b", "h", "m"] and let.vars == (B, H, I)
    assert let.body is op("sub", 1, Reduce("sum", weights(QK), KEYS))


def test_new_rows() -> None:
    made = spec("v = k[:512]; k = k * 2; out = softmax(q @ k) @ v")
    value = Load("k", (B, G, J, E), "real")
    assert made.statements == (
        Rebind("v", (B, G, J, E), lift(512), value),
        Rebind("k", (B, G, J, D), ivar("D"), op("mul", K, 2)),
    )
    assert made.out.body is attend(weights(QK))


def test_slices() -> None:
    half = op("floordiv", ivar("D"), 2)
    made = out("out = softmax(q[D // 2:] @ k[D // 2:]) @ v")
    at = op("add", D, half)
    score = Contract(Load("q", (B, H, I, at), "real"), Load("k", (B, G, J, at), "real"), D, op("sub", ivar("D"), half))
    assert made is attend(weights(score))


def test_norms_reduce_over_the_channel() -> None:
    (rebind,) = spec("q = rmsnorm(q, eps = 0.5); out = softmax(q @ k) @ v").statements
    mean = Reduce("mean", op("square", Q), (Binder(D, ivar("D")),))
    assert rebind.body is op("mul", Q, op("rsqrt", op("add", mean, 0.5)))
    (rebind,) = spec("k = normalize(k); out = softmax(q @ k) @ v").statements
    total = Reduce("sum", op("square", K), (Binder(D, ivar("D")),))
    assert rebind.body is op("mul", K, op("rsqrt", op("add", total, 1e-6)))


def test_rope_reads_the_other_half() -> None:
    (rebind,) = spec("q = rope(q, at = i, dims = 8); out = softmax(q @ k) @ v").statements
    channels = {n.index[3] for n in walk(rebind.body) if isinstance(n, Load)}
    assert D in channels and len(channels) == 2
    assert isinstance(rebind.body, Op) and rebind.body.name == "where" and rebind.body.args[2] is Q


def test_a_new_index_has_its_size() -> None:
    made = spec("let m2[b, g, c: ceil(N / 4), d] = mean(k over j where j // 4 == c); "
                "let w2[b, g, c, e] = sum(v over j where j // 4 == c); out = softmax(q @ m2 over c) @ w2")  # fmt: skip
    first, second = made.statements
    blocks = op("ceil", op("div", ivar("N"), 4))
    assert isinstance(first, Let) and isinstance(second, Let)
    assert first.axes[2] == second.axes[2] == Axis("c", blocks)
    contract = made.out.body
    assert isinstance(contract, Contract) and contract.axis is ivar("c") and contract.extent is blocks
    assert isinstance(contract.a, Weights) and contract.a.keys == (Binder(ivar("c"), blocks),)


# --- a mistake in the use of a value ---


def test_weights_at_another_position_are_refused() -> None:
    with pytest.raises(NotCompiled, match="another `j`"):
        spec("let p[b, h, i, j] = softmax(q @ k); out = p[b, h, i, j - 1] @ v")


def test_errors_carry_their_source() -> None:
    with pytest.raises(SpecError) as caught:
        parse("attention a: out = w @ v", "x.attn")
    assert str(caught.value).splitlines()[0] == "x.attn:1:20: error[E201]: `w` is not known here"


def test_promotion() -> None:
    assert out("out = softmax(q @ k + i) @ v") is attend(weights(op("add", QK, to_real(I))))
