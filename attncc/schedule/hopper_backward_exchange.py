"""What consumers of the partitioned backward pass on: dS to each other, and dQ to memory.

Both go through shared memory. A fence waits for what was stored there, so it stands behind the products that are begun
next: dS is stored, dK begins, then dS is told of; dQ is laid out, dP and dV begin, then dQ leaves.
"""

from __future__ import annotations

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.schedule.hopper_backward_places import Places, State
from attncc.schedule.partitions import Ring
from attncc.schedule.stream import b
from attncc.tile import nodes as t


class Exchange(Places):
    """A consumer's part in it."""

    c: int
    """The consumer's number."""
    mine: Const
    """The same, as a slot."""
    zero: Expr
    """See `forget`."""

    def forget(self, positive: Expr) -> None:
        """Makes what follows compute the addresses of K and V, and what depends on rows, anew.

        Kept from one turn to the next, or from a turn's beginning to its end, they take registers that the
        accumulators need. So they hang on a number that is 0 in a way no compiler sees.
        """
        self.zero = self.k.b.value(op("min", positive, 0), "zero")

    def keys_of(self, consumer: int) -> Expr:
        """The slot of a consumer's keys."""
        return op("add", self.zero, consumer) if consumer else self.zero

    def _exchanges(self, n: Expr) -> tuple[Expr, Expr]:
        """(slot, parity of its phase) of the dS numbered `n`; where dQ lags, a place has one more than turns."""
        number = op("add", self.item, self.at(n)) if self.plan.lag else self.at(n)
        return Ring("", "", 2).at(self.k.b, number)

    def store_ds(self, ds: Var, n: Expr) -> None:
        """dS number `n` to shared memory."""
        slot, _ = self._exchanges(n)
        self.k.b.add(t.SharedStore(t.Slot(self.ds_tile[self.c], slot), ds.name))

    def send_ds(self, n: Expr) -> None:
        """Tells that dS number `n` is there: behind a product begun, since a fence waits for what was stored."""
        slot, _ = self._exchanges(n)
        self.k.b.add(t.Fence())
        self.k.b.add(t.BarArrive(t.Bar(self.ds_full[self.c], slot)))

    def begin_dq(self, n: Expr) -> State:
        """This consumer's share of dQ from dS number `n`, begun and not awaited; a value per product."""
        k, share, d = self.k, self.plan.share, self.d
        slot, phase = self._exchanges(n)
        other = self.c if share == "keys" else 1 - self.c
        k.b.add(t.BarWait(t.Bar(self.ds_full[other], slot), phase))
        rows = ("i", 64 * self.c, 64) if share == "rows" else None
        columns = (d.name, d.extent // 2 * self.c, d.extent // 2) if share == "columns" else None
        out: State = ()
        for half in (self.c,) if share == "keys" else (0, 1):
            ds, keys = t.Slot(self.ds_tile[half], slot, rows), t.Slot(self.k_tile, self.keys_of(half), columns)
            dot = t.Dot(ds, keys, "j", out[-1].name if out else None, asynchronous=True)
            out += (k.b.let("dq", self.dq_type, dot),)
        return out

    def lay_out(self, dq: State) -> None:
        """Awaits dQ and stores it where it will leave from, once the one before is gone."""
        k = self.k
        value = k.b.let("dq", self.dq_type, t.DotWait(dq[-1].name, 0))
        k.b.add(t.CopyWait(0))
        k.b.add(t.SharedStore(t.Slot(self.dq_tile, self.mine), value.name))

    def leave(self, at: State) -> None:
        """Adds the dQ that is laid out to the rows `at` (and of the head there)."""
        k, share, slot = self.k, self.plan.share, t.Slot(self.dq_tile, self.mine)
        k.b.add(t.Fence())
        row = op("add", at[0], 64 * self.c) if share == "rows" and self.c else at[0]
        column = Const(self.d.extent // 2 * self.c if share == "columns" else 0, "int")
        head = at[1] if len(at) > 1 else k.head()
        k.b.add(t.CopyOut(slot, self.seen(self.p.own("d_q_sum")), (b, head, row, column), True))
