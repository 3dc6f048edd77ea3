"""``cocoa``: the group of all commands."""

from __future__ import annotations

import importlib
from typing import Final

import click

from cocoa_tornado import __version__

from .interrupts import dying_of_interrupts
from .one_line import OneLineGroup

COMMANDS: Final = ("admin", "mint-token", "probe-device", "serve")


class LazyGroup(OneLineGroup):
    """Imports a command when it is needed: the parent of workers has no use for what the others import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        with dying_of_interrupts():
            command: click.Command = getattr(importlib.import_module(f".{name}", __package__), name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cocoa")
def cocoa() -> None:
    """Gateway that connects a fleet of voice devices (WebSocket) to Kafka.

    \b
    Start a gateway, and test it:
      cocoa serve
      cocoa mint-token --device-id doll-1
      cocoa probe-device ws://127.0.0.1:8080/ws
      cocoa admin devices

    Exit status: 0 success, 1 failure, with one line on standard error that says why, 2 wrong usage. In a pipeline whose
    next command has ended (`| head`), a command ends without a message, by SIGPIPE, as other Unix tools do (141).

    \b
    Shell completion (bash; also zsh and fish):
      eval "$(_COCOA_COMPLETE=bash_source cocoa)"
    """
