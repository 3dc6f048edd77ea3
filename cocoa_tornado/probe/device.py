"""One WebSocket connection of a device. It answers pings, and records everything that happens.

It uses the Sans-I/O protocol of the ``websockets`` library and asyncio's streams. This exposes what a client library
hides: the server's pings, the payload of a pong, an end without a close frame. Use it on one event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Callable

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from .target import Target
from .wire import Response, Upgrade, open_connection, read_response, upgrade_request

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_WAITING_MESSAGES = 1000
_READ_BYTES = 64 * 1024
_HANG_UP_S = 0.5

Message = str | bytes
"""A text message as str, a binary one as bytes."""


class ConnectionLostError(Exception):
    """The connection ended unexpectedly.

    :ivar code: the close code, or None without a close frame
    """

    def __init__(self, code: int | None, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(f"closed by the other side ({code})")


class Link:
    """An open connection, created by :func:`connect`. End it with :meth:`close`, :meth:`reset` or :meth:`drop`.

    At most 1000 messages are queued; while the queue is full, nothing is read. Times are monotonic seconds.

    :ivar pongs: the payloads of the last 100 pongs
    :ivar server_pings: the times of the server's last 100 pings
    :ivar close_frame_at: the time of the received close frame, or None
    :ivar closed_at: when the connection ended; None while it is open
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened_at = time.monotonic()
        self.close_frame_at: float | None = None
        self.closed_at: float | None = None
        self.pongs: list[bytes] = []
        self.server_pings: list[float] = []
        self._reader, self._writer = reader, writer
        # The protocol requires a URI, but does not use it after the handshake.
        self._protocol = ClientProtocol(parse_uri("ws://gateway/"), state=OPEN, max_size=MAX_MESSAGE_BYTES)
        self._messages: asyncio.Queue[Message] = asyncio.Queue(MAX_WAITING_MESSAGES)
        self._fragments: list[bytes] = []
        self._is_text = True
        self._changed = asyncio.Event()
        self._pump = asyncio.create_task(self._run())

    def __repr__(self) -> str:
        return f"<Link {'open' if self.closed_at is None else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """True until either side begins to close, the peer violates the protocol, or the connection ends."""
        return self.closed_at is None and self._protocol.state is OPEN

    @property
    def close_code(self) -> int | None:
        """The code of the received close frame; None if there is none."""
        return int(self._protocol.close_rcvd.code) if self._protocol.close_rcvd else None

    @property
    def close_reason(self) -> str:
        return self._protocol.close_rcvd.reason if self._protocol.close_rcvd else ""

    def lost(self) -> ConnectionLostError:
        """The error for how the connection ended, or why it became unusable."""
        violation = self._protocol.parser_exc
        if violation is None or isinstance(violation, EOFError):
            return ConnectionLostError(self.close_code, self.close_reason)
        return ConnectionLostError(self.close_code, f"the other side broke the protocol: {violation}")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` is true. It is evaluated after every event of the connection."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def ping(self) -> bytes:
        """Send a ping with a random payload and return the payload."""
        payload = secrets.token_hex(6).encode("ascii")
        self._protocol.send_ping(payload)
        await self._flush()
        return payload

    async def answers_ping(self) -> bool:
        """Send a ping. Returns True at the pong with the same payload, False at the end of the connection."""
        if not self.is_open:
            return False
        payload = await self.ping()
        await self.until(lambda: payload in self.pongs or not self.is_open)
        return payload in self.pongs

    async def receive(self) -> Message:
        """The next message. Raises :class:`ConnectionLostError` if the connection has ended and none is queued."""
        await self.until(lambda: not self._messages.empty() or self.closed_at is not None)
        if self._messages.empty():
            raise self.lost()
        message = self._messages.get_nowait()
        self._changed.set()
        return message

    def received(self) -> list[Message]:
        """Remove and return all queued messages, without waiting."""
        messages = []
        while not self._messages.empty():
            messages.append(self._messages.get_nowait())
        self._changed.set()
        return messages

    async def send(self, message: Message) -> None:
        """Send a message, subject to backpressure. Raises :class:`ConnectionLostError`."""
        if not self.is_open:
            raise self.lost()
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def send_raw(self, data: bytes) -> None:
        """Send arbitrary bytes. Raises OSError."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self, code: int = 1000) -> bool:
        """Perform the closing handshake. Return True if the peer answered with a close frame.

        Has no timeout of its own.
        """
        try:
            if self.is_open:
                self._protocol.send_close(code)
                await self._flush()
            await self.until(lambda: self.closed_at is not None or self._protocol.close_rcvd is not None)
            # RFC 6455, section 7.1.1: the server closes the TCP connection first.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HANG_UP_S):
                    await self.until(lambda: self.closed_at is not None)
            return self._protocol.close_rcvd is not None
        finally:
            await self.drop()

    async def reset(self) -> None:
        """Disconnect with a TCP reset and without a close frame."""
        sock = self._writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.drop()

    async def drop(self) -> None:
        """Abort the connection. Idempotent."""
        self._writer.transport.abort()
        self._pump.cancel()
        self._ended()
        await asyncio.wait([self._pump])
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:  # b"" requests a half-close; _run ends the whole connection instead
                self._writer.write(data)
        with contextlib.suppress(OSError):  # _run detects and reports it
            await self._writer.drain()

    async def _run(self) -> None:
        """Read until the end, and answer pings and closes."""
        try:
            while data := await self._reader.read(_READ_BYTES):
                self._protocol.receive_data(data)
                frames = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
                await self._flush()
                for frame in frames:
                    await self._take(frame)
                self._changed.set()
        except OSError:
            pass  # a reset is an end without a close frame
        finally:
            self._ended()

    async def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self.pongs = [*self.pongs[-99:], bytes(frame.data)]
        elif frame.opcode is Opcode.PING:
            self.server_pings = [*self.server_pings[-99:], time.monotonic()]
        elif frame.opcode is Opcode.CLOSE:
            self.close_frame_at = time.monotonic()
        else:
            if frame.opcode is not Opcode.CONT:
                self._is_text = frame.opcode is Opcode.TEXT
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                data, self._fragments = b"".join(self._fragments), []
                self._changed.set()
                await self.until(lambda: not self._messages.full())
                self._messages.put_nowait(data.decode("utf-8", "replace") if self._is_text else data)

    def _ended(self) -> None:
        if self.closed_at is None:
            self.closed_at = time.monotonic()
        self._changed.set()


async def connect(target: Target, upgrade: Upgrade) -> tuple[Response, Link | None]:
    """Send an opening handshake. Return the response, unchecked, and the connection if it is a 101.

    :raises OSError: there is no connection
    :raises NotHttpError: the response is not HTTP
    """
    reader, writer = await open_connection(target)
    try:
        writer.write(upgrade_request(target, upgrade))
        response = await read_response(reader)
    except BaseException:
        writer.transport.abort()
        raise
    if response.status == 101:
        return response, Link(reader, writer)
    writer.transport.abort()
    return response, None
