"""Running sums along the columns of a product, completed by its threads after the last turn only.

rewrite: l[i] += sum_j w[i, j] --> l[i, c] += sum_n w[i, 8 n + c] every turn, and sum_c l[i, c] at the end

Of any eight neighbouring columns a thread holds two, so that sums over n are its own. Those over c pass numbers from
thread to thread, which takes longer than all the additions of a turn.
"""

from __future__ import annotations

from attncc.expr.nodes import Var
from attncc.schedule.stream import Stream
from attncc.tile import nodes as t
from attncc.tile.hopper import LANES

LANE = "lane"


def type_of(k: Stream, kept: str) -> t.Type:
    """Of the sums: one for every place along `kept` and lane."""
    k.b.axis(LANE, LANES)
    return k.b.over(kept, LANE)


def part(k: Stream, value: Var, kept: str, hint: str) -> Var:
    """What a turn's `value` adds to the sums."""
    (axis,) = (a for a in k.b.type_of(value.name).axes if a.name != kept)
    (own,) = k.b.over(kept).axes
    runs, lanes = t.Axis("run", axis.extent // LANES), k.b.axis(LANE, LANES)
    type = t.Type((own, runs, lanes), k.b.type_of(value.name).dtype)
    split = k.b.let(f"{hint}_runs", type, t.SplitAxis(value.name, axis.name, runs, lanes))
    return k.b.let(hint, k.b.over(kept, LANE), t.Reduce("sum", split.name, "run"))


def whole(k: Stream, sums: Var, kept: str, hint: str) -> Var:
    """The sums of all lanes."""
    return k.b.let(hint, k.b.over(kept), t.Reduce("sum", sums.name, LANE))
