"""The errors of the commands: always one plain line on standard error (contract section 5)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from cocoa_tornado.plain_text import one_line

from .streams import ReaderGone, die_of_sigpipe
from .terminal import wants_colours

MAX_MESSAGE = 2000
"""The largest length of a message in characters. click quotes arguments of any length."""


class OneLineGroup(click.Group):
    """A command group that prints errors as one line; click adds the usage and a hint."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with 0 (success), 1 (failure), 2 (wrong usage) or 130 (interrupted), or die of SIGPIPE."""
        extra.setdefault("color", wants_colours())
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            # Outside standalone mode, click returns the exit status.
            status = super().main(args, prog_name, complete_var, False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(2)
        except ReaderGone:
            die_of_sigpipe()
        except click.ClickException as error:
            message = one_line(" ".join(error.format_message().split()), MAX_MESSAGE)
            click.echo(f"Error: {message}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Interrupted", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)
