"""`attncc check` and `attncc fmt`: the commands that need the front end only."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attncc.cli_common import echo_json, error_data, guarded, json_option
from attncc.diagnostics import Source
from attncc.errors import AttnccError, SpecError
from attncc.grammar import format_source, parse_all, read

if TYPE_CHECKING:
    from attncc.ir.nodes import Spec

FILES = click.argument("files", nargs=-1, required=True, metavar="FILE...")


@click.command()
@FILES
@json_option
@guarded
def check(files: tuple[str, ...], as_json: bool) -> None:
    """Parse and check every FILE; say where and why one is wrong."""
    results: list[dict[str, Any]] = []
    for name in files:
        try:
            source = read(name)
            specs = parse_all(source.text, source.name)
            states = _states(specs, source)
        except AttnccError as error:
            results.append({"file": name, "ok": False, "errors": [error_data(error)]})
            if not as_json:
                click.echo(str(error), err=True)
        else:
            names = [s.name for s in specs]
            results.append({"file": name, "ok": True, "specs": names} | ({"states": states} if states else {}))
            if not as_json:
                click.echo(f"{name}: ok ({', '.join(names)})")
    good = all(r["ok"] for r in results)
    if as_json:
        echo_json({"ok": good, "files": results})
    sys.exit(0 if good else 1)


def _states(specs: tuple[Spec, ...], source: Source) -> dict[str, list[dict[str, Any]]]:
    """The classes of the states of every state program among `specs`, by its name."""
    programs = [s for s in specs if s.recurrence is not None]
    if not programs:
        return {}
    from attncc.passes.classify import classify

    try:
        return {s.name: [c.data() for c in classify(s)] for s in programs}
    except SpecError as error:
        error.source = error.source or source
        raise


@click.command()
@FILES
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 where a file would change.")
@json_option
@guarded
def fmt(files: tuple[str, ...], only_check: bool, as_json: bool) -> None:
    """Put every FILE into canonical form, comments kept. A file that does not parse stays as it is."""
    results: list[dict[str, Any]] = []
    for name in files:
        try:
            source = read(name)
            formatted = format_source(source.text, source.name)
        except AttnccError as error:
            results.append({"file": name, "ok": False, "errors": [error_data(error)]})
            if not as_json:
                click.echo(str(error), err=True)
            continue
        changed = formatted.encode() != Path(name).read_bytes()
        results.append({"file": name, "ok": not (changed and only_check), "changed": changed})
        if changed and not only_check:
            _replace(Path(name), formatted)
        if changed and not as_json:
            click.echo(f"{name}: {'would change' if only_check else 'formatted'}")
    good = all(r["ok"] for r in results)
    if as_json:
        echo_json({"ok": good, "files": results})
    sys.exit(0 if good else 1)


def _replace(path: Path, text: str) -> None:
    """Writes the whole file or nothing; keeps its permissions and follows links."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(text.encode())
        os.chmod(name, path.stat().st_mode & 0o7777)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
