"""What the interpreter refuses: one class per broken promise, each naming the kernel, the program and the statement."""

from __future__ import annotations

from attncc.errors import InternalError


class InterpretError(InternalError):
    """A program of the Tile IR did something it must not. This is a bug in a schedule; please report it."""

    code = "E930"
    place = ""

    def at(self, place: str) -> InterpretError:
        """The same fault with where it happened; the innermost place wins."""
        if self.place:
            return self
        fault = type(self)(f"{place}: {self.args[0]}")
        fault.place = place
        return fault


class TypeFault(InterpretError):
    """A value has other axes or another element type than its statement declares, or a name is not in scope."""

    code = "E931"


class IndexFault(InterpretError):
    """A load or store went outside a tensor although its guard was true.

    Broken: the last key tile of N = 100 loads positions 96 .. 127 unguarded. Mended: guard with `j < N`.
    """

    code = "E932"


class UnwrittenFault(InterpretError):
    """An element was read before anything was stored there, or an output has elements nothing stored."""

    code = "E933"


class StoredTwiceFault(InterpretError):
    """An element was stored twice: two programs, or two turns of a loop, own the same place."""

    code = "E934"


class RaceFault(InterpretError):
    """Two accesses to the same memory, one of them a write, that nothing orders."""

    code = "E935"


class RangesFault(InterpretError):
    """A loop's ranges repeat a tile, leave the axis, run in the wrong order or promise full tiles that are not."""

    code = "E936"


class NotANumberFault(InterpretError):
    """An operation made a NaN out of numbers, as -inf minus -inf does on a row with no key."""

    code = "E937"


class DeadlockFault(InterpretError):
    """Every partition that has not finished waits for a barrier that nothing will complete."""

    code = "E938"


class BarrierFault(InterpretError):
    """A barrier got more arrivals than its count, or ended the kernel in the middle of a phase."""

    code = "E939"
