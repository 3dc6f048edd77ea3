"""The messages between two workers, over a stream socket. Pure: bytes in, messages out.

A message is its length (4 bytes, big-endian) and MessagePack. Both ends begin with :class:`Hello`. Workers run the same
release, except that a worker may be restarted after an upgrade of the package: two of different versions hand nothing
over to each other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final, TypeAlias

import msgspec

from ..rules.addressing import Options
from ..rules.records import Record
from .pieces import Merged

VERSION: Final = 1
MAX_BYTES: Final = 256 * 1024 * 1024
"""Of a message. The longest are those that announce all devices, and a single record as large as Kafka allows."""
_LENGTH: Final = struct.Struct("!I")


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """:ivar number: of the worker that sends it"""

    version: int
    number: int


class News(msgspec.Struct, frozen=True, array_like=True, tag="news"):
    """The changes since the last news.

    :ivar server: the sender's address in the relay; '' if it has none
    :ivar upto: the number of the latest announcement
    :ivar here: devices that have connected to the sender
    :ivar gone: devices that have left it
    :ivar acknowledged: the number of the latest portion that the sender has taken
    :ivar returned: by portion, the positions of the records that it returns
    :ivar fences: those that it has received
    """

    server: str
    upto: int
    here: list[str]
    gone: list[str]
    acknowledged: int
    returned: dict[int, list[int]]
    fences: list[int]


class Records(msgspec.Struct, frozen=True, array_like=True, tag="records"):
    """A portion: records that are handed over, column by column, which takes half the time of record by record.

    :ivar number: of the portion
    :ivar seen: the receiver's announcements that were known when the records were assigned
    """

    number: int
    seen: int
    device_ids: list[str]
    payloads: list[bytes]
    timestamps_ms: list[int]
    interims_of: list[str]
    options: list[Options | None]
    offsets: list[int]
    sources: list[tuple[str, int]]

    def records(self) -> list[Record]:
        columns = zip(
            self.device_ids,
            self.payloads,
            self.timestamps_ms,
            repeat(True),
            self.interims_of,
            self.options,
            strict=False,
        )
        return [_NEW(Record, fields) for fields in columns]

    def is_whole(self) -> bool:
        """Whether all columns have the same length."""
        columns: list[Sequence[object]] = [self.device_ids, self.payloads, self.timestamps_ms, self.interims_of]
        lengths = {len(column) for column in (*columns, self.options, self.offsets)}
        return lengths == {sum([count for _, count in self.sources])}


Message: TypeAlias = Hello | News | Records


class BrokenLink(Exception):
    """The received bytes are not a message: a bug, or another release."""


_NEW = tuple.__new__
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder(Message).decode


def encode(message: Message) -> bytes:
    data = _ENCODE(message)
    return _LENGTH.pack(len(data)) + data


def records_of(number: int, seen: int, portion: Merged) -> Records:
    device_ids, payloads, timestamps_ms, _, interims_of, options = map(list, zip(*portion.records, strict=True))
    columns = (device_ids, payloads, timestamps_ms, interims_of, options)
    return Records(number, seen, *columns, list(portion.offsets), list(portion.sources))


class MessageReader:
    """Splits a byte stream into messages. Holds at most one incomplete message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that ``data`` completes, in order. Iterate to the end.

        :raises BrokenLink: see there
        """
        buffer = self._buffer
        buffer += data
        begin = 0
        try:
            while len(buffer) - begin >= _LENGTH.size:
                length = _LENGTH.unpack_from(buffer, begin)[0]
                if length > MAX_BYTES:
                    raise BrokenLink(f"a message of {length} bytes")
                end = begin + _LENGTH.size + length
                if len(buffer) < end:
                    return
                body = bytes(buffer[begin + _LENGTH.size : end])
                begin = end
                yield _decoded(body)
        finally:
            del buffer[:begin]


def _decoded(body: bytes) -> Message:
    try:
        message: Message = _DECODE(body)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BrokenLink(str(error)) from error
    if isinstance(message, Records) and not message.is_whole():
        raise BrokenLink("columns of different lengths")
    return message
