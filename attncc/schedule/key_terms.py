"""Terms by key that join the product from a tensor: its kernel, and what the forward reads of it.

A key's channels are f(j) / c as three bfloat16 numbers. A term of -inf stays -inf.
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.config import Tiles
from attncc.schedule.hopper_config import HopperForward
from attncc.schedule.joined import (
    EXACT,
    MORE,
    STEP,
    Channels,
    Evenly,
    Joined,
    Term,
    channel,
    in_channels,
    joining,
    parts,
)
from attncc.schedule.stream import B, Guards, H, N, Problem, Stream, b, h
from attncc.schedule.stream_backward import key_grid
from attncc.tile import nodes as t

PARTS = (1, 1, 1)
"""Three numbers of 8 bits hold a float32's."""


def joined(k: Stream, plan: HopperForward) -> Channels:
    """What joins the product by this plan."""
    term = joining(k.p) if plan.joined else None
    if term is None or (term.evenly and plan.keys > EXACT):
        return Channels()
    return Evenly(k, plan.keys, term.value) if term.evenly else _WithKeys(k, plan)


def terms_tensor(p: Problem) -> t.Tensor:
    """The channels of every head's keys."""
    return t.Tensor(p.own("key_terms"), ("b", "h", "j", MORE), (B, H, N, Const(STEP, "int")), p.variant.dtype)


def terms_kernel(p: Problem, term: Term) -> t.Kernel:
    """Writes them."""
    k = Stream(p, ("j", "i"))
    tiles = Tiles(16, 128, t.Config(warps=4, stages=1))
    j0 = Var(p.own("j0"), "int")
    k.start(j0.name, "h", "b")
    k.keys(j0, tiles.keys)
    k.guards = Guards(key=op("lt", k.key, N))
    value = k.b.value(term.value, "term", "in units of the product")
    name, type = terms_tensor(p).name, t.Type((t.Axis("j", tiles.keys), k.b.axis(MORE, STEP)), p.real)
    found, at = parts(k, value, PARTS), channel(k)
    wide = k.b.let("k_more", type, t.Map(in_channels(at, found)))
    k.tensors[name] = None
    k.b.add(t.Store(name, (b, h, k.key, at), k.cast(wide, p.variant.dtype).name, k.guards.key))
    grid = key_grid(p, tiles, "h")
    return t.Kernel("key_terms_kernel", grid, tuple(k.tensors), k.scalars(), k.body(), tiles.config)


class _WithKeys(Joined):
    """Channels that arrive with the keys; those of all queries are the parts' scales."""

    def __init__(self, k: Stream, plan: HopperForward) -> None:
        super().__init__(k, plan.keys)
        self.depth, self.turn_bytes = plan.depth, 2 * STEP * plan.keys
        self.bytes = plan.depth * self.turn_bytes + 2 * STEP * plan.rows
        self.tensors = (terms_tensor(k.p).name,)

    def memory(self) -> None:
        """Slots for the keys' channels, and the queries'."""
        k = self.k
        more = k.b.axis(MORE, STEP)
        self.name = k.b.fresh("k_more")
        k.b.add(t.AllocShared(self.name, t.Type((self.axis, more), self.narrow), self.depth))
        rows = k.b.axis("i", k.b.extent("i"))
        self.queries = self.constant("q_more", rows, [Const(float(x), "real") for x in PARTS])

    def arrive(self, at: tuple[Expr, ...], slot: Expr, bar: t.Bar) -> None:
        """Begins to copy the channels of a tile of keys."""
        self.k.b.add(t.CopyIn(t.Slot(self.name, slot), self.tensors[0], (*at, Const(0, "int")), bar))

    def operands(self, slot: Expr) -> tuple[str | t.Slot, t.Slot]:
        """Both in shared memory."""
        return self.queries, t.Slot(self.name, slot)
