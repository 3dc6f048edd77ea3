"""A device for tests that controls every byte it sends, valid or not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from dataclasses import dataclass, field

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
PATIENCE_S = 30.0

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass
class Response:
    """An HTTP response as received."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Frame:
    """A frame from the server."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def close_code(self) -> int:
        assert self.opcode == CLOSE
        return int(struct.unpack("!H", self.payload[:2])[0])


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    masked: bool = True,
    rsv: int = 0,
    length: bytes | None = None,
) -> bytes:
    """Encode a client's frame, valid or not.

    :param length: a wrong value for the length field, without the mask bit; None for the right one
    """
    size = len(payload)
    if length is None:
        length = (
            bytes([size]) if size < 126 else struct.pack("!BH" if size < 65536 else "!BQ", 126 + (size > 65535), size)
        )
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode, (0x80 if masked else 0) | length[0]]) + length[1:]
    if not masked:
        return head + payload
    mask = os.urandom(4)
    repeated = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")


@dataclass
class RawDevice:
    """One TCP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    response: Response = field(default_factory=lambda: Response(0, {}))

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> RawDevice:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        limit = 2**16 if receive_buffer is None else 1024
        return cls(*await asyncio.open_connection(sock=sock, limit=limit))

    async def request(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Response:
        lines = [f"{method} {target} HTTP/1.1"]
        fields = {"Host": "localhost"} | (headers or {})
        if body:
            fields["Content-Length"] = str(len(body))
        lines += [f"{name}: {value}" for name, value in fields.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.response = await self.read_response()
        return self.response

    async def read_response(self) -> Response:
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode("latin-1")
        status_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(status_line.split()[1])
        length = int(headers.get("content-length", "0"))
        return Response(status, headers, await self.reader.readexactly(length) if length else b"")

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> None:
        self.writer.write(frame(opcode, payload, fin=fin, masked=masked, rsv=rsv))

    async def read_frame(self) -> Frame:
        """The next frame from the server; IncompleteReadError at the end of the stream."""
        first, second = await asyncio.wait_for(self.reader.readexactly(2), PATIENCE_S)
        length = second & 0x7F
        if length == 126:
            length = struct.unpack("!H", await self.reader.readexactly(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", await self.reader.readexactly(8))[0]
        payload = await asyncio.wait_for(self.reader.readexactly(length), PATIENCE_S)
        return Frame(first & 0x0F, payload, bool(first & 0x80))

    async def read_until(self, opcode: int) -> Frame:
        """The next frame with this opcode; others are skipped."""
        while (received := await self.read_frame()).opcode != opcode:
            pass
        return received

    async def read_to_end(self) -> bytes:
        """All data until the server closes the TCP connection."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(-1), PATIENCE_S)
        return b""

    def reset(self) -> None:
        """Disconnect with a TCP reset, without a close frame."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Close the TCP connection without a closing handshake."""
        self.writer.close()

    async def end(self) -> None:
        """Close the connection in any state, and wait."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
