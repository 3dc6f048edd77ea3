"""The line that a server prints once it serves."""

from __future__ import annotations

import logging

import click

from cocoa_tornado import __version__
from cocoa_tornado.logs_writer import can_write_now

from .streams import STDOUT, OutputLost

log = logging.getLogger("cocoa.service")


def announce(url: str) -> None:
    """Print the address, for people and scripts. It is optional, as the log has it too: printing neither blocks nor
    fails the start.

    :param url: ``http://127.0.0.1:8080``
    """
    ws_url = f"{url.replace('http', 'ws', 1)}/ws"
    try:
        if can_write_now(STDOUT):
            click.echo(f"cocoa-tornado {__version__} listening on {url} (devices: {ws_url})")
        else:
            log.info("banner skipped", extra={"detail": "standard output is full"})
    except OutputLost as error:
        log.info("banner skipped", extra={"detail": error.message})
