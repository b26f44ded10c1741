"""Running sums along the columns of a product, whole every turn or completed by threads after the last one only.

rewrite: l[i] += sum_j w[i, j] --> l[i, c] += sum_n w[i, 8 n + c] every turn, and sum_c l[i, c] at the end

Of any eight neighbouring columns a thread holds two, so that sums over n are its own. Those over c pass numbers from
thread to thread, which takes longer than all the additions of a turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.expr.nodes import Var
from attncc.schedule.stream import Stream
from attncc.tile import nodes as t
from attncc.tile.hopper import LANES

LANE = "lane"


@dataclass(frozen=True, slots=True)
class Sums:
    """How values are added up that keep the axis `kept`: in `lanes`, or whole every turn."""

    k: Stream
    kept: str
    lanes: bool

    def type(self) -> t.Type:
        """Of what is carried from turn to turn."""
        if not self.lanes:
            return self.k.b.over(self.kept)
        self.k.b.axis(LANE, LANES)
        return self.k.b.over(self.kept, LANE)

    def part(self, value: Var, hint: str) -> Var:
        """What a turn's `value` adds."""
        b = self.k.b
        (axis,) = (a for a in b.type_of(value.name).axes if a.name != self.kept)
        if not self.lanes:
            return b.let(hint, self.type(), t.Reduce("sum", value.name, axis.name))
        (own,) = b.over(self.kept).axes
        runs, lanes = t.Axis("run", axis.extent // LANES), b.axis(LANE, LANES)
        type = t.Type((own, runs, lanes), b.type_of(value.name).dtype)
        split = b.let(f"{hint}_runs", type, t.SplitAxis(value.name, axis.name, runs, lanes))
        return b.let(hint, self.type(), t.Reduce("sum", split.name, "run"))

    def whole(self, carried: Var, hint: str) -> Var:
        """The sums behind the last turn."""
        if not self.lanes:
            return carried
        return self.k.b.let(hint, self.k.b.over(self.kept), t.Reduce("sum", carried.name, LANE))
