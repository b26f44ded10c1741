"""The Tile IR: how it is computed. Programs of kernels over tiles whose values are typed by named axes.

Scalars and index arithmetic are expressions of attncc.expr whose Vars name scalars in scope (sizes, constants, grid
and loop positions, scalar values) or values (in Map, guards and indices, where the result's axes are the union of the
operands' axes). Operations (`Op`) stand on the right of a Let; statements do the rest. Bodies are in single
assignment form: a name is bound once per kernel, `For` and `If` bind the names they carry out.

    host        Program Tensor Scalar Alloc Launch Gather ScatterAdd SumAxes FirstLast
    control     Kernel GridAxis For Carry Yield If Let   Ranges Interval Strided Listed Count Work Claims
    memory      Load Store ReduceAdd   AllocShared Slot CopyIn CopyOut CopyWait SharedLoad SharedStore Fence
    compute     Full Iota Map Reduce Scan Dot DotWait Cast SplitAxis JoinAxis Rename GatherAxis Pack Unpack Random
                TriInverse TopK
    partitions  Partitions Partition AllocBar Bar BarExpect BarWait BarArrive Convert
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attncc.expr.build import TRUE
from attncc.expr.nodes import Expr, Sort
from attncc.tile.ranges import Claims as Claims
from attncc.tile.ranges import Count as Count
from attncc.tile.ranges import Interval as Interval
from attncc.tile.ranges import Listed as Listed
from attncc.tile.ranges import Piece as Piece
from attncc.tile.ranges import Ranges as Ranges
from attncc.tile.ranges import Strided as Strided
from attncc.tile.ranges import Work as Work

Dtype = Literal["f64", "f32", "f16", "bf16", "i64", "i32", "u8", "bool"]
Role = Literal["tile", "batch", "split", "persistent"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A named axis of a value and its static extent."""

    name: str
    extent: int


@dataclass(frozen=True, slots=True)
class Type:
    """A value's axes, in register order, and its element type. No axes: a scalar."""

    axes: tuple[Axis, ...]
    dtype: Dtype

    def names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.axes)


# --- memory references ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in global memory as a program sees it.

    `extents` are host expressions of the program's sizes. Strides are run-time arguments where `strided`; else the
    tensor is contiguous in the order of its axes. `unit` promises that the last stride is 1, `aligned` that the base
    and all other strides are multiples of 16 bytes, `near` that the strides of axes that tiles walk are at most 2**22
    elements: all are declared variants, checked at launch.
    """

    name: str
    axes: tuple[str, ...]
    extents: tuple[Expr, ...]
    dtype: Dtype
    strided: bool = False
    unit: bool = True
    aligned: bool = True
    near: bool = True


@dataclass(frozen=True, slots=True)
class Slot:
    """One buffer of a shared allocation: `name`[`index`], or a part of it along one axis (start, extent).

    Its named axes may be read in any order: a permuted operand is the same Slot.
    """

    name: str
    index: Expr
    part: tuple[str, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """One barrier of an allocation."""

    name: str
    index: Expr


# --- operations: the right side of a Let ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Full:
    """Every element is the scalar `value`."""

    value: Expr


@dataclass(frozen=True, slots=True)
class Iota:
    """base + 0, 1, 2 ... along the one axis of its type."""

    base: Expr


@dataclass(frozen=True, slots=True)
class Map:
    """`body` at every element; operands are the Vars of `body`, broadcast by axis name. Scalars too."""

    body: Expr
    spared: bool = False
    """A product with factors by row, most of which are 1: threads that have no others may leave it out."""


@dataclass(frozen=True, slots=True)
class Load:
    """Elements of a tensor, one index expression per tensor axis; `other` where `guard` is false.

    In `bulk` the hardware reads a box by itself: its last axes are positions one after another, in the tensor's own
    order, and `guard` holds just where they lie in the tensor.
    """

    tensor: str
    index: tuple[Expr, ...]
    guard: Expr = TRUE
    other: float | int | bool = 0
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class Reduce:
    """One axis of `value` is gone: its elements combined by `op`."""

    op: Literal["sum", "max", "min", "any", "all"]
    value: str
    axis: str


@dataclass(frozen=True, slots=True)
class Scan:
    """Running sums, maxima or products of `value` along an axis, from its end where `reverse`."""

    op: Literal["sum", "max", "mul"]
    value: str
    axis: str
    reverse: bool = False
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """acc + sum over `axis` of a * b; the type's axes say which operand's axis is the row of the result.

    `start` is an accumulator value (any axes of the result's, broadcast). Operands are values or shared slots.
    `precision` is of f32 operands. An asynchronous result must pass through DotWait before it is read.
    """

    a: str | Slot
    b: str | Slot
    axis: str
    start: str | None = None
    precision: Literal["ieee", "tf32"] = "ieee"
    asynchronous: bool = False


@dataclass(frozen=True, slots=True)
class DotWait:
    """`value` once at most `pending` later asynchronous dots of this partition are unfinished.

    `after` names values that are computed before the wait: without it a compiler may move their work behind it.
    """

    value: str
    pending: int
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cast:
    """`value` in the dtype of what it is assigned to."""

    value: str
    rounding: Literal["nearest", "down", "stochastic"] = "nearest"


@dataclass(frozen=True, slots=True)
class SharedLoad:
    """The contents of a slot of shared memory."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class SplitAxis:
    """One axis becomes two, outer * inner."""

    value: str
    axis: str
    outer: Axis
    inner: Axis


@dataclass(frozen=True, slots=True)
class JoinAxis:
    """Two neighbouring axes become one."""

    value: str
    outer: str
    inner: str
    axis: Axis


@dataclass(frozen=True, slots=True)
class Rename:
    """The same elements; the axes are named as in its type, one by one. How a value meets itself in a Dot."""

    value: str


@dataclass(frozen=True, slots=True)
class GatherAxis:
    """value[index] along `axis`; `index` names an integer value."""

    value: str
    index: str
    axis: str


@dataclass(frozen=True, slots=True)
class Pack:
    """Neighbours along `axis` packed into one integer each, `bits` bits an element."""

    value: str
    bits: int
    axis: str


@dataclass(frozen=True, slots=True)
class Unpack:
    """The inverse of Pack: one integer gives its elements along `axis`."""

    value: str
    bits: int
    axis: str


@dataclass(frozen=True, slots=True)
class Random:
    """Uniform in [0, 1) from a counter: Philox of (seed, counter)."""

    seed: str
    counter: Expr


@dataclass(frozen=True, slots=True)
class TriInverse:
    """(I + L)^-1 of a strictly lower triangular square value over (row, column)."""

    value: str
    row: str
    column: str


@dataclass(frozen=True, slots=True)
class TopK:
    """Positions of the `count` largest along `axis`, ties to the smaller position."""

    value: str
    axis: str
    count: int


@dataclass(frozen=True, slots=True)
class Convert:
    """The same value in the register layout `layout` names; no arithmetic."""

    value: str
    layout: str


Op = (
    Full | Iota | Map | Load | Reduce | Scan | Dot | DotWait | Cast | SharedLoad | SplitAxis | JoinAxis | Rename
    | GatherAxis | Pack | Unpack | Random | TriInverse | TopK | Convert
)  # fmt: skip


# --- statements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Let:
    """`name`: `type` = `op`. `note` becomes a comment: the line of the spec it comes from, or its role."""

    name: str
    type: Type
    op: Op
    note: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """One index expression per tensor axis; elements where `guard` is false stay."""

    tensor: str
    index: tuple[Expr, ...]
    value: str
    guard: Expr = TRUE
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReduceAdd:
    """tensor[index] += value. owned: no other program adds there; atomic: any may (order not repeatable)."""

    tensor: str
    index: tuple[Expr, ...]
    value: str
    how: Literal["owned", "ordered", "partial", "atomic"]
    guard: Expr = TRUE
    note: str = ""


@dataclass(frozen=True, slots=True)
class Carry:
    """A value a loop updates: bound to `start` before, to the Yield's value after each turn, and readable after."""

    name: str
    type: Type
    start: str


@dataclass(frozen=True, slots=True)
class Yield:
    """The last statement of a For or If body: what the carried names become, in order."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class For:
    """A loop. Over Ranges, `index` is the first position of the tile (tile number times tile) and `axis` the axis it
    cuts; over a Count it is the number itself, over Work that of the turn. `stages` asks for software pipelining of
    the loads."""

    index: str
    over: Ranges | Count | Work
    carried: tuple[Carry, ...]
    body: tuple[Stmt, ...]
    axis: str = ""
    order: Literal["any", "asc", "desc"] = "any"
    stages: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True)
class If:
    """Both branches end in a Yield of the carried values. The condition is a scalar, uniform in the program."""

    condition: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...]
    carried: tuple[Carry, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class AllocShared:
    """`depth` buffers of `type` in shared memory."""

    name: str
    type: Type
    depth: int = 1


@dataclass(frozen=True, slots=True)
class AllocBar:
    """`depth` barriers that complete a phase after `count` arrivals."""

    name: str
    depth: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class SharedStore:
    """Writes `value` into a slot of shared memory."""

    slot: Slot
    value: str


@dataclass(frozen=True, slots=True)
class Fence:
    """Orders shared stores before later asynchronous reads of shared memory (dots, bulk copies)."""


@dataclass(frozen=True, slots=True)
class BarExpect:
    """One arrival at `bar` that also waits for `bytes` of bulk copies issued to it."""

    bar: Bar
    bytes: int


@dataclass(frozen=True, slots=True)
class BarWait:
    """Waits until the phase of the given parity has completed."""

    bar: Bar
    parity: Expr


@dataclass(frozen=True, slots=True)
class BarArrive:
    """`count` arrivals at `bar`, of as many warps."""

    bar: Bar
    count: int = 1


@dataclass(frozen=True, slots=True)
class CopyIn:
    """A bulk copy of a box of `tensor` to a slot: `index` is the box's corner, one scalar per tensor axis; the slot's
    axes are the trailing axes. Out of range reads 0. Signals `bar` when its bytes have landed."""

    slot: Slot
    tensor: str
    index: tuple[Expr, ...]
    bar: Bar


@dataclass(frozen=True, slots=True)
class CopyOut:
    """A bulk copy of a slot to a box of `tensor`, or an addition to it; out of range is dropped."""

    slot: Slot
    tensor: str
    index: tuple[Expr, ...]
    add: bool = False


@dataclass(frozen=True, slots=True)
class CopyWait:
    """Waits until at most `pending` of this partition's CopyOuts still read their slots; 0 before it reuses or ends."""

    pending: int


@dataclass(frozen=True, slots=True)
class Partition:
    """The code of some warps. `registers` is a thread's budget, 0 where it keeps its share."""

    name: str
    warps: int
    registers: int
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Partitions:
    """Warp-specialised code: all run at once, from here to the kernel's end; they share memory and barriers only."""

    parts: tuple[Partition, ...]


Stmt = (
    Let | Store | ReduceAdd | For | If | Yield | AllocShared | AllocBar | SharedStore | Fence | BarExpect | BarWait
    | BarArrive | CopyIn | CopyOut | CopyWait | Partitions
)  # fmt: skip


# --- kernels and programs -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GridAxis:
    """An axis of the launch grid.

    role "tile": the programs cut `extent` into tiles of `tile`; `name` is the first position of a program's tile and
    `axis` the value axis it cuts. role "batch": one program per element, `name` is its number. `descending` starts
    the last tile first (the heavy ones of a causal mask). The first axis varies fastest.
    """

    name: str
    extent: Expr
    role: Role
    tile: int = 1
    axis: str = ""
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Scalar:
    """A run-time argument: a size, a constant, or a host expression of them (`value`), reals passed as f32 (f64 for
    f64 programs)."""

    name: str
    sort: Sort
    value: Expr | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """What only speed depends on."""

    warps: int = 4
    stages: int = 2
    registers: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launchable kernel: the tensors and scalars it names are those of its program."""

    name: str
    grid: tuple[GridAxis, ...]
    tensors: tuple[str, ...]
    scalars: tuple[str, ...]
    body: tuple[Stmt, ...]
    config: Config = field(default_factory=Config)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Alloc:
    """A new tensor, filled with `fill` or left unwritten. Launches leave a `kept` one as they find it, for later calls.

    Contiguous, or, where `like` names a tensor with as many axes, laid out in that tensor's order of strides.
    """

    tensor: Tensor
    fill: float | None = None
    like: str = ""
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """Runs a kernel of the program over its grid."""

    kernel: str


@dataclass(frozen=True, slots=True)
class Gather:
    """out[vars] = source[index(vars)] on the host's library; vars run over out's extents, named by out's axes."""

    out: Tensor
    source: str
    index: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class ScatterAdd:
    """out[index(vars)] += source[vars], vars named by source's axes: the adjoint of Gather.

    `out` is a new tensor of zeros first, unless `add` says that it is there already.
    """

    out: Tensor
    source: str
    index: tuple[Expr, ...]
    add: bool = False


@dataclass(frozen=True, slots=True)
class SumAxes:
    """out = source summed over the named axes (of source), in out's dtype and axis order."""

    out: Tensor
    source: str
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FirstLast:
    """For ids[..., n]: the first and last position with the same id, or of the run of equal ids around n."""

    out: Tensor
    source: str
    kind: Literal["first", "last", "run_first", "run_last"]


Step = Alloc | Launch | Gather | ScatterAdd | SumAxes | FirstLast


@dataclass(frozen=True, slots=True)
class Program:
    """A host program: inputs in, steps in order, outputs out (tensor names). All else is scratch.

    Sizes are the Scalars without a value that inputs' extents define; constants are the others without a value.
    """

    name: str
    inputs: tuple[Tensor, ...]
    scalars: tuple[Scalar, ...]
    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    note: str = ""
