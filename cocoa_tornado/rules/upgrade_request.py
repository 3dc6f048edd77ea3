"""A device's upgrade request, and a fast path to read one. Pure.

Nearly every device sends the whole head of its request at once and in the plainest form. :func:`recognize` reads only
that form. A head that it does not recognize is not invalid: Tornado parses it, and the same rules apply.
``tests/rules/test_upgrade_request.py`` checks that Tornado reads every recognized head in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from .request_head import MAX_HEAD_BYTES, MAX_QUERY_FIELDS

DEVICE_PATH: Final = "/ws"

_HEAD: Final = re.compile(
    rb"GET /ws(?:\?([A-Za-z0-9._~=&-]*))? HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[\t\x20-\x7e]*\r\n){1,64})\r\n"
)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_NOT_PLAIN: Final = frozenset({"content-length", "transfer-encoding", "expect"})
"""Fields of a request with a body."""


class UpgradeRequest(NamedTuple):
    """The parts of an upgrade request that its answer depends on, from any parser.

    :ivar arguments: the query's, decoded
    :ivar headers: looked up by names in lower case; the values of a repeated field are joined with commas
    :ivar host: the host that the client has requested
    """

    arguments: Mapping[str, Sequence[bytes]]
    headers: Mapping[str, str]
    host: str
    version: str = "HTTP/1.1"


class Recognized(NamedTuple):
    """:ivar size: bytes of the head; what follows them is WebSocket frames"""

    request: UpgradeRequest
    size: int


def recognize(received: bytes) -> Recognized | None:
    """Read a complete head in the plain form: ASCII, no escapes in the query, no repeated field, one Host, no body.
    None: it needs a parser."""
    found = _HEAD.match(received)
    if found is None or found.end() > MAX_HEAD_BYTES:
        return None
    query: bytes = found[1] or b""
    headers = _fields(found[2])
    if headers is None or query.count(b"&") >= MAX_QUERY_FIELDS:
        return None
    host = headers.get("host", "")
    if not _HOST.fullmatch(host) or not _NOT_PLAIN.isdisjoint(headers):
        return None
    return Recognized(UpgradeRequest(_arguments(query), headers, host), found.end())


def _fields(lines: bytes) -> dict[str, str] | None:
    """None: one stands there twice."""
    fields = [line.partition(":") for line in lines.decode("ascii").split("\r\n")[:-1]]
    headers = {name.lower(): value.strip(" \t") for name, _, value in fields}
    return headers if len(headers) == len(fields) else None


def _arguments(query: bytes) -> dict[str, list[bytes]]:
    arguments: dict[str, list[bytes]] = {}
    for argument in filter(None, query.split(b"&")):
        name, _, value = argument.partition(b"=")
        arguments.setdefault(name.decode("ascii"), []).append(value)
    return arguments
