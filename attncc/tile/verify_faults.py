"""What the verifier of the Tile IR refuses: one class and one code per check. All are bugs of a schedule."""

from __future__ import annotations

from attncc.errors import InternalError


class VerifyError(InternalError):
    """A program of the Tile IR breaks one of its rules. This is a bug in a schedule; please report it."""

    code = "E910"


class ScopeError(VerifyError):
    """A name is used where it is not defined, or defined twice, or its type is not what its operation makes.

    Broken: `s: f32[i 64] = Dot(q, k, d)`. Mended: `s: f32[i 64, j 64] = Dot(q, k, d)`.
    """

    code = "E911"


class PermutedDotError(VerifyError):
    """A dot takes the result of another one with its axes in the wrong order for a register operand.

    Broken: `Dot(p, do, i)` with p over (i, j), computed by a dot. Mended: compute p over (j, i) in the first place.
    """

    code = "E912"


class OverlapError(VerifyError):
    """Ranges of one walk overlap, or lie outside their axis: a pair of query and key would count twice."""

    code = "E913"


class OrderError(VerifyError):
    """A loop of order `any` carries an update that depends on the order of its turns."""

    code = "E914"


class ExtentError(VerifyError):
    """An index may leave its tensor: neither a guard, nor a full range, nor its own extent bounds it."""

    code = "E915"


class UnanchoredError(VerifyError):
    """An exponential may meet minus infinity less minus infinity: the running maximum starts at -inf."""

    code = "E916"


class OffsetError(VerifyError):
    """An index multiplies two positions or sizes in 32 bits; the product may not fit."""

    code = "E917"


class OwnershipError(VerifyError):
    """Two programs of a grid may add to, or store, the same element; or an atomic in a deterministic program."""

    code = "E918"


class SteeringError(VerifyError):
    """A loop's bounds or an If's condition depend on computed values, not only on the place in the grid."""

    code = "E919"


class PrecisionError(VerifyError):
    """An accumulator or a carried state is narrower than f32, or a narrowed value is calculated with."""

    code = "E920"


class PartitionError(VerifyError):
    """Partitions share a register value, a slot with two producers, a barrier nobody signals, or too many resources."""

    code = "E921"


class StoreError(VerifyError):
    """A tensor is read before a step writes it, or an output is written by no step, or by two."""

    code = "E922"


class PairError(VerifyError):
    """The backward does not read a tensor or constant that the forward's kernels read: a term got lost."""

    code = "E923"


class GridError(VerifyError):
    """A launch grid that can't be launched."""

    code = "E924"
