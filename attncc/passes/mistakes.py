"""Specs that are understood and that the schedules can't compile yet."""

from __future__ import annotations

from typing import ClassVar

from attncc.errors import SpecError


class NotCompiled(SpecError):
    """The spec is well formed, and no schedule covers this construct yet.

    The reference evaluates it: `attncc.reference(...)`. Compiled today: one weighted sum `weights @ v` over the keys,
    with an elementwise or ratio normaliser (softmax, sinks, `ratio`) and a score that reads `q @ k` once.
    """

    code: ClassVar[str] = "E450"


class TakenName(SpecError):
    """A parameter has a name that results and gradients of every compiled spec have.

        attention x(lse: real[h]):      # `lse` is a result; call the parameter something else

    Taken are `lse`, for constants `s`, and, behind `d_`, the names of everything a gradient is given for: d_q, d_k,
    d_v, d_out, d_lse and d_NAME for a parameter NAME.
    """

    code: ClassVar[str] = "E451"


class NoTransition(SpecError):
    """A state program changes a state in a way that no schedule has a form for. The message says what it does.

        S = W[h] @ S[f, e] + outer(k, v)    # mixes the rows of S by a full matrix
        S = w[h, d] * S + outer(k, v)       # a diagonal
        S = S + outer(k, v - k @ S)         # the identity and one product of two vectors

    A change has, for each state, a factor (none, a constant, a number for each token, one for each channel of keys, of
    values, or both) and at most one product of two vectors on one side. A change by several products is written in as
    many statements, or in a `for`. The reference evaluates any change.
    """

    code: ClassVar[str] = "E452"
