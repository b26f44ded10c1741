"""What partitioned kernels can't take, and why: such a half is scheduled as for plain Triton."""

from __future__ import annotations

from attncc.expr.nodes import free_vars
from attncc.schedule.hopper_config import HopperForward
from attncc.schedule.stream import Problem


def common_refusal(p: Problem, copied: tuple[str, ...]) -> str:
    """Why no kernel that copies the tensors `copied` in bulk can be partitioned; empty where one can."""
    v = p.variant
    if v.capability // 10 != 9:
        return f"warpgroup products need sm_90, this is sm_{v.capability}"
    if v.dtype not in ("f16", "bf16"):
        return f"warpgroup products of {v.dtype} are not printed"
    for name in copied:
        layout = v.layout(name)
        if not layout.unit:
            return f"the last stride of {name} is not 1, as bulk copies need"
        if not layout.aligned:
            return f"rows of {name} are not 16-byte aligned, as bulk copies need"
    return ""


def forward_refusal(p: Problem, plan: HopperForward) -> str:
    """Why the forward can't be partitioned; empty where it can."""
    v = p.variant
    reason = common_refusal(p, ("q", "k", "v", "out"))
    if reason:
        return reason
    if max(v.D, v.E) > 256:
        return "channels beyond 256 do not fit the accumulators"
    if plan.depth < 2:
        return "with one slot, values wait for the end of the turn that needs them"
    return ""


def backward_refusal(p: Problem) -> str:
    """Why the backward can't be partitioned; empty where it can."""
    v = p.variant
    results = tuple(f"d_{n}" for n in v.gradients if n in ("k", "v"))
    reason = common_refusal(p, ("q", "k", "v", "d_out", *results))
    if reason:
        return reason
    if max(v.D, v.E) > 128:
        return "channels beyond 128 do not fit the accumulators"
    ends = [e for a in p.by_key.alternatives for e in (a.lower, a.upper, a.full_lower, a.full_upper, a.rows)]
    if v.grouped and any("h" in free_vars(e) for e in ends):
        return "heads that share keys differ in what they see"
    return ""


def queries_refusal(p: Problem) -> str:
    """Why dQ can't have a partitioned kernel of its own, where the rest of the backward is partitioned."""
    return common_refusal(p, ("d_q",))


def first_refusal(p: Problem) -> str:
    """Why that kernel can't compute the row statistics, too."""
    return common_refusal(p, ("d_q", "out"))
