"""Whether a stream's audio keeps up with its worker. Pure."""

from __future__ import annotations

from typing import Final

BEHIND_S: Final = 2.0
"""A stream is behind once its worker has waited this long without receiving audio for that time. Late packets take
less, and so do Ogg pages, which contain a second each."""


class Pace:
    """The pace of one stream, from the moment it gets a worker. ``now`` is monotonic seconds.

    The lag is the time that the worker waits for audio, minus the duration of the audio that arrives. A device that
    speaks makes up for each pause between packets with its next packet. A device that sends a byte now and then, or a
    tenth of a second per second, does not. Audio that arrives early earns no credit.
    """

    __slots__ = ("_at", "_audio_s", "_lag_s", "_waited_s")

    def __init__(self, now: float) -> None:
        self._at, self._lag_s, self._audio_s, self._waited_s = now, 0.0, 0.0, 0.0

    def __repr__(self) -> str:
        return f"<Pace {self._lag_s:.3f} s behind at {self._at:.3f}>"

    def report(self, now: float, audio_s: float, waited_s: float) -> None:
        """Record how much audio the worker has decoded and how long it has waited, both since it got the stream."""
        lag_s = self._lag_s + (waited_s - self._waited_s) - (audio_s - self._audio_s)
        self._at, self._lag_s, self._audio_s, self._waited_s = now, max(0.0, lag_s), audio_s, waited_s

    def behind_at(self, *, is_waiting: bool) -> float | None:
        """When the stream will be behind if no more audio arrives; None: not while this lasts.

        :param is_waiting: the worker has nothing left to do
        """
        if self._lag_s >= BEHIND_S:
            return self._at
        return self._at + BEHIND_S - self._lag_s if is_waiting else None
