"""Whether a stream's audio keeps up with the time that a worker gives it. Pure."""

from __future__ import annotations

from typing import Final

BEHIND_S: Final = 2.0
"""A stream is behind once its worker has waited for so long without the audio to show for it. Packets that are late
take less, and so do pages of Ogg, which hold a second each."""


class Pace:
    """One stream's, from the moment it gets a worker. ``now`` is monotonic seconds.

    What counts is the time in which the worker waits for audio, less the audio that comes: a device that speaks makes
    up for each pause between two packets with the next packet. One that sends a byte now and then doesn't, nor does one
    that sends a tenth of a second each second. Audio that came early is no credit.
    """

    __slots__ = ("_at", "_audio_s", "_lag_s", "_waited_s")

    def __init__(self, now: float) -> None:
        self._at, self._lag_s, self._audio_s, self._waited_s = now, 0.0, 0.0, 0.0

    def __repr__(self) -> str:
        return f"<Pace {self._lag_s:.3f} s behind at {self._at:.3f}>"

    def heard(self, now: float, audio_s: float, waited_s: float) -> None:
        """The worker says how much audio it has decoded and how long it has waited, both since it has the stream."""
        lag_s = self._lag_s + (waited_s - self._waited_s) - (audio_s - self._audio_s)
        self._at, self._lag_s, self._audio_s, self._waited_s = now, max(0.0, lag_s), audio_s, waited_s

    def behind_at(self, *, is_waiting: bool) -> float | None:
        """When the stream is behind if nothing more is heard; None: not before that.

        :param is_waiting: the worker has nothing left to do
        """
        if self._lag_s >= BEHIND_S:
            return self._at
        return self._at + BEHIND_S - self._lag_s if is_waiting else None
