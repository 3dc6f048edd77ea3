"""``cocoa``: the group of all commands."""

from __future__ import annotations

import click

from cocoa_tornado import __version__

from .mint_token import mint_token
from .one_line import OneLineGroup
from .probe_device import probe_device
from .serve import serve


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cocoa")
def cocoa() -> None:
    """Gateway that connects a fleet of voice devices (WebSocket) to Kafka.

    \b
    Start a gateway, and test it:
      cocoa serve
      cocoa mint-token --device-id doll-1
      cocoa probe-device ws://127.0.0.1:8080/ws

    \b
    Shell completion (bash; also zsh and fish):
      eval "$(_COCOA_COMPLETE=bash_source cocoa)"
    """


cocoa.add_command(serve)
cocoa.add_command(mint_token)
cocoa.add_command(probe_device)
