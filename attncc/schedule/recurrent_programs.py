"""Host programs of a state program whose tokens are walked one by one."""

from __future__ import annotations

from attncc.ir.nodes import Spec
from attncc.passes.mistakes import NotCompiled
from attncc.schedule.programs import Pair
from attncc.schedule.variant import Variant


def programs(spec: Spec, variant: Variant) -> Pair:
    """The programs of one variant of a state program; NotCompiled where it has none."""
    assert spec.recurrence is not None
    raise NotCompiled("one token after another: not compiled yet", spec.recurrence.states[0].span)
