"""The speech port: audio in, words out. What the gateway asks of whatever recognises speech.

Recognition happens elsewhere, in worker processes: nothing here holds the IOLoop. All methods belong to the IOLoop
thread.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..rules.audio import AudioFormat


class SpeechState(enum.Enum):
    """What an engine can do right now."""

    LOADING = "loading"  # no worker has its model yet
    READY = "ready"
    FAILED = "failed"  # workers end before they are ready; they are started again, ever more slowly
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class SpeechStatus:
    """A snapshot; cheap.

    :ivar detail: one line for people: the engine and its model, or what keeps it from working
    :ivar workers: processes that have their model; :ivar busy: of them, at work; :ivar queued: streams that wait
    :ivar parked: streams that are behind, and have given their worker back
    :ivar kept_bytes: audio of all streams that is kept in case that they lose their worker
    :ivar taken_back: how often one did, so far
    """

    state: SpeechState
    detail: str
    workers: int = 0
    busy: int = 0
    queued: int = 0
    parked: int = 0
    kept_bytes: int = 0
    taken_back: int = 0


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said.

    :ivar text: empty where there was no speech
    :ivar audio_s: length of the audio, decoded
    :ivar queue_s: time that the stream waited for a worker
    :ivar busy_s: processor time that decoding and recognition took in the worker
    """

    text: str
    audio_s: float
    queue_s: float
    busy_s: float


class SpeechStream(Protocol):
    """One utterance on its way through an engine. Ends with :meth:`finish` or :meth:`cancel`, one of which must be
    called; both may be called in any state, and again."""

    async def feed(self, data: bytes) -> None:
        """Bytes as they came from the device. Suspends while the engine is behind: then nothing more is read from the
        device. Recognition starts with the first of them.

        :raises AudioNotDecodable: these bytes are not what the format says
        :raises AudioTooLong: more than the stream's ``max_audio_s``
        :raises EngineFailed: the worker crashed or got stuck; the stream is lost, the engine goes on
        """

    async def finish(self) -> Transcript:
        """There is no more audio; wait for the words. Raises what :meth:`feed` does."""

    def cancel(self) -> None:
        """Nobody waits for the words any more: free the worker, or the place in the queue. Never raises."""


class SpeechEngine(Protocol):
    """Guarantees of every adapter (the contract suite holds them):

    - *Isolation*: the words of a stream come from its own audio and no other's, however many run at once.
    - *Streaming*: work begins with the first bytes; what all streams together hold in memory is bounded.
    - *Bound*: at most ``workers`` streams at a time and ``queue`` waiting; one more raises SpeechBusy at once. So does
      one more where too many have given their workers back.
    - *Audio that is there*: a stream that is behind the time by two seconds, while others wait with their audio, gives
      its worker to them and does not count as waiting. When it has more audio, or ends, it is heard from its beginning:
      the words are the same, and no hypothesis goes back behind those that were told.
    - *Failure*: a worker that crashes, or makes no progress for the stall time, costs its stream and nobody else's, and
      is replaced.
    """

    def start(self) -> None:
        """Begin to load. Returns at once."""

    def status(self) -> SpeechStatus: ...

    def open(
        self, audio_format: AudioFormat, max_audio_s: float, on_interim: Callable[[str], None] | None = None
    ) -> SpeechStream:
        """A new stream, which may wait for a worker while it takes its first bytes.

        Where no worker has come up for a while, or after :meth:`close`, the stream is a lost one: whatever it is asked
        raises EngineFailed.

        :param on_interim: called with each growing hypothesis, on the IOLoop, never after the stream has ended
        :raises SpeechBusy: the queue is full
        """

    async def close(self) -> None:
        """End every stream with EngineFailed, and every worker. Idempotent."""
