"""The corners: empty rows, reads out of range, overflow, every normaliser and every kind of statement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attncc.expr.build import TRUE, ivar, op, rvar
from attncc.expr.nodes import Const, Expr
from attncc.ir.nodes import (
    Axis,
    Binder,
    ConstParam,
    Contract,
    Let,
    Load,
    Normaliser,
    Out,
    Rebind,
    Reduce,
    S,
    Scan,
    Segment,
    Spec,
    Weights,
)
from attncc.reference import evaluate, reference_callable
from attncc.runtime import mistakes
from tests.support.specs import (
    CAUSAL,
    EXP,
    KEYS,
    QK,
    SCALED,
    SPECS,
    B,
    D,
    H,
    K,
    M,
    N,
    Q,
    V,
    attend,
    b,
    d,
    e,
    elementwise,
    g,
    h,
    i,
    j,
    param,
    softmax,
    spec,
)

LOAD_F_I = Load("f", (b, h, i), "real")
LOAD_F_J = Load("f", (b, h, j), "real")


def roles(m: int, n: int, heads: int = 2, groups: int = 1, width: int = 4, batch: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(5)

    def make(rows: int, count: int) -> Tensor:
        return torch.randn(batch, count, rows, width, generator=rng, dtype=torch.float64, requires_grad=True)

    return {"q": make(m, heads), "k": make(n, groups), "v": make(n, groups)}


def gradients(out: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wanted = {name: x for name, x in tensors.items() if x.requires_grad}
    found = torch.autograd.grad(out.sum() + (out**2).sum(), list(wanted.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if gr is None else gr for (n, x), gr in zip(wanted.items(), found, strict=True)}


def weights_of(made: Weights, tensors: Mapping[str, Tensor], *params: object) -> Tensor:
    """The weights themselves [B, H, M, N], as out of v = identity."""
    n = tensors["k"].shape[2]
    eye = torch.eye(n, dtype=torch.float64).expand(*tensors["k"].shape[:2], n, n)
    return evaluate(spec("w", attend(made), *params), {**tensors, "v": eye}).out  # type: ignore[arg-type]


# --- rows without a key, and reads out of range ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal", "gpt_oss", "softpick", "sigmoid_attention"])
def test_empty_row_is_zero_with_lse_minus_infinity_and_no_gradient(name: str) -> None:
    tensors = roles(5, 3)
    extra = {p.name: torch.ones(2, dtype=torch.float64, requires_grad=True) for p in SPECS[name].params}
    has_lse = name != "sigmoid_attention"
    result = evaluate(SPECS[name], {**tensors, **extra}, return_lse=has_lse)
    assert bool((result.out[:, :, :2] == 0).all())
    leaves = [*tensors.values(), *extra.values()]
    roots = [result.out[:, :, :2]]
    if result.lse is not None:
        assert bool((result.lse[:, :, :2] == -math.inf).all())
        roots.append(result.lse[:, :, :2])
    grads = torch.autograd.grad(roots, leaves, [torch.ones_like(r) for r in roots], allow_unused=True)
    assert all(gr is None or bool((gr == 0).all()) for gr in grads)


def test_comparison_out_of_range_is_false_and_its_negation_true() -> None:
    doc = param("doc", "int", "b", "n")
    same = op("eq", Load("doc", (b, i), "int"), Load("doc", (b, j), "int"))
    tensors = roles(5, 3) | {"doc": torch.zeros(2, 3, dtype=torch.int64)}
    assert bool((evaluate(spec("same", attend(softmax(SCALED, same)), doc), tensors).out[:, :, :2] == 0).all())
    other = evaluate(spec("other", attend(softmax(SCALED, op("not", same))), doc), tensors).out
    assert bool((other[:, :, :2] != 0).any()) and bool((other[:, :, 2:] == 0).all())


def test_read_out_of_range_where_the_mask_is_true_names_the_tensor() -> None:
    out = attend(softmax(op("add", SCALED, LOAD_F_I)))
    tensors = roles(5, 3) | {"f": torch.zeros(2, 2, 3, dtype=torch.float64)}
    with pytest.raises(mistakes.OutOfRange, match=r"f is read out of range at \d+ places"):
        evaluate(spec("bad", out, param("f", "real", "b", "h", "n")), tensors)


def test_read_out_of_range_under_a_false_mask_is_no_mistake() -> None:
    out = attend(softmax(op("add", SCALED, op("sub", LOAD_F_I, LOAD_F_J)), CAUSAL))
    tensors = roles(5, 3) | {"f": torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)}
    result = evaluate(spec("good", out, param("f", "real", "b", "h", "n")), tensors).out
    assert all(bool(gr.isfinite().all()) for gr in gradients(result, tensors).values())


def test_read_out_of_range_through_a_let_is_found() -> None:
    let = Let("c", (Axis("b", B), Axis("h", H), Axis("m", M)), (b, h, i), op("mul", LOAD_F_I, 2.0))
    read = Load("c", (b, h, i), "real")
    params = (param("f", "real", "b", "h", "n"),)
    tensors = roles(5, 3) | {"f": torch.ones(2, 2, 3, dtype=torch.float64)}
    for mask, fails in ((CAUSAL, False), (TRUE, True)):
        made = Spec("through", (), params, (let,), attend(softmax(op("add", SCALED, read), mask)))
        if fails:
            with pytest.raises(mistakes.OutOfRange, match="f is read"):
                evaluate(made, tensors)
        else:
            evaluate(made, tensors)


# --- numbers that would be NaN or inf -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sqrt", "log", "exp"])
def test_masked_pairs_may_be_undefined(name: str) -> None:
    distance = op("mul", op("sub", i, j), 1000 if name == "exp" else 1)
    argument = op("neg", distance) if name == "exp" else op("add", distance, 1)
    score = op("mul", QK, op(name, argument))
    tensors = roles(6, 6)
    out = evaluate(spec("undefined", attend(softmax(score, CAUSAL))), tensors).out
    assert bool(out.isfinite().all())
    assert all(bool(gr.isfinite().all()) for gr in gradients(out, tensors).values())


def test_branch_not_taken_may_be_undefined() -> None:
    positive = op("lt", 0.0, QK)
    score = op("where", positive, op("log", QK), op("mul", QK, 2.0))
    tensors = roles(6, 6)
    grads = gradients(evaluate(spec("branch", attend(softmax(score))), tensors).out, tensors)
    assert all(bool(gr.isfinite().all()) for gr in grads.values())


@pytest.mark.parametrize("name", ["full", "gpt_oss", "softpick"])
def test_large_scores_do_not_overflow(name: str) -> None:
    tensors = {n: (1e4 * x if n == "q" else x).detach().requires_grad_() for n, x in roles(6, 6).items()}
    extra = {p.name: torch.full((2,), 2000.0, dtype=torch.float64, requires_grad=True) for p in SPECS[name].params}
    result = evaluate(SPECS[name], {**tensors, **extra}, return_lse=True)
    assert result.lse is not None and bool(result.lse.isfinite().all()) and bool(result.out.isfinite().all())
    assert all(bool(gr.isfinite().all()) for gr in gradients(result.out, {**tensors, **extra}).values())


def test_low_scores_with_an_offset_keep_their_lse() -> None:
    tensors = roles(4, 4)
    made = spec(
        "low", attend(Weights(op("sub", QK, 5000.0), TRUE, Normaliser("ratio", EXP, EXP, Const(1.0, "real")), KEYS))
    )
    result = evaluate(made, tensors, return_lse=True)
    assert result.lse is not None and bool((result.lse == 0).all()) and bool((result.out == 0).all())


def test_half_precision_computes_in_half() -> None:
    tensors = roles(6, 6)
    half = evaluate(SPECS["causal"], tensors, dtype=torch.float16).out
    truth = evaluate(SPECS["causal"], tensors).out
    away = float(((half.double() - truth).norm() / truth.norm()).detach())
    assert half.dtype == torch.float16 and 1e-5 < away < 5e-3


# --- normalisers ----------------------------------------------------------------------------------------------------


def test_ratio_of_functions_that_do_not_scale() -> None:
    tensors = roles(5, 7)
    made = Weights(SCALED, CAUSAL, Normaliser("ratio", op("sigmoid", S), op("square", op("sigmoid", S))), KEYS)
    score = tensors["q"] @ tensors["k"].transpose(2, 3) / 2
    mask = torch.arange(7) <= torch.arange(5)[:, None] + 2
    phi = torch.where(mask, torch.sigmoid(score), 0)
    torch.testing.assert_close(weights_of(made, tensors), phi / (phi**2).sum(-1, keepdim=True), rtol=1e-13, atol=1e-15)


def test_stick_breaking_leaves_what_is_left() -> None:
    tensors = roles(5, 7)
    w = Weights(QK, op("lt", j, i), Normaliser("scan", op("sigmoid", S)), KEYS)
    found = weights_of(w, tensors)
    beta = torch.sigmoid(tensors["q"] @ tensors["k"].transpose(2, 3))
    for row in range(5):
        left = torch.ones(2, 2, dtype=torch.float64)
        for key in range(row + 1, -1, -1):
            torch.testing.assert_close(found[:, :, row, key], beta[:, :, row, key] * left, rtol=1e-12, atol=1e-15)
            left = left * (1 - beta[:, :, row, key])
        assert bool((found[:, :, row, row + 2 :] == 0).all())
    rest = Let(
        "rest", (Axis("b", B), Axis("h", H), Axis("m", M)), (b, h, i), op("sub", 1.0, Reduce("sum", w, KEYS)), True
    )
    emitted = evaluate(Spec("stick", (), (), (rest,), attend(w)), tensors).emitted["rest"]
    torch.testing.assert_close(emitted, 1 - found.sum(-1))


def entmax_by_sorting(score: Tensor) -> Tensor:
    """alpha = 1.5 of a row, in closed form on its support."""
    x = (score / 2).sort(descending=True).values
    count = torch.arange(1, len(x) + 1, dtype=torch.float64)
    mean = x.cumsum(0) / count
    spread = (x**2).cumsum(0) - count * mean**2
    tau = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    size = int((tau <= x).sum())
    return torch.relu(score / 2 - tau[size - 1]) ** 2


def entmax(alpha: float) -> Normaliser:
    return Normaliser("threshold", S, options=(("alpha", Const(alpha, "real")),))


def test_entmax_is_what_sorting_gives() -> None:
    tensors = roles(5, 9)
    found = weights_of(Weights(QK, CAUSAL, entmax(1.5), KEYS), tensors)
    score = tensors["q"] @ tensors["k"].transpose(2, 3)
    for row in range(5):
        kept = score[1, 1, row, : row + 5]
        torch.testing.assert_close(found[1, 1, row, : row + 5], entmax_by_sorting(kept), rtol=1e-10, atol=1e-12)
    assert bool((found == 0).any())


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
def test_entmax_sums_to_one_and_has_its_gradient(alpha: float) -> None:
    tensors = roles(3, 5, batch=1)
    made = Weights(QK, CAUSAL, entmax(alpha), KEYS)
    torch.testing.assert_close(weights_of(made, tensors).sum(-1), torch.ones(1, 2, 3, dtype=torch.float64))
    whole = spec("entmax", attend(made))
    assert torch.autograd.gradcheck(
        lambda q, k, v: evaluate(whole, {"q": q, "k": k, "v": v}).out, tuple(tensors.values()), atol=1e-6
    )


def test_entmax_of_no_keys_is_zero() -> None:
    for n in (0, 2):
        out = evaluate(spec("entmax", attend(Weights(QK, CAUSAL, entmax(1.5), KEYS))), tensors := roles(4, n)).out
        assert bool((out[:, :, : 4 - n] == 0).all())
        assert all(bool(gr.isfinite().all()) for gr in gradients(out, tensors).values())


def test_dropout_is_refused_unless_it_never_drops() -> None:
    made = Weights(SCALED, CAUSAL, Normaliser("ratio", EXP, EXP), KEYS, dropout=rvar("p"))
    dropped = spec("dropped", attend(made), constants=(ConstParam("p", 0.1, "real"),))
    tensors = roles(3, 3)
    with pytest.raises(mistakes.RandomWeights):
        evaluate(dropped, tensors)
    assert torch.equal(evaluate(dropped, tensors, {"p": 0.0}).out, evaluate(SPECS["causal"], tensors).out)


# --- statements and the other atoms ---------------------------------------------------------------------------------


def test_cumulative_gate() -> None:
    body = Scan("sum", LOAD_F_J, Binder(j, N))
    let = Let("c", (Axis("b", B), Axis("h", H), Axis("n", N)), (b, h, j), body, emitted=True)
    score = op("add", SCALED, op("sub", Load("c", (b, h, i), "real"), Load("c", (b, h, j), "real")))
    made = Spec("gate", (), (param("f", "real", "b", "h", "n"),), (let,), attend(softmax(score, CAUSAL)))
    tensors = roles(4, 6) | {"f": -torch.rand(2, 2, 6, dtype=torch.float64)}
    result = evaluate(made, tensors)
    torch.testing.assert_close(result.emitted["c"], tensors["f"].cumsum(-1))
    gate = tensors["f"].cumsum(-1)
    scores = tensors["q"] @ tensors["k"].transpose(2, 3) / 2 + gate[:, :, 2:, None] - gate[:, :, None, :]
    mask = torch.arange(6) <= torch.arange(4)[:, None] + 2
    want = torch.softmax(scores.masked_fill(~mask, -math.inf), -1) @ tensors["v"]
    torch.testing.assert_close(result.out, want)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
def test_scan_directions(reverse: bool, exclusive: bool) -> None:
    body = Scan("sum", LOAD_F_J, Binder(j, N), reverse, exclusive)
    let = Let("c", (Axis("b", B), Axis("h", H), Axis("n", N)), (b, h, j), body, emitted=True)
    made = Spec("scan", (), (param("f", "real", "b", "h", "n"),), (let,), attend(softmax(SCALED)))
    f = torch.arange(5, dtype=torch.float64).expand(2, 2, 5)
    found = evaluate(made, roles(4, 5) | {"f": f}).emitted["c"][0, 0].tolist()
    want = {
        (False, False): [0, 1, 3, 6, 10],
        (False, True): [0, 0, 1, 3, 6],
        (True, False): [10, 10, 9, 7, 4],
        (True, True): [10, 9, 7, 4, 0],
    }
    assert found == want[reverse, exclusive]


def test_segments_of_packed_rows() -> None:
    same = op("eq", Segment("cu", i), Segment("cu", j))
    offsets = replace(param("cu", "int", "n"), offsets=True)
    made = spec("varlen", attend(softmax(SCALED, op("and", same, CAUSAL))), offsets)
    tensors = roles(7, 7) | {"cu": torch.tensor([0, 2, 2, 5, 7])}
    doc = torch.tensor([[0, 0, 2, 2, 2, 3, 3]] * 2)
    want = evaluate(SPECS["packed_documents"], {**{n: tensors[n] for n in "qkv"}, "doc": doc}).out
    torch.testing.assert_close(evaluate(made, tensors).out, want)


def test_rebound_keys_and_values() -> None:
    mean = op("div", Reduce("sum", K, KEYS), N)
    smooth = Rebind("k", (b, g, j, d), D, op("sub", K, mean))
    narrow = Rebind("v", (b, g, j, e), Const(2, "int"), op("mul", V, 3.0))
    made = Spec("rebound", (), (), (smooth, narrow), attend(softmax(SCALED)))
    tensors = roles(4, 6)
    want = evaluate(SPECS["full"], tensors).out
    torch.testing.assert_close(evaluate(made, tensors).out, 3 * want[..., :2])


def test_block_means_are_per_key_head() -> None:
    c = ivar("c")
    block = op("eq", op("floordiv", j, 2), c)
    axes = (Axis("b", B), Axis("g", ivar("G")), Axis("c", op("floordiv", N, 2)), Axis("d", D))
    let = Let("kb", axes, (b, g, c, d), Reduce("mean", K, KEYS, block), emitted=True)
    made = Spec("means", (), (), (let,), attend(softmax(SCALED)))
    tensors = roles(4, 6, heads=4, groups=2)
    want = tensors["k"].reshape(2, 2, 3, 2, 4).mean(3)
    torch.testing.assert_close(evaluate(made, tensors).emitted["kb"], want)


@pytest.mark.parametrize(
    ("name", "want"), [("sum", 0.0), ("mean", 0.0), ("max", -math.inf), ("min", math.inf), ("any", False)]
)
def test_reductions_of_nothing(name: str, want: float) -> None:
    body: Expr = op("lt", 0, j) if name == "any" else LOAD_F_J
    made = Reduce(name, body, KEYS, op("lt", j, 0), "bool" if name == "any" else "real")  # type: ignore[arg-type]
    let = Let("x", (Axis("b", B), Axis("h", H)), (b, h), made, emitted=True)
    params = (param("f", "real", "b", "h", "n"),)
    tensors = roles(4, 5) | {"f": torch.ones(2, 2, 5, dtype=torch.float64)}
    found = evaluate(Spec("nothing", (), params, (let,), attend(softmax(SCALED))), tensors).emitted["x"]
    assert found.tolist() == [[want, want]] * 2


def test_argmax_takes_the_smallest_of_equals() -> None:
    let = Let("x", (Axis("b", B), Axis("h", H)), (b, h), Reduce("argmax", LOAD_F_J, KEYS, TRUE, "int"), emitted=True)
    f = torch.tensor([1.0, 3.0, 3.0, 2.0], dtype=torch.float64).expand(2, 2, 4)
    made = Spec("first", (), (param("f", "real", "b", "h", "n"),), (let,), attend(softmax(SCALED)))
    assert evaluate(made, roles(4, 4) | {"f": f}).emitted["x"].tolist() == [[1, 1], [1, 1]]


def test_difference_of_weights_has_no_single_lse() -> None:
    half = softmax(SCALED, CAUSAL)
    made = spec("two", attend(op("sub", half, op("mul", 0.5, softmax(QK, CAUSAL)))))
    tensors = roles(4, 4)
    mask = torch.arange(4) <= torch.arange(4)[:, None]
    score = (tensors["q"] @ tensors["k"].transpose(2, 3)).masked_fill(~mask, -math.inf)
    want = (torch.softmax(score / 2, -1) - 0.5 * torch.softmax(score, -1)) @ tensors["v"]
    torch.testing.assert_close(evaluate(made, tensors).out, want)
    with pytest.raises(mistakes.NoSingleLse):
        evaluate(made, tensors, return_lse=True)
    with pytest.raises(mistakes.NoSingleLse):
        evaluate(spec("none", attend(elementwise(op("sigmoid", QK)))), tensors, return_lse=True)


def test_gate_outside_the_attention() -> None:
    gate = op("sigmoid", Load("gate", (b, h, i, e), "real"))
    made = spec(
        "gated", Out(op("mul", gate, Contract(softmax(SCALED), V, j, N))), param("gate", "real", "b", "h", "m", "e")
    )
    tensors = roles(3, 5) | {"gate": torch.randn(2, 2, 3, 4, dtype=torch.float64)}
    want = torch.sigmoid(tensors["gate"]) * evaluate(SPECS["full"], {n: tensors[n] for n in "qkv"}).out
    torch.testing.assert_close(evaluate(made, tensors).out, want)


# --- the call -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "mistake", "text"),
    [
        ({"slope": None}, mistakes.MissingTensor, "needs the tensor slope"),
        ({"slopes": torch.ones(2)}, mistakes.UnknownTensor, "no tensor slopes"),
        ({"slope": torch.ones(3)}, mistakes.WrongSize, "slope has 3 on axis h where 2 is expected"),
        ({"slope": torch.ones(2, 1)}, mistakes.WrongRank, "slope must be"),
        ({"slope": torch.ones(2, dtype=torch.int32)}, mistakes.WrongKind, "slope must hold real"),
        ({"k": torch.ones(2, 3, 5, 4)}, mistakes.WrongGroups, "q has 2 heads"),
        ({"k": torch.ones(2, 1, 5, 3)}, mistakes.WrongSize, "k has D = 3 where 4"),
        ({"q": torch.ones(2, 3, 4)}, mistakes.WrongRank, "q must be"),
    ],
)
def test_bad_calls(change: dict[str, Tensor | None], mistake: type[Exception], text: str) -> None:
    tensors: dict[str, Tensor | None] = {**roles(3, 5), "slope": torch.ones(2), **change}
    if "k" in change:
        tensors["v"] = change["k"]
    with pytest.raises(mistake, match=text):
        evaluate(SPECS["alibi"], {n: x for n, x in tensors.items() if x is not None})


def test_unknown_constant() -> None:
    with pytest.raises(mistakes.UnknownConstant, match="did you mean `window`"):
        evaluate(SPECS["sliding_window"], roles(3, 3), {"windw": 3})


def test_callable_gives_what_compiled_attention_gives() -> None:
    attention = reference_callable(SPECS["gpt_oss"], {"window": 2})
    tensors = roles(4, 6)
    sink = torch.zeros(2, dtype=torch.float64)
    out = attention(**tensors, sink=sink)
    both = attention(**tensors, sink=sink, return_lse=True)
    assert isinstance(out, Tensor) and isinstance(both, tuple)
    assert torch.equal(out, both[0]) and both[1].shape == (2, 2, 4)


def test_gradcheck_of_a_long_chain() -> None:
    tensors = roles(3, 4, batch=1)
    gemma = SPECS["gemma2"]
    assert torch.autograd.gradcheck(
        lambda q, k, v: evaluate(gemma, {"q": q, "k": k, "v": v}, {"cap": 0.5, "window": 2}).out,
        tuple(tensors.values()),
    )


def test_query_row_parameter_is_read_by_row() -> None:
    bias = Load("bias", (b, i), "real")
    made = spec("rows", Out(op("mul", bias, Contract(softmax(SCALED), V, j, N))), param("bias", "real", "b", "m"))
    tensors = roles(2, 5) | {"bias": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)}
    want = tensors["bias"][:, None, :, None] * evaluate(SPECS["full"], {n: tensors[n] for n in "qkv"}).out
    torch.testing.assert_close(evaluate(made, tensors).out, want)
    assert Q.index[2] is i
