"""The values that the parent passes to a worker at its start, in the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

import msgspec

VARIABLE: Final = "COCOA_WORKER"
"""Only the parent sets it, for its workers."""


class Place(msgspec.Struct, frozen=True):
    """:ivar fd: the worker's end of the channel
    :ivar number: from 1 to ``count``
    :ivar name: of the server: ``<server name>/<number>``
    :ivar port: the one that all share
    :ivar folder: the folder of the workers' sockets; '' if there is none
    """

    fd: int
    number: int
    count: int
    name: str
    port: int
    folder: str = ""

    def variable(self) -> dict[str, str]:
        """The environment variable."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    def channel(self) -> socket.socket:
        """The worker's end. Processes that the worker starts do not get it, so that the parent notices the worker's
        end, and the worker the parent's."""
        os.set_inheritable(self.fd, False)
        sock = socket.socket(fileno=self.fd)
        sock.setblocking(False)
        return sock


def take_place(environ: MutableMapping[str, str]) -> Place | None:
    """This process's place under a parent, taken out of the environment; None if it has no parent.

    :raises ValueError: the variable has another value; one line for the user
    """
    text = environ.pop(VARIABLE, "")
    try:
        return msgspec.json.decode(text, type=Place) if text else None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ValueError(
            f"environment {VARIABLE}: only cocoa sets it, for its workers; unset it. COCOA_WORKERS is their number"
        ) from error
