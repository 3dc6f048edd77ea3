"""A small HTTP/1.1 client: building requests, parsing responses, one exchange per connection.

The probe needs what libraries hide: a refusal *instead of* the upgrade, the header as received, the exact body.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from .target import Target

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
USER_AGENT = "cocoa-probe"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


# The first frame of a server that assumes HTTP/2 (RFC 9113, 3.4): length, type 4, flags, stream 0.
_HTTP2_SETTINGS = re.compile(rb"\0..\x04.\0\0\0\0", re.DOTALL)


class NotHttpError(Exception):
    """The peer does not speak HTTP/1.1, or closed the connection in mid-response."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response as received.

    :ivar headers: names and values in order, with the server's spelling
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first header with this name, case-insensitive; None if there is none."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """All headers with this name, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The parameters of an opening handshake.

    :ivar token: the token, or None
    :ivar source: how the token is sent: ``header``, ``query`` or ``subprotocol``
    :ivar protocols: further subprotocols to offer
    """

    token: str | None = field(default=None, repr=False)
    source: str = "header"
    origin: str | None = None
    protocols: Sequence[str] = ()
    key: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(16)).decode("ascii"))

    @property
    def accept(self) -> str:
        """The expected ``Sec-WebSocket-Accept``."""
        return base64.b64encode(hashlib.sha1(self.key.encode("ascii") + _GUID).digest()).decode("ascii")


def upgrade_request(target: Target, upgrade: Upgrade) -> bytes:
    """Build an opening handshake."""
    path, protocols = target.ws_path, list(upgrade.protocols)
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", upgrade.key),
        ("Sec-WebSocket-Version", "13"),
    ]
    if upgrade.token is not None:
        if upgrade.source == "query":
            path += f"?token={quote(upgrade.token, safe='')}"
        elif upgrade.source == "subprotocol":
            protocols = ["bearer", upgrade.token, *protocols]
        else:
            headers.append(("Authorization", f"Bearer {upgrade.token}"))
    if protocols:
        headers.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
    if upgrade.origin is not None:
        headers.append(("Origin", upgrade.origin))
    return request_bytes("GET", path, target, headers)


def request_bytes(
    method: str,
    path: str,
    target: Target,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    agent: str = USER_AGENT,
) -> bytes:
    """Build a request. Header values must not contain line breaks; the probe's are tokens and constants."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.host_header}", f"User-Agent: {agent}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def parse_head(head: bytes) -> Response:
    """Parse a response's status line and headers, including the empty line.

    :raises NotHttpError: it is not HTTP/1.x
    """
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (len(code) == 3 and code.isascii() and code.isdigit()):
        raise NotHttpError("the answer is not HTTP/1.1")
    headers = []
    for line in lines[1:]:
        if not line:
            break
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise NotHttpError("the answer has a malformed header")
        headers.append((name, value.strip()))
    return Response(int(code), tuple(headers))


async def exchange(
    target: Target,
    method: str,
    route: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    agent: str = USER_AGENT,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Response:
    """Send one request on a new connection, and return the response.

    :param route: a route of the contract, below the target's prefix
    :param max_body_bytes: a response with a longer body is a NotHttpError
    :raises OSError: the connection failed
    :raises NotHttpError: the response is not HTTP/1.1
    """
    reader, writer = await open_connection(target)
    try:
        all_headers = [("Connection", "close"), *headers]
        writer.write(request_bytes(method, target.path(route), target, all_headers, body, agent))
        return await read_response(reader, max_body_bytes)
    finally:
        writer.transport.abort()


async def answer_before_the_end(
    target: Target, route: str, headers: Iterable[tuple[str, str]], patience_s: float
) -> tuple[Response, bool]:
    """POST an unfinished chunked body, and end it after ``patience_s`` without a response.

    Return the response, and whether it came before the end of the body. Raises like :func:`exchange`.
    """
    reader, writer = await open_connection(target)
    answering = asyncio.create_task(read_response(reader))
    try:
        all_headers = [("Connection", "close"), ("Transfer-Encoding", "chunked"), *headers]
        writer.write(request_bytes("POST", target.path(route), target, all_headers) + b"4\r\n\0\0\0\0\r\n")
        await asyncio.wait([answering], timeout=patience_s)
        is_early = answering.done()
        if not is_early:
            writer.write(b"0\r\n\r\n")
        return await answering, is_early
    finally:
        answering.cancel()
        await asyncio.wait([answering])
        writer.transport.abort()


async def open_connection(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, with TLS if the target uses it. Raises OSError, including :class:`ssl.SSLError`."""
    return await asyncio.open_connection(target.host, target.port, ssl=target.tls, limit=MAX_HEAD_BYTES)


async def read_response(reader: asyncio.StreamReader, max_body_bytes: int = MAX_BODY_BYTES) -> Response:
    """Read one response with its body. The data after a 101 stays in the reader.

    :raises NotHttpError: it isn't HTTP/1.1, or the connection ends in mid-response
    """
    return await read_body(reader, await read_head(reader), max_body_bytes)


async def read_head(reader: asyncio.StreamReader) -> Response:
    """Read the head of one response. Raises like :func:`read_response`."""
    with _problems_named():
        response = parse_head(await reader.readuntil(b"\r\n\r\n"))
        while 100 <= response.status < 200 and response.status != 101:
            response = parse_head(await reader.readuntil(b"\r\n\r\n"))
        return response


async def read_body(reader: asyncio.StreamReader, response: Response, max_body_bytes: int = MAX_BODY_BYTES) -> Response:
    """Complete a response whose head has been read. Raises like :func:`read_response`."""
    if response.status in (101, 204, 304):
        return response
    with _problems_named():
        return Response(response.status, response.headers, await _read_body(reader, response, max_body_bytes))


async def body_pieces(reader: asyncio.StreamReader, response: Response) -> AsyncIterator[bytes]:
    """The body of a long response, as it arrives: in chunks of any size, or until the connection ends. A piece has at
    most ``MAX_HEAD_BYTES``.

    :raises NotHttpError: the connection ends in the middle of it
    :raises OSError: the connection failed
    """
    with _problems_named():
        if (response.header("Transfer-Encoding") or "").lower() != "chunked":
            while data := await reader.read(MAX_HEAD_BYTES):
                yield data
            return
        while size := await _chunk_size(reader):
            if size < 0:
                raise NotHttpError("the answer is not HTTP/1.1")
            while size:
                data = await reader.readexactly(min(size, MAX_HEAD_BYTES))
                yield data
                size -= len(data)
            await reader.readexactly(2)


@contextlib.contextmanager
def _problems_named() -> Iterator[None]:
    """Raise NotHttpError for what a StreamReader or a parser raises."""
    try:
        yield
    except asyncio.IncompleteReadError as error:
        if _HTTP2_SETTINGS.match(error.partial):
            raise NotHttpError("it speaks HTTP/2 alone; devices need HTTP/1.1") from error
        what = "in the middle of its answer" if error.partial else "without an answer"
        raise NotHttpError(f"the other side closed the connection {what}") from error
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise NotHttpError("the answer is not HTTP/1.1") from error


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    return int((await reader.readuntil(b"\r\n")).split(b";")[0].strip(), 16)


async def _read_body(reader: asyncio.StreamReader, response: Response, limit: int) -> bytes:
    """Cases: chunked; with a length; neither, so the body extends to the end of the connection."""
    if (response.header("Transfer-Encoding") or "").lower() == "chunked":
        return await _read_chunks(reader, limit)
    length = response.header("Content-Length")
    if length is not None:
        size = int(length)
        if not 0 <= size <= limit:
            raise NotHttpError(f"the answer's body is declared to have {size} bytes")
        return await reader.readexactly(size)
    body = b""
    while data := await reader.read(MAX_HEAD_BYTES):
        body += data
        if len(body) > limit:
            raise NotHttpError("the answer's body does not end")
    return body


async def _read_chunks(reader: asyncio.StreamReader, limit: int) -> bytes:
    body = b""
    while size := await _chunk_size(reader):
        if not 0 < size <= limit - len(body):
            raise NotHttpError("the answer's body does not end")
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return body


def json_value(body: bytes) -> object:
    """Parse ``body`` as JSON; None if it is invalid (the contract never sends a bare null)."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
