"""`attncc run`: compile a spec, run it on this machine, compare it with the dense reference."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import click

from attncc.cli_common import constants, echo_json, guarded, integers, json_option, require_spec

if TYPE_CHECKING:
    from attncc.runtime.attention import Attention
    from attncc.runtime.trial import Trial

SIZES = ("B", "H", "G", "M", "N", "D", "E")
DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "float64": "float64"}
DTYPES |= {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


@click.command()
@click.argument("file")
@click.option("--shape", required=True, metavar="B=1,H=8,N=1024,D=64", help="Sizes; G is H, M is N, E is D, B is 1.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Of q, k, v: float32 on the CPU, bfloat16 on a GPU.")
@click.option("--backend", type=click.Choice(["auto", "gluon", "triton", "torch", "interpret"]), default="auto")
@click.option("--device", default="", help="cpu, cuda or cuda:1; a GPU where there is one.")
@click.option("--const", "given", multiple=True, metavar="NAME=VALUE", help="Set a constant of the header.")
@click.option("--seed", default=0, help="Of the made-up tensors.")
@json_option
@guarded
def run(
    file: str, shape: str, dtype: str, backend: str, device: str, given: tuple[str, ...], seed: int, as_json: bool
) -> None:
    """Compile FILE, run forward and backward, compare with the reference; say how far and how fast.

    Captured tensors are made up by their declared axes and bounds.
    """
    sizes, values = integers(shape, SIZES), constants(given)
    require_spec(file)
    import torch

    from attncc.runtime.attention import compile_spec
    from attncc.runtime.inputs import made_up
    from attncc.runtime.trial import attempt
    from attncc.runtime.warmup import full_sizes

    where = _device(device, backend)
    kind = getattr(torch, DTYPES[dtype]) if dtype else torch.float32 if where.type == "cpu" else torch.bfloat16
    full = full_sizes(sizes)
    attention = compile_spec(file, backend=backend, deterministic=False, constants=values)
    tensors = made_up(attention._family.spec, attention.constants, full, dtype=kind, device=where, seed=seed)
    trial = attempt(attention, tensors)
    if as_json:
        echo_json(_data(attention, full, str(kind), str(where), trial))
    else:
        _show(attention, full, str(kind), str(where), trial)
    sys.exit(0 if trial.good else 1)


def _device(named: str, backend: str) -> Any:
    import torch

    if not named:
        gpu = torch.cuda.is_available() and backend not in ("interpret",)
        return torch.device("cuda", 0) if gpu else torch.device("cpu")
    try:
        device = torch.device(named)
    except RuntimeError:
        raise click.BadParameter(f"{named!r} is no device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch sees no GPU here")
    return device


def _data(attention: Attention, sizes: dict[str, int], dtype: str, device: str, trial: Trial) -> dict[str, Any]:
    errors = None
    if trial.errors is not None:
        errors = {n: e if math.isfinite(e) else None for n, e in trial.errors.items()}
    return {
        "ok": trial.good,
        "spec": attention.name,
        "constants": dict(attention.constants),
        "sizes": sizes,
        "dtype": dtype.removeprefix("torch."),
        "device": device,
        "errors": errors,
        "bars": trial.bars,
        "seconds": {"first": trial.first, "forward": trial.forward, "backward": trial.backward},
        "notes": trial.notes,
    }


def _show(attention: Attention, sizes: dict[str, int], dtype: str, device: str, trial: Trial) -> None:
    shape = " ".join(f"{n}={s}" for n, s in sizes.items())
    target = attention.variants[0].target if attention.variants else ""
    click.echo(f"{attention.name}: {shape}, {dtype.removeprefix('torch.')} on {device}, {target}")
    for name, value in attention.constants.items():
        click.echo(f"  constant {name} = {value!r}")
    for name, error in (trial.errors or {}).items():
        bar = trial.bars[name]
        click.echo(f"  {name:<12} error {error:.1e}   at most {bar:.0e}   {'ok' if error <= bar else 'WRONG'}")
    for note in trial.notes:
        click.echo(f"  {note}")
    click.echo(f"  first call   {_time(trial.first)}, compilation included")
    click.echo(f"  forward      {_time(trial.forward)}")
    click.echo(f"  backward     {_time(trial.backward)}")


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
