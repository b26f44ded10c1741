"""`attncc dump` and `attncc explain`: looking inside."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from attncc.cli_common import constants, echo_json, guarded, integers, json_option, require_spec
from attncc.errors import AttnccError, SpecError

if TYPE_CHECKING:
    from attncc.ir.nodes import Spec
    from attncc.schedule.variant import Target, Variant

_CODE = re.compile(r"[Ee]\d{3}")
_STAGES = ("grammar", "passes", "runtime", "schedule", "tile", "codegen")


@click.command()
@click.argument("file")
@click.option(
    "--after", "stage", default="", metavar="PASS", help="parse, a pass, tile or print; all passes if left out."
)
@click.option("--dims", default="D=64", metavar="D=64,E=64", help="Head dimensions; E is D where not given.")
@click.option("--target", type=click.Choice(["triton", "gluon", "torch"]), default="triton", help="For tile and print.")
@json_option
@guarded
def dump(file: str, stage: str, dims: str, target: str, as_json: bool) -> None:
    """Print the IR of FILE in text after a pass: the Spec IR, after `tile` the Tile IR, after `print` the source."""
    from attncc import driver
    from attncc.passes import PIPELINE

    stages = ("parse", *(p.name for p in PIPELINE), "tile", "print", "classify")
    if stage and stage not in stages:
        raise click.BadParameter(f"there is no pass {stage!r}; known: {', '.join(stages)}")
    sizes = integers(dims, ("D", "E"))
    if "D" not in sizes:
        raise click.BadParameter("--dims needs D")
    spec, source = driver.load(file)
    try:
        shown = _stage(spec, stage, sizes["D"], sizes.get("E", sizes["D"]), target)
    except SpecError as error:
        error.source = error.source or source
        raise
    if as_json:
        last = "classify" if spec.recurrence is not None else stages[-4]
        echo_json({"ok": True, "stage": stage or last, "text": shown})
    else:
        click.echo(shown, nl=not shown.endswith("\n"))


def _stage(spec: Spec, stage: str, D: int, E: int, target: str) -> str:
    from attncc import driver
    from attncc.ir.text import spell_spec

    if stage == "parse":
        return spell_spec(spec)
    if stage == "classify" or (not stage and spec.recurrence is not None):
        from attncc.passes.classify import classify

        return spell_spec(spec) + "".join(f"{c}\n" for c in classify(spec))
    if stage not in ("tile", "print"):
        unit = driver.analyse(spec, D, E, until=stage)
        shown = spell_spec(unit.spec)
        if unit.by_row is not None and unit.by_key is not None:
            from attncc.runtime.explain import bounds_text

            shown += f"keys of i\n{bounds_text(unit.by_row)}\nqueries of j\n{bounds_text(unit.by_key)}\n"
        return shown
    variant = _variant(spec, target, D, E)
    pair = driver.programs(spec, variant)
    if stage == "print":
        return driver.source(pair, variant, spec.name)
    from attncc.tile.text import dump as tile_text

    return "\n".join(tile_text(p) for p in (pair.forward, pair.backward) if p is not None)


def _variant(spec: Spec, target: str, D: int, E: int) -> Variant:
    from attncc.runtime.interface import interface_of
    from attncc.runtime.printing import usual_variant

    printed: Target = "torch" if target == "torch" else "gluon" if target == "gluon" else "triton"
    return usual_variant(interface_of(spec), printed, None, D, E)


@click.command()
@click.argument("what", metavar="FILE|CODE")
@click.option("--dims", default="D=64", metavar="D=64,E=64", help="Head dimensions; E is D where not given.")
@click.option("--const", "given", multiple=True, metavar="NAME=VALUE", help="Set a constant of the header.")
@json_option
@guarded
def explain(what: str, dims: str, given: tuple[str, ...], as_json: bool) -> None:
    """Tell what was derived from FILE: its mask, bounds and kernels on sm_90; or what a CODE such as E503 means."""
    if _CODE.fullmatch(what):
        shown = _page(what.upper())
    else:
        require_spec(what)
        shown = _report(what, integers(dims, ("D", "E")), constants(given))
    if as_json:
        echo_json({"ok": True, "text": shown})
    else:
        click.echo(shown)


def mistakes() -> dict[str, type[AttnccError]]:
    """Every error a user can meet, by its code."""
    for stage in _STAGES:
        if importlib.util.find_spec(f"attncc.{stage}.mistakes") is not None:
            importlib.import_module(f"attncc.{stage}.mistakes")
    found: dict[str, type[AttnccError]] = {}
    left = list(AttnccError.__subclasses__())
    while left:
        kind = left.pop()
        left.extend(kind.__subclasses__())
        if "code" in vars(kind):
            found[kind.code] = kind
    return found


def _page(code: str) -> str:
    known = mistakes()
    if code not in known:
        raise click.BadParameter(f"there is no error {code}; the known ones are {', '.join(sorted(known))}")
    return f"{code}  {known[code].__name__}\n\n{inspect.getdoc(known[code])}"


def _report(file: str, sizes: dict[str, int], values: dict[str, int | float | bool]) -> str:
    from attncc import driver
    from attncc.runtime.checks import check_constants
    from attncc.runtime.explain import explain as report
    from attncc.runtime.interface import interface_of
    from attncc.schedule.sums import sums

    spec, source = driver.load(file)
    D = sizes.get("D", 64)
    E = sizes.get("E", D)
    try:
        if spec.recurrence is not None:
            return _states(spec, check_constants(interface_of(spec), values))
        arrays = sums(spec)
        if arrays:
            return _summed(spec, tuple(s.name for s in arrays), check_constants(interface_of(spec), values))
        pair = driver.programs(spec, _variant(spec, "gluon", D, E))
        return report(spec, driver.analyse(spec, D, E), pair, check_constants(interface_of(spec), values))
    except SpecError as error:
        error.source = error.source or source
        raise


def _summed(spec: Spec, arrays: tuple[str, ...], values: Mapping[str, int | float | bool]) -> str:
    """The report of a spec whose rows read the keys only as sums over all of them."""
    from attncc.runtime.interface import interface_of

    lines = [f"attention {spec.name}, rows that read sums over all keys"]
    lines += [f"  constant {name} = {value!r}" for name, value in values.items()]
    lines += [f"  tensor   {p.name}: {p}" for p in interface_of(spec).params]
    return "\n".join([*lines, "", *(f"sum {name}: one for each b and g" for name in arrays), "", _compiled(spec)])


def _states(spec: Spec, values: Mapping[str, int | float | bool]) -> str:
    """The report of a state program: its face and the class of each state."""
    from attncc.passes.classify import classify
    from attncc.runtime.interface import interface_of

    lines = [f"attention {spec.name}, a state program"]
    lines += [f"  constant {name} = {value!r}" for name, value in values.items()]
    lines += [f"  tensor   {p.name}: {p}" for p in interface_of(spec).params]
    lines += ["", *map(str, classify(spec)), "", _compiled(spec)]
    return "\n".join(lines)


def _compiled(spec: Spec) -> str:
    from attncc import driver
    from attncc.passes.mistakes import NotCompiled

    try:
        driver.programs(spec, _variant(spec, "torch", 16, 16))
    except NotCompiled as error:
        return f"not compiled: {error.diagnostic.message}"
    return "compiled in chunks, forward and backward"
