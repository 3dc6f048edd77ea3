"""The messages between the parent and a worker, over a socket pair of the two. Pure: bytes in, messages out.

A message is the length of its JSON (4 bytes, big-endian) and the JSON. Both directions keep the order; nothing is lost
unless one of the two ends. The worker begins with ``Up``; every other message may come at any time after it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Generic, Literal, TypeVar

import msgspec

Topic = Literal["metrics", "ready"]

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""The longest JSON. A page of metrics has some 40 KB."""

_LENGTH: Final = struct.Struct("!I")


class Up(msgspec.Struct, frozen=True, tag="up"):
    """The worker serves."""


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """The worker's event loop runs. Sent every ``BEAT_S`` after ``Up``."""


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """The worker has drained; no more beats."""


class Reloaded(msgspec.Struct, frozen=True, tag="reloaded"):
    """One ``Reload`` was carried out, or refused; the worker has logged which."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """The worker needs an answer that covers all workers.

    :ivar number: repeated in ``Gathered``
    """

    number: int
    topic: Topic


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The worker's own answer to a ``Question``: the text of its metrics, or JSON (``Report``)."""

    number: int
    text: str


class Question(msgspec.Struct, frozen=True, tag="question"):
    """The parent asks every worker, the one that needs the answer as well."""

    number: int
    topic: Topic


class Gathered(msgspec.Struct, frozen=True, tag="gathered"):
    """The answer to ``Ask``: the text of all metrics, or JSON (``Report``)."""

    number: int
    text: str


class Reload(msgspec.Struct, frozen=True, tag="reload"):
    """Read the settings again (SIGHUP)."""


class Report(msgspec.Struct, frozen=True):
    """The answer about ``ready``, as JSON in the text of an ``Answer`` or ``Gathered``."""

    draining: bool
    parts: dict[str, dict[str, object]]


FromWorker = Up | Beat | Leaving | Reloaded | Ask | Answer
FromParent = Question | Gathered | Reload

M = TypeVar("M", FromWorker, FromParent)


class BrokenChannel(Exception):
    """The received bytes are not a message: a bug, or another release. The channel is lost."""


def encode(message: FromWorker | FromParent) -> bytes:
    data = msgspec.json.encode(message)
    return _LENGTH.pack(len(data)) + data


class MessageReader(Generic[M]):
    """Splits a byte stream into messages. Holds at most one incomplete message.

    :param kind: ``FromWorker`` or ``FromParent``
    """

    def __init__(self, kind: type[M]) -> None:
        self._decoder: msgspec.json.Decoder[M] = msgspec.json.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Yield the messages that ``data`` completes, in order. Iterate to the end.

        :raises BrokenChannel: see there
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > MAX_MESSAGE_BYTES:
                raise BrokenChannel(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(buffer) < end:
                return
            body = bytes(buffer[_LENGTH.size : end])
            del buffer[:end]
            try:
                yield self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BrokenChannel(str(error)) from error
