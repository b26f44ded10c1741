"""The warp-specialised attention forward, by hand: one producer warp, two or three consumer warpgroups of 64 rows.

The producer fills rings of K and V by bulk copies; consumers issue S(n + 1) = Q K^T before they wait for O += P(n) V,
so that the exponentials run under a product. Key tiles go from the diagonal down; the mask stands behind a branch that
only the first ones take. With `turns`, consumers take turns to issue their products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from attncc.expr.build import ivar, op, rvar
from attncc.expr.nodes import Const, Expr, Var
from attncc.tile.nodes import (
    Alloc,
    AllocBar,
    AllocShared,
    Axis,
    Bar,
    BarArrive,
    BarExpect,
    BarWait,
    Config,
    CopyIn,
    CopyOut,
    CopyWait,
    Count,
    Dtype,
    Fence,
    GridAxis,
    Kernel,
    Launch,
    Partition,
    Partitions,
    Program,
    Scalar,
    SharedStore,
    Slot,
    Store,
    Tensor,
    Type,
)
from tests.tile.programs.build import Builder

LOG2E = math.log2(math.e)
LOWEST = -(2.0**127)
"""Where a row's running maximum starts: finite, so that a row without keys never computes inf - inf."""

Score = Callable[[Expr, Expr, Expr], Expr]
"""(product, i, j) -> the score in units of log2."""


@dataclass(frozen=True)
class Plan:
    """What the schedule chooses."""

    D: int = 128
    dtype: Dtype = "bf16"
    consumers: int = 2
    keys: int = 128
    depth: int = 2
    causal: bool = True
    turns: bool = False
    peeled: bool = False
    """Masked tiles in a loop of their own, not behind a branch in the one loop."""
    registers: int = 240
    rows: int = 64
    """Of one consumer."""

    def threads(self) -> int:
        """Warps are given registers by fours: the producer's warp counts as four."""
        return 128 * (self.consumers + 1)


def scaled(product: Expr, i: Expr, j: Expr) -> Expr:
    """scale * q k, the plain score."""
    return op("mul", product, rvar("c0"))


def capped(product: Expr, i: Expr, j: Expr) -> Expr:
    """cap * tanh(scale * q k / cap): c1 = scale / cap, c2 = cap log2 e."""
    return op("mul", op("tanh", op("mul", product, rvar("c1"))), rvar("c2"))


def biased(product: Expr, i: Expr, j: Expr) -> Expr:
    """scale * q k + slope (j - i), the slope (times log2 e) of this head being the value `slope`."""
    distance = op("mul", rvar("slope"), op("real", op("sub", j, i)))
    return op("add", op("mul", product, rvar("c0")), distance)


def program(plan: Plan, score: Score = scaled) -> Program:
    """Forward of `plan` with `score`; a score c * product, c > 0, is evaluated inside the exponential only."""
    d, e = Const(plan.D, "int"), Const(plan.D, "int")
    b, h, g, m, n = (ivar(x) for x in "BHGMN")
    inputs = [
        Tensor("q", ("b", "h", "i", "d"), (b, h, m, d), plan.dtype, strided=True),
        Tensor("k", ("b", "g", "j", "d"), (b, g, n, d), plan.dtype, strided=True),
        Tensor("v", ("b", "g", "j", "e"), (b, g, n, e), plan.dtype, strided=True),
    ]
    scalars = [Scalar(x, "int") for x in "BHGMN"] + [Scalar("scale", "real")]
    if score is capped:
        scalars += [Scalar("cap", "real"), Scalar("c1", "real", op("div", rvar("scale"), rvar("cap")))]
        scalars += [Scalar("c2", "real", op("mul", rvar("cap"), LOG2E))]
    else:
        scalars += [Scalar("c0", "real", op("mul", rvar("scale"), LOG2E))]
    if score is biased:
        inputs += [Tensor("slopes", ("h",), (h,), "f32")]
    out = Tensor("out", ("b", "h", "i", "e"), (b, h, m, e), plan.dtype, strided=True)
    lse = Tensor("lse", ("b", "h", "i"), (b, h, m), "f32")
    used = tuple(s.name for s in scalars if s.name not in ("B", "scale", "cap"))
    tensors = (*(t.name for t in inputs), "out", "lse")
    return Program(
        "hopper_forward",
        tuple(inputs),
        tuple(scalars),
        (_kernel(plan, score, tensors, used),),
        (Alloc(out, like="q"), Alloc(lse), Launch("forward")),
        ("out", "lse"),
    )


def _kernel(plan: Plan, score: Score, tensors: tuple[str, ...], scalars: tuple[str, ...]) -> Kernel:
    tile = plan.rows * plan.consumers
    grid = (
        GridAxis("r0", ivar("M"), "tile", tile, "i", descending=plan.causal),
        GridAxis("h", ivar("H"), "batch"),
        GridAxis("b", ivar("B"), "batch"),
    )
    x = Builder()
    _Forward(plan, score, x).write()
    budget = 65536 // plan.threads() // 8 * 8
    return Kernel("forward", grid, tensors, scalars, tuple(x.here), Config(4, 1, budget))


class _Forward:
    """Writes the kernel's body into a builder."""

    def __init__(self, plan: Plan, score: Score, x: Builder) -> None:
        self.plan, self.score, self.x = plan, score, x
        self.lazy = score is scaled
        self.i = Axis("i", plan.rows)
        self.j = Axis("j", plan.keys)
        self.d = Axis("d", plan.D)
        self.e = Axis("e", plan.D)

    def write(self) -> None:
        plan, x = self.plan, self.x
        self.g = x.int_("g", op("floordiv", ivar("h"), op("floordiv", ivar("H"), ivar("G"))), "query heads share keys")
        self.shift = x.int_("shift", op("sub", ivar("N"), ivar("M")))
        last: Expr = ivar("N")
        if plan.causal:
            tile = plan.rows * plan.consumers
            last = op("min", last, op("add", op("add", ivar("r0"), self.shift), tile))
        tiles = op("floordiv", op("add", last, plan.keys - 1), plan.keys)
        self.tiles = x.int_("tiles", op("max", tiles, 1), "key tiles of these rows, at least one")
        if self.score is biased:
            slope = x.load("slope_e", Type((), "f32"), "slopes", (ivar("h"),))
            x.map("slope", op("mul", slope, LOG2E))
        self._memory()
        consumers = [
            self._partition(f"consumer{c}", 4, plan.registers, self._consumer, c) for c in range(plan.consumers)
        ]
        producer = self._partition("producer", 1, 24, self._producer, 0)
        x.add(Partitions((*consumers, producer)))

    def _memory(self) -> None:
        plan, x = self.plan, self.x
        x.add(
            AllocShared("q_s", Type((self.i, self.d), plan.dtype), plan.consumers),
            AllocShared("k_s", Type((self.j, self.d), plan.dtype), plan.depth),
            AllocShared("v_s", Type((self.j, self.e), plan.dtype), plan.depth),
            AllocShared("out_s", Type((self.i, self.e), plan.dtype), plan.consumers),
            AllocBar("q_full", 1),
            AllocBar("k_full", plan.depth),
            AllocBar("k_empty", plan.depth, plan.consumers),
            AllocBar("v_full", plan.depth),
            AllocBar("v_empty", plan.depth, plan.consumers),
        )
        if plan.turns:
            x.add(AllocBar("turn", plan.consumers), BarArrive(Bar("turn", Const(0, "int"))))

    def _partition(self, name: str, warps: int, registers: int, write: Callable[[int], None], c: int) -> Partition:
        with self.x.body() as body:
            write(c)
        return Partition(name, warps, registers, tuple(body))

    # --- the producer: which tile when, and nothing else

    def _producer(self, _: int) -> None:
        plan, x = self.plan, self.x
        size = plan.D * (4 if plan.dtype == "f32" else 2)
        first = Bar("q_full", Const(0, "int"))
        x.add(BarExpect(first, plan.consumers * plan.rows * size))
        for c in range(plan.consumers):
            row = op("add", ivar("r0"), c * plan.rows)
            x.add(CopyIn(Slot("q_s", Const(c, "int")), "q", (ivar("b"), ivar("h"), row, Const(0, "int")), first))
        with x.loop("n", Count(Const(0, "int"), self.tiles), {}, order="asc") as loop:
            slot, phase = self._turn(loop.index)
            key = op("mul", self._tile(loop.index), plan.keys)
            for name in ("k", "v"):
                full, empty = Bar(f"{name}_full", slot), Bar(f"{name}_empty", slot)
                x.add(
                    BarWait(empty, op("sub", 1, phase)),
                    BarExpect(full, plan.keys * size),
                    CopyIn(Slot(f"{name}_s", slot), name, (ivar("b"), self.g, key, Const(0, "int")), full),
                )
            loop.next()

    def _turn(self, n: Expr) -> tuple[Expr, Expr]:
        """The ring's slot and the parity of its phase at turn n."""
        depth = self.plan.depth
        if isinstance(n, Const):
            turn = int(n.value)
            return Const(turn % depth, "int"), Const(turn // depth % 2, "int")
        slot = self.x.int_("slot", op("mod", n, depth))
        return slot, self.x.int_("phase", op("mod", op("floordiv", n, depth), 2))

    def _tile(self, n: Expr) -> Expr:
        """The key tile of turn n: from the last one down."""
        return op("sub", op("sub", self.tiles, 1), n)

    # --- a consumer

    def _consumer(self, c: int) -> None:
        plan, x = self.plan, self.x
        self.c = c
        zero = Const(0, "int")
        self.q = Slot("q_s", Const(c, "int"))
        self.row = x.iota("row", self.i, op("add", ivar("r0"), c * plan.rows))
        self.position = x.map("pos", op("add", self.row, self.shift), note="in key coordinates")
        full = self._full_tiles()
        masked = x.int_("masked", op("max", op("sub", self.tiles, full), 1), "tiles that need the mask, or the first")
        x.add(BarWait(Bar("q_full", zero), zero))
        state = {
            "m": x.full("m", (self.i,), LOWEST),
            "l": x.full("l", (self.i,), 0.0),
            "o": x.full("o", (self.i, self.e), 0.0),
        }
        state = self._step(zero, state, masked=True)
        start: Expr = Const(1, "int")
        if plan.causal and plan.peeled:
            with x.loop("n", Count(start, masked), state, order="asc", note="across the diagonal") as loop:
                loop.next(**self._step(loop.index, loop.carried, masked=True))
            state, start = loop.carried, masked
        with x.loop("n", Count(start, self.tiles), state, order="asc") as loop:
            mask = op("lt", loop.index, masked) if plan.causal and not plan.peeled else False
            loop.next(**self._step(loop.index, loop.carried, masked=mask))
        self._finish(loop.carried)

    def _full_tiles(self) -> Expr:
        """How many tiles, counted from key 0, need no mask for any row of this consumer."""
        plan = self.plan
        last: Expr = ivar("N")
        if plan.causal:
            last = op("min", last, op("add", op("add", ivar("r0"), self.shift), self.c * plan.rows + 1))
        return op("max", op("floordiv", last, plan.keys), 0)

    def _step(self, n: Expr, state: dict[str, Var], *, masked: Expr | bool) -> dict[str, Var]:
        plan, x, first = self.plan, self.x, isinstance(n, Const)
        slot, phase = self._turn(n)
        mine, other = (Bar("turn", Const(c % plan.consumers, "int")) for c in (self.c, self.c + 1))
        x.add(BarWait(Bar("k_full", slot), phase))
        if plan.turns:
            x.add(BarWait(mine, op("mod", n, 2)))
        s = x.dot("s", (self.i, self.j), self.q, Slot("k_s", slot), "d", asynchronous=True, note="q @ k")
        o = state["o"] if first else self._product(op("sub", n, 1), state)
        if plan.turns:
            x.add(BarArrive(other))
        s = x.wait("s", s, 0 if first else 1)
        x.add(BarArrive(Bar("k_empty", slot)))
        p, m, l, alpha = self._softmax(s, n, state, masked=masked)
        if not first:
            o = self._scaled(op("sub", n, 1), o, alpha)
        return {"m": m, "l": l, "o": o, "p": x.convert("p", x.cast("p", p, plan.dtype), "operand")}

    def _product(self, n: Expr, state: dict[str, Var]) -> Var:
        """O += P(n) V(n), not yet waited for."""
        slot, phase = self._turn(n)
        self.x.add(BarWait(Bar("v_full", slot), phase))
        return self.x.dot(
            "o", (self.i, self.e), state["p"], Slot("v_s", slot), "j", state["o"], asynchronous=True, note="p @ v"
        )

    def _scaled(self, n: Expr, o: Var, alpha: Var | None) -> Var:
        """O once it is there, its V slot given back."""
        o = self.x.wait("o", o, 0)
        self.x.add(BarArrive(Bar("v_empty", self._turn(n)[0])))
        return o if alpha is None else self.x.map("o", op("mul", o, alpha))

    def _softmax(self, s: Var, n: Expr, state: dict[str, Var], *, masked: Expr | bool) -> tuple[Var, Var, Var, Var]:
        """p = 2^(score - m) with the new maximum m and sum l; alpha rescales what was summed before."""
        x = self.x
        if self.lazy:
            s = self._masked(s, n, masked)
            top = self.score(x.reduce("top", "max", s, "j"), self.position, self.position)
            value = self.score(s, self.position, self.position)
        else:
            s = x.map("score", self.score(s, self.position, self._keys(n)))
            value = s = self._masked(s, n, masked)
            top = x.reduce("top", "max", s, "j")
        m = x.map("m", op("max", state["m"], top))
        alpha = x.map("alpha", op("exp2", op("sub", state["m"], m)))
        p = x.map("p", op("exp2", op("sub", value, m)))
        l = x.map("l", op("add", op("mul", state["l"], alpha), x.reduce("total", "sum", p, "j")))
        return p, m, l, alpha

    def _keys(self, n: Expr) -> Var:
        return self.x.iota("key", self.j, op("mul", self._tile(n), self.plan.keys))

    def _masked(self, s: Var, n: Expr, masked: Expr | bool) -> Var:
        """s, -inf where no key may be seen; untouched where `masked` is false."""

        def mask() -> Var:
            key = self._keys(n)
            seen = op("le", key, self.position) if self.plan.causal else op("lt", key, ivar("N"))
            return self.x.map("s", op("where", seen, s, Const(-math.inf, "real")))

        if isinstance(masked, bool):
            return mask() if masked else s
        return self.x.choose("s", masked, s, mask, "across the diagonal")

    def _finish(self, state: dict[str, Var]) -> None:
        plan, x = self.plan, self.x
        o = self._scaled(op("sub", self.tiles, 1), self._product(op("sub", self.tiles, 1), state), None)
        m, l = state["m"], state["l"]
        lse = x.map("lse_n", op("mul", op("add", m, op("log2", l)), 1 / LOG2E), note="-inf for a row without keys")
        guard = op("lt", self.row, ivar("M"))
        x.add(Store("lse", (ivar("b"), ivar("h"), self.row), lse.name, guard))
        safe = x.map("norm", op("recip", op("where", op("lt", 0.0, l), l, 1.0)))
        o = x.cast("o", x.map("o", op("mul", o, safe)), plan.dtype)
        slot = Slot("out_s", Const(self.c, "int"))
        first = op("add", ivar("r0"), self.c * plan.rows)
        corner = (ivar("b"), ivar("h"), first, Const(0, "int"))
        x.add(SharedStore(slot, o.name), Fence(), CopyOut(slot, "out", corner), CopyWait(0))


DEFAULT = Plan()
PLANS: dict[str, tuple[Plan, Score]] = {
    "causal": (DEFAULT, scaled),
    "causal_turns": (replace(DEFAULT, turns=True), scaled),
    "causal_peeled": (replace(DEFAULT, peeled=True), scaled),
    "full": (replace(DEFAULT, causal=False), scaled),
    "full_turns": (replace(DEFAULT, causal=False, turns=True), scaled),
    "softcap": (DEFAULT, capped),
    "bias": (replace(DEFAULT, turns=True), biased),
    "narrow": (Plan(D=64, consumers=3, depth=3, registers=160), scaled),
    "narrow_full": (Plan(D=64, consumers=3, depth=3, registers=160, causal=False), scaled),
}
"""The variants that tests compile and the benchmark times."""

__all__ = ["PLANS", "Plan", "biased", "capped", "program", "scaled"]
