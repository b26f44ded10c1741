"""Mistakes in a call: its tensors, their shapes, and the options asked for."""

from __future__ import annotations

from typing import ClassVar

from attncc.errors import BackendError, CallError


class MissingTensor(CallError):
    """A tensor the spec captures was not given.

    Broken: `attn(q, k, v)` for `attention slopes(slope: real[h])`.
    Mended: `attn(q, k, v, slope=slope)`.
    """

    code: ClassVar[str] = "E501"


class UnknownTensor(CallError):
    """A tensor or constant was given that the spec does not declare.

    Broken: `attn(q, k, v, slopes=slope)` for `attention slopes(slope: real[h])`.
    Mended: `attn(q, k, v, slope=slope)`.
    """

    code: ClassVar[str] = "E502"


class WrongRank(CallError):
    """A tensor has more or fewer axes than the spec gives it.

    Broken: `attn(q[0], k, v)`, where q[0] is [H, M, D].
    Mended: `attn(q[:1], k, v)`; q is [B, H, M, D].
    """

    code: ClassVar[str] = "E503"


class WrongSize(CallError):
    """An axis of a tensor does not have the size the other tensors fix.

    Broken: `attn(q, k, v, slope=torch.ones(4))` where q has 8 heads.
    Mended: `attn(q, k, v, slope=torch.ones(8))`.
    """

    code: ClassVar[str] = "E504"


class WrongGroups(CallError):
    """The number of key heads does not divide the number of query heads.

    Broken: q with 8 heads, k and v with 3.
    Mended: k and v with 1, 2, 4 or 8 heads.
    """

    code: ClassVar[str] = "E505"


class WrongKind(CallError):
    """A tensor holds numbers of another kind than the spec declares.

    Broken: `attn(q, k, v, doc=torch.zeros(2, 64))` for `doc: int[b, n]`.
    Mended: `attn(q, k, v, doc=torch.zeros(2, 64, dtype=torch.int32))`.
    """

    code: ClassVar[str] = "E506"


class OutOfRange(CallError):
    """A captured tensor is read outside its extent at a pair that the mask allows.

    Broken: `score = q @ k + table[i - j, h]` without a mask, `table: real[128, h]`, called with 1000 keys.
    Mended: `mask = j <= i and i - j < 128`.
    """

    code: ClassVar[str] = "E507"


class NoSingleLse(CallError):
    """`return_lse=True` was asked of a spec in which no single normaliser has a log-sum-exp.

    Broken: `attn(q, k, v, return_lse=True)` for `out = sigmoid(q @ k) @ v`.
    Mended: `attn(q, k, v)`; only one `softmax` or `ratio` over the keys has an lse.
    """

    code: ClassVar[str] = "E508"


class RandomWeights(CallError):
    """The dense reference draws no random numbers, so it has no dropout.

    Broken: the reference of `dropout(softmax(score), p) @ v` with p = 0.1.
    Mended: the same with the constant p = 0.
    """

    code: ClassVar[str] = "E509"


class WrongDevice(CallError):
    """The tensors of one call live on different devices, or on one that the backend does not serve.

    Broken: `attn(q.cuda(), k.cuda(), v)` with v on the CPU.
    Mended: `attn(q.cuda(), k.cuda(), v.cuda())`.
    """

    code: ClassVar[str] = "E510"


class MixedDtypes(CallError):
    """q, k and v hold numbers of different types.

    Broken: `attn(q, k, v.float())` with q and k in bfloat16.
    Mended: `attn(q, k, v)`, all in bfloat16.
    """

    code: ClassVar[str] = "E511"


class UnknownConstant(CallError):
    """A constant was set that the header of the spec does not declare.

    Broken: `attncc.compile("window.attn", windw=512)`.
    Mended: `attncc.compile("window.attn", window=512)`.
    """

    code: ClassVar[str] = "E512"


class WrongConstant(CallError):
    """A constant was set to a value of another sort than its default has.

    Broken: `attncc.compile("window.attn", window=0.5)` for `attention window(window = 1024)`.
    Mended: `attncc.compile("window.attn", window=512)`.
    """

    code: ClassVar[str] = "E513"


class NotATensor(CallError):
    """Something other than a torch tensor was given where a tensor belongs.

    Broken: `attn(q, k, v, temperature=0.5)` for `temperature: real`.
    Mended: `attn(q, k, v, temperature=torch.tensor(0.5))`.
    """

    code: ClassVar[str] = "E514"


class NoStates(CallError):
    """A state was given to, or asked of, a spec that has none; or `step` was called without every state.

    Broken: `attn(q, k, v, return_state=True)` for `out = softmax(q @ k) @ v`.
    Mended: `attn(q, k, v)`; only a spec with `state` lines has states.
    """

    code: ClassVar[str] = "E515"


class WrongForm(CallError):
    """`form=` names no form of a state program.

    Broken: `attncc.compile("decay.attn", form="chunks")`.
    Mended: `attncc.compile("decay.attn", form="chunk")`; the others are recurrent and auto.
    """

    code: ClassVar[str] = "E516"


class UnknownBackend(BackendError):
    """There is no backend of that name.

    Broken: `attncc.compile("causal.attn", backend="cuda")`.
    Mended: `attncc.compile("causal.attn", backend="triton")`; the others are auto, gluon, torch and interpret.
    """

    code: ClassVar[str] = "E601"


class InterpreterTooLate(BackendError):
    """Triton's interpreter was asked for after Triton had been imported without it.

    Broken: `import triton`, then `attncc.compile("causal.attn", backend="interpret")`.
    Mended: set the environment variable TRITON_INTERPRET=1 before Python starts.
    """

    code: ClassVar[str] = "E602"


class UnsupportedDtype(BackendError):
    """The backend does not compute in this type of numbers.

    Broken: `attn(q.double(), k.double(), v.double())` on CUDA tensors.
    Mended: float32, float16 or bfloat16 there, or `backend="torch"`.
    """

    code: ClassVar[str] = "E603"


class NotDeterministic(BackendError):
    """`deterministic=True` was asked of a spec whose backward adds up in an order that is not repeatable.

    Broken: `deterministic=True` with `table[min(i - j, 31), h]`: many pairs add to one number, as they come.
    Mended: without it; or `bias[h, j]`, `bias[h, i, j]`, `slope[h] * (j - i)`, whose gradients have an order.
    """

    code: ClassVar[str] = "E604"


class KernelFailed(BackendError):
    """A kernel could not be compiled for this device, or the device refused it.

    Broken: a kernel that needs more shared memory than the device has.
    Mended: smaller head dimensions, or `backend="torch"`; please report it, with the message.
    """

    code: ClassVar[str] = "E605"


class NoTriton(BackendError):
    """The backend needs Triton, which is not installed.

    Broken: `attncc.compile("causal.attn", backend="triton")` without Triton.
    Mended: install triton, or `backend="torch"`.
    """

    code: ClassVar[str] = "E606"


class UnfitKernel(KernelFailed):
    """A partitioned kernel was compiled and is not worth running: it spills registers, or its products are serialised.

    Broken: `attncc.compile("wide.attn", backend="gluon")` for a score that keeps too many tiles in registers at once.
    Mended: `attncc.compile("wide.attn")`, which takes the plain kernel there; `explain()` says so.
    """

    code: ClassVar[str] = "E607"


class NotPartitioned(BackendError):
    """`backend="gluon"` was asked for where a kernel can't be partitioned: the message says why.

    Broken: `attncc.compile("causal.attn", backend="gluon")` called with float32 tensors, or on a GPU before Hopper.
    Mended: `attncc.compile("causal.attn")`, which partitions what it can and runs all else as plain Triton.
    """

    code: ClassVar[str] = "E608"


class WrongTiles(BackendError):
    """`tiles=` changes something that no plan of a kernel has.

    Broken: `attncc.compile("causal.attn", tiles="plain.forward.columns=64")`.
    Mended: `attncc.compile("causal.attn", tiles="plain.forward.keys=64")`, or `tiles="tuned"` for what `attncc tune`
    found.
    """

    code: ClassVar[str] = "E609"
