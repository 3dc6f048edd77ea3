"""``cocoa admin``: the group of the operators' commands."""

from __future__ import annotations

import importlib
from typing import Final

import click

from .interrupts import dying_of_interrupts

COMMANDS: Final = {
    "devices": "admin_devices",
    "device": "admin_devices",
    "kick": "admin_devices",
    "block": "admin_devices",
    "unblock": "admin_devices",
    "empty": "admin_devices",
    "send": "admin_messages",
    "trace": "admin_messages",
    "explain": "admin_messages",
    "quarantine": "admin_quarantine",
    "requeue": "admin_quarantine",
    "tail": "admin_tail",
    "top": "admin_top",
    "overview": "admin_overview",
}
"""Each command with its module."""


class AdminGroup(click.Group):
    """Imports a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with dying_of_interrupts():
            command: click.Command = getattr(importlib.import_module(f".{COMMANDS[cmd_name]}", __package__), cmd_name)
        return command


@click.group(
    cls=AdminGroup,
    short_help="Inspect and control a live deployment.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def admin() -> None:
    """Inspect and control the devices and messages of a live deployment.

    The commands use the admin API of the gateway at --url and cover all of its servers. They need an admin token,
    except for a gateway on this machine with the development key. Servers that did not answer are named on standard
    error.

    Exit status 0: found, or done. 1: not found, or the operation failed; one line on standard error says why. 2: wrong
    usage. In a pipeline whose next command has ended (`| head`), the command ends without a message, by SIGPIPE (141).
    Output to a terminal is colored, unless NO_COLOR is set.

    With --json, an error of the API is JSON too, on standard output, with its HTTP status, so that a script can tell
    "not found" (404) from "not permitted" (401, 403). If the gateway cannot be reached, standard output is empty.

    \b
    A gateway on this machine, started with "cocoa serve":
      cocoa admin devices
    Any other, with a token that its secret signs:
      export COCOA_ADMIN_URL=https://gateway.example COCOA_ADMIN_TOKEN=@token.txt
      COCOA_ADMIN_JWT_SECRET=@secret.txt cocoa mint-token --admin --subject ann > token.txt
      cocoa admin device doll-1
    Why did it not arrive?
      cocoa admin trace 3f0c9a
    Does the gateway know it? 404: no.
      cocoa admin device doll-1 --json | jq .status
    """
