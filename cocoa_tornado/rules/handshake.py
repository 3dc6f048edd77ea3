"""The headers of the opening handshake of RFC 6455. Pure."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final

NOT_WEBSOCKET = "not_websocket"
"""The outcome of a request that asks for no upgrade at all."""

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
"""Sixteen bytes in base64."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer instead of the upgrade.

    :ivar outcome: one word for the metric label and the log
    """

    status: int
    message: str
    outcome: str
    headers: Mapping[str, str] = field(default_factory=dict)


def check_upgrade(upgrade: str | None, connection: str | None, version: str | None, key: str | None) -> Refusal | None:
    """Return None for a valid upgrade to WebSocket version 13, else the refusal. All arguments are header values."""
    if not _has_token(upgrade, "websocket") or not _has_token(connection, "upgrade"):
        return Refusal(426, "Upgrade Required", NOT_WEBSOCKET, {"Upgrade": "websocket", "Connection": "Upgrade"})
    if version is None or version.strip() != "13":
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        return Refusal(426, "Upgrade Required", "bad_version", headers)
    if key is None or not _KEY.fullmatch(key.strip()):
        return Refusal(400, "Invalid Sec-WebSocket-Key", "bad_key")
    return None


def accept_value(key: str) -> str:
    """``Sec-WebSocket-Accept`` for a ``Sec-WebSocket-Key``."""
    return base64.b64encode(hashlib.sha1(key.strip().encode("latin-1") + GUID, usedforsecurity=False).digest()).decode()


def switching_protocols(key: str, subprotocol: str | None, now: float) -> bytes:
    """The answer to an upgrade, after which the connection carries WebSocket frames.

    :param key: a ``Sec-WebSocket-Key`` that :func:`check_upgrade` has accepted
    :param subprotocol: which one is selected; None: none
    :param now: Unix seconds
    """
    selected = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol is not None else ""
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nDate: {_http_date(int(now))}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept_value(key)}\r\n{selected}\r\n"
    ).encode("latin-1")


@functools.lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    """RFC 9110, 5.6.7. Thousands of handshakes share a second."""
    return formatdate(second, usegmt=True)


def _has_token(header: str | None, token: str) -> bool:
    if header is None:
        return False
    header = header.lower()
    return header == token or token in map(str.strip, header.split(","))
