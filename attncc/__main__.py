"""`python -m attncc` and the `attncc` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; exits 0 where all is well, 1 where a spec or a check failed, 2 on wrong usage."""
    import attncc

    try:
        attncc.require_parts()
    except ImportError as error:
        sys.exit(f"attncc: {error}")
    from attncc.cli import commands

    commands(prog_name="attncc")


if __name__ == "__main__":
    main()
