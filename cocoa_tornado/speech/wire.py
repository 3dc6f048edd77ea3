"""What the gateway and a worker process say to each other over the worker's pipes. Pure: bytes in, frames out.

A frame is its payload's length (4 bytes, big-endian), its kind (1 byte) and the payload. An utterance::

    gateway                    worker
                        READY  once, when the model is loaded (or FAILED, and the process ends)
    BEGIN
    AUDIO ...        PROGRESS  ... how far it has come with the AUDIO, and how long it has waited for it
                      INTERIM  ... where they were asked for
    END, or CANCEL
                DONE or FAILED exactly one for every BEGIN, whatever went wrong, and whenever

FAILED may come before END; what follows of that utterance is skipped by the worker. The gateway sends the next BEGIN
only after DONE or FAILED, and never has more than :data:`WINDOW_BYTES` of audio sent and not consumed. So a CANCEL is
never stuck behind audio, and neither side ever holds more than that.
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
"""The largest payload either way. Texts are far smaller; a worker gone mad makes the gateway hold this much, once."""

MAX_AUDIO_BYTES: Final = 16 * 1024
"""Audio in one frame. Small, so that the worker begins with the first of it."""

WINDOW_BYTES: Final = 64 * 1024

_HEADER: Final = struct.Struct("!IB")
_PROGRESS: Final = struct.Struct("!Qdd?")

Message = TypeVar("Message")


class Kind(enum.IntEnum):
    """The kinds below 16 go to the worker, the others come from it."""

    BEGIN = 1  # JSON: Begin
    AUDIO = 2  # as it came from the device
    END = 3
    CANCEL = 4
    READY = 16  # JSON: Ready
    PROGRESS = 17  # Progress: three numbers of 8 bytes, big-endian, and a byte that is 0 or 1
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

    :ivar format: what the audio was said to be; its first bytes may say otherwise
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
    """Of this utterance, since BEGIN.

    :ivar consumed: bytes of AUDIO
    :ivar audio_s: length of the audio decoded
    :ivar waited_s: time in which there was nothing to do for want of AUDIO
    :ivar is_waiting: there is nothing to do now
    """

    consumed: int
    audio_s: float = 0.0
    waited_s: float = 0.0
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """:ivar audio_s: length of the audio, decoded; :ivar busy_s: processor time that the utterance took."""

    text: str
    audio_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """:ivar detail: one line for the log and, for ``not_decodable``, for the caller."""

    kind: Literal["not_decodable", "too_long", "engine", "cancelled"]
    detail: str


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """The bytes of a frame.

    :raises ValueError: the payload is larger than a frame may be
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
    """What a PROGRESS frame says.

    :raises EngineFailed: something else
    """
    if len(progress.payload) != _PROGRESS.size:
        raise EngineFailed("the worker spoke nonsense: progress without its numbers")
    consumed, audio_s, waited_s, is_waiting = _PROGRESS.unpack(progress.payload)
    if not (0 <= audio_s < inf and 0 <= waited_s < inf):
        raise EngineFailed("the worker spoke nonsense: progress of no length")
    return Progress(consumed, audio_s, waited_s, is_waiting)


def message_of(of: Frame, kind: type[Message]) -> Message:
    """The JSON in a frame.

    :raises EngineFailed: it is something else
    """
    try:
        return msgspec.json.decode(of.payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineFailed(f"the worker spoke nonsense: {of.kind.name} is no {kind.__name__}") from error


class FrameReader:
    """Cuts a stream of bytes into frames. Holds at most one unfinished frame."""

    __slots__ = ("_allowed", "_buffer")

    def __init__(self, allowed: frozenset[Kind]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes, in order. To be iterated to its end.

        :raises EngineFailed: these are no frames, or none that may come from there; the stream is lost
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEADER.size:
                length, number = _HEADER.unpack_from(buffer, start)
                # Judged before the payload is there: nothing is collected for a frame that will not do.
                if number not in self._allowed or length > MAX_PAYLOAD_BYTES:
                    said = bytes(buffer[start : start + 40])
                    start = len(buffer)
                    raise EngineFailed(f"the worker spoke nonsense: {said!r}")
                begin, end = start + _HEADER.size, start + _HEADER.size + length
                if len(buffer) < end:
                    break
                start = end
                yield Frame(Kind(number), bytes(buffer[begin:end]))
        finally:
            # Also where it is not iterated to its end: no frame comes twice.
            del buffer[:start]
