"""What consumers of the partitioned backward read: row statistics in shared memory, scores split by what they read."""

from __future__ import annotations

from dataclasses import replace

from attncc.expr.build import op
from attncc.expr.nodes import Const, Expr, Var
from attncc.passes.simplify import scale
from attncc.passes.stream import LOG2E
from attncc.schedule.captured import by_product
from attncc.schedule.config import Channels
from attncc.schedule.separate import Parts, separate
from attncc.schedule.stream import NEVER, Problem, Stream
from attncc.tile import nodes as t


def packed(p: Problem) -> tuple[str, ...]:
    """The row statistics a turn is sent, in order."""
    return (p.own("log_z"), p.own("delta")) if p.normalised else ()


def affine(p: Problem) -> float | None:
    """The score's constant derivative by the product, if it is one of exponential weights and in a safe range."""
    factor, rest = by_product(p)
    slope = 1.0 if factor is None else factor.value if isinstance(factor, Const) else 0.0
    return float(slope) if p.exponential and rest is None and 2.0**-20 < abs(slope) < 2.0**20 else None


class StagedStream(Stream):
    """A stream whose row statistics lie in shared memory, and whose exponents take up the score's terms by row."""

    statistics: str
    slot: Expr

    @property
    def parts(self) -> Parts:
        """The score in base two, split around the first key."""
        return separate(scale(self.p.attend.score, LOG2E), self.first)

    def stat(self, tensor: str, hint: str, other: float = 0.0) -> Var:
        """One number per row, as the turn's tile brings it; log2 Z less what the score has by row."""
        value = self._sent(tensor, hint)
        if tensor != self.p.own("log_z") or not self.p.exponential or self.parts.query is None:
            return value
        return self.b.value(op("sub", value, self.parts.query), hint)

    def _sent(self, tensor: str, hint: str) -> Var:
        rows = self.b.extent("i")
        part = ("i", packed(self.p).index(tensor) * rows, rows)
        return self.b.let(hint, self.b.over("i"), t.SharedLoad(t.Slot(self.statistics, self.slot, part)))

    def log_score(self, score: Expr, allowed: Expr | None) -> Var:
        """The score in base two without its terms by row: those are in the statistics."""
        if not self.p.exponential:
            return super().log_score(score, allowed)
        x = self.b.value(replace(self.parts, query=None).whole(), "x", "the score in base two")
        return x if allowed is None else self.b.value(op("where", allowed, x, NEVER), "x")

    def started(self, slope: float) -> Var:
        """Where the product's sum starts, so that it ends as the exponent: statistics are in units of the product."""
        query, start = self.parts.query, self._sent(self.p.own("log_z"), "start")
        return (
            start if query is None else self.b.value(op("add", start, op("mul", query, 1.0 / (slope * LOG2E))), "start")
        )


def whole(size: int) -> Channels:
    """One piece, a power of two: bulk copies read 0 beyond the tensor and store nothing there."""
    return Channels(((0, max(16, 1 << (size - 1).bit_length()), size),))
