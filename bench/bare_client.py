"""A WebSocket client on a bare asyncio transport: thousands of them fit into one process."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.client import ClientProtocol
from websockets.uri import parse_uri


class BareClient(asyncio.Protocol):
    """Sends the handshake, answers pings and close frames, and passes on what arrives."""

    def __init__(self, url: str, **options: Any) -> None:
        """:param options: of ``ClientProtocol``"""
        self._protocol = ClientProtocol(parse_uri(url), **options)
        self._transport: asyncio.Transport

    def on_event(self, event: Any) -> None:
        """The response to the handshake, or a frame."""
        raise NotImplementedError  # each kind of client has its own

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            self.on_event(event)
        self._flush()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()
