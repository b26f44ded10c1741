"""`attncc tune`: look for faster tiles of one spec on this machine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from attncc.cli_common import constants, echo_json, guarded, integers, json_option, pairs, require_spec
from attncc.cli_run import DTYPES, SIZES, _device

if TYPE_CHECKING:
    from attncc.runtime.bench.case import Case
    from attncc.runtime.bench.tune import Found, Tried


@click.command()
@click.argument("file")
@click.option("--shape", required=True, metavar="B=2,H=16,N=8192,D=128", help="Sizes to time at.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="float32 on the CPU, bfloat16 on a GPU.")
@click.option("--backend", default="auto", help="auto, triton, gluon or torch.")
@click.option("--device", default="", help="cpu, cuda or cuda:1; a GPU where there is one.")
@click.option("--const", "given", multiple=True, metavar="NAME=VALUE", help="Set a constant of the header.")
@click.option("--fill", "fills", multiple=True, metavar="TENSOR=HOW", help="steps:1024, halves, normal:0.3 or all:1.")
@click.option("--forward", "which", flag_value="forward", help="Tune the forward alone.")
@click.option("--backward", "which", flag_value="backward", help="Tune the backward alone.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Of the finalists.")
@click.option("--milliseconds", default=20.0, type=click.FloatRange(0.0), help="Of calls that are timed in a round.")
@click.option("--limit", default=1000, type=click.IntRange(1), help="Most candidates for each kernel.")
@json_option
@guarded
def tune(file: str, as_json: bool, **options: Any) -> None:
    """Try other tiles for FILE's kernels and keep the fastest on disk, for `compile(FILE, tiles="tuned")`.

    Candidates are compiled side by side. One may only win if its results agree with the dense reference at a small
    shape and with the default tiles' at the given one, and if it is faster in rounds that take turns.
    """
    require_spec(file)
    from attncc.runtime.bench.tune import Search
    from attncc.runtime.bench.tune import tune as search

    which: tuple[Any, ...] = ("forward", "backward") if options["which"] is None else (options["which"],)
    wanted = Search(options["backend"], which, options["rounds"], options["milliseconds"], options["limit"])
    case, short = _cases(file, options)
    found = search(case, short, wanted, (lambda _: None) if as_json else _say)
    if as_json:
        tried = [dataclasses.asdict(t) for t in found.tried]
        echo_json({"ok": True, "tiles": found.tiles, "gains": dict(found.gains), "tried": tried})
    else:
        _end(found)


def _cases(file: str, options: dict[str, Any]) -> tuple[Case, Case]:
    """At the given shape, and at one that the reference can run: few positions, no multiple of any tile."""
    import torch

    from attncc.driver import load
    from attncc.runtime.bench.case import build
    from attncc.runtime.checks import check_constants
    from attncc.runtime.interface import interface_of
    from attncc.runtime.warmup import full_sizes

    sizes = full_sizes(integers(options["shape"], SIZES))
    few = {**sizes, "B": min(sizes["B"], 2), "M": min(sizes["M"], 300), "N": min(sizes["N"], 300)}
    where = _device(options["device"], options["backend"])
    usual = torch.float32 if where.type == "cpu" else torch.bfloat16
    kind = getattr(torch, DTYPES[options["dtype"]]) if options["dtype"] else usual
    spec = load(file)[0]
    values = check_constants(interface_of(spec), constants(options["given"]))
    common: dict[str, Any] = {"dtype": kind, "device": where, "backward": options["which"] != "forward"}
    common["fills"] = {n: how for f in options["fills"] for n, how in pairs(f).items()}
    try:
        return tuple(build(spec.name, file, spec, values, s, **common) for s in (sizes, few))  # type: ignore[return-value]
    except (KeyError, ValueError) as e:
        raise click.BadParameter(f"a captured tensor can't be filled so: {e}") from None


def _say(tried: Tried) -> None:
    ms = "" if tried.ms is None else f"{tried.ms:.4g} ms"
    click.echo(
        f"{tried.kernel:<20} {tried.status:<8} {ms:>10}  {tried.tiles}{f'  ({tried.note})' if tried.note else ''}"
    )


def _end(found: Found) -> None:
    for kernel, gain in found.gains.items():
        click.echo(f"{kernel}: {gain:.2f} times as fast as the default")
    if found.tiles:
        click.echo(f'kept for tiles="tuned": {found.tiles}')
    else:
        click.echo("the default tiles are the fastest of those that were tried")
