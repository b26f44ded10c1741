"""Self-contained source: a printed module with an autograd Function and one friendly function after it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attncc.runtime.assemble import SURE
from attncc.runtime.emit_arrivals import section
from attncc.runtime.family import Family, orders
from attncc.runtime.interface import Number
from attncc.runtime.kernels import compile_all
from attncc.runtime.printing import programs
from attncc.runtime.text import execute
from attncc.schedule.variant import Variant
from attncc.tile.dialect import any_partitioned

if TYPE_CHECKING:
    from attncc.tile.nodes import Program


def emit_python(family: Family, variant: Variant, constants: Mapping[str, Number]) -> str:
    """The text of a module that needs torch (and Triton, where that is the target) and nothing of attncc."""
    pair, variant = programs(family, variant)
    parts = [_spec_comment(family.text), family.source(pair, variant).rstrip("\n")]
    tail = _Tail(family, variant, constants, pair.forward, pair.backward)
    if variant.target != "torch":
        parts.append(ASSEMBLER)
    if any_partitioned(pair.forward, pair.backward):
        parts.append(section())
    parts += (
        [tail.helpers(), tail.function(), tail.attention()] if pair.backward else [tail.helpers(), tail.attention()]
    )
    return "\n\n\n".join(p for p in parts if p) + "\n"


def emit_ptx(family: Family, variant: Variant, capability: int) -> dict[str, str]:
    """The PTX of every kernel by name; needs Triton and no GPU."""
    pair, variant = programs(family, variant)
    functions = execute(family.source(pair, variant), f"{family.face.name} ptx")
    wanted = [o for p in (pair.forward, pair.backward) if p is not None for o in orders(p)]
    return {b.name: b.ptx for b in compile_all(functions, wanted, capability)}


def _spec_comment(text: str) -> str:
    """The spec as a comment: what the module computes."""
    return "\n".join(f"# {line}".rstrip() for line in text.rstrip("\n").splitlines())


def _identifier(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) else name


ASSEMBLER = f"""\
# Assemblers before CUDA {SURE[0]}.{SURE[1]} may mistake where products on Hopper's tensor cores find their operands.
if tuple(map(int, triton.knobs.nvidia.ptxas.version.split("."))) < {SURE}:
    triton.knobs.nvidia.ptxas = triton.knobs.nvidia.ptxas_blackwell.path"""

ALIGNED = '''\
def _unit(x):
    """x, copied where bulk copies could not take its base or its strides."""
    rows = [s * x.element_size() % 16 for n, s in zip(x.shape[:-1], x.stride()) if n > 1]
    if x.dim() == 0 or (x.stride(-1) == 1 and not any(rows) and x.data_ptr() % 16 == 0):
        return x
    return x.clone(memory_format=torch.contiguous_format)'''


class _Tail:
    """What comes after the printed module."""

    def __init__(
        self,
        family: Family,
        variant: Variant,
        constants: Mapping[str, Number],
        forward: Program,
        backward: Program | None,
    ) -> None:
        self.family, self.variant, self.constants = family, variant, constants
        self.forward, self.backward = forward, backward
        self.face = family.face
        self.lse = "lse" in forward.outputs
        words = re.findall("[A-Za-z0-9]+", self.face.name)
        self.title = "".join(w[:1].upper() + w[1:] for w in words) or "Spec"
        self.inputs = [_identifier(n) for n in self.face.inputs]
        self.named = {_identifier(n): v for n, v in constants.items()}

    def helpers(self) -> str:
        """What brings a tensor into the layout the kernels were printed for."""
        if self.variant.target == "torch":
            return ""
        if any_partitioned(self.forward, self.backward):
            return ALIGNED
        return (
            "def _unit(x):\n"
            '    """x, copied where its last stride is not 1, as the kernels promise."""\n'
            "    return x if x.dim() == 0 or x.stride(-1) == 1 else x.contiguous()"
        )

    def call(self, program: Program, name: str) -> str:
        """A call of a host function with variables of the inputs' names."""
        used = _constants(program)
        args = [_identifier(t.name) for t in program.inputs]
        args += [f"{_identifier(c)}={_identifier(c)}" for c in used]
        return f"{name}({', '.join(args)})"

    def guard(self) -> str:
        """The line that makes the tensors' device the current one."""
        return "with torch.cuda.device_of(q):" if self.variant.target != "torch" else ""

    def function(self) -> str:
        """The autograd Function."""
        assert self.backward is not None
        lists = [*self.inputs, *self.named]
        outputs = ", ".join(self.forward.outputs) + ("," if len(self.forward.outputs) == 1 else "")
        saved = ", ".join([*self.inputs, *self.forward.outputs])
        forward = self._guarded([f"{outputs} = {self.call(self.forward, 'forward')}"])
        body = [
            f"class {self.title}Function(torch.autograd.Function):",
            f'    """Forward and backward of attention {self.face.name}."""',
            "",
            "    @staticmethod",
            f"    def forward(ctx, {', '.join(lists)}):",
            *(f"        {line}" for line in forward),
            f"        ctx.save_for_backward({saved})",
            *([f"        ctx.constants = ({', '.join(self.named)},)"] if self.named else []),
            "        ctx.set_materialize_grads(False)",
            *self._marks(),
            f"        return {', '.join(self.forward.outputs)}",
            "",
            "    @staticmethod",
            "    @torch.autograd.function.once_differentiable",
            f"    def backward(ctx, d_out{', d_lse' if self.lse else ''}):",
            f"        {saved} = ctx.saved_tensors",
            *([f"        ({', '.join(self.named)},) = ctx.constants"] if self.named else []),
            *(f"        {line}" for line in self._backward()),
        ]
        return "\n".join(body)

    def _marks(self) -> list[str]:
        if self.lse and not self.variant.lse_gradient:
            return ["        ctx.mark_non_differentiable(lse)"]
        return []

    def _backward(self) -> list[str]:
        assert self.backward is not None
        lines = ["d_out = torch.zeros_like(out) if d_out is None else d_out"]
        if self.variant.target != "torch":
            lines = ["d_out = torch.zeros_like(out) if d_out is None else _unit(d_out)"]
        if self.variant.lse_gradient:
            lines.append("d_lse = torch.zeros_like(lse) if d_lse is None else d_lse.contiguous()")
        outputs = [_identifier(n) for n in self.backward.outputs]
        comma = "," if len(outputs) == 1 else ""
        lines += self._guarded([f"{', '.join(outputs)}{comma} = {self.call(self.backward, 'backward')}"])
        names = [n for n in self.face.inputs]
        wanted = set(self.variant.gradients)
        grads = [f"d_{n}" if n in wanted else "None" for n in names] + ["None"] * len(self.named)
        return [*lines, f"return {', '.join(grads)}"]

    def _guarded(self, lines: list[str]) -> list[str]:
        guard = self.guard()
        return [guard, *(f"    {line}" for line in lines)] if guard else lines

    def attention(self) -> str:
        """The function a user calls."""
        v = self.variant
        captured = self.inputs[3:]
        keywords = [*captured, *(f"{n}={value!r}" for n, value in self.named.items())]
        keywords += ["return_lse=False"] if self.lse else []
        star = [", *", *(f", {k}" for k in keywords)] if keywords else []
        listed = "".join(f"\n    {p.name}: {p}, {dict(v.captured)[p.name]}." for p in self.face.params)
        kind = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}[v.dtype]
        lines = [
            f"def attention(q, k, v{''.join(star)}):",
            f'    """attention {self.face.name}: q [B, H, M, {v.D}], k [B, G, N, {v.D}], v [B, G, N, {v.E}] -> out '
            f"[B, H, M, {v.E}]; G divides H.",
            f"\n    All of {kind}.{listed}",
            *(["    With return_lse the tuple (out, lse), lse [B, H, M]."] if self.lse else []),
            '    """',
            f"    if q.shape[-1] != {v.D} or k.shape[-1] != {v.D} or v.shape[-1] != {v.E}:",
            f'        raise ValueError("this module is for D = {v.D} and E = {v.E}")',
            f"    if not q.dtype == k.dtype == v.dtype == torch.{kind}:",
            f'        raise TypeError("this module is for torch.{kind}")',
        ]
        if v.target != "torch":
            tensors = ", ".join(self.inputs)
            lines.append(f"    {tensors} = (_unit(x) for x in ({tensors}))")
        arguments = ", ".join([*self.inputs, *self.named])
        if self.backward is not None:
            lines.append(f"    outputs = {self.title}Function.apply({arguments})")
        else:
            lines += [f"    {line}" for line in self._guarded([f"outputs = {self.call(self.forward, 'forward')}"])]
        lines.append(self._return())
        return "\n".join(lines)

    def _return(self) -> str:
        if self.lse:
            return "    return outputs if return_lse else outputs[0]"
        return "    return outputs" if self.backward is not None else "    return outputs[0]"


def _constants(program: Program) -> list[str]:
    import importlib

    signature: Any = importlib.import_module("attncc.codegen.signature")
    return [s.name for s in signature.constants(program)]
