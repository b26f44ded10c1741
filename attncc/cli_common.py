"""What commands share: --json, errors without tracebacks, options of the form NAME=VALUE."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from attncc.errors import AttnccError

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def error_data(error: AttnccError) -> dict[str, Any]:
    """An error as plain data."""
    d = error.diagnostic
    place = {} if d.span is None else {"line": d.span.line, "column": d.span.column, "width": d.span.width}
    file = {} if error.source is None else {"file": error.source.name}
    return {"code": d.code, "message": d.message, "hint": d.hint, **file, **place}


def echo_json(data: dict[str, Any]) -> None:
    """One object on standard output."""
    click.echo(json.dumps(data, indent=2))


def fail(error: AttnccError, as_json: bool) -> NoReturn:
    """Shows the error and exits with 1."""
    if as_json:
        echo_json({"ok": False, "errors": [error_data(error)]})
    else:
        click.echo(str(error), err=True)
    sys.exit(1)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose mistakes of the user end in a message and exit status 1."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except AttnccError as error:
            fail(error, bool(options.get("as_json")))
        except BrokenPipeError:
            sys.exit(1)

    return run


def pairs(text: str, names: tuple[str, ...] | None = None) -> dict[str, str]:
    """`B=1,H=8` as a dictionary; click's usage error where it has another form or another name."""
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (x.strip() for x in part.partition("="))
        if not equals or not name or not value:
            raise click.BadParameter(f"{part!r} is not of the form NAME=VALUE")
        if names is not None and name not in names:
            raise click.BadParameter(f"there is no {name}; known: {', '.join(names)}")
        if name in found:
            raise click.BadParameter(f"{name} is given twice")
        found[name] = value
    return found


def integers(text: str, names: tuple[str, ...]) -> dict[str, int]:
    """`B=1,H=8` with whole numbers that are not negative."""
    found: dict[str, int] = {}
    for name, value in pairs(text, names).items():
        if not value.isdigit():
            raise click.BadParameter(f"{name} must be a whole number, not {value!r}")
        found[name] = int(value)
    return found


def constants(given: tuple[str, ...]) -> dict[str, int | float | bool]:
    """The values of --const NAME=VALUE options."""
    return {name: _number(name, value) for text in given for name, value in pairs(text).items()}


def _number(name: str, text: str) -> int | float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise click.BadParameter(f"{name} must be a number, true or false, not {text!r}")


def require_spec(path: str) -> None:
    """The front end's error where a file can't be read, before anything heavy is imported."""
    from attncc.grammar import parse, read

    source = read(path)
    parse(source.text, source.name)
