"""The line that a server prints once it serves."""

from __future__ import annotations

import logging

import click

from cocoa_tornado import __version__
from cocoa_tornado.errors import KeyMaterialError
from cocoa_tornado.logs_redaction import MeantToBeShown
from cocoa_tornado.logs_writer import can_write_now
from cocoa_tornado.settings import Settings

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


def log_console_link(settings: Settings, url: str) -> None:
    """Log the link to the web console, with a token, if the development key is in use.

    :param url: of the admin API
    """
    # It needs the libraries of tokens, which a parent of workers does not have otherwise.
    from .console_link import console_link

    try:
        link = console_link(settings, url)
    except KeyMaterialError as error:
        log.warning("console link unavailable", extra={"error": str(error)})
        return
    if link is not None:
        log.info("console", extra={"open": MeantToBeShown(link)})
