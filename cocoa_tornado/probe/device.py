"""One WebSocket connection, as a device holds it: it answers pings, and remembers all that happens to it.

The frames are the ``websockets`` library's work (its protocol core, which does no input or output); the sockets are
asyncio's. In between, everything can be seen that a client library would deal with silently: the server's pings, the
payload of a pong, a connection that ends without a close frame. Belongs to one event loop.
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
    """The connection ended while something was expected of it.

    :ivar code: the close code, or None where it ended without a close frame
    """

    def __init__(self, code: int | None, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(f"closed by the other side ({code})")


class Link:
    """An open connection. Made by :func:`connect`; end it with :meth:`close`, :meth:`reset` or :meth:`drop`.

    Messages wait in a queue of at most 1000; while it is full nothing more is read. Times are monotonic seconds.

    :ivar pongs: payloads of the pongs that came (the last 100)
    :ivar server_pings: when the server's pings came (the last 100)
    :ivar close_frame_at: when a close frame came, or None
    :ivar closed_at: when the connection ended; None while it is open
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened_at = time.monotonic()
        self.close_frame_at: float | None = None
        self.closed_at: float | None = None
        self.pongs: list[bytes] = []
        self.server_pings: list[float] = []
        self._reader, self._writer = reader, writer
        # The handshake is over; the protocol core never asks for the URI, but wants one.
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
        """True until either side began to close, the other side broke the protocol, or the connection ended."""
        return self.closed_at is None and self._protocol.state is OPEN

    @property
    def close_code(self) -> int | None:
        """The code of the close frame that came; None if there was none."""
        return int(self._protocol.close_rcvd.code) if self._protocol.close_rcvd else None

    @property
    def close_reason(self) -> str:
        return self._protocol.close_rcvd.reason if self._protocol.close_rcvd else ""

    def lost(self) -> ConnectionLostError:
        """The error that says how the connection ended, or why it is of no more use."""
        violation = self._protocol.parser_exc
        if violation is None or isinstance(violation, EOFError):
            return ConnectionLostError(self.close_code, self.close_reason)
        return ConnectionLostError(self.close_code, f"the other side broke the protocol: {violation}")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as ``condition()`` holds; it is asked again whenever something has happened here."""
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
        """Ping, and wait for the pong with the same payload: True; or for the end of the connection: False."""
        if not self.is_open:
            return False
        payload = await self.ping()
        await self.until(lambda: payload in self.pongs or not self.is_open)
        return payload in self.pongs

    async def receive(self) -> Message:
        """The next message. Raises :class:`ConnectionLostError` once there is none left and the connection ended."""
        await self.until(lambda: not self._messages.empty() or self.closed_at is not None)
        if self._messages.empty():
            raise self.lost()
        message = self._messages.get_nowait()
        self._changed.set()
        return message

    def received(self) -> list[Message]:
        """All messages that wait, without waiting."""
        messages = []
        while not self._messages.empty():
            messages.append(self._messages.get_nowait())
        self._changed.set()
        return messages

    async def send(self, message: Message) -> None:
        """Send a message, and wait while the other side takes no more. Raises :class:`ConnectionLostError`."""
        if not self.is_open:
            raise self.lost()
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be a frame. Raises OSError."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self, code: int = 1000) -> bool:
        """Close in due form. Return True if the other side answered with a close frame before it hung up.

        Waits for as long as the caller lets it.
        """
        try:
            if self.is_open:
                self._protocol.send_close(code)
                await self._flush()
            await self.until(lambda: self.closed_at is not None or self._protocol.close_rcvd is not None)
            # RFC 6455, section 7.1.1: it is the server that ends the TCP connection, and first.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HANG_UP_S):
                    await self.until(lambda: self.closed_at is not None)
            return self._protocol.close_rcvd is not None
        finally:
            await self.drop()

    async def reset(self) -> None:
        """Vanish as a device without network does whose address is taken over: a TCP RST, and no close frame."""
        sock = self._writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.drop()

    async def drop(self) -> None:
        """Let go of the connection at once. Idempotent."""
        self._writer.transport.abort()
        self._pump.cancel()
        self._ended()
        await asyncio.wait([self._pump])
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:  # b"" asks for a half-close; the pump ends the connection as a whole
                self._writer.write(data)
        with contextlib.suppress(OSError):  # the reader finds out, and says so better
            await self._writer.drain()

    async def _run(self) -> None:
        """The pump: reads until the end, answers pings and closes on the way."""
        try:
            while data := await self._reader.read(_READ_BYTES):
                self._protocol.receive_data(data)
                frames = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
                await self._flush()
                for frame in frames:
                    await self._take(frame)
                self._changed.set()
        except OSError:
            pass  # a reset is an end like any other, without a close frame
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
    """Ask for a connection. Return the response, and the connection if the response is a 101.

    The response is not judged. Raises OSError, or :class:`~.wire.NotHttpError`.
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
