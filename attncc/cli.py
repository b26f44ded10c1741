"""The command line: one module per group of commands, loaded when one of them is used."""

from __future__ import annotations

import importlib

import click

_HOMES = {
    "check": "attncc.cli_text",
    "fmt": "attncc.cli_text",
    "run": "attncc.cli_run",
    "emit": "attncc.cli_emit",
    "dump": "attncc.cli_inside",
    "explain": "attncc.cli_inside",
    "bench": "attncc.cli_bench",
    "tune": "attncc.cli_tune",
}
_HELP = {
    "check": "Parse and check specs.",
    "fmt": "Put specs into canonical form.",
    "run": "Compile a spec, run it here, compare it with the dense reference.",
    "emit": "Write self-contained source.",
    "dump": "Print the IR after a pass.",
    "explain": "Tell what was derived from a spec, or what an error code means.",
    "bench": "Time specs beside the libraries that are installed.",
    "tune": "Look for faster tiles of a spec on this machine.",
}


class _Commands(click.Group):
    """Imports a command's module only when it is asked for: `attncc check` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HOMES:
            return None
        command = getattr(importlib.import_module(_HOMES[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_HELP.items()))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import attncc

        click.echo(f"attncc {attncc.__version__}")
        ctx.exit()


def _environment(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from attncc.debug import table

        click.echo(table())
        ctx.exit()


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
@click.option(
    "--environment",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_environment,
    help="List the environment variables.",
)
def commands() -> None:
    """attncc compiles attention: write the equation, get the kernels, forward and backward.

    Exit status: 0 good, 1 a spec or a check failed, 2 wrong usage.
    """
