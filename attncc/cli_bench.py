"""`attncc bench`: compiled specs beside the libraries that are installed."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attncc.cli_common import constants, echo_json, guarded, integers, pairs, require_spec
from attncc.cli_run import DTYPES, SIZES, _device

if TYPE_CHECKING:
    from concurrent.futures import Future

    from attncc.runtime.bench.case import Case
    from attncc.runtime.bench.measure import Plan
    from attncc.runtime.bench.report import Measured
    from attncc.runtime.bench.rows import Kind
    from attncc.runtime.bench.suite import Row


@click.command()
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option(
    "--suite", default="", metavar="NAME|TOML", help="Rows as data: `softmax`, `tiles`, `recurrent`, or a file."
)
@click.option("--only", default="", metavar="PATTERN,...", help="Rows whose label holds one, and none after a -.")
@click.option("--shape", "shapes", multiple=True, metavar="B=2,H=16,N=8192,D=128", help="Of FILEs; may be repeated.")
@click.option("--vs", "against", default="", metavar="NAME,...", help="Peers; all that are installed if left out.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="float32 on the CPU, bfloat16 on a GPU.")
@click.option("--backend", "backends", default="auto", metavar="NAME,...", help="attncc's backends, each timed.")
@click.option("--tiles", multiple=True, metavar="TEXT", help="Also time attncc with other tiles; `tuned`, or changes.")
@click.option("--device", default="", help="cpu, cuda or cuda:1; a GPU where there is one.")
@click.option("--const", "given", multiple=True, metavar="NAME=VALUE", help="Set a constant of the header.")
@click.option(
    "--fill",
    "fills",
    multiple=True,
    metavar="TENSOR=HOW",
    help="steps:1024, halves, normal:0.3, all:1, gate:16 ...",
)
@click.option("--forward", "which", flag_value="forward", help="Time the forward alone, without gradients.")
@click.option("--backward", "which", flag_value="backward", help="Time the backward alone.")
@click.option("--both", "which", flag_value="both", default=True, help="Time both (the default).")
@click.option("--gradients", is_flag=True, help="Also time attncc with gradients of captured tensors.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="In each, everyone is timed once.")
@click.option("--milliseconds", default=20.0, type=click.FloatRange(0.0), help="Of calls that are timed in a round.")
@click.option("--seed", default=0, help="Of the made-up tensors.")
@click.option(
    "--json",
    "as_json",
    is_flag=False,
    flag_value="-",
    default="",
    metavar="[OUT]",
    help="All figures as JSON, printed or written.",
)
@click.option("--markdown", type=click.Path(dir_okay=False), help="Write a table in Markdown.")
@click.option("--chart", type=click.Path(dir_okay=False), help="Write a bar chart (needs matplotlib).")
@guarded
def bench(files: tuple[str, ...], suite: str, only: str, as_json: str, **options: Any) -> None:
    """Time each FILE, or the rows of a suite, beside the peers that are installed.

    Everyone gets the same tensors in one process; rounds take turns; medians are shown. A peer takes part where its
    call can be derived from the spec, and is not timed where its results differ from attncc's.
    """
    if bool(files) == bool(suite):
        raise click.UsageError("name FILEs or a --suite")
    for file in files:
        require_spec(file)
    rows = _suite(suite, only) if suite else _given(files, options["shapes"], options["given"], options["fills"])
    if not rows:
        raise click.BadParameter(f"no row matches {only!r}")
    if options["chart"]:
        _require_matplotlib()
    import torch

    from attncc.runtime.bench.rows import Kind

    where = _device(options["device"], options["backends"])
    usual = torch.float32 if where.type == "cpu" else torch.bfloat16
    plan = _plan(options, strict=not suite)
    dtype = getattr(torch, DTYPES[options["dtype"]]) if options["dtype"] else usual
    kind = Kind(where, dtype, options["seed"], "backward" in plan.which)
    found = _run(rows, kind, plan, {**options, "json": as_json})
    if as_json == "-":
        from attncc.runtime.bench.report import data, machine

        echo_json({"ok": all(m.good for m in found), **data(found, machine(where, _packages(plan)))})
    sys.exit(0 if all(m.good for m in found) else 1)


def _suite(named: str, only: str) -> list[Row]:
    from attncc.runtime.bench.suite import read_suite

    try:
        return read_suite(named, only)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


def _given(
    files: tuple[str, ...], shapes: tuple[str, ...], given: tuple[str, ...], fills: tuple[str, ...]
) -> list[Row]:
    from attncc.runtime.bench.suite import Row

    if not shapes:
        raise click.UsageError("--shape is missing, for example B=2,H=16,N=8192,D=128")
    values, filled = constants(given), {n: how for f in fills for n, how in pairs(f).items()}
    sizes = [integers(s, SIZES) for s in shapes]
    return [Row(Path(f).stem, f, s, values, filled) for f in files for s in sizes]


def _plan(options: dict[str, Any], strict: bool) -> Plan:
    from attncc.runtime.bench.measure import WHICH, Plan
    from attncc.runtime.bench.peers import families, peers

    known = families()
    wanted = [n.strip() for n in options["against"].split(",") if n.strip()]
    if wanted == ["none"]:
        known, wanted = (), []
    for name in wanted:
        if name not in known:
            raise click.BadParameter(f"there is no peer {name!r}; known: {', '.join(known)}, none")
    found = tuple(p for family in wanted or known for p in peers(family))
    which = WHICH if options["which"] in ("both", True, None) else (options["which"],)
    backends = tuple(n.strip() for n in options["backends"].split(",") if n.strip())
    return Plan(
        backends,
        found,
        which,
        options["rounds"],
        options["tiles"],
        options["gradients"],
        strict,
        measure_ms=options["milliseconds"],
    )


def _packages(plan: Plan) -> list[str]:
    return [p for p in dict.fromkeys(p.package for p in plan.peers) if p != "torch"]


def _run(rows: list[Row], kind: Kind, plan: Plan, options: dict[str, Any]) -> list[Measured]:
    from attncc.runtime.bench.report import heading, lines, machine, means

    where, quiet = machine(kind.device, _packages(plan)), options["json"] == "-"
    if not quiet:
        click.echo(", ".join(f"{k} {v}" for k, v in where.items()))
        for peer in plan.peers:
            if reason := peer.available(kind.device):
                click.echo(f"without {peer.name}: {reason}")
        click.echo(heading())
    began, found = time.perf_counter(), list["Measured"]()
    plan = dataclasses.replace(plan, pending=tuple(_prefetch(rows, kind, plan)))
    _warm(rows, kind, plan, quiet)
    for row in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of peers
            found.append(_one(row, kind, plan))
        if not quiet:
            click.echo("\n".join(lines(found[-1])))
        _write(found, where, options)
    if not quiet:
        if len(found) > 1:
            click.echo("\n".join(means(found)))
        click.echo(f"{len(found)} rows in {time.perf_counter() - began:.0f} s")
    if options["chart"]:
        from attncc.runtime.bench.chart import draw

        title = ", ".join(v if k == "device" else f"{k} {v}" for k, v in where.items())
        draw(found, title, options["chart"])
    return found


def _one(row: Row, kind: Kind, plan: Plan) -> Measured:
    """Measures a row."""
    from attncc.runtime.bench.measure import measure
    from attncc.runtime.bench.report import measured
    from attncc.runtime.family import _stages as stages

    with stages:  # kernels of other rows are compiled meanwhile
        case, anchor = _case(row, kind)
        for one in (case, anchor):
            if one is not None:
                one.analyse()
    peers = tuple(p for p in plan.peers if p.name not in row.without)
    gradients = plan.gradients or any(g.most for g in row.goals)
    plan = dataclasses.replace(plan, peers=peers, gradients=gradients)
    return measured(row, case, measure(case, plan, anchor))


def _case(row: Row, kind: Kind, short: bool = False) -> tuple[Case, Case | None]:
    """A row's case, and that of its anchor."""
    from attncc.runtime.bench.rows import case_of

    try:
        return case_of(row, kind, short)
    except (KeyError, ValueError) as e:
        raise click.BadParameter(f"a captured tensor can't be filled so: {e}") from None


def _prefetch(rows: list[Row], kind: Kind, plan: Plan) -> list[Future[None]]:
    """Begins to compile every row's kernels at once."""
    from attncc.runtime.bench.prefetch import prefetch

    if kind.device.type != "cuda" or len(rows) < 2:
        return []
    shapes = {(r.spec, *(r.shape.get(n) for n in "HGDE")): r for r in reversed(rows)}
    cases = [_case(r, kind, short=True) for r in reversed(shapes.values())]
    found = [c for pair in cases for c in pair if c is not None]
    found += [c.with_gradients() for c in found if c.reals and plan.which != ("forward",)]
    return prefetch(found, plan.backends, kind.device)


def _warm(rows: list[Row], kind: Kind, plan: Plan, quiet: bool) -> None:
    """Waits for the first calls of peers that take minutes for theirs."""
    from concurrent.futures import wait

    from attncc.runtime.bench.peers import Warmed

    pending = [task for p in plan.peers if isinstance(p, Warmed) for task in p.warm(rows, kind)]
    if pending and not quiet:
        click.echo(f"first calls of {len(pending)} rows, in processes of their own ..")
    wait(pending)


def _write(found: list[Measured], where: dict[str, str], options: dict[str, Any]) -> None:
    """After each row, so that what was measured is kept if a later one fails."""
    from attncc.runtime.bench.report import data, markdown

    if options["json"] not in ("", "-"):
        Path(options["json"]).write_text(json.dumps(data(found, where), indent=1) + "\n", encoding="utf-8")
    if options["markdown"]:
        Path(options["markdown"]).write_text(markdown(found, where), encoding="utf-8")


def _require_matplotlib() -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--chart needs matplotlib: pip install 'attncc[bench]'")
