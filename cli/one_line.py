"""How the commands fail: one plain line on standard error, whatever went wrong (contract section 5)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from cocoa_tornado.plain_text import one_line

MAX_MESSAGE = 2000
"""Characters. click repeats what was typed, however long it is; the gateway's own messages are shorter."""


class OneLineGroup(click.Group):
    """A group whose errors are one line each; click would print the usage and a hint above them."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with 0 (done), 1 (it failed), 2 (wrong usage) or 130 (interrupted)."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            # Without its standalone mode click returns the status that it would have exited with.
            status = super().main(args, prog_name, complete_var, False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(2)
        except click.ClickException as error:
            message = one_line(" ".join(error.format_message().split()), MAX_MESSAGE)
            click.echo(f"Error: {message}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Interrupted", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)
