"""The protocol between the gateway and a worker process, over the worker's pipes. Pure: bytes in, frames out.

A frame is its payload's length (4 bytes, big-endian), its kind (1 byte) and the payload. An utterance::

    gateway                    worker
                        READY  once, when the model is loaded (or FAILED, and the process ends)
    BEGIN
    AUDIO ...        PROGRESS  ... how much AUDIO it has consumed, and how long it has waited for more
                      INTERIM  ... if requested
    END, or CANCEL
                DONE or FAILED exactly one for every BEGIN, whatever goes wrong, and whenever

FAILED may come before END; the worker then skips the rest of that utterance. The gateway sends the next BEGIN only
after DONE or FAILED, and never has more than :data:`WINDOW_BYTES` of audio in flight. So a CANCEL is never stuck behind
audio, and neither side ever holds more than that.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Final, Literal, TypeVar

import msgspec

from ..errors import EngineFailed
from ..rules.audio import AudioFormat

MAX_PAYLOAD_BYTES: Final = 64 * 1024
"""The largest payload in either direction. Texts are far smaller; a broken worker costs the gateway this much, once."""

MAX_AUDIO_BYTES: Final = 16 * 1024
"""Audio in one frame. Small, so that the worker can start with the first of it."""

WINDOW_BYTES: Final = 64 * 1024

_HEADER: Final = struct.Struct("!IB")
_PROGRESS: Final = struct.Struct("!Qdd?")

Message = TypeVar("Message")


class Kind(enum.IntEnum):
    """Kinds below 16 go to the worker, the others come from it."""

    BEGIN = 1  # JSON: Begin
    AUDIO = 2  # as received from the device
    END = 3
    CANCEL = 4
    READY = 16  # JSON: Ready
    PROGRESS = 17  # Progress: three big-endian integers of 8 bytes, and a byte that is 0 or 1
    INTERIM = 18  # UTF-8
    DONE = 19  # JSON: Done
    FAILED = 20  # JSON: Failed


TO_WORKER: Final = frozenset(kind for kind in Kind if kind < 16)
FROM_WORKER: Final = frozenset(kind for kind in Kind if kind >= 16)


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Begin:
    """An utterance begins.

    :ivar format: the declared format; the first bytes may contradict it
    """

    format: AudioFormat
    want_interim: bool
    max_audio_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """:ivar detail: one line: the engine, its model and language."""

    detail: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of this utterance since BEGIN.

    :ivar consumed: bytes of AUDIO
    :ivar audio_s: duration of the decoded audio
    :ivar waited_s: time spent idle for lack of AUDIO
    :ivar is_waiting: the worker is idle now
    """

    consumed: int
    audio_s: float = 0.0
    waited_s: float = 0.0
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """:ivar audio_s: duration of the decoded audio; :ivar busy_s: CPU time for the utterance."""

    text: str
    audio_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """:ivar detail: one line for the log and, for ``not_decodable``, for the caller."""

    kind: Literal["not_decodable", "too_long", "engine", "cancelled"]
    detail: str


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Encode a frame.

    :raises ValueError: the payload exceeds ``MAX_PAYLOAD_BYTES``
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {len(payload)} bytes; a frame takes {MAX_PAYLOAD_BYTES}")
    return _HEADER.pack(len(payload), kind) + payload


def json_frame(kind: Kind, message: Begin | Ready | Done | Failed) -> bytes:
    return frame(kind, msgspec.json.encode(message))


def progress_frame(progress: Progress) -> bytes:
    return frame(
        Kind.PROGRESS, _PROGRESS.pack(progress.consumed, progress.audio_s, progress.waited_s, progress.is_waiting)
    )


def progress_of(progress: Frame) -> Progress:
    """Decode a PROGRESS frame.

    :raises EngineFailed: it is malformed
    """
    if len(progress.payload) != _PROGRESS.size:
        raise EngineFailed("invalid frame from the worker: progress without its numbers")
    consumed, audio_s, waited_s, is_waiting = _PROGRESS.unpack(progress.payload)
    if not (0 <= audio_s < inf and 0 <= waited_s < inf):
        raise EngineFailed("invalid frame from the worker: progress of no length")
    return Progress(consumed, audio_s, waited_s, is_waiting)


def message_of(of: Frame, kind: type[Message]) -> Message:
    """Decode the JSON in a frame.

    :raises EngineFailed: it is malformed
    """
    try:
        return msgspec.json.decode(of.payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineFailed(f"invalid frame from the worker: {of.kind.name} is no {kind.__name__}") from error


class PipeReader:
    """Splits a byte stream into frames. Holds at most one incomplete frame."""

    __slots__ = ("_allowed", "_buffer")

    def __init__(self, allowed: frozenset[Kind]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes, in order. Iterate to the end.

        :raises EngineFailed: not a frame, or of a kind that this side may not send; the stream is lost
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEADER.size:
                length, number = _HEADER.unpack_from(buffer, start)
                # Check the header before the payload arrives, so that nothing is buffered for an invalid frame.
                if number not in self._allowed or length > MAX_PAYLOAD_BYTES:
                    head = bytes(buffer[start : start + 40])
                    start = len(buffer)
                    raise EngineFailed(f"invalid frame from the worker: {head!r}")
                begin, end = start + _HEADER.size, start + _HEADER.size + length
                if len(buffer) < end:
                    break
                start = end
                yield Frame(Kind(number), bytes(buffer[begin:end]))
        finally:
            # Even if not iterated to the end: no frame is yielded twice.
            del buffer[:start]
