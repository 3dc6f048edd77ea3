"""The speech port: audio in, text out.

Recognition happens in worker processes, so nothing here blocks the IOLoop. IOLoop thread only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..rules.audio import AudioFormat


class SpeechState(enum.Enum):
    """The state of an engine."""

    LOADING = "loading"  # no worker has loaded its model yet
    READY = "ready"
    FAILED = "failed"  # workers exit before they are ready; they are restarted with backoff
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class SpeechStatus:
    """A snapshot; cheap.

    :ivar detail: one line for people: the engine and its model, or why it does not work
    :ivar workers: processes that have loaded their model
    :ivar busy: workers that have a stream
    :ivar queued: streams that wait for a worker
    :ivar parked: streams that were behind and have lost their worker
    :ivar kept_bytes: audio of all streams that is kept in case they lose their workers
    :ivar taken_back: times that a stream has lost its worker
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
    """The result of a stream.

    :ivar text: empty if there was no speech
    :ivar audio_s: duration of the decoded audio
    :ivar queue_s: time that the stream waited for a worker
    :ivar busy_s: CPU time for decoding and recognition
    """

    text: str
    audio_s: float
    queue_s: float
    busy_s: float


class SpeechStream(Protocol):
    """One utterance in an engine. Call :meth:`finish` or :meth:`cancel` to end it; both may be called in any state, and
    repeatedly."""

    async def feed(self, data: bytes) -> None:
        """Add bytes as received from the device. Suspends while the engine is behind, as backpressure for the device.
        Recognition starts with the first bytes.

        :raises AudioNotDecodable: the bytes are not in the declared format
        :raises AudioTooLong: more than the stream's ``max_audio_s``
        :raises EngineFailed: the worker crashed or got stuck; the stream is lost, the engine continues
        """

    async def finish(self) -> Transcript:
        """End the audio and wait for the transcript. Raises like :meth:`feed`."""

    def cancel(self) -> None:
        """Abandon the stream: free the worker, or the room in the queue. Never raises."""


class SpeechEngine(Protocol):
    """Guarantees of every adapter (tested by the contract suite):

    - *Isolation*: a stream's text comes from its own audio only, however many streams run at once.
    - *Streaming*: work begins with the first bytes; the memory of all streams together is bounded.
    - *Bound*: at most ``workers`` streams run and ``queue`` wait; another raises SpeechBusy at once. If too
      many streams are parked, it takes the place of the one that has been parked longest, which fails with SpeechBusy,
      but not within 10 s of being parked.
    - *Available audio*: a stream that is two seconds behind, while others wait with their audio, loses its worker to
      them and does not count as waiting. When it has more audio, or ends, it is processed from its beginning: the
      transcript is the same, and no interim is older than those already published.
    - *Failure*: a worker that crashes, or makes no progress for the stall time, costs only its own stream, and is
      replaced.
    """

    def start(self) -> None:
        """Start loading. Returns at once."""

    def status(self) -> SpeechStatus: ...

    def open(
        self, audio_format: AudioFormat, max_audio_s: float, on_interim: Callable[[str], None] | None = None
    ) -> SpeechStream:
        """Open a stream, which may wait for a worker while it takes its first bytes.

        If no worker could be started for a while, or after :meth:`close`, the stream is lost: its methods raise
        EngineFailed.

        :param on_interim: called with each interim, on the IOLoop, never after the stream has ended
        :raises SpeechBusy: the queue is full
        """

    async def close(self) -> None:
        """End every stream with EngineFailed, and every worker. Idempotent."""
