"""HTTP/1.1 as the probe needs it: a request's bytes, a response's parsing, one exchange on one connection.

Written out here because the probe has to see what libraries hide: that the refusal came *instead of* the upgrade, the
header as it stood, the body byte for byte.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from .target import Target

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 1024 * 1024
USER_AGENT = "cocoa-probe"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


# The first frame of a server that goes by HTTP/2 without asking (RFC 9113, 3.4): its length, type 4, flags, stream 0.
_HTTP2_SETTINGS = re.compile(rb"\0..\x04.\0\0\0\0", re.DOTALL)


class NotHttpError(Exception):
    """What answered does not speak HTTP/1.1, or stopped in the middle of it."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response as it came.

    :ivar headers: name and value, in their order, names as the server spells them
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first header of that name, whatever its case; None if there is none."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Every header of that name, in their order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What a device asks for when it connects.

    :ivar token: None to send none
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
        """The right ``Sec-WebSocket-Accept``."""
        return base64.b64encode(hashlib.sha1(self.key.encode("ascii") + _GUID).digest()).decode("ascii")


def upgrade_request(target: Target, upgrade: Upgrade) -> bytes:
    """The bytes of an opening handshake."""
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
    method: str, path: str, target: Target, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
) -> bytes:
    """The bytes of a request. Header values must hold no line break; all of ours are tokens and constants."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.host_header}", f"User-Agent: {USER_AGENT}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def parse_head(head: bytes) -> Response:
    """Parse a response's status line and headers, up to and with the empty line.

    :raises NotHttpError: that is not what it is
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
) -> Response:
    """Send one request on a connection of its own, and return the response.

    ``route`` is a route of the contract, below the target's prefix. Raises OSError, or :class:`NotHttpError`.
    """
    reader, writer = await open_connection(target)
    try:
        all_headers = [("Connection", "close"), *headers]
        writer.write(request_bytes(method, target.path(route), target, all_headers, body))
        return await read_response(reader)
    finally:
        writer.transport.abort()


async def answer_before_the_end(
    target: Target, route: str, headers: Iterable[tuple[str, str]], patience_s: float
) -> tuple[Response, bool]:
    """POST a chunked body that does not end, until it is answered or the patience is over; then end it.

    Return the answer, and whether it came before the end. Raises as :func:`exchange` does.
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
    """Open a connection, with TLS where the target has it. Raises OSError, :class:`ssl.SSLError` among them."""
    return await asyncio.open_connection(target.host, target.port, ssl=target.tls, limit=MAX_HEAD_BYTES)


async def read_response(reader: asyncio.StreamReader) -> Response:
    """Read one response with its body; the body of a 101 is what comes after, and is left in the reader.

    :raises NotHttpError: it isn't HTTP/1.1, or ends in the middle
    """
    try:
        response = parse_head(await reader.readuntil(b"\r\n\r\n"))
        while 100 <= response.status < 200 and response.status != 101:
            response = parse_head(await reader.readuntil(b"\r\n\r\n"))
        if response.status in (101, 204, 304):
            return response
        return Response(response.status, response.headers, await _read_body(reader, response))
    except asyncio.IncompleteReadError as error:
        if _HTTP2_SETTINGS.match(error.partial):
            raise NotHttpError("it speaks HTTP/2 alone; devices need HTTP/1.1") from error
        what = "in the middle of its answer" if error.partial else "without an answer"
        raise NotHttpError(f"the other side closed the connection {what}") from error
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise NotHttpError("the answer is not HTTP/1.1") from error


async def _read_body(reader: asyncio.StreamReader, response: Response) -> bytes:
    """Cases: chunked; sized; neither: all until the end of the connection."""
    if (response.header("Transfer-Encoding") or "").lower() == "chunked":
        return await _read_chunks(reader)
    length = response.header("Content-Length")
    if length is not None:
        size = int(length)
        if not 0 <= size <= MAX_BODY_BYTES:
            raise NotHttpError(f"the answer's body is said to have {size} bytes")
        return await reader.readexactly(size)
    body = b""
    while data := await reader.read(MAX_HEAD_BYTES):
        body += data
        if len(body) > MAX_BODY_BYTES:
            raise NotHttpError("the answer's body does not end")
    return body


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0].strip(), 16):
        if not 0 < size <= MAX_BODY_BYTES - len(body):
            raise NotHttpError("the answer's body does not end")
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return body


def json_value(body: bytes) -> object:
    """The JSON value in ``body``; None where there is none (the contract never sends a bare null)."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
