"""Mistakes in the state programs of a spec: one class, one code, one explanation with a broken and a mended example."""

from __future__ import annotations

from typing import ClassVar

from attncc.errors import SpecError


class UnusedState(SpecError):
    """A state that no statement changes, or that nothing reads.

    Broken: `state S[d, e], z[d]` where no line says `z = ...`
    Mended: drop `z`, or give it its next value: `z = z + k`
    """

    code: ClassVar[str] = "E213"


class NoKeys(SpecError):
    """A state program sees one token at a time: `i` is the token, k and v are its rows, and `j` does not exist.

    Broken: `S = S + sum(outer(k, v) over j)`
    Mended: `S = S + outer(k, v)`
    """

    code: ClassVar[str] = "E322"


class BadState(SpecError):
    """A state has axes of channels and new indices; there is one for each b and h already.

    Broken: `state S[b, h, d, e]`
    Mended: `state S[d, e]`
    """

    code: ClassVar[str] = "E323"


class LateRow(SpecError):
    """A new q, k or v stands above the first step and reads no state.

    Broken: `S = S + outer(k, v)` above `k = normalize(k)`
    Mended: `k = normalize(k)` above, or `let u = ...` for a value that depends on a state
    """

    code: ClassVar[str] = "E324"


class Misplaced(SpecError):
    """A `for` repeats changes of states: these, `let` and further `for`s stand in it. Masks have no place in a state
    program, whose steps see one token.

    Broken: `for t in 2: out = q @ S`
    Mended: `out = q @ S` below the loop
    """

    code: ClassVar[str] = "E325"


class NotAState(SpecError):
    """`frozen` and `grad` name a state.

    Broken: `frozen F = k every 16`
    Mended: `frozen F = S every 16`, with `state S[d, e]` above
    """

    code: ClassVar[str] = "E326"
