"""`attncc emit`: write self-contained source."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attncc.cli_common import constants, echo_json, guarded, integers, json_option, require_spec
from attncc.cli_run import DTYPES

if TYPE_CHECKING:
    from attncc.runtime.attention import Attention
    from attncc.schedule.variant import Variant

TARGETS = ("triton", "gluon", "torch", "ptx")


@click.command()
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT.py", help="Where to; `-` is standard output.")
@click.option("--target", "targets", default="triton", metavar="triton,gluon,torch,ptx", help="One or several.")
@click.option("--arch", default="sm_90", metavar="sm_90", help="Of PTX.")
@click.option("--dims", default="D=64", metavar="D=64,E=64", help="Head dimensions; E is D where not given.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Of q, k, v: bfloat16 on a GPU, float32 for torch.")
@click.option("--const", "given", multiple=True, metavar="NAME=VALUE", help="Change a constant's default.")
@click.option("--forward-only", is_flag=True, help="Leave the backward out.")
@click.option("--lse-gradient", is_flag=True, help="Let gradients flow through lse, too.")
@json_option
@guarded
def emit(
    file: str,
    output: str,
    targets: str,
    arch: str,
    dims: str,
    dtype: str,
    given: tuple[str, ...],
    forward_only: bool,
    lse_gradient: bool,
    as_json: bool,
) -> None:
    """Write FILE's kernels, host functions, autograd Function and an `attention(...)` that need no attncc.

    With several targets, and for PTX, which is a file a kernel, names are added to the output's: OUT_torch.py.
    """
    wanted = [t.strip() for t in targets.split(",") if t.strip()]
    for target in wanted:
        if target not in TARGETS:
            raise click.BadParameter(f"there is no target {target!r}; known: {', '.join(TARGETS)}")
    if not wanted:
        raise click.BadParameter("no target is given")
    sizes, capability, values = integers(dims, ("D", "E")), _capability(arch), constants(given)
    if "D" not in sizes:
        raise click.BadParameter("--dims needs D")
    require_spec(file)
    from attncc.runtime.attention import compile_spec

    attention = compile_spec(file, backend="torch", deterministic=False, constants=values)
    texts: dict[str, str] = {}
    for target in wanted:
        variant = _variant(attention, target, dtype, sizes, forward_only, lse_gradient)
        texts |= _texts(attention, variant, target, capability, output, len(wanted) > 1)
    for name, text in texts.items():
        if output == "-":
            click.echo(text, nl=False)
        else:
            _write(Path(name), text)
    if as_json and output != "-":
        echo_json({"ok": True, "files": list(texts)})
    elif output != "-":
        for name in texts:
            click.echo(name)


def _capability(arch: str) -> int:
    found = re.fullmatch(r"sm_?(\d{2,3})a?", arch)
    if not found:
        raise click.BadParameter(f"{arch!r} is no architecture; sm_80 and sm_90 are")
    return int(found[1])


def _variant(
    attention: Attention, target: str, dtype: str, sizes: dict[str, int], forward_only: bool, lse_gradient: bool
) -> Variant:
    from attncc.runtime.printing import usual_variant

    short: dict[str, Any] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
    kind = short[DTYPES[dtype]] if dtype else None
    printed: Any = target if target in ("torch", "gluon") else "triton"
    variant = usual_variant(attention._family.face, printed, kind, sizes["D"], sizes.get("E", sizes["D"]))
    if forward_only:
        return dataclasses.replace(variant, gradients=())
    return dataclasses.replace(variant, lse_gradient=lse_gradient and attention._family.face.lse)


def _texts(
    attention: Attention, variant: Variant, target: str, capability: int, output: str, several: bool
) -> dict[str, str]:
    from attncc.runtime.emit import emit_ptx, emit_python

    path = Path(output)
    if target == "ptx":
        made = emit_ptx(attention._family, variant, capability)
        return {str(path.with_name(f"{path.stem}_{name}.ptx")): text for name, text in made.items()}
    name = path.with_name(f"{path.stem}_{target}{path.suffix}") if several else path
    return {str(name): emit_python(attention._family, variant, attention.constants)}


def _write(path: Path, text: str) -> None:
    """The whole file or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise click.BadParameter(f"{path} can't be written: {error.strerror}") from None
    with os.fdopen(handle, "w") as f:
        f.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)
