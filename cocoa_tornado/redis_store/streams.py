"""Commands and replies on the streams of an open connection of redis-py.

redis-py spends 100 us and more of CPU time on each round trip, which is as much as half a handshake. Its connection
object opens the connection, with TLS, authentication and all else; what follows needs two private attributes of it.
Read against redis-py 8.1.0. Where they are something else, or hiredis is missing, redis-py sends and reads by itself.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from redis import exceptions as errors

try:
    from hiredis import Reader
except ImportError:  # pragma: no cover  # the extra redis installs it; redis-py works without
    Reader = None  # type: ignore[assignment, misc]  # a class or None

_READ_BYTES: Final = 64 * 1024
_CLASSES: Final[dict[str, type[errors.ResponseError]]] = {
    "NOSCRIPT": errors.NoScriptError,
    "READONLY": errors.ReadOnlyError,
}


class Streams:
    """Of one open connection, with nothing under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._parser: Any = Reader(replyError=_refusal)

    def are_of(self, connection: Any) -> bool:
        return connection._reader is self._reader

    async def ask(self, request: bytes, count: int, patience_s: float) -> list[Any]:
        """Send commands and read so many replies; the reply to a rejected one is a ResponseError.

        After any exception, the connection cannot be used any more.

        :raises errors.ConnectionError, errors.TimeoutError:
        """
        parser, replies = self._parser, list[Any]()
        try:
            async with asyncio.timeout(patience_s):
                self._writer.write(request)
                await self._writer.drain()
                while len(replies) < count:
                    reply = parser.gets()
                    if reply is not False:
                        replies.append(reply)
                        continue
                    data = await self._reader.read(_READ_BYTES)
                    if not data:
                        raise errors.ConnectionError("the server has closed the connection")
                    parser.feed(data)
        except TimeoutError as error:
            raise errors.TimeoutError("no reply in time") from error
        except OSError as error:
            raise errors.ConnectionError(str(error)) from error
        return replies


def streams_of(connection: Any) -> Streams | None:
    """Those of an open connection of redis-py; None: it must be used itself."""
    reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    if Reader is None or not isinstance(reader, asyncio.StreamReader) or not isinstance(writer, asyncio.StreamWriter):
        return None
    return Streams(reader, writer)


def _refusal(text: str) -> errors.ResponseError:
    # As redis-py does, which removes the word of an error that has none of its own.
    return _CLASSES.get(text.partition(" ")[0], errors.ResponseError)(text.removeprefix("ERR "))
